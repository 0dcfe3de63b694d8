"""Report the quality of a detector's decisions on labelled rows, on the terminal and in MLflow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from anomaly_vae import plots
from anomaly_vae.config.base import canonical_span, span_seconds
from anomaly_vae.config.calibration import CostConfig
from anomaly_vae.data.arrow import levels_from_arrow, numbers_from_arrow
from anomaly_vae.data.converters import Levels
from anomaly_vae.errors import ConfigError, DataError
from anomaly_vae.evaluation.cost_sensitive import CardPrecision, Savings
from anomaly_vae.evaluation.leakage import (
    Duplicates,
    SingleFeatureAUROC,
    single_feature_aurocs,
    warnings,
)
from anomaly_vae.evaluation.metrics import DEFAULT_TOP, Evaluation
from anomaly_vae.evaluation.p_values import (
    KS_DISTANCE,
    KS_P_VALUE,
    Exchangeability,
    uniformity_points,
)
from anomaly_vae.evaluation.report import EvaluationReport
from anomaly_vae.evaluation.slices import column_slices
from anomaly_vae.messages import NOUNS
from pipelines import console
from pipelines.batch.common import warn_missing_group
from pipelines.datasets.labels import column_codes
from pipelines.datasets.loading import NO_OPTIONS, LabelledInput, load_labelled
from pipelines.registry.model_uri import LoadedModel, open_registry
from pipelines.reports.in_words import in_words
from pipelines.reports.labelled import Judged, Labelled, judge
from pipelines.reports.late_labels import with_late_labels
from pipelines.reports.model_card import figure_rows

if TYPE_CHECKING:
    from anomaly_vae.lifecycle.registry import Run, Version
    from pipelines.reports.masks import PixelReport

Mask = NDArray[np.bool_]
SHOWN_SLICES = 12
"""Maximum number of slices that are printed."""
SAME_SCORE = 1e-7
"""Relative difference up to which scores are equal, due to float32 arithmetic in batches."""
SAME_AS_CALIBRATION = "have the very score of a calibration row, and may have calibrated the model"
"""Text of the warning about test rows with the score of a calibration row."""


@dataclass(frozen=True)
class ReportOptions:
    """The options of a report, mostly from the configuration."""

    top: int = DEFAULT_TOP
    entity: str | None = None
    slices: tuple[str, ...] = ()
    costs: CostConfig | None = None
    confidence: float = 0.95
    weight: float = 1.0
    """Number of anomalies in traffic that each anomaly here represents."""
    ks_limits: tuple[float, float] | None = (KS_DISTANCE, KS_P_VALUE)
    """Limits of distance and p-value of the Kolmogorov–Smirnov test; None for no limit."""

    @classmethod
    def of(cls, config: Mapping[str, Any], top: int | None = None, **known: Any) -> Self:
        """Read the options from a manifest's configuration; ``top`` overrides its number."""
        evaluation, calibration = config.get("evaluation", {}), config["calibration"]
        by_cost = calibration["method"] == "cost"
        return cls(
            top or evaluation.get("top", DEFAULT_TOP),
            evaluation.get("entity") or config["data"]["group"],
            tuple(evaluation.get("slices", ())),
            CostConfig(**calibration["costs"]) if by_cost else None,
            **known,
        )


@dataclass(frozen=True, eq=False)
class SeenRows:
    """Rows (N,) that the model may have seen, and the wording of the warning about them."""

    rows: Mask
    wording: str


@dataclass(frozen=True, eq=False)
class Reporter:
    """A detector's decisions on labelled rows, and the options of the report on them."""

    judged: Judged
    options: ReportOptions = field(default_factory=ReportOptions)

    def report(self, seen: SeenRows | None = None) -> EvaluationReport:
        """Evaluate the rows that have a label and a score.

        Args:
            seen: rows that the model may have seen, which are counted and warned about.
        """
        judged, options = self.judged, self.options
        rows, calibration = judged.known, judged.detector.calibration
        found, anomaly = judged.decisions(rows), self._known(judged.labelled.anomaly)
        group = judged.labelled.units(rows)
        figures = replace(
            judged.evaluate(None, options.confidence, options.top),
            **self._cards(),
            **self._savings(),
        )
        slices = column_slices(
            self._columns(), found, anomaly, calibration, options.confidence, group
        )
        suspects = self._single_features()
        twins = Duplicates.from_mask(self._known(seen.rows), anomaly, found.score) if seen else None
        twin_note = twins.warning(len(anomaly), seen.wording) if twins and seen else None
        return EvaluationReport(
            figures,
            tuple(slices),
            tuple(
                uniformity_points(found.p_value, anomaly, calibration, options.confidence, group)
            ),
            tuple(suspects),
            twins,
            (
                *warnings(suspects, figures.auroc),
                *filter(None, (twin_note, self._calibration_warning(figures))),
            ),
            judged.period,
            judged.labels,
        )

    def _calibration_warning(self, figures: Evaluation) -> str | None:
        """Return a warning if the rows are not exchangeable with the calibration rows."""
        distance, p_value, limits = figures.ks, figures.ks_p_value, self.options.ks_limits
        if distance is None or p_value is None or limits is None:
            return None
        return Exchangeability(distance, p_value, *limits).warning

    def _known(self, values: NDArray[Any]) -> NDArray[Any]:
        """Select the values of the `Judged.known` rows from values (N,)."""
        return values[self.judged.known]

    def _cards(self) -> dict[str, Any]:
        """Compute card precision, if rows have a time and an entity column."""
        labelled, options = self.judged.labelled, self.options
        entity = options.entity
        if labelled.seconds is None or not entity or entity not in labelled.table.column_names:
            return {}
        card = column_codes(labelled.table, entity)
        cards = CardPrecision(
            self._known(self.judged.score),
            self._known(labelled.anomaly),
            self._known(card),
            self._known(labelled.seconds),
            options.top,
        )
        return {
            "card_precision": _none_for_nan(cards.precision()),
            "card_precision_interval": cards.interval(options.confidence),
        }

    def _savings(self) -> dict[str, Any]:
        """Compute the cost saved, if costs and the amounts of all anomalies are known."""
        options, anomaly = self.options, self._known(self.judged.labelled.anomaly)
        if options.costs is None:
            return {}
        amounts = self._amounts(options.costs.amount)
        if amounts is not None and not (amounts[anomaly] >= 0).all():
            column = options.costs.amount
            console.info(f"cost saved is unknown: anomalies without an amount in '{column}'")
            return {}
        found = self.judged.decisions(self.judged.known)
        savings = Savings.from_decisions(found, anomaly, options.costs, amounts, options.weight)
        units = self.judged.labelled.units(self.judged.known)
        return {
            "cost_saved": savings.per_1000(),
            "cost_saved_interval": savings.interval(anomaly, units, options.confidence),
        }

    def _amounts(self, column: str | None) -> NDArray[np.float64] | None:
        """Read the amounts (N,); NaN if the table has no such column of numbers."""
        table = self.judged.labelled.table
        if column is None:
            return None
        try:
            values = numbers_from_arrow(table.column(column))[0]
        except (KeyError, DataError):
            values = np.full(len(table), np.nan)
        return self._known(values)

    def _columns(self) -> dict[str, Levels]:
        """Return the columns whose levels are compared: configured columns and the model's."""
        table, known = self.judged.labelled.table, self.judged.known
        configured = [name for name in self.options.slices if name in table.column_names]
        columns = {name: levels_from_arrow(table.column(name))[0] for name in configured}
        models = self.judged.levels.items()
        others = {name: levels for name, levels in models if name not in columns}
        return {name: levels.take(known) for name, levels in (columns | others).items()}

    def _single_features(self) -> list[SingleFeatureAUROC]:
        """Measure how well single columns, or metadata of images, separate anomalies."""
        judged, labelled = self.judged, self.judged.labelled
        if judged.batch is None:
            return []
        known = np.flatnonzero(judged.known)
        batch, anomaly = judged.batch.take(known), labelled.anomaly[known]
        if not labelled.files:
            return single_feature_aurocs(batch.values, anomaly)
        from pipelines.reports.image_metadata import file_metadata, image_statistics

        metadata = file_metadata([labelled.files[row] for row in known])
        features = single_feature_aurocs(metadata, anomaly, "file")
        features += single_feature_aurocs(image_statistics(batch), anomaly, "image")
        return sorted(features, key=lambda feature: -feature.auroc)


def _none_for_nan(value: float) -> float | None:
    return None if np.isnan(value) else value


# ---------------------------------------------------------------- the command


def evaluate_files(
    source: LoadedModel,
    paths: Sequence[str],
    label: str,
    positive: Any = 1,
    top: int | None = None,
    csv: Mapping[str, Any] = NO_OPTIONS,
    label_delay: str | None = None,
    labels: Sequence[str] | None = None,
    history: Sequence[str] = (),
    masks: str | None = None,
) -> dict[str, Any]:
    """Evaluate a model on labelled files and return the JSON object that the command prints.

    The evaluation of a registered version is also logged in a run of its experiment.

    Args:
        source: the model.
        paths: labelled files; see `load_labelled`.
        label: the column with the labels.
        positive: the label that means anomaly.
        top: the number of rows that can be reviewed; None for the configured number.
        csv: keys of `CsvConfig` that differ from the training configuration.
        label_delay: the age from which labels are final, such as ``7d``; None for that of the
            training configuration.
        labels: where late labels are; None for those of the version's configuration.
        history: files with earlier rows, which feed windows only.
        masks: the folder with masks of anomalies, which maps of images are compared with.

    Raises:
        ConfigError: ``label_delay`` is no span of time, or masks are given for a model of tables.
        DataError: the label column is missing, no labelled row can be scored, or no label is final.
    """
    if masks is not None and source.kind != "image":
        raise ConfigError("--masks is for models of images; leave it out")
    detector, config = source.bundle.detector, source.bundle.manifest["config"]
    given = load_labelled(source.bundle, paths, label, csv, history=history)
    warn_missing_group(detector.calibration, given.table.column_names)
    judged = judge(detector, with_labels(source, given, label, positive, label_delay, labels))
    if not judged.known.any() and judged.labels and judged.labels.young:
        raise DataError(
            f"each labelled row is younger than {judged.labels.delay}, counted from the newest one "
            "of these files, so no label is final; give older rows as well or, if these labels are "
            "final, --label-delay 0d"
        )
    if not judged.known.any():
        why = f": {judged.problem}" if judged.problem else ""
        raise DataError(f"none of the {len(given.table)} rows has a label and can be scored{why}")
    seen = SeenRows(equal_scores(judged.score, detector.calibration.scores), SAME_AS_CALIBRATION)
    report = Reporter(judged, ReportOptions.of(config, top)).report(seen)
    show(report, source.kind)
    pixels = _pixels(source, judged, masks)
    if source.version is not None:
        _record(source, judged, report, pixels)
    figures = report.figures
    counts = {"rows": len(given.table), "scored": figures.rows}
    shown = {"pixels": pixels.to_json()} if pixels else {}
    return {
        "metrics": figures.to_json() | (pixels.metrics() if pixels else {}),
        **counts,
        **shown,
        **report.details(),
    }


def _pixels(source: LoadedModel, judged: Judged, masks: str | None) -> PixelReport | None:
    """Compare maps with masks and print the figures; None without masks."""
    if masks is None:
        return None
    from pipelines.reports.masks import pixel_report

    report = pixel_report(source.bundle, judged, masks)
    report.show()
    return report


def with_labels(
    source: LoadedModel,
    given: LabelledInput,
    label: str | None,
    positive: Any,
    label_delay: str | None,
    labels: Sequence[str] | None,
) -> Labelled:
    """Read the labels of given rows, late ones included, and which of them are final.

    Args:
        source: the model.
        given: the rows.
        label: the column with the labels; None if the rows have none.
        positive: the label that means anomaly.
        label_delay: see `evaluate_files`.
        labels: see `evaluate_files`.

    Raises:
        ConfigError: ``label_delay`` is no span of time.
        DataError: the label column is missing, or late labels cannot be read.
    """
    columns = {"label": label, "positive": positive, "group": given.group, "time": given.time}
    columns["time_format"] = given.time_format
    table = given.table
    if label is not None:
        recorded = source.bundle.manifest["config"]["data"].get("label_delay")
        columns["label_delay"] = _label_delay(label_delay or recorded, given)
        if label in table.column_names:
            version = _version(source)
            table = with_late_labels(table, label, positive, source.bundle, version, labels)
    return Labelled.of(table, columns, given.batch, given.files)


def _label_delay(delay: str | None, given: LabelledInput) -> str | None:
    """Return the age from which labels are final; None, with a message, if ages are unknown."""
    try:
        span = canonical_span(delay) if delay else None
    except ValueError as error:
        raise ConfigError(f"--label-delay: {error}") from None
    if span is None or not span_seconds(span):
        return None
    if given.time is None:
        console.info(f"The rows have no times, so labels younger than {span} count as final")
        return None
    return span


def equal_scores(scores: NDArray[np.float64], sample: NDArray[np.float64]) -> Mask:
    """Return a mask of the scores (N,) that equal one of a sorted sample, except for rounding."""
    above = np.searchsorted(sample, scores)
    nearest = sample[np.clip([above - 1, above], 0, len(sample) - 1)]
    return np.asarray((np.abs(nearest - scores) <= SAME_SCORE * np.abs(scores)).any(0))


def _version(source: LoadedModel) -> Version | None:
    """Return the registered version of a model; None for a bundle folder."""
    if source.name is None or source.version is None:
        return None
    return open_registry().version(source.name, source.version)


def _record(
    source: LoadedModel, judged: Judged, report: EvaluationReport, pixels: PixelReport | None
) -> None:
    """Log the evaluation in a new run, as a registered version never changes."""
    client, about = open_registry(), source.to_json()
    version = client.version(about["name"], about["version"])
    experiment = client.experiment_of(version.run_id) if version.run_id else version.name
    tags = {key: str(about[key]) for key in ("name", "version", "digest")}
    with client.run(experiment, "evaluate", tags) as run:
        log(run, judged, report)
        if pixels is not None:
            run.log_metrics(pixels.metrics())
            run.log_json(pixels.to_json(), "pixels.json")


def log(run: Run, judged: Judged, report: EvaluationReport) -> None:
    """Log the figures as metrics, the report as JSON, and plots."""
    rows, anomaly = judged.known, judged.labelled.anomaly[judged.known]
    score = judged.score[rows]
    run.log_metrics(report.figures.metrics())
    run.log_json(report.figures.to_json(), "evaluation.json")
    run.log_json(report.details(), "findings.json")
    run.log_figure(plots.score_histogram(judged.detector, score, anomaly), "plots/scores.png")
    for name, figure in plots.report_figures(report).items():
        run.log_figure(figure, f"plots/{name}.png")
    if report.figures.auroc is not None:
        run.log_figure(plots.ranking(score, anomaly, report.figures), "plots/ranking.png")


# ---------------------------------------------------------------- on the terminal


def show(report: EvaluationReport, kind: str) -> None:
    """Print the figures, the same in words, slices that are flagged too often, and warnings.

    Args:
        report: the report.
        kind: the kind of data, a key of `NOUNS`.
    """
    rows = figure_rows(report.figures.to_json())
    console.table(f"On the test {NOUNS[kind]}", ("figure", "value", "interval"), rows)
    console.info(in_words(report.to_json(), kind))
    if report.labels:
        console.info(f"Labels: {report.labels}.")
    drifted = [one for one in report.slices if one.drifted][:SHOWN_SLICES]
    if drifted:
        console.table(
            "Slices whose normal rows are flagged more often than chance explains",
            ("slice", "rate", "limit", "normal rows"),
            [(s.name, s.fpr.value, s.limit, s.fpr.total) for s in drifted if s.fpr],
        )
    for warning in report.warnings:
        console.info(f"Warning: {warning}")

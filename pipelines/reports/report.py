"""Decisions on labelled rows → a report, on the terminal and in MLflow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from anomaly_vae import plots
from anomaly_vae.config import CostConfig
from anomaly_vae.data.arrow import levels_from_arrow, numbers_from_arrow
from anomaly_vae.data.converters import Levels
from anomaly_vae.data.schema import RawBatch
from anomaly_vae.errors import DataError
from anomaly_vae.evaluation.cost_sensitive import CardPrecision, Savings
from anomaly_vae.evaluation.leakage import (
    Duplicates,
    SingleFeatureAUROC,
    single_feature_aurocs,
    warnings,
)
from anomaly_vae.evaluation.metrics import TOP
from anomaly_vae.evaluation.p_values import uniformity_points
from anomaly_vae.evaluation.report import EvaluationReport
from anomaly_vae.evaluation.slices import column_slices
from pipelines import console
from pipelines.batch.common import tell_without_groups
from pipelines.datasets.dataset import GROUP
from pipelines.datasets.files import find_files, read_table
from pipelines.datasets.labels import group_codes
from pipelines.registry.model_uri import LoadedModel, registry
from pipelines.reports.labelled import Judged, Labelled, judge
from pipelines.reports.model_card import figure_rows

if TYPE_CHECKING:
    from anomaly_vae.lifecycle.registry import Run

Mask = NDArray[np.bool_]
SHOWN_SLICES = 12
SAME = 1e-7
"""By how much scores of one row may differ: arithmetic is in float32, batches are others."""
SEEN = "have the very score of a calibration row, and may have calibrated the model"


@dataclass(frozen=True)
class Wish:
    """What a configuration wants to know of labelled rows."""

    top: int = TOP
    entity: str | None = None
    slices: tuple[str, ...] = ()
    costs: CostConfig | None = None
    confidence: float = 0.95
    weight: float = 1.0
    """how many anomalies of traffic each of these stands for"""

    @classmethod
    def of(cls, config: Mapping[str, Any], top: int | None = None, **known: Any) -> Self:
        """What a manifest records; older ones wish for nothing."""
        wish, calibration = config.get("evaluation", {}), config["calibration"]
        by_cost = calibration["method"] == "cost"
        return cls(
            top or wish.get("top", TOP),
            wish.get("entity") or config["data"]["group"],
            tuple(wish.get("slices", ())),
            CostConfig(**calibration["costs"]) if by_cost else None,
            **known,
        )


@dataclass(frozen=True, eq=False)
class Known:
    """Rows (N,) that the model may have seen, and how a warning says so."""

    rows: Mask
    what: str


@dataclass(frozen=True, eq=False)
class Reporter:
    """A detector's decisions on labelled rows, and what is wanted to be known of them."""

    judged: Judged
    wish: Wish = field(default_factory=Wish)

    def report(self, known: Known | None = None) -> EvaluationReport:
        """All figures of the rows that have a label and a score."""
        judged, wish = self.judged, self.wish
        rows, calibration = judged.known, judged.detector.calibration
        found, anomaly = judged.decisions(rows), self._of(judged.truth.anomaly)
        group = judged.truth.units(rows)
        figures = replace(
            judged.evaluate(None, wish.confidence, wish.top), **self._cards(), **self._savings()
        )
        slices = column_slices(self._columns(), found, anomaly, calibration, wish.confidence, group)
        suspects = self._alone()
        twins = Duplicates.from_mask(self._of(known.rows), anomaly, found.score) if known else None
        twin_note = twins.warning(len(anomaly), known.what) if twins and known else None
        return EvaluationReport(
            figures,
            tuple(slices),
            tuple(uniformity_points(found.p_value, anomaly, calibration, wish.confidence, group)),
            tuple(suspects),
            twins,
            (*warnings(suspects, figures.auroc), *([twin_note] if twin_note else ())),
        )

    def _of(self, values: NDArray[Any]) -> NDArray[Any]:
        """(N,) → of the rows that have a label and a score."""
        return values[self.judged.known]

    def _cards(self) -> dict[str, Any]:
        """Card precision, where there is a time and something that is looked into day by day."""
        truth, wish = self.judged.truth, self.wish
        if truth.seconds is None or wish.entity not in truth.table.column_names:
            return {}
        card = group_codes(truth.table, wish.entity)
        assert card is not None, "there is such a column"
        cards = CardPrecision(
            self._of(self.judged.score),
            self._of(truth.anomaly),
            self._of(card),
            self._of(truth.seconds),
            wish.top,
        )
        return {
            "card_precision": _known(cards.precision()),
            "card_precision_interval": cards.interval(wish.confidence),
        }

    def _savings(self) -> dict[str, Any]:
        """Cost saved, where costs are known, and the amounts of all anomalies."""
        wish, anomaly = self.wish, self._of(self.judged.truth.anomaly)
        if wish.costs is None:
            return {}
        amounts = self._amounts(wish.costs.amount)
        if amounts is not None and not (amounts[anomaly] >= 0).all():
            console.say(f"no cost is told: anomalies without an amount in '{wish.costs.amount}'")
            return {}
        found = self.judged.decisions(self.judged.known)
        savings = Savings.from_decisions(found, anomaly, wish.costs, amounts, wish.weight)
        units = self.judged.truth.units(self.judged.known)
        return {
            "cost_saved": savings.per_1000(),
            "cost_saved_interval": savings.interval(anomaly, units, wish.confidence),
        }

    def _amounts(self, column: str | None) -> NDArray[np.float64] | None:
        """(N,) of the rows; NaN, where the file has no such column of numbers."""
        table = self.judged.truth.table
        if column is None:
            return None
        try:
            values = numbers_from_arrow(table.column(column))[0]
        except (KeyError, DataError):
            values = np.full(len(table), np.nan)
        return self._of(values)

    def _columns(self) -> dict[str, Levels]:
        """The columns whose levels are compared: those asked for, and the model's own."""
        table, known = self.judged.truth.table, self.judged.known
        wished = [name for name in self.wish.slices if name in table.column_names]
        columns = {name: levels_from_arrow(table.column(name))[0] for name in wished}
        own = {name: of for name, of in self.judged.levels.items() if name not in columns}
        return {name: levels.take(known) for name, levels in (columns | own).items()}

    def _alone(self) -> list[SingleFeatureAUROC]:
        """What separates anomalies by itself: columns, or facts of files and images."""
        judged, truth = self.judged, self.judged.truth
        assert judged.batch is not None, "some rows have a score"
        known = np.flatnonzero(judged.known)
        batch, anomaly = judged.batch.take(known), truth.anomaly[known]
        if not truth.files:
            return single_feature_aurocs(batch.values, anomaly)
        from pipelines.reports.image_metadata import file_metadata, image_statistics

        facts = file_metadata([truth.files[row] for row in known])
        found = single_feature_aurocs(facts, anomaly, "file") + single_feature_aurocs(
            image_statistics(batch), anomaly, "image"
        )
        return sorted(found, key=lambda one: -one.auroc)


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value


# ---------------------------------------------------------------- the command


def evaluate_files(
    source: LoadedModel,
    paths: Sequence[str],
    label: str,
    positive: Any = 1,
    top: int | None = None,
) -> dict[str, Any]:
    """The command's answer: metrics over every labelled row that can be scored.

    For a registered version they are recorded in a run of its experiment, too.

    Raises:
        DataError: no such label column, or nothing to score.
    """
    detector, config = source.bundle.detector, source.bundle.manifest["config"]
    table, batch, files = _files(source, paths, label)
    tell_without_groups(detector.calibration, table.column_names)
    policy = {"label": label, "positive": positive, **_units(config, table)}
    judged = judge(detector, Labelled.of(table, policy, batch, files))
    if not judged.known.any():
        why = f": {judged.problem}" if judged.problem else ""
        raise DataError(f"none of the {len(table)} rows has a label and can be scored{why}")
    seen = Known(_same(judged.score, detector.calibration.scores), SEEN)
    report = Reporter(judged, Wish.of(config, top)).report(seen)
    show(report)
    if source.version is not None:
        _record(source, judged, report)
    figures = report.figures
    counts = {"rows": len(table), "scored": figures.rows}
    return {"metrics": figures.to_json(), **counts, **report.details()}


def _same(scores: NDArray[np.float64], sample: NDArray[np.float64]) -> Mask:
    """Which of the scores (N,) are one of a sorted sample, but for rounding in other batches."""
    above = np.searchsorted(sample, scores)
    beside = sample[np.clip([above - 1, above], 0, len(sample) - 1)]
    return np.asarray((np.abs(beside - scores) <= SAME * np.abs(scores)).any(0))


def _files(
    source: LoadedModel, paths: Sequence[str], label: str
) -> tuple[pa.Table, RawBatch | None, tuple[Path, ...]]:
    """What is behind the paths: a table, or the index of images, the images and their files."""
    if source.bundle.manifest["kind"] == "tabular":
        return read_table(find_files(paths)), None, ()
    from pipelines.datasets.images import read_labelled

    return read_labelled(paths, source.bundle.scorer.schema, label)  # type: ignore[arg-type]  # that of a model of images


def _units(config: Mapping[str, Any], table: pa.Table) -> dict[str, str]:
    """The columns of time and group that the model was trained with, where they are here."""
    data, images = config["data"], config["kind"] == "image"
    named = {"time": data.get("time"), "group": GROUP if images else data["group"]}
    return {part: name for part, name in named.items() if name in table.column_names}


def _record(source: LoadedModel, judged: Judged, report: EvaluationReport) -> None:
    """In MLflow: what is registered never changes."""
    client, about = registry(), source.to_json()
    version = client.version(about["name"], about["version"])
    experiment = client.experiment_of(version.run_id) if version.run_id else version.name
    tags = {key: str(about[key]) for key in ("name", "version", "digest")}
    with client.run(experiment, "evaluate", tags) as run:
        log(run, judged, report)


def log(run: Run, judged: Judged, report: EvaluationReport) -> None:
    """In MLflow: figures as metrics, all of it as JSON, plots."""
    rows, anomaly = judged.known, judged.truth.anomaly[judged.known]
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


def show(report: EvaluationReport) -> None:
    """Figures, slices that are flagged too often, and what makes all of it doubtful."""
    rows = figure_rows(report.figures.to_json())
    console.table("On the test rows", ("figure", "value", "interval"), rows)
    drifted = [one for one in report.slices if one.drifted][:SHOWN_SLICES]
    if drifted:
        console.table(
            "Normal rows of these are flagged more often than chance explains",
            ("slice", "rate", "limit", "normal rows"),
            [(s.name, s.fpr.value, s.limit, s.fpr.total) for s in drifted if s.fpr],
        )
    for warning in report.warnings:
        console.say(f"Warning: {warning}")

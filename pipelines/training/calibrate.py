"""Choose a trained model's threshold, evaluate it and register it as challenger."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from anomaly_vae import plots
from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.calibration.conformal import Calibration
from anomaly_vae.calibration.thresholds import choose_threshold
from anomaly_vae.config import Config
from anomaly_vae.config.calibration import CalibrationConfig
from anomaly_vae.config.data import TabularData
from anomaly_vae.config.lifecycle import PromotionConfig
from anomaly_vae.data.splitting import CALIBRATION, TEST, TRAIN, VALIDATION
from anomaly_vae.data.times import parse_time
from anomaly_vae.errors import ConfigError, DataError
from anomaly_vae.evaluation.leakage import single_feature_aurocs
from anomaly_vae.evaluation.leakage import warnings as leak_warnings
from anomaly_vae.evaluation.metrics import Evaluation, rate
from anomaly_vae.evaluation.report import EvaluationReport
from anomaly_vae.images.heatmaps import Scale
from anomaly_vae.lifecycle.registry import (
    CHALLENGER,
    INPUTS_TAG,
    NEWER_LABELS_TAG,
    POLICY_TAG,
    TEST_DIGEST_TAG,
    TEST_TAG,
    TRAINED_RUN_TAG,
    TRAINED_TAG,
    Registry,
    Run,
    Version,
)
from anomaly_vae.monitoring.cycles import Timeline, describe_span
from anomaly_vae.monitoring.exchangeability import (
    Monitor,
    Reference,
    TimedRows,
    fit_reference,
    fit_times,
)
from anomaly_vae.scoring.attribution import sequential_dropout
from anomaly_vae.scoring.detector import Detector
from anomaly_vae.scoring.scorer import ScoredRows, Scorer
from anomaly_vae.scoring.unusual import UnusualTest, fit_unusual_test, learn_typicality
from anomaly_vae.training.known_anomalies import known_choice
from pipelines import console
from pipelines.datasets.dataset import FIT_DIGEST, Dataset
from pipelines.datasets.label_store import is_store
from pipelines.datasets.labels import normal_names, verdicts_of
from pipelines.registry.frozen_test import (
    EXCLUDED,
    LATE_LABELS,
    NEWEST,
    SEEN_UNTIL,
    write_artifact,
)
from pipelines.registry.model_uri import LoadedModel, open_model
from pipelines.reports.labelled import Judged, LabelAges, Labelled, judge, represents_traffic
from pipelines.reports.model_card import card_of
from pipelines.reports.model_card_html import logged_plots, page
from pipelines.reports.report import Reporter, ReportOptions, SeenRows, log, show
from pipelines.training.calibration_sample import model_sample
from pipelines.training.entities import describe_entities, entities_of
from pipelines.training.image_groups import calibrate_groups
from pipelines.training.train import inputs_digest, read_data

TEST_FILE = "test_split.parquet"
"""Name of the run artifact with the test split."""
NEWER_LABELS_FILE = "frozen_labels.parquet"
"""Name of the run artifact with the labels that the data have for the frozen test split."""


@dataclass(frozen=True, eq=False)
class Calibrated:
    """A registered version and its evaluation on the test split."""

    version: Version
    run_id: str
    bundle: Bundle
    report: EvaluationReport
    alias: str | None = CHALLENGER
    """Alias that points to the version; None if it was left where it was."""

    @property
    def evaluation(self) -> Evaluation:
        """The figures of the report."""
        return self.report.figures

    def result(self) -> dict[str, Any]:
        """Return the JSON object that the command prints."""
        return {
            "name": self.version.name,
            "version": self.version.version,
            "alias": self.alias,
            "model_uri": self.version.uri,
            "run_id": self.run_id,
            "digest": self.bundle.digest,
            "threshold": self.evaluation.threshold,
            "alpha": self.evaluation.alpha,
            "calibration": self.bundle.manifest["calibration"],
            "metrics": self.evaluation.to_json(),
            "warnings": list(self.report.warnings),
            **({"labels": self.report.labels.to_json()} if self.report.labels else {}),
            **{k: v for k, v in self.bundle.manifest.items() if k == "image_groups"},
        }


def calibrate(
    config: Config, model: str, data: Dataset | None = None, alias: str | None = CHALLENGER
) -> Calibrated:
    """Choose the threshold on the calibration split, evaluate the test split, and register.

    Args:
        config: the configuration that the model was trained with.
        model: the URI of the trained bundle.
        data: the data set, if it has been read already.
        alias: the alias to point to the version; None to move no alias.

    Raises:
        DataError: the model was trained on another split or on other data.
        ConfigError: the model was trained with another configuration.
        CalibrationError: the calibration split is too small for the threshold.
    """
    trained = open_model(model, config.mlflow.tracking_uri).bundle
    data = data or read_data(config, _spans_until(trained))
    _check_same_split(trained, data)
    _check_same_config(trained, config)
    _check_known(trained, config, data)
    scored = trained.scorer.scored(data.batch.take(data.calibration_rows))
    sample = model_sample(data, config.calibration, trained, scored)
    chosen = choose_threshold(sample, config.calibration)
    if "note" in chosen.figures:
        console.info(chosen.figures["note"])
    labelled = _test_rows(data, config.calibration.density_ratio)
    judged = judge(Detector(trained.scorer, chosen, trained.manifest["unit"]), labelled)
    report = _report(judged, data, config)
    reference = _reference(trained, chosen, data, scored, config)
    unusual = _unusual_test(trained.scorer, data, config.calibration, scored)
    groups = calibrate_groups(trained.scorer, data, config.calibration.alpha)
    parts = chosen, report.to_json(), reference, unusual, groups
    bundle = _with_config(trained, config).calibrated(*parts)
    show(report, config.kind)
    show_localization(bundle)
    registry = Registry(config.mlflow.tracking_uri)
    experiment = config.mlflow.experiment or config.name
    with registry.run(experiment, "calibrate", {"model": model}) as run:
        test_digest = _log(run, config, judged, data, report, bundle.map_scale)
        tags = {
            INPUTS_TAG: inputs_digest(config, data),
            TEST_TAG: f"runs:/{run.id}/{TEST_FILE}",
            TEST_DIGEST_TAG: test_digest,
            POLICY_TAG: json.dumps(_policy(config, data)),
            TRAINED_TAG: model,
            **({TRAINED_RUN_TAG: model.split("/")[1]} if model.startswith("runs:/") else {}),
            **_log_newer_labels(run, data, config),
        }
        version = registry.register(run, bundle, config.name, tags, alias)
        _log_card(run, registry, LoadedModel(bundle, version.name, version.version))
    console.info(_registered(version, alias))
    return Calibrated(version, run.id, bundle, report, alias)


def show_localization(bundle: Bundle) -> None:
    """Print how well the maps of an image model show inserted lesions, if it was measured."""
    test = bundle.localization
    if test is None:
        return
    console.info(f"Heatmaps: {test}")
    if not test.localizes:
        remedy = test.remedy(bundle.manifest["config"])
        console.info(
            f"This score does not localise, so that no heat is drawn; to see where, {remedy}"
        )


def _registered(version: Version, alias: str | None) -> str:
    """Return a message about the new version and its alias."""
    name, number = version.name, version.version
    if alias:
        return f"{name}: version {number} is @{alias} now"
    return (
        f"{name}: version {number} is registered without an alias, @{CHALLENGER} was not moved; "
        f"promote it with: anomaly-vae promote {name} --version {number}"
    )


def _spans_until(trained: Bundle) -> float | None:
    """Return the time up to which spans of the model's training data reach; None without spans.

    Rows from then on are newer than the model. Counted back from them, the spans of the
    calibration split could reach rows that trained it.
    """
    spans = trained.manifest["data"].get("intervals")
    return parse_time(spans["test"][1]) if spans else None


def _check_same_split(trained: Bundle, data: Dataset) -> None:
    """Check that the model was trained on this split; labels of test rows may have arrived since.

    Raises:
        DataError: calibration rows may have trained the model.
    """
    recorded = trained.manifest["data"]
    if recorded["digest"] == data.digest:
        return
    if data.label_notes and recorded.get(FIT_DIGEST) == data.fit_digest:
        return
    late = ", or before the late labels of training rows arrived," if data.label_notes else ","
    raise DataError(
        f"the model was trained on other rows or another split{late} so its calibration rows may "
        "have trained it; use the configuration and data it was trained with, or train again"
    )


def _check_same_config(trained: Bundle, config: Config) -> None:
    """Check that the model was trained with this configuration, which identifies its version."""
    planned, used = config.recorded(), trained.manifest["config"]
    for section in ("data", "model", "training", "score"):
        for key, value in planned[section].items():
            trained_with = used[section].get(key)
            if key == "known" and trained_with is None:
                continue  # too few labels to learn from, see `_check_known`
            if key != "label_delay" and value is not None and value != trained_with:
                raise ConfigError(
                    f"the model was trained with {section}.{key} {trained_with}, the "
                    f"configuration says {value}; correct that, or train again",
                    key=f"{section}.{key}",
                )


def _check_known(trained: Bundle, config: Config, data: Dataset) -> None:
    """Check that the model learned from known anomalies if, and only if, it should have."""
    found, choice = (
        "known" in trained.manifest["training"],
        known_choice(config, len(data.known_rows)),
    )
    if found and not choice.wanted:
        reason = "the model was trained with model.known auto, the configuration says off"
    elif choice.on and not found:
        reason = (
            f"the model was trained with model.known off, the configuration says auto, and there "
            f"are {choice.labels:,} labelled anomalies to learn from"
        )
    else:
        return
    raise ConfigError(f"{reason}; correct that, or train again", key="model.known")


def _with_config(trained: Bundle, config: Config) -> Bundle:
    """Return the model with those sections of this configuration that do not affect training."""
    sections = ("calibration", "evaluation", "description")
    planned, used = config.recorded(), trained.manifest["config"]
    delay = {k: v for k, v in planned["data"].items() if k == "label_delay"}
    data = {k: v for k, v in used["data"].items() if k != "label_delay"} | delay
    recorded = {**used, **{key: planned[key] for key in sections}, "data": data}
    return replace(trained, manifest={**trained.manifest, "config": recorded})


def _test_rows(data: Dataset, density_ratio: str | None) -> Labelled:
    """Return the rows of the test split with their labels, groups and times."""
    rows, known = data.assignment.rows(TEST), data.rows
    return Labelled(
        data.table.take(pa.array(rows)),
        known.anomaly[rows],
        known.unlabelled[rows],
        None if known.group is None else known.group[rows],
        None if known.time is None else known.time[rows],
        data.part(TEST),
        represents_traffic(data.test_table, density_ratio),
        tuple(data.files[row] for row in rows) if data.files else (),
        LabelAges(data.label_delay, data.young[rows]) if data.label_delay else None,
    )


def _reference(
    trained: Bundle, chosen: Calibration, data: Dataset, scored: ScoredRows, config: Config
) -> Reference:
    """Summarise the calibration rows for monitoring, with the expected share of anomalies.

    The expected share is the upper end of a confidence interval. It is estimated from the test
    split, which is the latest period. Without a time column it is estimated from all rows, because
    the test split then has a larger share of anomalies than traffic.
    """
    latest = slice(None) if data.rows.time is None else data.mature(data.assignment.rows(TEST))
    share = rate(data.rows.anomaly[latest]) if data.label else None
    encoding = trained.scorer.encoding
    reference = fit_reference(encoding, scored.x, share.high if share else 0.0)
    if not data.time or not encoding.columns:
        return reference
    traffic = _traffic(trained.scorer, data, scored, config)
    timed = traffic.first(len(scored.scores))
    console.info(describe_span(timed.timeline))
    reference = fit_times(chosen, encoding, reference, timed, traffic)
    if text := describe_entities(Monitor(chosen, encoding, reference), traffic.timeline):
        console.info(text)
    return reference


def _unusual_test(
    scorer: Scorer, data: Dataset, config: CalibrationConfig, scored: ScoredRows
) -> UnusualTest | None:
    """Learn the test for unusual rows on the training and validation splits, and calibrate it."""
    learn = partial(learn_typicality, scorer, data.part(TRAIN), data.part(VALIDATION))
    return fit_unusual_test(config, scored, learn)


def _traffic(scorer: Scorer, data: Dataset, scored: ScoredRows, config: Config) -> TimedRows:
    """Return the calibration rows and the known anomalies of their period, with their times."""
    positions = data.assignment.calibration_anomalies
    anomalies, name, times = scorer.scored(data.batch.take(positions)), data.time, data.rows.time
    assert name is not None
    assert times is not None, "a data set with a time column has times"
    rows = np.concatenate([data.calibration_rows, positions])
    entities = entities_of(data, config, rows)
    timeline = Timeline(name, times[rows], name in data.batch.values, entities)
    scores = np.concatenate([scored.scores, anomalies.scores])
    return TimedRows(scores, np.concatenate([scored.x, anomalies.x]), timeline)


def _report(judged: Judged, data: Dataset, config: Config) -> EvaluationReport:
    options = ReportOptions.of(
        config.recorded(),
        confidence=config.promotion.confidence,
        weight=_weight(judged, data),
        ks_limits=_ks_limits(config.promotion),
    )
    twins = data.test_twins(judged.detector.scorer.encoding)
    report = Reporter(judged, options).report(SeenRows(twins, data.TWINS))
    return report if report.single_features or data.files else _with_leaks(report, data)


def _with_leaks(report: EvaluationReport, data: Dataset) -> EvaluationReport:
    """Look for columns that reveal the label in all labelled rows, if the test rows are too few."""
    rows = data.mature(np.flatnonzero(~data.rows.unlabelled))
    features = single_feature_aurocs(data.batch.take(rows).values, data.rows.anomaly[rows])
    found = (*leak_warnings(features, None), *report.warnings)
    return replace(report, single_features=tuple(features), warnings=found)


def _ks_limits(policy: PromotionConfig) -> tuple[float, float] | None:
    return (policy.ks_distance, policy.ks_p_value) if policy.ks_distance else None


def _weight(judged: Judged, data: Dataset) -> float:
    """Return the weight of a test anomaly that makes the test split represent traffic.

    A split by time needs no weight. Any other split is weighted to the share of anomalies in all
    rows.
    """
    anomaly = judged.labelled.anomaly
    if data.rows.time is not None or not anomaly.any() or anomaly.all():
        return 1.0
    return float(data.anomaly_odds * (~anomaly).sum() / anomaly.sum())


def _policy(config: Config, data: Dataset) -> dict[str, Any]:
    """Return what promotion needs to evaluate later models on the frozen test split."""
    return {
        **config.promotion.model_dump(),
        "label": data.label,
        "positive": config.data.positive,
        "time": config.data.time,
        "group": data.group,
        **({"density_ratio": ratio} if (ratio := config.calibration.density_ratio) else {}),
        **({"id": data.id} if data.id else {}),
        **({"windows": data.windows} if data.windows else {}),
        EXCLUDED: data.excluded_test,
        **_times(data),
        **_late_labels(config, data),
        **data.read_options,
        **data.label_policy,
    }


def _times(data: Dataset) -> dict[str, float]:
    """Return the times of the newest row, and of the last one that trained or calibrated."""
    time = data.rows.time
    if time is None:
        return {}
    seen = np.isin(data.assignment.codes, (TRAIN, VALIDATION, CALIBRATION))
    return {NEWEST: float(np.nanmax(time)), SEEN_UNTIL: float(np.nanmax(time[seen]))}


def _late_labels(config: Config, data: Dataset) -> dict[str, Any]:
    """Return where promotion finds late labels, and which label values mean normal."""
    if not (isinstance(config.data, TabularData) and data.id and data.label):
        return {}
    places = [
        place if is_store(place) else str(Path(place).absolute())
        for place in config.data.label_places
    ]
    normal = sorted(normal_names(data.table, data.label, config.data.positive))
    return {LATE_LABELS: {"places": places, "normal": normal}}


def _log_newer_labels(run: Run, data: Dataset, config: Config) -> dict[str, str]:
    """Log the labels that the data have for rows of the frozen test split, and return their tag."""
    if data.in_frozen_test is None or not (data.id and data.label and data.in_frozen_test.any()):
        return {}
    rows = data.table.filter(pa.array(data.in_frozen_test))
    verdicts = verdicts_of(rows, data.id, data.label, config.data.positive)
    digest = write_artifact(run, verdicts.table, NEWER_LABELS_FILE)
    return {NEWER_LABELS_TAG: json.dumps({"uri": f"runs:/{run.id}/{NEWER_LABELS_FILE}",
                                          "digest": digest})}  # fmt: skip


def _log(
    run: Run,
    config: Config,
    judged: Judged,
    data: Dataset,
    report: EvaluationReport,
    scale: Scale | None,
) -> str:
    """Log the evaluation and the test split, and return the SHA-256 of the split's file."""
    run.log_params({"calibration": config.calibration.model_dump()})
    log(run, judged, report)
    run.log_figure(_draw_highest(judged, data, scale), "plots/highest.png")
    return write_artifact(run, data.test_table, TEST_FILE)


def _log_card(run: Run, registry: Registry, source: LoadedModel) -> None:
    """Log the model card of the version as JSON and as an HTML page."""
    run.log_json(card_of(source).to_json(), "card/card.json")
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "card.html"
        path.write_text(page(source, logged_plots(source, registry)), encoding="utf-8")
        run.log_file(path, "card")


def _draw_highest(judged: Judged, data: Dataset, scale: Scale | None) -> Any:
    """Draw the observed and expected values of the rows with the four highest scores."""
    detections = judged.decisions(judged.scored)
    top = np.argsort(-detections.score, kind="stable")[:4]
    scorer, unit = judged.detector.scorer, judged.detector.unit
    explained = sequential_dropout(scorer, scorer.explain(data.part(TEST).take(top)))
    titles = [
        f"score {detections.score[i]:.1f} {unit}, p = {detections.p_value[i]:.2g}" for i in top
    ]
    return plots.reconstructions(scorer.encoding, explained, titles, scale)

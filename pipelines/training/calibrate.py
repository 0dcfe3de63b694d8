"""Choose a trained model's threshold, evaluate it and register it as challenger."""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from anomaly_vae import plots
from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.calibration.conformal import Calibration
from anomaly_vae.calibration.thresholds import choose_threshold
from anomaly_vae.config import Config
from anomaly_vae.data.splitting import TEST
from anomaly_vae.errors import ConfigError, DataError
from anomaly_vae.evaluation.metrics import Evaluation, rate
from anomaly_vae.evaluation.report import EvaluationReport
from anomaly_vae.lifecycle.registry import (
    CHALLENGER,
    INPUTS_TAG,
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
from anomaly_vae.monitoring.exchangeability import Reference, TimedRows, fit_reference, fit_times
from anomaly_vae.scoring.attribution import sequential_dropout
from anomaly_vae.scoring.detector import Detector
from anomaly_vae.scoring.scorer import Scorer
from pipelines import console
from pipelines.datasets.dataset import Dataset
from pipelines.registry.model_uri import LoadedModel, open_model
from pipelines.reports.labelled import Judged, Labelled, judge, represents_traffic
from pipelines.reports.model_card import card_of
from pipelines.reports.model_card_html import logged_plots, page
from pipelines.reports.report import Reporter, ReportOptions, SeenRows, log, show
from pipelines.training.calibration_sample import model_sample
from pipelines.training.train import inputs_digest, read_data

TEST_FILE = "test_split.parquet"
"""Name of the run artifact with the test split."""


@dataclass(frozen=True, eq=False)
class Calibrated:
    """A registered challenger and its evaluation on the test split."""

    version: Version
    run_id: str
    bundle: Bundle
    report: EvaluationReport

    @property
    def evaluation(self) -> Evaluation:
        """The figures of the report."""
        return self.report.figures

    def result(self) -> dict[str, Any]:
        """Return the JSON object that the command prints."""
        return {
            "name": self.version.name,
            "version": self.version.version,
            "alias": CHALLENGER,
            "model_uri": self.version.uri,
            "run_id": self.run_id,
            "digest": self.bundle.digest,
            "threshold": self.evaluation.threshold,
            "alpha": self.evaluation.alpha,
            "calibration": self.bundle.manifest["calibration"],
            "metrics": self.evaluation.to_json(),
            "warnings": list(self.report.warnings),
        }


def calibrate(config: Config, model: str, data: Dataset | None = None) -> Calibrated:
    """Choose the threshold on the calibration split, evaluate the test split, and register.

    Args:
        config: the configuration that the model was trained with.
        model: the URI of the trained bundle.
        data: the data set, if it has been read already.

    Raises:
        DataError: the model was trained on another split or on other data.
        ConfigError: the model was trained with another configuration.
        CalibrationError: the calibration split is too small for the threshold.
    """
    data = data or read_data(config)
    trained = open_model(model, config.mlflow.tracking_uri).bundle
    _check_same_split(trained, data)
    _check_same_config(trained, config)
    sample = model_sample(data, config.calibration, trained)
    chosen = choose_threshold(sample, config.calibration)
    if "note" in chosen.figures:
        console.info(chosen.figures["note"])
    labelled = _test_rows(data, config.calibration.density_ratio)
    judged = judge(Detector(trained.scorer, chosen, trained.manifest["unit"]), labelled)
    report = _report(judged, data, config)
    reference = _reference(trained, chosen, data)
    bundle = _with_config(trained, config).calibrated(chosen, report.to_json(), reference)
    show(report, labelled.days)
    registry = Registry(config.mlflow.tracking_uri)
    experiment = config.mlflow.experiment or config.name
    with registry.run(experiment, "calibrate", {"model": model}) as run:
        test_digest = _log(run, config, judged, data, report)
        tags = {
            INPUTS_TAG: inputs_digest(config, data),
            TEST_TAG: f"runs:/{run.id}/{TEST_FILE}",
            TEST_DIGEST_TAG: test_digest,
            POLICY_TAG: json.dumps(_policy(config, data)),
            TRAINED_TAG: model,
            **({TRAINED_RUN_TAG: model.split("/")[1]} if model.startswith("runs:/") else {}),
        }
        version = registry.register(run, bundle, config.name, tags)
        _log_card(run, registry, LoadedModel(bundle, version.name, version.version))
    return Calibrated(version, run.id, bundle, report)


def _check_same_split(trained: Bundle, data: Dataset) -> None:
    if trained.manifest["data"]["digest"] != data.digest:
        raise DataError(
            "the model was trained on other rows or another split, so its calibration rows may "
            "have trained it; use the configuration and data it was trained with, or train again"
        )


def _check_same_config(trained: Bundle, config: Config) -> None:
    """Check that the model was trained with this configuration, which identifies its version."""
    planned, used = config.recorded(), trained.manifest["config"]
    for section in ("data", "model", "training", "score"):
        for key, value in planned[section].items():
            if value is not None and value != used[section][key]:
                raise ConfigError(
                    f"the model was trained with {section}.{key} {used[section][key]}, the "
                    f"configuration says {value}; correct that, or train again",
                    key=f"{section}.{key}",
                )


def _with_config(trained: Bundle, config: Config) -> Bundle:
    """Return the model with those sections of this configuration that do not affect training."""
    sections = ("calibration", "evaluation", "description")
    changes = {key: config.recorded()[key] for key in sections}
    recorded = {**trained.manifest["config"], **changes}
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
    )


def _reference(trained: Bundle, chosen: Calibration, data: Dataset) -> Reference:
    """Summarise the calibration rows for monitoring, with the expected share of anomalies.

    The expected share is the upper end of a confidence interval. It is estimated from the test
    split, which is the latest period. Without a time column it is estimated from all rows, because
    the test split then has a larger share of anomalies than traffic.
    """
    latest = slice(None) if data.rows.time is None else data.assignment.rows(TEST)
    share = rate(data.rows.anomaly[latest]) if data.label else None
    normal, encoding = data.calibration_rows, trained.scorer.encoding
    reference = fit_reference(encoding, data.batch.take(normal), share.high if share else 0.0)
    if not data.time or not encoding.columns:
        return reference
    rows = np.concatenate([normal, data.assignment.calibration_anomalies])
    traffic = _timed_rows(trained.scorer, data, rows)
    timed = traffic.first(len(normal))
    console.info(describe_span(timed.timeline))
    return fit_times(chosen, encoding, reference, timed, traffic)


def _timed_rows(scorer: Scorer, data: Dataset, positions: NDArray[np.intp]) -> TimedRows:
    """Score rows of a data set that has times."""
    rows = data.batch.take(positions)
    x, name, times = scorer.encoding.encode(rows), data.time, data.rows.time
    assert name is not None
    assert times is not None, "a data set with a time column has times"
    timeline = Timeline(name, times[positions], name in rows.values)
    return TimedRows(scorer.score_encoded(x), x, timeline)


def _report(judged: Judged, data: Dataset, config: Config) -> EvaluationReport:
    options = ReportOptions.of(
        config.recorded(), confidence=config.promotion.confidence, weight=_weight(judged, data)
    )
    twins = data.test_twins(judged.detector.scorer.encoding)
    return Reporter(judged, options).report(SeenRows(twins, data.TWINS))


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
        **({"windows": data.windows} if data.windows else {}),
        **data.read_options,
    }


def _log(run: Run, config: Config, judged: Judged, data: Dataset, report: EvaluationReport) -> str:
    """Log the evaluation and the test split, and return the SHA-256 of the split's file."""
    run.log_params({"calibration": config.calibration.model_dump()})
    log(run, judged, report)
    run.log_figure(_draw_highest(judged, data), "plots/highest.png")
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / TEST_FILE
        pq.write_table(data.test_table, path)
        run.log_file(path)
        return hashlib.sha256(path.read_bytes()).hexdigest()


def _log_card(run: Run, registry: Registry, source: LoadedModel) -> None:
    """Log the model card of the version as JSON and as an HTML page."""
    run.log_json(card_of(source).to_json(), "card/card.json")
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "card.html"
        path.write_text(page(source, logged_plots(source, registry)), encoding="utf-8")
        run.log_file(path, "card")


def _draw_highest(judged: Judged, data: Dataset) -> Any:
    """Draw the observed and expected values of the rows with the four highest scores."""
    detections = judged.decisions(judged.scored)
    top = np.argsort(-detections.score, kind="stable")[:4]
    scorer, unit = judged.detector.scorer, judged.detector.unit
    explained = sequential_dropout(scorer, scorer.explain(data.part(TEST).take(top)))
    titles = [
        f"score {detections.score[i]:.1f} {unit}, p = {detections.p_value[i]:.2g}" for i in top
    ]
    return plots.reconstructions(scorer.encoding, explained, titles)

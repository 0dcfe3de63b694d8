"""A trained bundle → a threshold, an evaluation and a registered challenger."""

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

from anomaly_vae import plots
from anomaly_vae.artifacts.bundle import Bundle
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
from anomaly_vae.monitoring.exchangeability import Reference, fit_reference
from anomaly_vae.scoring.attribution import sequential_dropout
from anomaly_vae.scoring.detector import Detector
from pipelines import console
from pipelines.datasets.dataset import Dataset
from pipelines.registry.model_uri import LoadedModel, open_source
from pipelines.reports.labelled import Judged, Labelled, judge, like_traffic
from pipelines.reports.model_card import card_of
from pipelines.reports.model_card_html import logged, page
from pipelines.reports.report import Known, Reporter, Wish, log, show
from pipelines.training.calibration_sample import scored_evidence
from pipelines.training.train import inputs_digest, read

TEST_FILE = "test_split.parquet"


@dataclass(frozen=True, eq=False)
class Calibrated:
    """A registered challenger and what the test split made of it."""

    version: Version
    run_id: str
    bundle: Bundle
    report: EvaluationReport

    @property
    def evaluation(self) -> Evaluation:
        """Its figures."""
        return self.report.figures

    def result(self) -> dict[str, Any]:
        """The command's answer."""
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
    """Choose the threshold on the calibration split, evaluate the test split, register.

    Raises:
        DataError: the model was trained on another split or on other data.
        ConfigError: it was trained with another configuration.
        CalibrationError: the calibration split does not suffice for the threshold.
    """
    data = data or read(config)
    trained = open_source(model, config.mlflow.tracking_uri).bundle
    _check_same_split(trained, data)
    _check_same_config(trained, config)
    evidence = scored_evidence(data, config.calibration, trained.scorer)
    chosen = choose_threshold(evidence, config.calibration)
    if "note" in chosen.figures:
        console.say(chosen.figures["note"])
    truth = _truth(data, config.calibration.density_ratio)
    judged = judge(Detector(trained.scorer, chosen, trained.manifest["unit"]), truth)
    report = _report(judged, data, config)
    reference = _reference(trained, data)
    bundle = _planned(trained, config).calibrated(chosen, report.to_json(), reference)
    show(report)
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
    """The version is found again by its configuration, so that must be what made the model."""
    planned, used = config.recorded(), trained.manifest["config"]
    for section in ("data", "model", "training", "score"):
        for key, value in planned[section].items():
            if value is not None and value != used[section][key]:
                raise ConfigError(
                    f"the model was trained with {section}.{key} {used[section][key]}, the "
                    f"configuration says {value}; correct that, or train again",
                    key=f"{section}.{key}",
                )


def _planned(trained: Bundle, config: Config) -> Bundle:
    """The same model, with what this configuration says of all that comes after training."""
    later = {key: config.recorded()[key] for key in ("calibration", "evaluation", "description")}
    recorded = {**trained.manifest["config"], **later}
    return replace(trained, manifest={**trained.manifest, "config": recorded})


def _truth(data: Dataset, density_ratio: str | None) -> Labelled:
    """What is known of the test split."""
    rows, known = data.assignment.rows(TEST), data.rows
    return Labelled(
        data.table.take(pa.array(rows)),
        known.anomaly[rows],
        known.unlabelled[rows],
        None if known.group is None else known.group[rows],
        None if known.time is None else known.time[rows],
        data.part(TEST),
        like_traffic(data.test_table, density_ratio),
        tuple(data.files[row] for row in rows) if data.files else (),
    )


def _reference(trained: Bundle, data: Dataset) -> Reference:
    """What the calibration rows looked like, and how many anomalies there may be among others.

    That is the upper end of the interval of their share: with a time column in the test split, the
    latest; else in all of the data, as the split has more than its share.
    """
    latest = slice(None) if data.rows.time is None else data.assignment.rows(TEST)
    share = rate(data.rows.anomaly[latest]) if data.label else None
    rows = data.batch.take(data.calibration_rows)
    return fit_reference(trained.scorer.encoding, rows, share.high if share else 0.0)


def _report(judged: Judged, data: Dataset, config: Config) -> EvaluationReport:
    wish = Wish.of(
        config.recorded(), confidence=config.promotion.confidence, weight=_weight(judged, data)
    )
    twins = data.test_twins(judged.detector.scorer.encoding)
    return Reporter(judged, wish).report(Known(twins, data.TWINS))


def _weight(judged: Judged, data: Dataset) -> float:
    """So that anomalies are as frequent as in traffic: in time order they are; else in all rows."""
    anomaly = judged.truth.anomaly
    if data.rows.time is not None or not anomaly.any() or anomaly.all():
        return 1.0
    return float(data.anomaly_odds * (~anomaly).sum() / anomaly.sum())


def _policy(config: Config, data: Dataset) -> dict[str, Any]:
    """What promotion needs to judge later models on the frozen test split."""
    return {
        **config.promotion.model_dump(),
        "label": data.label,
        "positive": config.data.positive,
        "time": config.data.time,
        "group": data.group,
        **({"density_ratio": ratio} if (ratio := config.calibration.density_ratio) else {}),
        **data.rules,
    }


def _log(run: Run, config: Config, judged: Judged, data: Dataset, report: EvaluationReport) -> str:
    run.log_params({"calibration": config.calibration.model_dump()})
    log(run, judged, report)
    run.log_figure(_highest(judged, data), "plots/highest.png")
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / TEST_FILE
        pq.write_table(data.test_table, path)
        run.log_file(path)
        return hashlib.sha256(path.read_bytes()).hexdigest()


def _log_card(run: Run, registry: Registry, source: LoadedModel) -> None:
    """The model card of the version, as JSON and as a page."""
    run.log_json(card_of(source).to_json(), "card/card.json")
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "card.html"
        path.write_text(page(source, logged(source, registry)), encoding="utf-8")
        run.log_file(path, "card")


def _highest(judged: Judged, data: Dataset) -> Any:
    """The four highest scores, observed against expected."""
    found = judged.decisions(judged.scored)
    top = np.argsort(-found.score, kind="stable")[:4]
    scorer, unit = judged.detector.scorer, judged.detector.unit
    explained = sequential_dropout(scorer, scorer.explain(data.part(TEST).take(top)))
    titles = [f"score {found.score[i]:.1f} {unit}, p = {found.p_value[i]:.2g}" for i in top]
    return plots.reconstructions(scorer.encoding, explained, titles)

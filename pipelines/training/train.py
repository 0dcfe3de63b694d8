"""Train a bundle from a configuration and record the run in MLflow."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from anomaly_vae import plots
from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.artifacts.provenance import code_version
from anomaly_vae.calibration.thresholds import check_sample
from anomaly_vae.config import Config, ImageConfig
from anomaly_vae.config.calibration import CalibrationConfig
from anomaly_vae.data.spans import describe_time
from anomaly_vae.errors import DataError
from anomaly_vae.lifecycle.registry import Registry, Run
from anomaly_vae.messages import NOUNS, listed
from anomaly_vae.models.pretrained import check_installed
from anomaly_vae.scoring.unusual import is_tested, too_few
from anomaly_vae.training.distributed import current_group
from anomaly_vae.training.fit import Fitted, Prepared, fit_bundle
from anomaly_vae.training.known_anomalies import known_choice, learns_known
from anomaly_vae.training.trainer import Epoch, OnEpoch
from pipelines import console
from pipelines.datasets.dataset import Dataset
from pipelines.datasets.loading import load_dataset
from pipelines.datasets.tables import LoadContext
from pipelines.registry.frozen_test import champions_test
from pipelines.training.calibration_sample import check_labels, sample_of, zero_scores
from pipelines.training.warm_start import prepared_start, start_model, trained_until

CHECKPOINTS = Path("checkpoints")
BUNDLES = Path("bundles")
LINES = 10
"""Number of lines about the epochs of a fit of at most ten minutes, where stderr is a file."""
SHOWN_COLUMNS = 50
"""Maximum number of columns that are printed."""


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained model with its MLflow run, its folder and its data set."""

    run_id: str
    model_uri: str
    fitted: Fitted
    folder: Path
    data: Dataset

    def result(self) -> dict[str, Any]:
        """Return the JSON object that the command prints."""
        return {
            "run_id": self.run_id,
            "model_uri": self.model_uri,
            "bundle": str(self.folder),
            "metrics": final_metrics(self.fitted),
        }


def inputs_digest(config: Config, data: Dataset) -> str:
    """Return the SHA-256 of everything that determines the model: rows, configuration and code.

    A start model is identified by its digest, unless it is given by an alias, which is identified
    by its name: a promotion alone is no reason to train on the same rows again.
    """
    content = {"config": config.recorded(), "data": data.origin or data.digest}
    if warm := config.training.warm_start:
        content["warm_start"] = warm if "@" in warm else start_model(config).digest
    return _sha256({**content, "code": code_version()})


def train(config: Config, data: Dataset | None = None) -> Trained:
    """Fit on the training split and log the run, without registering a version.

    Raises:
        AnomalyVAEError: the data or the configuration is invalid, or the fit fails.
        KeyboardInterrupt: the fit was interrupted; the next call resumes from the checkpoint.
    """
    check_backbone(config)
    data = data or read_data(config)
    prepared, start = prepared_start(config, data)
    twins = int(data.test_twins(prepared.encoding).sum())
    show_data(data, twins)
    show_pooled(prepared)
    choice = known_choice(config, 0 if prepared.known is None else len(prepared.known))
    if choice.wanted:
        console.info(str(choice))
    digest = inputs_digest(config, data)
    state = _sha256([digest, data.digest, start and start.digest, *_processes()])
    checkpoint = CHECKPOINTS / f"{config.name}-{state[:16]}.safetensors"
    if not config.training.resume:
        checkpoint.unlink(missing_ok=True)
    registry = Registry(config.mlflow.tracking_uri)
    with registry.run(config.mlflow.experiment or config.name, "train", {"inputs": digest}) as run:
        summary = {**data.summary(), "twins": twins, **trained_until(data, start)}
        fitted = _fit(config, prepared, summary, checkpoint, start)
        folder = BUNDLES / f"{config.name}-{fitted.bundle.digest[:12]}"
        fitted.bundle.save(folder)
        _log(run, fitted, prepared)
        if choice.wanted:
            run.log_params({"known": str(choice)})
        rows, noun = data.assignment.counts["train"], NOUNS[config.kind]
        console.info(
            f"The model learned from {rows:,} {noun} what is normal. It flags nothing before it "
            "has a threshold, which calibrate chooses."
        )
        if data.left_out:
            run.log_params({"left_out": json.dumps(data.left_out, ensure_ascii=False)})
        uri = run.log_bundle(folder)
        return Trained(run.id, uri, fitted, folder, data)


def check_backbone(config: Config) -> None:
    """Look for the weights of the backbone, before any image is read.

    Raises:
        ConfigError: they are not installed.
    """
    if isinstance(config, ImageConfig):
        check_installed(config.model.backbone)


def read_data(config: Config, until: float | None = None) -> Dataset:
    """Load the data set, and exclude rows of the frozen test split from training.

    Args:
        config: the configuration.
        until: the time in seconds since 1970 from which rows are not read; None reads all rows.

    Raises:
        DataError: see `load_dataset`; or no label that is needed is final.
        CalibrationError: the calibration split is too small for the threshold.
    """
    console.heading(f"Reading {', '.join(config.data.paths)}")
    registry = Registry(config.mlflow.tracking_uri)
    frozen = champions_test(registry, config.name)
    rows = frozen.read(registry) if frozen else None
    context = LoadContext(config.name, rows, until, learns_known(config))
    data = load_dataset(config.data, context)
    for note in data.label_notes:
        console.info(note)
    _check_evaluation(config, data)
    show_spans(data)
    if frozen and rows is not None:
        data = replace(data.without(rows), excluded_test=frozen.digest)
    check_labels(data, config.calibration)
    check_sample(sample_of(data, config.calibration, zero_scores), config.calibration)
    _check_unusual_test(config.calibration, len(data.calibration_rows))
    return data


def _check_unusual_test(config: CalibrationConfig, n: int) -> None:
    """Check that there are enough rows for the test for unusual rows, or say that there is none."""
    if not is_tested(config, n) and config.unusual_alpha:
        problem = too_few(config.unusual_alpha, n)
        console.info(f"rows are not tested for being unlike the training rows: {problem}")


def _check_evaluation(config: Config, data: Dataset) -> None:
    """Check that the columns that the evaluation needs exist, before anything is fitted."""
    entity, available = config.evaluation.entity, data.table.column_names
    named = [("entity", entity)] if entity else []
    for key, name in (*named, *(("slices", name) for name in config.evaluation.slices)):
        if name not in available:
            raise DataError(
                f"evaluation.{key} names the column '{name}', which is not there; "
                f"found {listed(available)}",
                column=name,
            )


def show_spans(data: Dataset) -> None:
    """Print the intervals of splits that are given as spans of time."""
    times = data.rows.split_times
    if data.spans is None or times is None:
        return
    console.table(
        f"Splits counted back from the newest row, {describe_time(data.spans.newest)}",
        ("split", "from", "before", "rows", "days with rows"),
        data.spans.table(times),
    )
    for note in data.spans.notes:
        console.info(note)


def show_data(data: Dataset, twins: int) -> None:
    """Print the columns, the splits, the unused rows and possible leakage."""
    types = [(column.name, str(column.type)) for column in data.schema.columns]
    console.table("Columns", ("name", "type"), types[:SHOWN_COLUMNS])
    if len(types) > SHOWN_COLUMNS:
        console.info(f"and {len(types) - SHOWN_COLUMNS:,} more columns")
    counts = data.assignment.counts
    console.table("Rows", tuple(counts), [tuple(counts.values())])
    for reason, count in data.assignment.unused.items():
        console.info(f"{count:,} rows unused: {reason}")
    for note in data.notes:
        console.info(note)
    if data.duplicate_ids:
        console.info(f"{data.duplicate_ids:,} rows repeat an id that an earlier row has")
    if twins:
        share = twins / max(counts["test"], 1)
        console.info(f"{twins:,} test rows ({share:.1%}) {data.TWINS}")


def show_pooled(prepared: Prepared) -> None:
    """Print the categorical columns some of whose values are not kept as levels."""
    for pooled in prepared.pooled[:SHOWN_COLUMNS]:
        console.info(str(pooled))


def final_metrics(fitted: Fitted) -> dict[str, float]:
    """Return the figures of the epoch whose weights are kept; ELBO terms are in nats per row."""
    best = fitted.history.best
    return {
        "validation_elbo": best.validation_elbo,
        "validation_log_prob": best.validation_log_prob,
        "validation_kl": best.validation_kl,
        "epochs": float(len(fitted.history.epochs)),
        "graph_error": fitted.graph_error,
    }


def _fit(
    config: Config,
    prepared: Prepared,
    summary: dict[str, Any],
    checkpoint: Path,
    start: Bundle | None,
) -> Fitted:
    try:
        with _epochs(checkpoint) as on_epoch:
            fitted = fit_bundle(config, prepared, summary, on_epoch, checkpoint, start)
    except KeyboardInterrupt:
        if checkpoint.exists() and config.training.resume:
            console.info(f"Interrupted; the same command resumes from {checkpoint}")
        raise
    with suppress(OSError):  # other fits may have checkpoints there
        checkpoint.parent.rmdir()
    return fitted


@contextmanager
def _epochs(checkpoint: Path) -> Iterator[OnEpoch]:
    """Show epochs with the validation ELBO and its terms; report a resumed fit once."""
    with console.progress("Training", "epochs", None, lines=LINES) as (bar, task):

        def show(epoch: Epoch, planned: int) -> None:
            if epoch.epoch and bar.tasks[task].total is None:  # the first epoch shown
                console.info(f"Resumed after epoch {epoch.epoch} from {checkpoint}")
            note = (
                f"ELBO {epoch.validation_elbo:.2f} = log p(x|z) {epoch.validation_log_prob:.2f} "
                f"− KL {epoch.validation_kl:.2f} nats"
            )
            bar.update(task, total=planned, completed=epoch.epoch + 1, note=note)

        yield show


def _log(run: Run, fitted: Fitted, prepared: Prepared) -> None:
    manifest = fitted.bundle.manifest
    run.log_params(manifest["config"])
    run.log_params({"rows": manifest["data"], "code_version": manifest["code_version"]})
    run.log_params({"warm_start": manifest["training"].get("warm_start")})
    for size in _processes():
        run.log_params({"processes": size})
    run.log_curves([_curves(epoch) for epoch in fitted.history.epochs])
    run.log_metrics({f"final_{k}": v for k, v in final_metrics(fitted).items()})
    run.log_figure(plots.loss_curve(fitted.history), "plots/loss.png")
    explained = fitted.bundle.scorer.explain_encoded(prepared.validation[:4])
    noun = NOUNS[manifest["kind"]].removesuffix("s")
    titles = [f"validation {noun}, score {score:.2f}" for score in explained.score]
    figure = plots.reconstructions(prepared.encoding, explained, titles, fitted.bundle.map_scale)
    run.log_figure(figure, "plots/reconstruction.png")


def _curves(epoch: Epoch) -> dict[str, float]:
    return {
        "train_elbo": epoch.train_log_prob - epoch.train_kl,
        "train_log_prob": epoch.train_log_prob,
        "train_kl": epoch.train_kl,
        "validation_elbo": epoch.validation_elbo,
        "validation_log_prob": epoch.validation_log_prob,
        "validation_kl": epoch.validation_kl,
        "beta": epoch.beta,
        "learning_rate": epoch.learning_rate,
    }


def _processes() -> list[int]:
    """Return the number of processes that share the fit, if there are several."""
    size = current_group().size
    return [size] if size > 1 else []


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

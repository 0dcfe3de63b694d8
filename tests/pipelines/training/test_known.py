"""Models that learn from known anomalies, from the command line to the service."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.artifacts.registry_names import BundleRef
from anomaly_vae.config import Config, validate_config
from anomaly_vae.data.splitting import DAY, TRAIN
from anomaly_vae.errors import ConfigError
from anomaly_vae.lifecycle.registry import Registry
from anomaly_vae.types import KNOWN_ANOMALIES
from pipelines.batch.tables import score_files
from pipelines.datasets.loading import load_dataset
from pipelines.datasets.tables import LoadContext
from pipelines.promotion.promote import promote
from pipelines.registry.model_uri import LoadedModel, open_model
from pipelines.reports.model_card import card_of
from pipelines.reports.report import evaluate_files
from pipelines.training.calibrate import Calibrated, calibrate
from pipelines.training.train import Trained, train
from serving.app import create_app
from serving.models.store import Store
from serving.scoring.loading import load_model
from serving.settings import Settings
from tests.support.known import rows
from tests.support.registries import changed, use_registry

pytestmark = pytest.mark.usefixtures("blank_figures")

N, ANOMALIES = 1_800, 150
START = dt.datetime.fromisoformat("2024-01-01")


def payments(path: Path) -> Path:
    """Write rows of 60 days, with anomalies spread over all of them."""
    order = np.random.default_rng(4).permutation(N)
    times = [START + dt.timedelta(minutes=48 * i) for i in range(N)]
    table = rows(N, seed=3, anomalies=ANOMALIES).take(pa.array(order))
    labels = (order < ANOMALIES).astype(int)
    for name, column in (("fraud", labels), ("at", times), ("id", np.arange(N))):
        table = table.append_column(name, pa.array(column))
    pq.write_table(table, path)
    return path


@dataclass(frozen=True)
class Versions:
    """A model without a head, promoted, and one with it."""

    config: Config
    plain: Calibrated
    trained: Trained
    known: Calibrated
    file: Path

    @property
    def source(self) -> LoadedModel:
        """Return the model with the head as commands load it."""
        return LoadedModel(self.known.bundle, "spot", "2", None)


@pytest.fixture(scope="module")
def versions(migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Versions]:
    """Train, calibrate and promote without the head, then train and calibrate with it."""
    folder = tmp_path_factory.mktemp("known")
    file = payments(folder / "payments.parquet")
    plain = validate_config(
        {
            "name": "spot",
            "preset": "fast",
            "data": {"path": str(file), "label": "fraud", "time": "at", "id": "id"},
            "training": {"epochs": 3},
            "calibration": {"alpha": 0.05},
        }
    )
    config = changed(plain, model__known="auto", data__features=["a", "b", "c", "city"])
    plain = changed(config, model__known="off")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        use_registry(migrated, folder, patch)
        first = calibrate(plain, train(plain).model_uri)
        assert promote(Registry(), "spot").promoted
        trained = train(config)
        yield Versions(config, first, trained, calibrate(config, trained.model_uri), file)


def test_a_head_challenges_a_champion_without_one(versions: Versions) -> None:
    before, after = versions.plain.evaluation, versions.known.evaluation
    assert after.recall > before.recall + 0.2
    assert after.fpr_interval[0] <= 0.05 <= max(after.fpr_interval[1], 0.06)
    promotion = promote(Registry(), "spot")
    assert promotion.promoted, [rule.text for rule in promotion.rules if not rule.passed]
    assert promote(Registry(), "spot", version="1").promoted is False


def test_it_says_why_it_is_on_or_off(versions: Versions) -> None:
    labels = versions.known.bundle.manifest["training"]["known"]["labels"]
    assert labels == len(versions.trained.data.known_rows) > 30
    on, off = (str(card_of(replace(versions.source, bundle=b)))
               for b in (versions.known.bundle, versions.plain.bundle))  # fmt: skip
    assert f"On: {labels} labelled anomalies of the training period" in on
    assert "in surprise; higher is more anomalous" in on
    assert "If only flagged rows are reviewed" in on
    assert "fewer than 30 anomalies of the training period were labelled" in off
    assert "resemble" not in off


def test_only_final_labels_of_the_training_period_teach(versions: Versions) -> None:
    data = versions.trained.data
    assert data.rows.time is not None
    assert data.rows.anomaly[data.known_rows].all()
    last, first = data.rows.time[data.known_rows].max(), data.rows.time[data.calibration_rows].min()
    assert last < first
    delayed = changed(versions.config, data__label_delay="40d").data
    late = load_dataset(delayed, LoadContext(known=True))
    assert set(late.known_rows) < set(data.known_rows)
    assert data.rows.time[late.known_rows].max() < data.rows.time.max() - 40 * DAY


def test_late_labels_teach(versions: Versions, tmp_path: Path) -> None:
    data = versions.trained.data
    late = data.assignment.rows(TRAIN)[:3]
    labels = pa.table({"id": pa.array(late), "label": ["anomaly"] * 3})
    pq.write_table(labels, tmp_path / "labels.parquet")
    config = changed(versions.config, data__labels=str(tmp_path / "labels.parquet")).data
    found = load_dataset(config, LoadContext(known=True))
    assert set(found.known_rows) == {*data.known_rows, *late}


def test_few_labels_give_the_bundle_without_a_head(
    versions: Versions, capfd: pytest.CaptureFixture[str]
) -> None:
    data = versions.trained.data
    known = data.assignment.training_anomalies[:29]
    few = replace(data, assignment=replace(data.assignment, training_anomalies=known))
    trained = train(versions.config, few).fitted.bundle
    said = " ".join(capfd.readouterr().err.split())
    assert "known anomalies: off, 29 labelled anomalies of the training period are too few" in said
    plain = train(changed(versions.config, model__known="off"), few).fitted.bundle
    assert trained.files == plain.files
    calibrated = calibrate(versions.config, train(versions.config, few).model_uri, few)
    assert calibrated.bundle.manifest["unit"] == "nats"


def test_a_bundle_and_a_configuration_must_agree(versions: Versions) -> None:
    off = changed(versions.config, model__known="off")
    with pytest.raises(ConfigError, match=r"trained with model\.known auto.*train again"):
        calibrate(off, versions.trained.model_uri, versions.trained.data)
    plain = train(off, versions.trained.data).model_uri
    with pytest.raises(ConfigError, match=r"trained with model\.known off.*labelled anomalies"):
        calibrate(versions.config, plain, versions.trained.data)


def test_a_second_fit_gives_the_same_bundle(versions: Versions) -> None:
    again = train(versions.config, versions.trained.data)
    assert again.fitted.bundle.digest == versions.trained.fitted.bundle.digest


def service_scores(bundle: Bundle, folder: Path, records: list[dict[str, Any]]) -> Any:
    """Return what the service answers, and what it says about the model."""
    store = Store([load_model(BundleRef(str(bundle.save(folder / "served"))))])
    with TestClient(create_app(store, Settings())) as client:
        models = client.get("/models").json()
        answer = client.post("/score", json={"records": records, "explain": 2})
        return answer.json()["results"], models["models"][0]


def test_every_way_gives_one_score(versions: Versions, tmp_path: Path) -> None:
    bundle, table = versions.known.bundle, pq.read_table(versions.file)
    summary = score_files(versions.source, [str(versions.file)], tmp_path / "out", explain=2)
    (part,) = summary["parts"]
    batch = pq.read_table(tmp_path / "out" / part)
    scores = bundle.detector.detect(bundle.scorer.schema.from_arrow(table)).score
    np.testing.assert_array_equal(batch["score"].to_numpy(), scores)
    flagged = batch.filter(batch["is_anomaly"])
    features = {c["feature"] for row in flagged["contributions"].to_pylist() for c in row}
    assert KNOWN_ANOMALIES in features
    frame = table.slice(0, 40).to_pandas()
    found = mlflow.pyfunc.load_model(versions.known.version.uri).predict(frame)
    np.testing.assert_array_equal(found["score"], scores[:40])
    names = ["a", "b", "c", "city"]
    results, model = service_scores(bundle, tmp_path, table.slice(0, 40).select(names).to_pylist())
    np.testing.assert_array_equal([r["score"] for r in results], scores[:40])
    assert model["unit"] == "surprise"
    assert any(c["feature"] == KNOWN_ANOMALIES for r in results for c in r["contributions"])


def test_a_file_is_evaluated_as_the_test_split_was(versions: Versions) -> None:
    found = evaluate_files(versions.source, [str(versions.file)], "fraud")
    assert found["metrics"]["recall"] > 0.3
    registered = open_model(versions.known.version.uri).bundle
    assert registered.digest == versions.known.bundle.digest
    assert json.dumps(found)

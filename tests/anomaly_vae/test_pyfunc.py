"""What `mlflow.pyfunc.load_model` gives: the same scores as everywhere, behind a data frame."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from mlflow.exceptions import MlflowException
from PIL import Image

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.data.splitting import TEST
from anomaly_vae.errors import DataError, NotCalibratedError
from anomaly_vae.estimators.image import ImageVAEDetector
from anomaly_vae.lifecycle.registry import CHAMPION, Registry
from anomaly_vae.pyfunc import DetectorModel, _load_pyfunc
from anomaly_vae.scoring.detector import Detections
from pipelines.datasets.dataset import Dataset
from tests.support.registries import migrated, use_registry

__all__ = ["migrated"]


@pytest.fixture(scope="module")
def model(
    migrated: Path, calibrated: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """The registered champion, as MLflow's users load it."""
    folder = tmp_path_factory.mktemp("registry")
    with pytest.MonkeyPatch.context() as patch:
        use_registry(migrated, folder, patch)
        registry = Registry()
        with registry.run("fraud", "calibrate", {}) as run:
            version = registry.register(run, calibrated, "fraud", {})
        registry.set_champion("fraud", version.version)
        yield mlflow.pyfunc.load_model(f"models:/fraud@{CHAMPION}")


@pytest.fixture(scope="module")
def table(dataset: Dataset) -> pa.Table:
    """The test split as it lies in the file."""
    return dataset.test_table


@pytest.fixture(scope="module")
def frame(table: pa.Table) -> pd.DataFrame:
    return table.to_pandas()


@pytest.fixture(scope="module")
def truth(calibrated: Bundle, dataset: Dataset) -> Detections:
    return calibrated.detector.detect(dataset.part(TEST))


def same(answer: pd.DataFrame, truth: Detections) -> bool:
    return (
        np.array_equal(answer["score"], truth.score)
        and np.array_equal(answer["p_value"], truth.p_value)
        and np.array_equal(answer["is_anomaly"], truth.is_anomaly)
    )


def test_a_frame_straight_from_the_file_gives_the_detectors_own_scores(
    model: Any, frame: pd.DataFrame, truth: Detections
) -> None:
    answer = model.predict(frame)
    assert list(answer.columns) == ["score", "p_value", "is_anomaly", "unusual_input"]
    assert answer["is_anomaly"].dtype == bool
    assert same(answer, truth)


def test_the_index_of_the_frame_is_kept(model: Any, frame: pd.DataFrame) -> None:
    indexed = frame.set_index("TRANSACTION_ID").sample(frac=1, random_state=0)
    answer = model.predict(indexed)
    assert answer.index.equals(indexed.index)
    again = model.predict(indexed.sort_index()).loc[answer.index]
    assert np.allclose(answer["score"], again["score"], rtol=1e-6)


def test_absent_columns_are_missing_values(
    model: Any, frame: pd.DataFrame, calibrated: Bundle
) -> None:
    few = frame[["TX_AMOUNT", "TX_CHANNEL"]]
    emptied = frame.copy()
    for column in calibrated.scorer.schema.names:
        if column not in few:
            emptied[column] = pd.NaT if column == "TX_DATETIME" else np.nan
    assert np.array_equal(model.predict(few)["score"], model.predict(emptied)["score"])


def test_missing_cells_pass_in_columns_of_every_type(model: Any, frame: pd.DataFrame) -> None:
    holes = frame.head(3).copy()
    for column in ("TX_AMOUNT", "TX_DURING_NIGHT"):
        holes[column] = holes[column].astype("float64")
        holes.loc[holes.index[0], column] = np.nan
    holes["TX_CHANNEL"] = holes["TX_CHANNEL"].astype(object).where([False, True, True], None)
    answer = model.predict(holes)
    assert np.isfinite(answer["score"]).all()
    assert answer["score"].iloc[0] != model.predict(frame.head(1))["score"].iloc[0]


def test_whole_numbers_pass_where_a_double_holds_them_all(model: Any, frame: pd.DataFrame) -> None:
    """MLflow itself refuses 64-bit ones, some of which a double would round."""
    whole = frame.head(20).copy()
    whole["TX_AMOUNT"] = whole["TX_AMOUNT"].round()
    as_doubles, as_integers = (
        model.predict(whole.astype({"TX_AMOUNT": kind})) for kind in ("float64", "int32")
    )
    assert as_doubles.equals(as_integers)
    with pytest.raises(MlflowException, match=r"TX_AMOUNT.*int64 to float64"):
        model.predict(whole.astype({"TX_AMOUNT": "int64"}))


def test_unknown_columns_are_ignored(model: Any, frame: pd.DataFrame, truth: Detections) -> None:
    assert same(model.predict(frame.assign(extra="x", other=1.5)), truth)


def test_an_unseen_category_is_scored(model: Any, frame: pd.DataFrame) -> None:
    answer = model.predict(frame.assign(TX_CHANNEL="carrier_pigeon"))
    assert np.isfinite(answer["score"]).all()
    assert answer["score"].median() > model.predict(frame)["score"].median()


def test_a_wrong_type_is_refused_by_the_signature(model: Any, frame: pd.DataFrame) -> None:
    with pytest.raises(MlflowException, match="TX_AMOUNT"):
        model.predict(frame.head(2).assign(TX_AMOUNT="much"))


def test_infinity_is_refused_with_its_column_and_row(model: Any, frame: pd.DataFrame) -> None:
    bad = frame.head(3).copy()
    bad.loc[bad.index[1], "TX_AMOUNT"] = np.inf
    with pytest.raises(DataError, match="column 'TX_AMOUNT', row 1: infinity") as caught:
        model.predict(bad)
    assert caught.value.column == "TX_AMOUNT"


def test_the_signature_makes_every_column_optional_and_every_number_a_double(
    model: Any, calibrated: Bundle
) -> None:
    inputs = model.metadata.signature.inputs
    assert inputs.input_names() == list(calibrated.scorer.schema.names)
    assert not any(column.required for column in inputs)
    types = {column.name: column.type.name for column in inputs}
    assert types["TX_DATETIME"] == "datetime"
    assert types["TX_CHANNEL"] == "string"
    others = set(types) - {"TX_DATETIME", "TX_CHANNEL"}
    assert {types[name] for name in others} == {"double"}
    outputs = {column.name: column.type.name for column in model.metadata.signature.outputs}
    decision = {"score": "double", "p_value": "double", "is_anomaly": "boolean"}
    assert outputs == {**decision, "unusual_input": "string"}


def test_the_input_example_is_a_row_that_can_be_scored(model: Any, calibrated: Bundle) -> None:
    example = model.input_example
    assert list(example.columns) == list(calibrated.scorer.schema.names)
    assert np.isfinite(model.predict(example)["score"]).all()


def test_an_empty_frame_has_an_empty_answer(model: Any, frame: pd.DataFrame) -> None:
    answer = model.predict(frame.head(0))
    assert list(answer.columns) == ["score", "p_value", "is_anomaly", "unusual_input"]
    assert len(answer) == 0


def test_a_bundle_without_threshold_is_no_model_to_predict_with(
    bundle: Bundle, tmp_path: Path
) -> None:
    with pytest.raises(NotCalibratedError):
        _load_pyfunc(str(bundle.save(tmp_path / "bundle")))


def test_a_frame_without_the_window_features_of_a_model_is_refused(
    calibrated: Bundle, frame: pd.DataFrame, truth: Detections
) -> None:
    names = calibrated.scorer.schema.names[-2:]
    model = DetectorModel(calibrated.detector, windows=names)
    assert same(model.predict(frame), truth)
    with pytest.raises(DataError, match=f"lacks: '{names[1]}'; add them with .*add_windows"):
        model.predict(frame.drop(columns=names[1]))


def test_a_model_of_patch_features_scores_several_images_at_once(
    migrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (24, 32, 32), np.uint8)
    detector = ImageVAEDetector(
        backbone="efficientnet_lite0", size=32, hidden_dim=8, epochs=1, alpha=0.2
    ).fit(images)
    use_registry(migrated, tmp_path, monkeypatch)
    registry = Registry()
    with registry.run("parts", "calibrate", {}) as run:
        version = registry.register(run, detector.bundle_, "parts", {})
    loaded = mlflow.pyfunc.load_model(f"models:/parts/{version.version}")
    paths = [str(tmp_path / f"{i}.png") for i in range(3)]
    for path, image in zip(paths, images, strict=False):
        Image.fromarray(image).save(path)
    contents = pd.DataFrame({"image": [Path(path).read_bytes() for path in paths]})
    answer = loaded.predict(contents)
    assert answer["score"].tolist() == (-detector.score_samples(images[:3])).tolist()
    assert answer["is_anomaly"].tolist() == (detector.predict(images[:3]) == -1).tolist()
    assert same(DetectorModel(detector.bundle_.detector).predict(pd.DataFrame({"image": paths})),
                detector.bundle_.detector.detect(detector.bundle_.scorer.schema.from_records(
                    contents.to_dict("records"))))  # fmt: skip

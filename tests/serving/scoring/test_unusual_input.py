"""A model that tests for unusual input: every way of scoring gives the same reasons."""

import dataclasses

import numpy as np
import pyarrow.parquet as pq
import pytest

from anomaly_vae.artifacts.bundle import UNUSUAL, from_files, load_bundle
from anomaly_vae.artifacts.registry_names import BundleRef
from anomaly_vae.calibration.conformal import calibrate
from anomaly_vae.client.types import Result
from anomaly_vae.config.calibration import CalibrationConfig
from anomaly_vae.data.splitting import CALIBRATION, TRAIN, VALIDATION
from anomaly_vae.errors import BundleError
from anomaly_vae.pyfunc import DetectorModel
from anomaly_vae.scoring.unusual import fit_unusual_test, learn_typicality
from pipelines.batch.tables import score_files
from pipelines.registry.model_uri import LoadedModel
from serving.scoring.loading import load_model


@pytest.fixture(scope="module")
def tested(bundle, dataset):
    """The small model with a test for unusual input."""
    scorer, rows = bundle.scorer, dataset.part(CALIBRATION)
    test = fit_unusual_test(
        CalibrationConfig(unusual_alpha=0.05),
        scorer.scored(rows),
        lambda: learn_typicality(scorer, dataset.part(TRAIN), dataset.part(VALIDATION)),
    )
    return bundle.calibrated(calibrate(scorer.score(rows), 0.1), None, None, test)


@pytest.fixture(scope="module")
def served(tested, tmp_path_factory):
    folder = tested.save(tmp_path_factory.mktemp("tested") / "bundle")
    return load_model(BundleRef(str(folder)))


@pytest.fixture
def mixed(records, tested):
    """Usual rows, then one without a value and one with only one."""
    empty = dict.fromkeys(tested.scorer.schema.names)
    return [*records[:40], {**records[0], **empty}, {**records[0], **empty, "TX_AMOUNT": 10.0}]


@pytest.fixture
def truth(tested, mixed):
    found = tested.detector.detect(tested.scorer.schema.from_records(mixed))
    assert "columns have no value" in found.unusual_input[-2]
    assert found.unusual_input[-1].startswith(f"{len(tested.scorer.schema.names) - 1} of ")
    assert found.unusual_input[:40].tolist().count(None) > 30
    return found.unusual_input.tolist()


def said(results):
    return [one["unusual_input"] for one in results]


@pytest.mark.parametrize("explain", [0, 2])
def test_answers_say_why_a_record_is_unusual(client_of, served, mixed, truth, explain):
    client = client_of(served)
    body = {"records": mixed, "explain": explain}
    assert said(client.post("/score", json=body).json()["results"]) == truth
    alone = [client.post("/score", json={"records": [row]}).json()["results"] for row in mixed[-3:]]
    assert [said(results)[0] for results in alone] == truth[-3:]
    counted = client.get("/metrics").text
    total = len(truth) - truth.count(None) + sum(reason is not None for reason in truth[-3:])
    assert f'anomaly_vae_unusual_records_total{{model="fraud",version=""}} {total}.0' in counted


def test_the_test_does_not_affect_scores_and_flags(tested, mixed):
    batch = tested.scorer.schema.from_records(mixed)
    found = tested.detector.detect(batch)
    plain = dataclasses.replace(tested.detector, unusual=None).detect(batch)
    assert plain.unusual_input is None
    for name in ("score", "p_value", "is_anomaly"):
        np.testing.assert_array_equal(getattr(found, name), getattr(plain, name))


def test_a_model_without_the_test_answers_null(client, records):
    (result,) = client.post("/score", json={"records": records[:1]}).json()["results"]
    assert result["unusual_input"] is None
    assert Result(1.0, 0.5, False).unusual_input is None


def test_tensors_and_mlflow_agree(client_of, served, mixed, truth):
    client = client_of(served)
    rows = client.post("/invocations", json={"dataframe_records": mixed}).json()["predictions"]
    assert said(rows) == truth
    tensor = {"name": "TX_AMOUNT", "shape": [1], "datatype": "FP64", "data": [10.0]}
    answer = client.post("/v2/models/fraud/infer", json={"inputs": [tensor]})
    outputs = {one["name"]: one for one in answer.json()["outputs"]}
    assert outputs["unusual_input"]["data"] == [truth[-1]]


def test_batch_and_pyfunc_agree(tested, dataset, tmp_path):
    table = dataset.test_table
    pq.write_table(table, tmp_path / "rows.parquet")
    source = LoadedModel(tested, "fraud", None)
    summary = score_files(source, [str(tmp_path / "rows.parquet")], tmp_path / "out")
    reasons = pq.read_table(tmp_path / "out" / "part-00000.parquet")["unusual_input"].to_pylist()
    assert summary["unusual"] == len(reasons) - reasons.count(None)
    answer = DetectorModel(tested.detector).predict(table.to_pandas())
    assert answer["unusual_input"].tolist() == reasons


def test_the_bundle_keeps_the_test_and_its_digest(tested, tmp_path):
    loaded = load_bundle(tested.save(tmp_path / "bundle"), tested.digest)
    assert loaded.digest == tested.digest
    assert loaded.manifest["unusual"] == {"alpha": 0.05, "n": len(tested.calibration.scores)}
    assert loaded.unusual.calibration.threshold == tested.unusual.calibration.threshold


def test_calibrating_without_the_test_removes_it(tested):
    plain = tested.calibrated(tested.calibration, None)
    assert UNUSUAL not in plain.files
    assert "unusual" not in plain.manifest
    assert plain.unusual is None


def test_a_damaged_or_absent_test_is_refused(tested):
    files = tested.files
    with pytest.raises(BundleError, match="disagree"):
        from_files({name: content for name, content in files.items() if name != UNUSUAL})
    with pytest.raises(BundleError, match=r"unusual\.safetensors cannot be read"):
        _ = from_files({**files, UNUSUAL: b"nothing"}).detector

"""A model calibrated by groups: every route says whose threshold decided, and decides by it."""

import dataclasses
import struct

import numpy as np
import pytest
import tritonclient.http as triton

from anomaly_vae.artifacts.registry_names import BundleRef
from anomaly_vae.calibration.sample import CalibrationSample
from anomaly_vae.calibration.thresholds import choose_threshold
from anomaly_vae.client import Client
from anomaly_vae.config.calibration import CalibrationConfig
from anomaly_vae.data.splitting import CALIBRATION
from serving.protocols.open_inference import HEADER_LENGTH
from serving.scoring.loading import load_model
from tests.support.shadows import client_beside, counted, wait_for

__all__ = ["client_beside"]

COLUMN = "TX_CHANNEL"
PLAIN = {"score", "p_value", "is_anomaly"}


@pytest.fixture(scope="module")
def channels(bundle, dataset, tmp_path_factory):
    """The small model with a threshold for each channel."""
    x = bundle.scorer.encoding.encode(dataset.part(CALIBRATION))
    levels = bundle.scorer.encoding.levels(COLUMN, x)
    given = CalibrationSample.from_scores(bundle.scorer.score_encoded(x), levels=levels)
    chosen = choose_threshold(given, CalibrationConfig(alpha=0.1, group_by=COLUMN))
    folder = bundle.calibrated(chosen, None).save(tmp_path_factory.mktemp("channels") / "bundle")
    return load_model(BundleRef(str(folder), version="3"))


@pytest.fixture
def mixed(records):
    """Rows of every channel, of one that is not known, and of none."""
    odd = [{**records[0], COLUMN: "pigeon"}, {**records[0], COLUMN: None}]
    return [*records[:60], *odd]


@pytest.fixture
def truth(channels, mixed):
    return channels.detector.detect(channels.detector.scorer.schema.from_records(mixed))


def said(results):
    keys = ("p_value", "is_anomaly", "group", "threshold")
    return [tuple(one[key] for key in keys) for one in results]


def expected(found):
    columns = (found.p_value, found.is_anomaly, found.group, found.threshold)
    return list(zip(*(one.tolist() for one in columns), strict=True))


@pytest.mark.parametrize("explain", [0, 2])
def test_each_result_names_its_group_and_threshold(client_of, channels, mixed, truth, explain):
    body = {"records": mixed, "explain": explain}
    answer = client_of(channels).post("/score", json=body).json()
    assert said(answer["results"]) == expected(truth)
    assert answer["threshold"] == channels.detector.calibration.threshold
    assert [one["group"] for one in answer["results"][-2:]] == [None, None]
    assert len({one["threshold"] for one in answer["results"]}) > 2
    assert all(one["is_anomaly"] == (one["score"] > one["threshold"]) for one in answer["results"])


def test_a_large_request_and_a_small_one_say_the_same(client_of, channels, mixed, truth):
    client = client_of(channels)
    many = client.post("/score", json={"records": mixed * 60}).json()["results"]
    one = [client.post("/score", json={"records": [row]}).json()["results"][0] for row in mixed[:9]]
    assert said(many) == expected(truth) * 60
    assert said(one) == expected(truth)[:9]


def test_a_model_without_groups_says_nothing_of_them(client, records):
    (result,) = client.post("/score", json={"records": records[:1]}).json()["results"]
    assert set(result) == PLAIN | {"id", "unusual_input"}
    assert client.get("/models").json()["models"][0]["groups"] is None


def test_the_list_of_models_has_the_thresholds_of_groups(client_of, channels):
    (model,) = client_of(channels).get("/models").json()["models"]
    own = channels.detector.calibration.groups.by_level
    thresholds = {level: calibration.threshold for level, calibration in own.items()}
    assert model["groups"] == {"column": COLUMN, "thresholds": thresholds}
    assert model["threshold"] == channels.detector.calibration.threshold


def test_invocations_say_them_too(client_of, channels, mixed, truth):
    answer = client_of(channels).post("/invocations", json={"dataframe_records": mixed}).json()
    assert said(answer["predictions"]) == expected(truth)


def test_the_inference_protocol_has_two_outputs_more(client_of, channels, mixed, truth):
    client = client_of(channels)
    about = client.get("/v2/models/fraud").json()["outputs"]
    assert [one["name"] for one in about] == [
        "score",
        "p_value",
        "is_anomaly",
        "group",
        "threshold",
    ]
    cells = [row[COLUMN] for row in mixed]
    tensor = {"name": COLUMN, "shape": [len(cells)], "datatype": "BYTES", "data": cells}
    rows = channels.detector.scorer.schema.from_columns({COLUMN: cells}, len(cells))
    found = channels.detector.detect(rows)
    outputs = client.post("/v2/models/fraud/infer", json={"inputs": [tensor]}).json()["outputs"]
    values = {one["name"]: one["data"] for one in outputs}
    assert values["group"] == [name or "" for name in found.group]
    assert values["threshold"] == found.threshold.tolist()
    assert values["is_anomaly"] == found.is_anomaly.tolist()
    asked = {"outputs": [{"name": "group", "parameters": {"binary_data": True}}]}
    answer = client.post("/v2/models/fraud/infer", json={"inputs": [tensor], **asked})
    tail = answer.content[int(answer.headers[HEADER_LENGTH]) :]
    names = []
    while tail:
        (length,) = struct.unpack_from("<I", tail)
        names.append(tail[4 : 4 + length].decode())
        tail = tail[4 + length :]
    assert names == values["group"]


def test_triton_s_own_client_reads_the_groups(address_of, channels, records):
    cells = [row[COLUMN] for row in records[:20]]
    tensor = triton.InferInput(COLUMN, [20], "BYTES")
    tensor.set_data_from_numpy(np.array(cells, object))
    client = triton.InferenceServerClient(address_of(channels).removeprefix("http://"))
    found = client.infer("fraud", [tensor], outputs=[triton.InferRequestedOutput("group")])
    groups = [name.decode() for name in found.as_numpy("group").tolist()]
    own = channels.detector.calibration.groups.by_level
    assert groups == [cell if cell in own else "" for cell in cells]


def test_outputs_of_groups_are_unknown_to_other_models(client):
    tensor = {"name": "TX_AMOUNT", "shape": [1], "datatype": "FP64", "data": [1.0]}
    body = {"inputs": [tensor], "outputs": [{"name": "group"}]}
    answer = client.post("/v2/models/fraud/infer", json=body)
    assert answer.status_code == 422
    assert "no output 'group'; there are score, p_value, is_anomaly" in answer.json()["detail"]


def test_our_client_gives_them(address_of, channels, mixed, truth):
    with Client(address_of(channels)) as client:
        scores, (model,) = client.score(mixed), client.models()
    assert model.groups
    assert set(model.groups.thresholds) == {one.group for one in scores} - {None}
    found = [(one.p_value, one.is_anomaly, one.group, one.threshold) for one in scores]
    assert found == expected(truth)


def test_a_shadow_decides_by_its_groups(client_beside, served, channels, records):
    shadow = dataclasses.replace(channels, name=served.name)
    client = client_beside(dataclasses.replace(served, version="1"), shadow)
    client.post("/score", json={"records": records})
    pair = {"model": "fraud", "version": "1", "shadow_version": "3"}
    wait_for(client, "shadow_decisions_total", len(records))
    batch = served.detector.scorer.schema.from_records(records)
    theirs = channels.detector.detect(batch).is_anomaly
    for ours in (False, True):
        labels = {"flagged": str(ours).lower(), "shadow_flagged": "true"}
        both = (served.detector.detect(batch).is_anomaly == ours) & theirs
        assert counted(client, "shadow_decisions_total", **pair, **labels) == both.sum()


def test_the_document_shows_them(client_of, channels):
    text = client_of(channels).get("/openapi.json").json()
    example = text["paths"]["/score"]["post"]["responses"]["200"]["content"]["application/json"]
    (result,) = example["examples"]["fraud"]["value"]["results"]
    assert {"group", "threshold"} < set(result)
    assert {"group", "threshold"} < set(text["components"]["schemas"]["Result"]["properties"])

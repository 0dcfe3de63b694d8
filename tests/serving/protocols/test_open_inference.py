"""The Open Inference Protocol, as Triton's own client and MLServer's codecs speak it."""

import base64
import gzip
import json
import math
import struct

import numpy as np
import pytest
import tritonclient.http as triton
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tritonclient.utils import InferenceServerException

from serving.protocols.open_inference import HEADER_LENGTH, OUTPUTS
from tests.support.http_requests import refused
from tests.support.image_uploads import tiff_file
from tests.support.inference import AMOUNT, INFER, OF_BYTES, infer, scored, tensor, values_of


def datatype_of(column):
    return {"numeric": "FP64", "binary": "BOOL"}.get(column["type"], "BYTES")


def columns_of(client, records):
    """Each column that the model reads, its type of tensor and its values."""
    (model,) = client.get("/models").json()["models"]
    for column in model["schema"]["columns"]:
        yield column["name"], datatype_of(column), [record[column["name"]] for record in records]


def bits(values):
    return [None if value is None else bool(value) for value in values]


def as_json(client, records, shape=lambda n: [n]):
    for name, datatype, values in columns_of(client, records):
        data = bits(values) if datatype == "BOOL" else values
        yield {**tensor(name, data, datatype), "shape": shape(len(data))}


def as_arrays(client, records):
    """The columns as numpy has them: NaN where a number is missing, empty where a text is."""
    for name, datatype, values in columns_of(client, records):
        if datatype == "BYTES":
            yield name, datatype, np.array([value or "" for value in values], object)
        else:  # numpy has no missing bit, so that bits are sent as numbers
            yield name, "FP64", np.array([math.nan if v is None else v for v in values], float)


# ---------------------------------------------------------------- Triton's client


@pytest.fixture
def talk(address_of):
    """Triton's client of a server of these models."""
    clients = []

    def connect(*models, **settings):
        address = address_of(*models, **settings).removeprefix("http://")
        clients.append(triton.InferenceServerClient(address))
        return clients[-1]

    yield connect
    for client in clients:
        client.close()


def inputs_of(arrays, binary):
    for name, datatype, values in arrays:
        one = triton.InferInput(name, list(values.shape), datatype)
        one.set_data_from_numpy(values, binary_data=binary)
        yield one


def test_triton_sends_bytes_by_default_and_gets_them(talk, client, served, records):
    """Both ways as bytes: the same scores to the last bit, missing values among them."""
    some = records[:50]
    assert any(value is None for record in some for value in record.values())
    result = talk(served).infer("fraud", list(inputs_of(as_arrays(client, some), binary=True)))
    expected = scored(client, some)
    assert {name: result.as_numpy(name).tolist() for name in OUTPUTS} == expected
    assert [result.as_numpy(name).dtype for name in OUTPUTS] == [float, float, bool]


def test_triton_without_bytes(talk, client, served, records):
    whole = [{k: v for k, v in record.items() if v is not None} for record in records]
    names = {name for name, _, _ in columns_of(client, records[:1])}
    whole = [record for record in whole if names <= record.keys()][:20]
    outputs = [triton.InferRequestedOutput("score", binary_data=False)]
    inputs = list(inputs_of(as_arrays(client, whole), binary=False))
    result = talk(served).infer("fraud", inputs, outputs=outputs, request_id="mine")
    assert result.as_numpy("score").tolist() == scored(client, whole)["score"]
    assert result.as_numpy("p_value") is None
    assert result.get_response()["id"] == "mine"


def test_triton_may_mix_them(talk, client, served, records):
    arrays = list(as_arrays(client, records[:5]))
    inputs = [*inputs_of(arrays[:2], False), *inputs_of(arrays[2:], True)]
    outputs = [
        triton.InferRequestedOutput("is_anomaly", binary_data=True),
        triton.InferRequestedOutput("score", binary_data=False),
    ]
    result = talk(served).infer("fraud", inputs, outputs=outputs)
    assert result.as_numpy("is_anomaly").tolist() == scored(client, records[:5])["is_anomaly"]
    assert result.as_numpy("score").tolist() == scored(client, records[:5])["score"]


def test_triton_sends_images(talk, scan_client, scanner, pngs):
    files = np.array(pngs[:5], object)
    result = talk(scanner).infer("scans", list(inputs_of([("image", "BYTES", files)], True)))
    uploads = [("files", content) for content in pngs[:5]]
    results = scan_client.post("/score", files=uploads).json()["results"]
    assert result.as_numpy("score").tolist() == [one["score"] for one in results]


def test_triton_sends_one_matrix(talk, client_of, plain, records):
    names = plain.detector.scorer.schema.names
    rows = np.array([[record[name] or 0 for name in names] for record in records[:20]], float)
    result = talk(plain).infer("plain", list(inputs_of([("input", "FP64", rows)], True)))
    alike = [dict(zip(names, row, strict=True)) for row in rows.tolist()]
    assert result.as_numpy("score").tolist() == scored(client_of(plain), alike)["score"]


def test_triton_asks_about_the_service(talk, served):
    client = talk(served)
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("fraud")
    assert not client.is_model_ready("nobody")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    metadata = client.get_model_metadata("fraud")
    assert [column["name"] for column in metadata["inputs"]] == list(
        served.detector.scorer.schema.names
    )
    assert {one["name"]: one["datatype"] for one in metadata["outputs"]} == OUTPUTS


def test_triton_is_told_what_is_wrong(talk, served):
    inputs = list(inputs_of([("TX_AMOUNT", "FP64", np.array([1.0, math.inf]))], True))
    with pytest.raises(InferenceServerException, match="record 1, field 'TX_AMOUNT'") as caught:
        talk(served).infer("fraud", inputs)
    assert caught.value.status() == "422"


def test_triton_is_told_that_nothing_may_be_compressed(talk, served):
    inputs = list(inputs_of([("TX_AMOUNT", "FP64", np.array([1.0]))], False))
    with pytest.raises(InferenceServerException, match="without Content-Encoding"):
        talk(served).infer("fraud", inputs, request_compression_algorithm="gzip")


# ---------------------------------------------------------------- what MLServer's codecs write


@pytest.mark.parametrize("shape", [lambda n: [n], lambda n: [n, 1]])
def test_columns_as_the_pandas_codec_writes_them(client, records, shape):
    """With the nulls that its types fill in."""
    inputs = [{**one, "parameters": None} for one in as_json(client, records, shape)]
    parameters = {"content_type": "pd", "headers": None}
    body = {"id": None, "parameters": parameters, "inputs": inputs, "outputs": None}
    assert values_of(client.post(INFER, json=body)) == scored(client, records)


# ---------------------------------------------------------------- the rest


def test_the_answer_names_the_model(client_of, served):
    from dataclasses import replace

    client = client_of(replace(served, version="7"))
    for path in (INFER, "/v2/models/fraud/versions/7/infer"):
        answer = infer(client, tensor("TX_AMOUNT", [1]), path=path, id="42").json()
        assert (answer["model_name"], answer["model_version"], answer["id"]) == ("fraud", "7", "42")
        assert answer["parameters"]["alpha"] == served.detector.calibration.alpha
    assert client.get("/v2/models/fraud/versions/7").json()["versions"] == ["7"]
    assert client.get("/v2/models/fraud/versions/7/ready").json()["ready"]
    for path in ("", "/ready"):
        refused(client.get(f"/v2/models/fraud/versions/6{path}"), 404, "unknown-model")
    other = infer(client, tensor("TX_AMOUNT", [1]), path="/v2/models/fraud/versions/6/infer")
    refused(other, 404, "unknown-model")


def test_unknown_columns_are_ignored_and_counted(client):
    inputs = tensor("TX_AMOUNT", [1]), tensor("shoe_size", [43])
    assert values_of(infer(client, *inputs)) == scored(client, [{"TX_AMOUNT": 1}])
    assert 'anomaly_vae_ignored_keys_total{model="fraud",version=""} 1.0' in (
        client.get("/metrics").text
    )


def test_unknown_inputs_beside_images_are_named(scan_client, pngs):
    image = tensor("image", [base64.b64encode(pngs[0]).decode()], "BYTES")
    answered = infer(scan_client, image, tensor("hat", [1]), path="/v2/models/scans/infer")
    assert answered.json()["parameters"]["ignored"] == "hat"


def test_what_is_scored_is_counted(client):
    infer(client, tensor("TX_AMOUNT", [1, 2, 3]))
    text = client.get("/metrics").text
    assert 'anomaly_vae_scored_records_total{model="fraud",version=""} 3.0' in text
    assert 'route="/v2/models/{name}/infer"' in text


def test_an_image_to_each_file(scan_client, pngs):
    from tests.support.scans import blobs

    several = tiff_file(blobs(2, seed=0, size=40))
    files = [base64.b64encode(content).decode() for content in (pngs[0], several)]
    response = infer(scan_client, tensor("image", files, "BYTES"), path="/v2/models/scans/infer")
    problem = refused(response, 422, "invalid-record")
    assert (problem["record"], problem["field"]) == (1, "image")
    assert "several images" in problem["detail"]
    missing = tensor("image", [None], "BYTES")
    refused(infer(scan_client, missing, path="/v2/models/scans/infer"), 422, "invalid-record")


@pytest.mark.parametrize("length", ["x", "-1", "1000000", "9" * 400, ""])
def test_a_length_of_the_head_that_cannot_be(client, length):
    body = json.dumps({"inputs": [AMOUNT]}).encode()
    response = client.post(INFER, content=body, headers={HEADER_LENGTH: length})
    assert HEADER_LENGTH in refused(response, 400, "malformed")["error"]


def test_other_media_types(client):
    response = client.post(INFER, content=b"{}", headers={"Content-Type": "text/plain"})
    refused(response, 415, "unsupported-media-type")
    body = gzip.compress(json.dumps({"inputs": [AMOUNT]}).encode())
    response = client.post(INFER, content=body, headers={"Content-Encoding": "gzip"})
    refused(response, 415, "unsupported-media-type")


def test_the_same_limits(client_of, served):
    client = client_of(served, max_records=5, max_body_bytes=2048)
    assert infer(client, tensor("TX_AMOUNT", [1] * 5)).status_code == 200
    refused(infer(client, tensor("TX_AMOUNT", [1] * 6)), 413, "too-many-records")
    refused(infer(client, tensor("TX_AMOUNT", [1] * 2000)), 413, "too-large")
    assert client.post("/v2/models/nobody/infer", json={}).json()["status"] == 404
    refused(client_of().post(INFER, json={"inputs": [AMOUNT]}), 503, "not-ready")


def test_the_same_keys(client_of, served):
    from hashlib import sha256

    from serving.settings import ApiKey

    keys = tuple(
        ApiKey(name, frozenset({scope}), sha256(name.encode()).hexdigest())
        for name, scope in (("scorer", "score"), ("reader", "metrics"))
    )
    client = client_of(served, api_keys=keys)
    assert client.get("/v2/health/live").status_code == 200
    assert client.get("/v2/health/ready").status_code == 200
    problem = refused(client.get("/v2/models/fraud"), 401, "unauthenticated")
    assert problem["error"] == problem["detail"]
    for key, status in (("scorer", 200), ("reader", 403), ("nobody", 401)):
        headers = {"Authorization": f"Bearer {key}"}
        response = client.post(INFER, json={"inputs": [AMOUNT]}, headers=headers)
        assert response.status_code == status


def test_health_follows_the_service(client_of, served):
    for client in (client_of(), client_of(served)):
        client.app.state.store.draining = True
        assert client.get("/v2/health/live").json() == {"live": True}
        refused(client.get("/v2/health/ready"), 503, "not-ready")
        refused(client.get("/v2/models/fraud/ready"), 503, "not-ready")


# ---------------------------------------------------------------- whatever is sent

KEYS = ["inputs", "outputs", "parameters", "id", "name", "shape", "datatype", "data"]
LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5) | st.sampled_from(["TX_AMOUNT", "TX_CHANNEL", "FP64", "BYTES", "BOOL"])
    | st.sampled_from([[1], [2, 1], [1.5], ["a"], {"binary_data_size": 4}])
)  # fmt: skip
BODIES = st.recursive(
    LEAVES,
    lambda below: (
        st.lists(below, max_size=3)
        | st.dictionaries(st.sampled_from(KEYS), below, max_size=4)
        | st.fixed_dictionaries(
            {"name": LEAVES, "shape": below, "datatype": LEAVES, "data": below, "parameters": below}
        )
        | st.fixed_dictionaries({"inputs": st.lists(below, max_size=2)})
    ),
    max_leaves=12,
)
REFUSALS = {400, 413, 415, 422}


def answered(response):
    """Scored, or refused in the one shape."""
    if response.status_code != 200:
        assert response.status_code in REFUSALS, response.text
        assert response.json()["error"]


@given(BODIES)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_json_is_sent(client, body):
    answered(client.post(INFER, json=body))


@given(st.data())
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_becomes_of_a_good_body(client, data):
    """Bits flipped, bytes lost or doubled, in the JSON or in the tensors."""
    texts = b"".join(struct.pack("<I", len(text)) + text for text in (b"online", b"chip"))
    columns = [
        {**OF_BYTES, "shape": [2], "parameters": {"binary_data_size": 16}},
        {"name": "TX_CHANNEL", "shape": [2], "datatype": "BYTES"},
    ]
    columns[1]["parameters"] = {"binary_data_size": len(texts)}
    head = json.dumps({"inputs": columns}).encode()
    body = bytearray(head + np.array([1.5, math.nan]).tobytes() + texts)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(body) - 1))
        match data.draw(st.integers(0, 2)):
            case 0:
                body[at] ^= 1 << data.draw(st.integers(0, 7))
            case 1:
                del body[at]
            case _:
                body.insert(at, body[at])
    length = data.draw(st.sampled_from([len(head), len(head) - 1, len(body)]))
    answered(client.post(INFER, content=bytes(body), headers={HEADER_LENGTH: str(length)}))

"""Tensors, in JSON or as bytes, become the columns that a model reads."""

import base64
import json

import numpy as np
import pytest

from serving.protocols.open_inference import HEADER_LENGTH
from serving.protocols.tensors import (
    LAYOUTS,
    Tail,
    Tensor,
    columns_of,
    from_base64,
    is_matrix,
    to_bytes,
)
from tests.support.http_requests import refusal, refused
from tests.support.inference import AMOUNT, INFER, OF_BYTES, infer, scored, tensor, values_of


def test_columns_of_text_with_gaps_as_the_pandas_codec_writes_them(client):
    """It writes each value as JSON where some are no text."""
    said = {"parameters": {"content_type": "pd_json"}}
    column = tensor("TX_CHANNEL", ['"online"', "null"], "BYTES", **said)
    expected = scored(client, [{"TX_CHANNEL": "online"}, {"TX_CHANNEL": None}])
    assert values_of(infer(client, column)) == expected


def test_nested_data(client):
    column = {**tensor("TX_AMOUNT", [[1.5], [None], [2]]), "shape": [3, 1]}
    expected = scored(client, [{"TX_AMOUNT": 1.5}, {"TX_AMOUNT": None}, {"TX_AMOUNT": 2}])
    assert values_of(infer(client, column)) == expected


def test_text_in_base64(client):
    said = {"parameters": {"content_type": "base64"}}
    column = tensor("TX_CHANNEL", [base64.b64encode(b"online").decode()], "BYTES", **said)
    assert values_of(infer(client, column)) == scored(client, [{"TX_CHANNEL": "online"}])


@pytest.mark.parametrize("encode", [base64.b64encode, base64.encodebytes])
def test_images_in_base64(scan_client, pngs, encode):
    column = tensor("image", [encode(content).decode() for content in pngs[:2]], "BYTES")
    uploads = [("files", content) for content in pngs[:2]]
    results = scan_client.post("/score", files=uploads).json()["results"]
    values = values_of(infer(scan_client, column, path="/v2/models/scans/infer"))
    assert values["score"] == [result["score"] for result in results]


@pytest.mark.parametrize("datatype", [name for name in LAYOUTS if name != "BOOL"])
def test_every_type_of_number(client, datatype):
    content = np.array([3, 5], LAYOUTS[datatype])
    column = {"name": "TX_AMOUNT", "shape": [2], "datatype": datatype}
    column["parameters"] = {"binary_data_size": content.nbytes}
    expected = scored(client, [{"TX_AMOUNT": 3}, {"TX_AMOUNT": 5}])
    head = json.dumps({"inputs": [column]}).encode()
    headers = {HEADER_LENGTH: str(len(head))}
    response = client.post(INFER, content=head + content.tobytes(), headers=headers)
    assert values_of(response) == expected
    assert values_of(infer(client, tensor("TX_AMOUNT", [3, 5], datatype))) == expected


def test_a_matrix(client_of, plain):
    client, path = client_of(plain), "/v2/models/plain/infer"
    for data in ([1.5, 0, None, 1], [[1.5, 0], [None, 1]]):
        matrix = {"name": "x", "shape": [2, 2], "datatype": "FP32", "data": data}
        first, second = plain.detector.scorer.schema.names
        expected = scored(client, [{first: 1.5, second: 0}, {second: 1}])
        assert values_of(infer(client, matrix, path=path)) == expected


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ([], "empty"),
        ([tensor("shoe_size", [43])], "none of the model's columns"),
        ([AMOUNT, AMOUNT], "one name"),
        ([AMOUNT, tensor("TX_CHANNEL", ["a", "b"], "BYTES")], "different numbers of rows"),
        ([tensor("TX_AMOUNT", [])], "no rows"),
        ([{**AMOUNT, "shape": [2]}], "1 values do not make the shape [2]"),
        ([{**AMOUNT, "shape": [-1]}], "do not make the shape"),
        ([{**AMOUNT, "shape": []}], "expected the shape"),
        ([{**AMOUNT, "shape": [1, 2]}], "expected the shape"),
        ([{**AMOUNT, "shape": [10**30]}], "do not make the shape"),
        ([{**AMOUNT, "datatype": "FP128"}], "datatype"),
        ([{**AMOUNT, "data": None}], "no 'data'"),
        ([{**AMOUNT, "parameters": {"shared_memory_region": "x"}, "data": None}], "no 'data'"),
        ([OF_BYTES], "Inference-Header-Content-Length"),
        ([{"name": "x", "shape": [1, 12], "datatype": "FP64", "data": [0] * 12}], "shape"),
        ([{**AMOUNT, "name": 3}], "inputs"),
        (None, "inputs"),
    ],
)
def test_tensors_that_do_not_fit(client, inputs, said):
    problem = refused(client.post(INFER, json={"inputs": inputs}), 422, "invalid-request")
    assert said in problem["detail"]
    assert problem["error"] == problem["detail"]


@pytest.mark.parametrize(
    "column",
    [
        tensor("TX_AMOUNT", [1, "2"]),
        tensor("TX_AMOUNT", [1, True]),
        tensor("TX_AMOUNT", [1, [2]]),
        tensor("TX_AMOUNT", [1, 2.5], "INT64"),
        tensor("TX_AMOUNT", ["1", "2"], "BYTES"),
        tensor("TX_DURING_NIGHT", [1, 2], "INT8"),
        tensor("TX_DURING_NIGHT", [True, 0], "BOOL"),
        tensor("TX_CHANNEL", ["online", 5], "BYTES"),
        tensor("TX_DATETIME", ["2024-01-01", "yesterday"], "BYTES"),
        tensor("TX_CHANNEL", ["YQ==", "?"], "BYTES", parameters={"content_type": "base64"}),
    ],
    ids=str,
)
def test_values_that_do_not_fit_name_their_record_and_field(client, column):
    problem = refused(infer(client, column), 422, "invalid-record")
    assert problem["field"] == column["name"]
    assert 1 in [bad["record"] for bad in problem["errors"]]


def test_a_matrix_is_for_numbers(client, served):
    width = len(served.detector.scorer.schema.names)
    matrix = {"name": "x", "shape": [1, width], "datatype": "FP64", "data": [0] * width}
    detail = refused(infer(client, matrix), 422, "invalid-request")["detail"]
    assert "is not numeric; send a tensor for each column" in detail


@pytest.mark.parametrize(
    ("size", "content", "kind"),
    [
        (8, b"", "malformed"),
        (8, b"\0" * 9, "malformed"),
        (7, b"\0" * 7, "invalid-request"),
        (16, b"\0" * 16, "invalid-request"),
        (-8, b"\0" * 8, "invalid-request"),
        ("8", b"\0" * 8, "invalid-request"),
        (10**30, b"\0" * 8, "malformed"),
    ],
)
def test_bytes_that_do_not_fit(client, size, content, kind):
    column = {**OF_BYTES, "parameters": {"binary_data_size": size}}
    head = json.dumps({"inputs": [column]}).encode()
    response = client.post(INFER, content=head + content, headers={HEADER_LENGTH: str(len(head))})
    refused(response, 400 if kind == "malformed" else 422, kind)


@pytest.mark.parametrize("datatype", LAYOUTS)
def test_numbers_become_the_same_bytes_as_those_read(plain, datatype):
    values = np.array([1, 0, 1])
    content = to_bytes(values, datatype)
    one = Tensor("TX_AMOUNT", [3], datatype, {"binary_data_size": len(content)})
    assert columns_of(plain, [one], Tail(content)) == {"TX_AMOUNT": [1, 0, 1]}


def test_texts_become_the_same_bytes_as_those_read(served):
    texts = ["online", "", "téléx 📠"]
    content = to_bytes(np.array(texts, object), "BYTES")
    assert content.startswith(b"\x06\0\0\0online\0\0\0\0")
    one = Tensor("TX_CHANNEL", [3], "BYTES", {"binary_data_size": len(content)})
    assert columns_of(served, [one], Tail(content)) == {"TX_CHANNEL": ["online", None, texts[2]]}


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"\x02\0\0\0a", "longer than what is left"), (b"\x01\0\0\0a", "1 elements")],
)
def test_elements_that_do_not_fit_their_bytes(served, content, said):
    one = Tensor("TX_CHANNEL", [2], "BYTES", {"binary_data_size": len(content)})
    assert said in refusal(columns_of, served, [one], Tail(content)).detail


def test_the_tail_is_taken_piece_by_piece_and_to_its_end():
    tail = Tail(b"abcde")
    assert (tail.read(2), tail.read(0), tail.read(2)) == (b"ab", b"", b"cd")
    assert "1 bytes after" in refusal(tail.check).detail
    assert refusal(tail.read, 2).kind.slug == "malformed"
    assert tail.read(1) == b"e"
    tail.check()
    assert (Tail(b"").exists, Tail(None).exists) == (True, False)


@pytest.mark.parametrize(
    ("shape", "count"), [([], 1), ([3], 3), ([3, 2], 6), ([-1, 2], 0), ([10**30], 10**30)]
)
def test_the_number_of_elements(shape, count):
    assert Tensor("x", shape, "FP64").count == count


def test_a_matrix_is_one_tensor_of_all_columns(plain, scanner):
    first, _ = plain.schema.names
    assert is_matrix(plain, [Tensor("x", [5, 2], "FP64")])
    for other in (
        [Tensor(first, [5, 2], "FP64")],
        [Tensor("x", [5, 3], "FP64")],
        [Tensor("x", [10], "FP64")],
        [Tensor("x", [5, 2], "FP64"), Tensor("y", [5, 2], "FP64")],
    ):
        assert not is_matrix(plain, other)
    assert not is_matrix(scanner, [Tensor("x", [5, 1], "BYTES")])


@pytest.mark.parametrize("text", ["YWI=", "YW\nI=\n", b"YWI=", b" YW I="])
def test_base64_on_any_lines(text):
    assert from_base64(text) == b"ab"


@pytest.mark.parametrize("text", ["YWI", "YWI=?", "é", b"\xff"])
def test_what_is_no_base64(text):
    with pytest.raises(ValueError, match="expected base64"):
        from_base64(text)

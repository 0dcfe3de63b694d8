"""Bodies that cannot be decoded are refused, naming the record and the field at fault."""

import asyncio

import pytest

from tests.support.http_requests import JSON, asgi_post, post, refused


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nonsense",
        b'{"records": [{}]} and more',
        b'{"records": [{"TX_AMOUNT": NaN}]}',
        b'{"records": [{"TX_AMOUNT": Infinity}]}',
        b'{"records": [{"TX_AMOUNT": -Infinity}]}',
        b'{"records": [{"TX_CHANNEL": "\xff"}]}',
        b'{"records": [{"TX_AMOUNT": 1e999, "\xff": 1}]}',
        b'{"records": [{"TX_AMOUNT": 1e999, "TX_CHANNEL": "\xff"}]}',
        b'{"records": [{"TX_CHANNEL": "\\ud800"}]}',
        b'{"records": [' + b'{"a":' * 100_000,
    ],
    ids=lambda body: repr(body[:30]),
)
def test_malformed(client, body):
    refused(post(client, body), 400, "malformed")


@pytest.mark.parametrize(
    ("last", "status"),
    [(b"5", 422), (b'[{"TX_AMOUNT": 1}]', 200), (b'[{"TX_AMOUNT": 1e999}]', 422)],
)
def test_the_last_of_several_lists_of_records_counts(client, last, status):
    body = b'{"records": [{"TX_AMOUNT": 1e999}], "records": ' + last + b"}"
    assert post(client, body).status_code == status


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ([], "object"),
        (None, "object"),
        ({}, "records"),
        ({"records": None}, "records"),
        ({"records": {}}, "records"),
        ({"records": []}, "empty"),
        ({"records": [{}], "explain": -1}, "explain"),
        ({"records": [{}], "explain": 1.5}, "explain"),
        ({"records": [{}], "explain": True}, "explain"),
        ({"records": [{}], "explain": "some"}, "explain"),
        ({"records": [{}], "explain": None}, "explain"),
    ],
)
def test_requests_that_do_not_fit(client, body, said):
    assert said in refused(post(client, body), 422, "invalid-request")["detail"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("TX_AMOUNT", "12,50"),
        ("TX_AMOUNT", "12.50"),
        ("TX_AMOUNT", True),
        ("TX_AMOUNT", [1]),
        ("TX_AMOUNT", {"value": 1}),
        ("TX_AMOUNT", 10**400),
        ("TX_DURING_NIGHT", 2),
        ("TX_DURING_NIGHT", "yes"),
        ("TX_CHANNEL", ["chip"]),
        ("TX_CHANNEL", {}),
        ("TX_DATETIME", "yesterday"),
        ("TX_DATETIME", 1_700_000_000),
    ],
)
def test_a_wrong_value_names_its_record_and_field(client, records, field, value):
    wrong = [records[0], {**records[1], field: value}]
    problem = refused(post(client, {"records": wrong}), 422, "invalid-record")
    assert (problem["record"], problem["field"]) == (1, field)
    assert f"record 1, field '{field}'" in problem["detail"]


def test_every_bad_record_is_listed_in_order(client, records):
    wrong = [{"TX_AMOUNT": "a"}, records[0], {"TX_DURING_NIGHT": 5, "TX_AMOUNT": "b"}]
    problem = refused(post(client, {"records": wrong}), 422, "invalid-record")
    listed = [(bad["record"], bad["field"]) for bad in problem["errors"]]
    assert listed == [(0, "TX_AMOUNT"), (2, "TX_AMOUNT"), (2, "TX_DURING_NIGHT")]
    assert problem["detail"].endswith("(and 2 more)")


def test_the_list_of_bad_records_is_bounded(client):
    problem = refused(
        post(client, {"records": [{"TX_AMOUNT": "?"}] * 5_000}), 422, "invalid-record"
    )
    assert [bad["record"] for bad in problem["errors"]] == list(range(100))


def test_records_that_are_none(client, records):
    problem = refused(post(client, {"records": [records[0], 7, [], None]}), 422, "invalid-record")
    assert [bad["record"] for bad in problem["errors"]] == [1, 2, 3]
    assert problem["detail"] == "record 1: Expected 'object', got 'int' (and 2 more)"


@pytest.mark.parametrize("number", [b"1e400", b"-1e400", b"9" * 5000])
def test_numbers_beyond_all_range(client, number):
    body = b'{"records": [{}, {"TX_AMOUNT": ' + number + b"}]}"
    problem = refused(post(client, body), 422, "invalid-record")
    assert (problem["record"], problem["field"]) == (1, "TX_AMOUNT")


@pytest.mark.parametrize("field", ["TX_AMOUNT", "TX_CHANNEL", "TX_DATETIME", "TX_DURING_NIGHT"])
def test_deep_nesting(client, field):
    for depth in (300, 600, 900):
        body = b'{"records":[{"%b":%b}]}' % (field.encode(), b"[" * depth + b"]" * depth)
        assert post(client, body).status_code in {400, 422}


def test_too_many_records(client_of, served):
    client = client_of(served, max_records=5)
    assert post(client, {"records": [{"TX_AMOUNT": 1}] * 5}).status_code == 200
    problem = refused(post(client, {"records": [{"TX_AMOUNT": 1}] * 6}), 413, "too-many-records")
    assert "at most 5" in problem["detail"]


def test_too_many_bytes_as_declared(client_of, served):
    client = client_of(served, max_body_bytes=1024)
    refused(post(client, b" " * 1025), 413, "too-large")


def test_too_many_bytes_in_chunks(client_of, served):
    """Reading stops at the limit: the rest of an endless body is never asked for."""
    taken = []

    def endless():
        while len(taken) < 1000:
            taken.append(1)
            yield b" " * 512

    client = client_of(served, max_body_bytes=1024)
    refused(client.post("/score", content=endless(), headers=JSON), 413, "too-large")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Type": "text/csv"},
        {"Content-Type": "application/json; charset=latin-1"},
        {"Content-Type": "multipart/form-data"},
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
    ],
)
def test_other_media_types(client, headers):
    refused(post(client, {"records": [{}]}, headers), 415, "unsupported-media-type")


@pytest.mark.parametrize("media", ["application/json", 'Application/JSON; charset="UTF-8"'])
def test_json_however_it_is_spelled(client, media):
    body = {"records": [{"TX_AMOUNT": 1}]}
    assert post(client, body, {"Content-Type": media}).status_code == 200


def test_a_client_that_goes_away_is_no_failure(client):
    async def gone():
        return {"type": "http.disconnect"}

    status, _, _ = asyncio.run(asgi_post(client.app, gone))
    assert status == 400


@pytest.mark.parametrize("query", ["explain=3", "a=b&heatmap=png", "heatmap"])
def test_options_of_images_to_a_model_of_tables(client, query):
    response = client.post(f"/score?{query}", json={"records": [{}]})
    assert "into the body" in refused(response, 422, "invalid-request")["detail"]


# ---------------------------------------------------------------- bytes around the JSON

AMOUNT = b'{"records": [{"TX_AMOUNT": 5}]}'


def test_a_byte_order_mark_changes_nothing(client):
    plain = post(client, AMOUNT)
    marked = post(client, b"\xef\xbb\xbf" + AMOUNT)
    assert marked.status_code == 200
    assert marked.content == plain.content
    refused(post(client, b"\xef\xbb\xbf" * 2 + AMOUNT), 400, "malformed")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
def test_other_encodings_are_named(client, encoding):
    problem = refused(post(client, AMOUNT.decode().encode(encoding)), 400, "malformed")
    assert "UTF-16 or UTF-32; send UTF-8" in problem["detail"]


@pytest.mark.parametrize("body", [b"", b" \n"])
def test_an_empty_body_is_named(client, body):
    assert "the body is empty" in refused(post(client, body), 400, "malformed")["detail"]


@pytest.mark.parametrize("media", ["application/x-www-form-urlencoded", "text/json", "x" * 5000])
def test_another_media_type_is_quoted_with_the_right_one(client, media):
    response = client.post(
        "/score", content=AMOUNT, headers={"Content-Type": media.encode("latin-1")}
    )
    detail = refused(response, 415, "unsupported-media-type")["detail"]
    assert "send 'Content-Type: application/json'" in detail
    assert ascii(media)[1:50] in detail
    assert len(detail) < 300


def test_a_compressed_body_is_named(client):
    headers = {**JSON, "Content-Encoding": "gzip"}
    detail = refused(post(client, AMOUNT, headers), 415, "unsupported-media-type")["detail"]
    assert "'gzip'" in detail


def test_of_equal_keys_the_last_counts(client):
    twice = b'{"records": [{"TX_AMOUNT": "?", "TX_AMOUNT": 5}]}'
    assert post(client, twice).json()["results"] == post(client, AMOUNT).json()["results"]

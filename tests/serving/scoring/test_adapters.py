"""Rows that another protocol decoded are checked and read as those of `POST /score` are."""

import base64

import numpy as np
import pytest

from serving.models.store import Store
from serving.scoring.adapters import (
    PendingRows,
    ProtocolRequest,
    RequestContext,
    check_ready,
    example_record,
    of_columns,
    of_records,
    read_again,
    unknown_columns,
)
from serving.settings import Settings
from tests.support.http_requests import refusal


@pytest.fixture
def context(served):
    return RequestContext(served, {}, max_records=3)


def scores(served, content):
    return served.detect(content, Settings()).score.tolist()


def test_records_and_columns_are_the_same_rows(context, served, records):
    records = records[:3]
    columns = {name: [record[name] for record in records] for name in served.schema.names}
    by_record, by_column = of_records(context, records), of_columns(context, columns)
    assert by_record.count == by_column.count == 3
    found = scores(served, by_record.read(served))
    assert found == scores(served, by_column.read(served))
    assert found == served.detector.detect(served.schema.from_records(records)).score.tolist()


def test_rows_are_counted_before_they_are_read(context):
    assert of_records(context, [{"TX_AMOUNT": "x"}] * 3).count == 3
    assert refusal(of_records, context, [{}] * 4).kind.slug == "too-many-records"
    assert refusal(of_columns, context, {"TX_AMOUNT": [1] * 4}).kind.slug == "too-many-records"
    for empty in ((of_records, []), (of_columns, {"TX_AMOUNT": []})):
        call, rows = empty
        assert "no rows" in refusal(call, context, rows).detail


def test_a_value_that_does_not_fit_is_refused_when_it_is_read(context, served):
    rows = of_columns(context, {"TX_AMOUNT": [1.0, "x"]})
    problem = refusal(rows.read, served)
    assert problem.kind.slug == "invalid-record"
    assert [(one.record, one.field) for one in problem.bad] == [(1, "TX_AMOUNT")]


def test_columns_that_the_model_does_not_know_are_named(context):
    problem = refusal(of_columns, context, {"shoe_size": [43], "x" * 200: [1]})
    assert "found shoe_size" in problem.detail.replace("'", "")
    assert "TX_AMOUNT" in problem.detail
    assert "x" * 100 in problem.detail
    assert "x" * 101 not in problem.detail
    assert unknown_columns(context, []).kind is problem.kind


def test_a_body_is_read_again_as_another_model_reads_it(served):
    def decode(body):
        rows = PendingRows(1, lambda model: (body, model), records=None)
        return ProtocolRequest(rows, answer=None)

    assert read_again(decode, [b"body"], served) == (b"body", served)
    with pytest.raises(ValueError, match="unpack"):
        read_again(decode, [b"one", b"another"], served)


def test_a_service_is_ready_while_it_has_models_and_is_not_shutting_down(served):
    settings, store = Settings(retry_after_seconds=7), Store([served])
    check_ready(store, settings)
    store.draining = True
    assert refusal(check_ready, store, settings).detail == "shutting down"
    problem = refusal(check_ready, Store(), settings)
    assert problem.detail == "no model is loaded"
    assert problem.headers["Retry-After"] == "7"


def test_examples_are_as_json_holds_them(served, scanner):
    assert example_record(served) == dict(served.example)
    assert base64.b64decode(example_record(scanner)["image"]) == scanner.example["image"]
    assert np.isfinite(scores(scanner, [base64.b64decode(example_record(scanner)["image"])])).all()

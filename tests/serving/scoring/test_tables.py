"""Models of tables read columns, decide on rows and describe the requests that they take."""

import dataclasses

import jsonschema_rs
import numpy as np
import pytest

from serving.scoring.tables import (
    EXAMPLE_CONTRIBUTIONS,
    ServedTable,
    example_request,
    record_schema,
)
from serving.settings import Settings
from tests.support.http_requests import refusal, score


def test_columns_are_read_as_records_are(served, records):
    columns = {name: [record[name] for record in records[:9]] for name in served.schema.names}
    found = served.detect(served.read_columns({**columns, "shoe_size": [43] * 9}), Settings())
    expected = served.detector.detect(served.schema.from_records(records[:9]))
    assert found.score.tolist() == expected.score.tolist()


def test_one_value_that_does_not_fit_refuses_all_columns(served):
    problem = refusal(served.read_columns, {"TX_AMOUNT": [1.0, 2.0, "x"]})
    assert [(one.record, one.field) for one in problem.bad] == [(2, "TX_AMOUNT")]


def test_only_readable_rows_are_decided_on(served, records):
    batch = served.schema.from_records([records[0], {"TX_AMOUNT": "x"}, records[1]])
    readable, found = served.detect_readable(batch, Settings())
    assert readable.tolist() == [True, False, True]
    expected = served.detector.detect(served.schema.from_records(records[:2]))
    assert found.score.tolist() == expected.score.tolist()


def test_the_schema_of_a_record_fits_records_and_nothing_else(served, records):
    schema = jsonschema_rs.validator_for(record_schema(served))
    for record in (*records[:50], served.example, {}, {"shoe_size": 43}):
        assert schema.is_valid(dict(record))
    assert not schema.is_valid({"TX_AMOUNT": "x"})
    assert not schema.is_valid([])


def test_each_model_has_a_schema_and_an_example(served):
    other = dataclasses.replace(served, name="cards/2")
    description = ServedTable.describe_bodies([served, other], Settings(max_records=7))
    assert set(description.components) == {"Record.fraud", "Record.cards_2", "ScoreRequest"}
    records = description.components["ScoreRequest"]["properties"]["records"]
    assert len(records["items"]["anyOf"]) == 2
    assert (records["minItems"], records["maxItems"]) == (1, 7)
    assert set(description.content["application/json"]["examples"]) == {"fraud", "cards/2"}


@pytest.mark.parametrize(("models", "keyword"), [(0, "anyOf"), (1, "$ref")])
def test_the_schema_of_few_models(served, models, keyword):
    components = ServedTable.describe_bodies([served] * models, Settings()).components
    assert list(components["ScoreRequest"]["properties"]["records"]["items"]) == [keyword]


def test_the_example_is_scored_as_a_request_of_it_is(client, served):
    (found,) = served.example_results(Settings())
    assert len(found.contributions) == EXAMPLE_CONTRIBUTIONS
    (answered,) = score(client, **example_request(served))["results"]
    assert np.isclose(answered["score"], found.score, rtol=1e-6)

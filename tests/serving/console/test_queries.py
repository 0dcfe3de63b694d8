"""Queries of the queue."""

import datetime as dt

import pytest

from anomaly_vae.errors import DataError
from serving.console.queries import Query


def test_a_query_survives_its_text():
    query = Query.of({"order": "day", "entity": "a&b=c?", "page": "3", "unknown": "x"})
    assert Query.parse(query.text) == query
    assert query.with_fields(status="all").page == 1
    assert Query().text == ""
    assert not Query(order="day").is_narrowed
    assert Query(entity="x").is_narrowed


def test_a_query_becomes_a_filter():
    query = Query.of({"status": "all", "entity": " C1 ", "first_day": "2024-01-31", "model": ""})
    chosen = query.filter()
    assert (chosen.status, chosen.entity, chosen.model) == (None, "C1", None)
    assert chosen.first_day == dt.date(2024, 1, 31)


@pytest.mark.parametrize("parameters", [{"page": "0"}, {"page": "1e3"}, {"last_day": "today"}])
def test_a_parameter_that_means_nothing_is_refused(parameters):
    (name,) = parameters
    with pytest.raises(DataError, match=name):
        Query.of(parameters)

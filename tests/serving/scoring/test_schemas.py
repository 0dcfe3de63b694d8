"""Requests are checked as they are decoded; fields of answers that mean something null are kept."""

import json

import msgspec
import pytest

from serving.scoring.schemas import GroupedResult, RegionsResult, ScoreRequest


def request(explain):
    return msgspec.convert({"records": [{}], "explain": explain}, ScoreRequest)


@pytest.mark.parametrize(("explain", "most"), [(0, 0), (3, 3), (2.0, 2), ("all", None)])
def test_how_many_contributions_to_list(explain, most):
    found = request(explain).max_contributions
    assert (found, type(found)) == (most, type(most))


def test_nothing_is_explained_by_default():
    assert msgspec.json.decode(b'{"records": []}', type=ScoreRequest).max_contributions == 0


@pytest.mark.parametrize("explain", [-1, 1.5, -0.5, "some", None, True])
def test_what_is_no_number_of_contributions(explain):
    with pytest.raises(msgspec.ValidationError, match="explain"):
        request(explain)


def test_null_groups_and_empty_regions_are_written():
    common = {"score": 1.0, "p_value": 0.5, "is_anomaly": False, "unusual_input": None}
    grouped = GroupedResult(**common, group=None, threshold=2.0)
    drawn = RegionsResult(**common, heatmap=b"png", regions=())
    for result, more in (
        (grouped, {"group": None, "threshold": 2.0}),
        (drawn, {"heatmap": "cG5n", "regions": []}),
    ):
        assert json.loads(msgspec.json.encode(result)) == common | more


@pytest.mark.parametrize("kind", [GroupedResult, RegionsResult])
def test_fields_of_special_results_are_required(kind):
    with pytest.raises(TypeError, match="Missing required argument"):
        kind(1.0, 0.5, False)

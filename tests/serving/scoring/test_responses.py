"""Answers name the model and its threshold, and hold a result for each record."""

import dataclasses
import json

import numpy as np
import pytest

from anomaly_vae.scoring.detector import Contribution, Detections, Explanation
from serving.scoring import responses
from tests.support.http_requests import score


def test_the_answer_names_the_model_and_its_threshold(client, served, records):
    answer = score(client, records[:2])
    assert answer["model"] == {"name": "fraud", "version": None, "alias": None}
    assert answer["alpha"] == served.detector.calibration.alpha
    assert answer["threshold"] == served.detector.calibration.threshold
    fields = {"score", "p_value", "is_anomaly", "unusual_input", "id"}
    assert [set(result) for result in answer["results"]] == [fields] * 2


FOUND = Detections(np.array([1.0, 9.0]), np.array([0.5, 0.01]), np.array([False, True]))
GROUPED = dataclasses.replace(
    FOUND, group=np.array(["online", None], object), threshold=np.array([2.0, 3.0])
)
REASONS = [Explanation((Contribution("amount", 0.5, 9, None),), 0.3, 0.2)] * 2


def fields(results):
    return json.loads(responses.encode(results))


def test_results_have_no_field_that_was_not_computed():
    first, second = fields(responses.results(FOUND))
    usual = {"unusual_input": None}
    assert first == {"score": 1.0, "p_value": 0.5, "is_anomaly": False, **usual}
    assert second == {"score": 9.0, "p_value": 0.01, "is_anomaly": True, **usual}


@pytest.mark.parametrize("explanations", [None, REASONS])
def test_results_say_why_input_is_unusual(explanations):
    reasons = np.array([None, "looks blurred"], object)
    for detections in (FOUND, GROUPED):
        found = dataclasses.replace(detections, unusual_input=reasons)
        results = fields(responses.results(found, explanations))
        assert [one["unusual_input"] for one in results] == [None, "looks blurred"]


def test_results_of_groups_name_the_group_even_if_it_is_null():
    found = [(one["group"], one["threshold"]) for one in fields(responses.results(GROUPED))]
    assert found == [("online", 2.0), (None, 3.0)]


@pytest.mark.parametrize("detections", [FOUND, GROUPED])
def test_explained_results_list_contributions(detections):
    for one in fields(responses.results(detections, REASONS)):
        (part,) = one["contributions"]
        assert part == {"feature": "amount", "nats": 0.5, "observed": 9, "expected": None}
        assert (one["rest"], one["kl"]) == (0.3, 0.2)
        assert ("group" in one) == (detections is GROUPED)


def test_an_explanation_is_needed_for_each_record():
    with pytest.raises(ValueError, match="shorter"):
        responses.results(FOUND, REASONS[:1])


def test_an_answer_carries_the_status_of_the_guarantee(served):
    assert responses.answer(served, []).guarantee_status == "unknown"
    answer = responses.answer(served, [], "broken")
    content = json.loads(responses.response(answer).body)
    assert content["guarantee_status"] == "broken"
    assert content["results"] == []
    assert responses.response(answer).media_type == "application/json"

"""Answers are read as sequences of results, and fields that are absent have a default."""

from __future__ import annotations

import msgspec
import pytest

from anomaly_vae.client.types import Model, ModelInfo, Problem, Result, Scores

RESULTS = [{"score": float(i), "p_value": 1 / (i + 1), "is_anomaly": i > 1} for i in range(4)]
ANSWER = {
    "model": {"name": "fraud", "version": "3", "alias": None},
    "alpha": 0.01,
    "threshold": 1.5,
    "results": RESULTS,
}
INFO = {
    "name": "fraud", "version": None, "alias": None, "digest": "9f2c", "kind": "tabular",
    "unit": "nats", "alpha": 0.01, "threshold": 1.5,
    "schema": {"columns": [{"name": "amount", "type": "numeric"}]},
}  # fmt: skip


def test_scores_are_a_sequence_of_their_results() -> None:
    scores = msgspec.convert(ANSWER, Scores)
    assert len(scores) == 4
    assert scores[1] == Result(score=1.0, p_value=0.5, is_anomaly=False)
    assert scores[-1] in scores
    assert scores[1:3] == scores.results[1:3]
    assert [one.is_anomaly for one in scores] == [False, False, True, True]
    with pytest.raises(IndexError):
        scores[4]


def test_what_an_older_service_leaves_out_has_a_default() -> None:
    scores = msgspec.convert(ANSWER, Scores)
    assert scores.guarantee_status is None
    assert scores[0].contributions == scores[0].regions == ()
    info = msgspec.convert(INFO, ModelInfo)
    assert info.groups is info.guarantee_status is info.schema.size is None
    problem = {"type": "t", "title": "Busy", "status": 429, "detail": "full"}
    assert msgspec.convert(problem, Problem).errors == ()


def test_what_a_newer_service_adds_is_ignored() -> None:
    newer = {**ANSWER, "added": 1, "results": [{**one, "added": 2} for one in RESULTS]}
    assert msgspec.convert(newer, Scores) == msgspec.convert(ANSWER, Scores)


@pytest.mark.parametrize("key", ["name", "version", "alias"])
def test_a_model_without_one_of_its_names_is_no_answer(key: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=key):
        msgspec.convert({k: v for k, v in ANSWER["model"].items() if k != key}, Model)


def test_defaults_of_a_result_are_left_out_when_it_is_encoded() -> None:
    content = msgspec.json.decode(msgspec.json.encode(Result(2.0, 0.5, False)))
    assert content == {"score": 2.0, "p_value": 0.5, "is_anomaly": False}


def test_a_heatmap_is_bytes_here_and_base64_in_json() -> None:
    content = msgspec.json.encode(Result(2.0, 0.5, False, heatmap=b"\x89PNG"))
    assert b'"iVBORw=="' in content
    assert msgspec.json.decode(content, type=Result).heatmap == b"\x89PNG"

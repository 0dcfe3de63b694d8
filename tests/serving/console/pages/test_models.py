"""The page of models."""

import dataclasses

import pytest

from serving.console.pages import models
from serving.registry.board import FollowedModel, FollowState
from serving.registry.promotions import Decision, History
from tests.support.review_cases import count_p_values


def test_a_model_is_shown_with_its_threshold_and_guarantee(service, alice, served):
    count_p_values(service.cases, days=5, rows=400)
    text = alice.text("/models")
    for part in (
        "fraud",
        f"{served.detector.calibration.alpha:g}",
        served.digest[:16],
        "Too few rows have been scored to tell",
        "Flagged share of each day",
    ):
        assert part in text, part
    assert text.count('<rect class="bar') == 5
    assert "Promotions" not in text


def test_promotions_are_shown_and_never_awaited(service, alice, monkeypatch):
    board = service.app.state.follower._board
    board.write(FollowState((FollowedModel("models:/cards@champion", "fraud"),)))
    histories = iter(
        [
            History(),
            History((Decision("promote", "3", "2", "ci", "2024-05-01T10:00:00+00:00",
                              "<b>better", True),), read_at=1.0),
            History(fault="no route to <host>", read_at=1.0),
            History(read_at=1.0),
        ]
    )  # fmt: skip
    asked = []
    page = service.app.state.console._pages[3]
    assert isinstance(page, models.ModelsPage)
    monkeypatch.setattr(page._promotions, "of", lambda name: asked.append(name) or next(histories))
    for part in (
        "being read from the registry",
        "promote, forced",
        "no route to <host>",
        "No version was promoted yet",
    ):
        assert part in alice.text("/models")
    assert asked == ["cards"] * 4
    board.write(FollowState())


def test_a_shadow_is_compared(service_of, served):
    service = service_of(served)
    shadow = dataclasses.replace(served, version="2")
    service.app.state.store.shadows = {"fraud": shadow}
    text = service.visitor("alice").text("/models")
    assert "Rows scored by both" in text


def test_the_guarantee_is_shown_over_time(service, alice):
    writer = service.app.state.cases.writer
    writer._note_guarantees()
    writer._note_guarantees()
    writer.guarantees.note("fraud", None, "broken", 1.7e9)
    text = alice.text("/models")
    assert text.index('guarantee broken">broken') < text.rindex('guarantee unknown">unknown')
    assert "2023-11-14 22:13" in text
    assert text.count("<li>") == 2


@pytest.mark.parametrize("state", ["holding", "rows", "calibration", "doubtful", "broken"])
def test_each_state_has_words(state):
    assert models.STATUS_TEXTS[state].endswith(".")


def test_without_models_it_says_so(service_of, served):
    service = service_of(served)
    service.app.state.store.swap([])
    assert "No model is loaded" in service.visitor("alice").text("/models")

"""The history that decides who is champion: whoever takes the next number first."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomaly_vae.errors import ConfigError, RegistryError
from anomaly_vae.lifecycle import champion_history
from anomaly_vae.lifecycle.champion_history import (
    ACTOR,
    Action,
    ChampionHistory,
    Entry,
    actor,
    history,
    main,
    previous_champions,
)
from anomaly_vae.lifecycle.registry import CHAMPION, HISTORY_TAG, Registry
from tests.support.registries import migrated, place, registry

__all__ = ["migrated", "place", "registry"]

NAME = "model"


@pytest.fixture
def versions(registry: Registry) -> Registry:
    """A registry of one model with three versions; the history asks for no more."""
    with registry.run(NAME, "calibrate", {}) as run:
        registry._client.create_registered_model(NAME)
        for _ in range(3):
            registry._client.create_model_version(NAME, source="file:///nowhere", run_id=run.id)
    return registry


def champion(registry: Registry) -> str | None:
    found = registry.champion(NAME)
    return found.version if found else None


def entry(action: Action, version: str, before: str | None) -> Entry:
    return Entry(action, version, before, "me", "now", None, False, "x.json")


def moves(registry: Registry) -> list[tuple[str | None, str]]:
    return [(one.champion, one.version) for one in history(registry, NAME) if one.changes_champion]


# ---------------------------------------------------------------- who comes before whom


def test_a_rollback_returns_to_each_champion_in_turn() -> None:
    made = [entry("promote", "1", None), entry("promote", "2", "1"), entry("promote", "3", "2")]
    assert previous_champions(made) == ["1", "2"]
    made.append(entry("rollback", "2", "3"))
    assert previous_champions(made) == ["1"]
    assert previous_champions([*made, entry("rollback", "1", "2")]) == []


def test_a_refusal_changes_nothing() -> None:
    assert previous_champions([entry("promote", "2", "1"), entry("refuse", "3", "2")]) == ["1"]


def test_an_alias_that_was_moved_by_hand_is_where_the_next_entry_found_it() -> None:
    assert previous_champions([entry("promote", "2", "1"), entry("promote", "4", "3")]) == [
        "1",
        "3",
    ]
    back = [entry("promote", "2", "1"), entry("promote", "3", "2"), entry("promote", "4", "1")]
    assert previous_champions(back)[-1] == "1"


@given(st.lists(st.sampled_from("1234"), max_size=12))
def test_no_champion_is_remembered_twice_nor_as_its_own_predecessor(order: list[str]) -> None:
    before, made = None, []
    for version in order:
        if version != before:
            made.append(entry("promote", version, before))
            before = version
    found = previous_champions(made)
    assert len(found) == len(set(found))
    assert before not in found
    assert set(found) == set(order) - {before}


# ---------------------------------------------------------------- the history


def test_an_entry_moves_the_alias_and_is_kept_with_its_record(
    versions: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ACTOR, "release-bot")
    made = ChampionHistory(versions, NAME).append("promote", "1", None, {"rules": [1]}, "first")
    assert champion(versions) == "1"
    assert history(versions, NAME) == [made]
    assert (made.by, made.reason) == ("release-bot", "first")
    run = versions.history(NAME)
    assert run is not None
    content = Path(versions.download(f"runs:/{run.id}/{made.record}")).read_text()
    assert json.loads(content) == {"rules": [1], **asdict(made)}


def test_of_two_who_saw_the_same_champion_one_wins(versions: Registry) -> None:
    ChampionHistory(versions, NAME).append("promote", "1", None, {})
    first, second = ChampionHistory(versions, NAME), ChampionHistory(versions, NAME)
    first.append("promote", "2", "1", {})
    with pytest.raises(RegistryError, match="it was version 1 and is version 2 now"):
        second.append("promote", "3", "1", {})
    assert champion(versions) == "2"
    assert moves(versions) == [(None, "1"), ("1", "2")]


def test_of_two_first_champions_one_wins(versions: Registry) -> None:
    first, second = ChampionHistory(versions, NAME), ChampionHistory(versions, NAME)
    second.append("promote", "2", None, {})
    with pytest.raises(RegistryError, match="it was none and is version 2 now"):
        first.append("promote", "1", None, {})
    assert moves(versions) == [(None, "2")]


def test_the_number_decides_even_before_the_alias_has_moved(
    versions: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The winner has taken its number, and not moved the alias yet."""
    first, second = ChampionHistory(versions, NAME), ChampionHistory(versions, NAME)
    with monkeypatch.context() as patch:
        patch.setattr(Registry, "set_champion", killed)
        with pytest.raises(KeyboardInterrupt):
            first.append("promote", "1", None, {})
    assert champion(versions) is None
    with pytest.raises(RegistryError, match="is version 1 now"):
        second.append("promote", "2", None, {})
    assert ChampionHistory(versions, NAME).completed == history(versions, NAME)[0]
    assert champion(versions) == "1"


def killed(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_refusal_beside_a_promotion_hinders_nobody(versions: Registry) -> None:
    first, second = ChampionHistory(versions, NAME), ChampionHistory(versions, NAME)
    first.append("refuse", "1", None, {}, "worse")
    second.append("promote", "2", None, {})
    ChampionHistory(versions, NAME).append("refuse", "3", "2", {})
    assert [one.action for one in history(versions, NAME)] == ["refuse", "promote", "refuse"]
    assert champion(versions) == "2"


def test_who_is_late_does_not_undo_what_came_after(
    versions: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that slept between its number and the alias wakes up two champions later."""
    move = Registry.set_champion
    done: list[str] = []

    def slow(self: Registry, name: str, version: str) -> None:
        if not done:
            done.append(version)
            for successor, before in (("2", "1"), ("3", "2")):
                ChampionHistory(versions, NAME).append("promote", successor, before, {})
        move(self, name, version)

    monkeypatch.setattr(Registry, "set_champion", slow)
    ChampionHistory(versions, NAME).append("promote", "1", None, {})
    assert moves(versions) == [(None, "1"), ("1", "2"), ("2", "3")]
    assert champion(versions) == "3"


def test_an_alias_moved_by_hand_since_is_noticed(versions: Registry) -> None:
    succession = ChampionHistory(versions, NAME)
    versions._client.set_registered_model_alias(NAME, CHAMPION, "3")
    with pytest.raises(RegistryError, match="changed while version 1 was compared"):
        succession.append("promote", "1", None, {})
    assert champion(versions) == "3"


def test_an_alias_moved_back_by_hand_stays_there(versions: Registry) -> None:
    for version, before in (("1", None), ("2", "1")):
        ChampionHistory(versions, NAME).append("promote", version, before, {})
    versions._client.set_registered_model_alias(NAME, CHAMPION, "1")
    assert ChampionHistory(versions, NAME).completed is None
    assert champion(versions) == "1"


def test_a_crash_after_the_alias_moved_leaves_nothing_to_finish(
    versions: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if the alias is moved back by hand later."""
    ChampionHistory(versions, NAME).append("promote", "1", None, {})
    move = Registry.set_champion
    with monkeypatch.context() as patch:
        patch.setattr(Registry, "set_champion", lambda *a: killed(move(*a)))
        with pytest.raises(KeyboardInterrupt):
            ChampionHistory(versions, NAME).append("promote", "2", "1", {})
    assert ChampionHistory(versions, NAME).completed is None
    versions._client.set_registered_model_alias(NAME, CHAMPION, "1")
    assert ChampionHistory(versions, NAME).completed is None
    assert champion(versions) == "1"


def test_a_version_deleted_after_its_number_was_taken_blocks_nobody(
    versions: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Registry, "set_champion", killed)
        with pytest.raises(KeyboardInterrupt):
            ChampionHistory(versions, NAME).append("promote", "1", None, {})
    versions._client.delete_model_version(NAME, "1")
    assert ChampionHistory(versions, NAME).completed is None
    ChampionHistory(versions, NAME).append("promote", "2", None, {})
    assert champion(versions) == "2"


def test_all_agree_on_one_history_though_nobody_wrote_down_which(versions: Registry) -> None:
    ChampionHistory(versions, NAME).append("promote", "1", None, {})
    known = versions.history(NAME)
    assert known is not None
    versions._client.delete_registered_model_tag(NAME, HISTORY_TAG)
    again = versions.open_history(NAME)
    assert again.id == known.id
    assert history(versions, NAME)[0].version == "1"
    experiment = versions._client.get_experiment_by_name(NAME)
    runs = versions._client.search_runs([experiment.experiment_id])
    assert [run.info.run_name for run in runs].count(f"promotions of {NAME}") == 1


def test_a_model_without_history_has_none(versions: Registry) -> None:
    assert history(versions, NAME) == []
    assert history(versions, "absent") == []
    with pytest.raises(RegistryError, match="no registered model 'absent'"):
        ChampionHistory(versions, "absent")


@pytest.mark.parametrize("reason", ["x" * 1001, "two\nlines", "\x00", "\x1b[31mred", "  "])
def test_a_reason_that_does_not_fit_is_refused(versions: Registry, reason: str) -> None:
    with pytest.raises(ConfigError, match=r"one line of 1,000 characters|is blank"):
        ChampionHistory(versions, NAME).append("promote", "1", None, {}, reason)
    assert history(versions, NAME) == []


@pytest.mark.parametrize("reason", ["ü" * 1000, '"' * 1000])
def test_a_reason_that_just_fits_is_kept_whole(versions: Registry, reason: str) -> None:
    ChampionHistory(versions, NAME).append("promote", "1", None, {}, reason)
    assert history(versions, NAME)[0].reason == reason


def test_who_it_was_is_what_the_environment_says_or_the_login(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in (ACTOR, "MLFLOW_TRACKING_USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("getpass.getuser", lambda: "login")
    assert actor() == "login"
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "of the server")
    assert actor() == "of the server"
    monkeypatch.setenv(ACTOR, "nightly job")
    assert actor() == "nightly job"


def test_the_history_is_printed_for_the_service(
    versions: Registry, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(champion_history, "Registry", lambda create: versions)
    ChampionHistory(versions, NAME).append("promote", "1", None, {}, "first <one>")
    assert main([NAME]) == 0
    (printed,) = json.loads(capsys.readouterr().out)
    assert (printed["version"], printed["reason"]) == ("1", "first <one>")


def test_a_history_that_cannot_be_read_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(create: bool) -> None:
        raise RegistryError("no registry at sqlite:///x")

    monkeypatch.setattr(champion_history, "Registry", fail)
    assert main([NAME]) == 1
    assert capsys.readouterr() == ("", "no registry at sqlite:///x\n")

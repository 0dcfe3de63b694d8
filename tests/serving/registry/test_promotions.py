"""The history of champions is read by a child process, and kept."""

import json
import sys
import time

import pytest

from serving.registry import promotions
from serving.registry.board import FollowedModel
from serving.registry.promotions import History, Promotions, registered_name

ENTRY = {
    "action": "promote", "version": "2", "champion": "1", "by": "ci", "at": "2024-05-01T10:00:00",
    "reason": None, "forced": False, "record": "decisions/1.json",
}  # fmt: skip


def reader(script, seconds=20.0):
    return Promotions(seconds, (sys.executable, "-c", f"import sys\n{script}"))


def wait(found):
    deadline = time.monotonic() + 20
    while (history := found.of("fraud")).read_at is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return history


def test_decisions_are_read_the_newest_first_and_once(tmp_path):
    entries = [ENTRY, {**ENTRY, "version": "3"}]
    log = tmp_path / "log"
    found = reader(f"open({str(log)!r}, 'a').write(sys.argv[1]); print({json.dumps(entries)!r})")
    assert found.of("fraud") == History()  # no page waits
    assert [one.version for one in wait(found).decisions] == ["3", "2"]
    assert found.of("fraud").decisions
    assert log.read_text() == "fraud"


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("sys.exit('no route to user:secret@host')", "no route"),
        ("print('[3]')", "unreadable"),
        ("sys.exit(3)", "could not be read"),
        ("import time; time.sleep(30)", "within 0.5 seconds"),
    ],
)
def test_a_fault_is_one_line(script, said):
    history = wait(reader(script, 0.5 if "sleep" in script else 20.0))
    assert said in history.fault
    assert not history.decisions


def test_a_lean_install_says_what_is_missing(monkeypatch):
    def missing(uri):
        raise promotions.RegistryError(f"'{uri}' needs mlflow")

    monkeypatch.setattr(promotions, "check_installed", missing)
    assert "models:/fraud" in wait(reader("print('[]')")).fault


@pytest.mark.parametrize(
    ("uri", "expected"),
    [("models:/cards@champion", "cards"), ("models:/cards/3", "cards"), ("/bundles/cards", None),
     ("runs:/abc/bundle", None)],
)  # fmt: skip
def test_the_name_in_the_registry(uri, expected):
    followed = [FollowedModel("models:/other@x", "fraud", shadow=True), FollowedModel(uri, "fraud")]
    assert registered_name("fraud", followed) == expected
    assert registered_name("scans", followed) is None

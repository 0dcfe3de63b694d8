"""Who was champion when, and why: an append-only history that decides who is next.

MLflow can move an alias, but not only if nobody else has moved it. What it can do everywhere is to
write a parameter of a run once (`registry.Run.settle`), so each entry of the history is such a
parameter, under the next number: of two who were judged against the same champion, one takes the
number and the other is refused. The alias follows. There is no lock that a crash could leave
behind: whoever comes next finishes what the history says and the alias does not yet.
"""

from __future__ import annotations

import datetime as dt
import getpass
import json
import os
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from anomaly_vae.errors import ConfigError, RegistryError
from anomaly_vae.lifecycle.registry import Registry, Run

ACTOR = "ANOMALY_VAE_ACTOR"
"""The variable that says who promotes."""
MOST_CHARACTERS = 1000
"""Of a reason; MLflow cuts a parameter, which the whole entry is, at 6,000."""

Action = Literal["promote", "refuse", "rollback"]


@dataclass(frozen=True)
class Entry:
    """What was decided, by whom, when, and who was champion before."""

    action: Action
    version: str
    champion: str | None
    by: str
    at: str
    reason: str | None
    forced: bool
    record: str
    """the artifact with rules, figures and policy"""

    @property
    def moves(self) -> bool:
        """Whether it makes a version champion."""
        return self.action != "refuse"


def actor() -> str:
    """Who says to be at work: a name that is set for it, that of the tracking server, the login."""
    named = os.environ.get(ACTOR) or os.environ.get("MLFLOW_TRACKING_USERNAME")
    try:
        return (named or getpass.getuser())[:100]
    except (KeyError, OSError):  # a container's user without a name
        return "unknown"


def check_reason(reason: str | None) -> None:
    """Whether the history can hold it.

    Raises:
        ConfigError: it is too long, blank, or no text.
    """
    if reason and (len(reason) > MOST_CHARACTERS or not reason.isprintable()):
        most = f"a reason is one line of {MOST_CHARACTERS:,} characters at most"
        raise ConfigError(f"{most}, without tabs and control characters")
    if reason and not reason.strip():
        raise ConfigError("a reason says why; this one is blank")


def past(entries: Iterable[Entry]) -> list[str]:
    """The champions that a rollback can return to, the last one last."""
    found: list[str] = []
    for entry in entries:
        if entry.action == "rollback" and entry.version in found:
            found = found[: found.index(entry.version)]
        elif entry.action == "promote":
            gone = {entry.version, entry.champion}
            found = [version for version in found if version not in gone]
            found += [entry.champion] if entry.champion else []
    return found


def history(registry: Registry, name: str) -> list[Entry]:
    """What was decided of a model so far, the oldest first."""
    run = registry.history(name)
    return _entries(run.settled) if run else []


class ChampionHistory:
    """The history of one model's champions, as it stands when this is made, to be continued."""

    def __init__(self, registry: Registry, name: str) -> None:
        """Read it, and finish what somebody's crash left undone.

        Raises:
            RegistryError: no such model, or MLflow does not answer.
        """
        self._registry, self._name = registry, name
        self._run: Run = registry.open_history(name)
        settled = self._run.settled
        self.entries = _entries(settled)
        number = _last_move(self.entries)
        self.finished: Entry | None = None
        """the entry whose alias had not been moved yet"""
        if number and _done(number) not in settled:
            self._finish(number, self.entries[number - 1])

    def append(
        self,
        action: Action,
        version: str,
        champion: str | None,
        content: Mapping[str, Any],
        reason: str | None = None,
        forced: bool = False,
    ) -> Entry:
        """Take the next number; a move is one only if nobody has moved the champion since.

        Args:
            action: what was decided.
            version: of whom.
            champion: before; absent: nobody was.
            content: the rest of the record.
            reason: in words.
            forced: whether against the rules.

        Raises:
            RegistryError: the champion is another by now; nothing has changed.
            ConfigError: see `check_reason`.
        """
        check_reason(reason)
        now = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
        record = f"decisions/{uuid.uuid4().hex}.json"
        entry = Entry(action, version, champion, actor(), now, reason, forced, record)
        self._run.log_json({**content, **asdict(entry)}, record)
        if entry.moves:
            self._check_champion(entry)
        number = self._claim(entry)
        if entry.moves:
            self._carry_out(number, entry)
        return entry

    def _claim(self, entry: Entry) -> int:
        """The number that the entry has taken."""
        number, text = len(self.entries), json.dumps(asdict(entry), ensure_ascii=False)
        while True:
            number += 1
            standing = Entry(**json.loads(self._run.settle(_key(number), text)))
            if standing == entry:
                return number
            if entry.moves and standing.moves:
                raise self._overtaken(entry, standing.version)

    def _check_champion(self, entry: Entry) -> None:
        """Somebody may have moved the alias by hand."""
        current = self._champion()
        if current != entry.champion:
            raise self._overtaken(entry, current)

    def _overtaken(self, entry: Entry, current: str | None) -> RegistryError:
        was = f"version {entry.champion}" if entry.champion else "none"
        return RegistryError(
            f"the champion of {self._name} changed while version {entry.version} was compared "
            f"with it: it was {was} and is version {current} now; run the command again"
        )

    def _carry_out(self, number: int, entry: Entry) -> None:
        """Let the alias follow, and look again: whoever is late must not undo what came after."""
        while True:
            try:
                self._registry.set_champion(self._name, entry.version)
            except RegistryError as error:
                if not error.missing:
                    raise
            self._run.settle(_done(number), "true")
            entries = _entries(self._run.settled)
            if (latest := _last_move(entries)) == number:
                return
            number, entry = latest, entries[latest - 1]

    def _finish(self, number: int, entry: Entry) -> None:
        """Let the alias follow where it still is what it was; else it did, or went elsewhere."""
        if self._champion() != entry.champion:
            self._run.settle(_done(number), "true")
            return
        self._carry_out(number, entry)
        if self._champion() == entry.version:  # which nobody has deleted
            self.finished = entry

    def _champion(self) -> str | None:
        found = self._registry.champion(self._name)
        return found.version if found else None


def _key(number: int) -> str:
    return f"{number:06d}"


def _done(number: int) -> str:
    """The parameter that says that the alias followed."""
    return f"{_key(number)}.done"


def _entries(settled: Mapping[str, str]) -> list[Entry]:
    return [Entry(**json.loads(settled[key])) for key in sorted(settled) if key.isdecimal()]


def _last_move(entries: list[Entry]) -> int:
    """Its number, 0 for none."""
    return max((n for n, entry in enumerate(entries, 1) if entry.moves), default=0)

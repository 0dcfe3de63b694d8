"""Keep an append-only history of a model's champions, so that concurrent promotions cannot clash.

MLflow cannot move an alias conditionally, that is, only if no other process has moved it. But a run
parameter can be written only once (`registry.Run.set_param_once`). Each entry of the history is
therefore a parameter named by the next free number. If two challengers were compared with the same
champion, one claims the number and the other is refused (optimistic locking). The alias is moved
afterwards. A crash leaves no lock behind: the next process completes an entry whose alias was not
moved.
"""

from __future__ import annotations

import datetime as dt
import getpass
import json
import os
import sys
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from anomaly_vae.artifacts.registry_names import FAULT
from anomaly_vae.errors import ConfigError, RegistryError
from anomaly_vae.files import strict_json
from anomaly_vae.lifecycle.registry import Registry, Run
from anomaly_vae.masking import masked

ACTOR = "ANOMALY_VAE_ACTOR"
"""Environment variable with the name of the person or job that acts."""
MAX_REASON_CHARACTERS = 1000
"""Maximum length of a reason; MLflow limits a parameter, which holds an entry, to 6,000."""

Action = Literal["promote", "refuse", "rollback"]
"""Decision about a version."""


@dataclass(frozen=True)
class Entry:
    """A decision: the action, its actor and time, and the version that was champion before it."""

    action: Action
    version: str
    champion: str | None
    by: str
    at: str
    reason: str | None
    forced: bool
    record: str
    """Path of the artifact that holds rules, figures and policy."""

    @property
    def changes_champion(self) -> bool:
        """Whether the entry makes its version champion."""
        return self.action != "refuse"


def actor() -> str:
    """Return the actor: ``ANOMALY_VAE_ACTOR``, the tracking server's user, or the login name."""
    configured = os.environ.get(ACTOR) or os.environ.get("MLFLOW_TRACKING_USERNAME")
    try:
        return (configured or getpass.getuser())[:100]
    except (KeyError, OSError):  # a user without a name, as in containers
        return "unknown"


def check_reason(reason: str | None) -> None:
    """Check that a reason is fit for the history.

    Raises:
        ConfigError: the reason is too long, blank, or not a single line of printable text.
    """
    if reason and (len(reason) > MAX_REASON_CHARACTERS or not reason.isprintable()):
        limit = f"a reason is one line of {MAX_REASON_CHARACTERS:,} characters at most"
        raise ConfigError(f"{limit}, without tabs and control characters")
    if reason and not reason.strip():
        raise ConfigError("a reason says why; this one is blank")


def previous_champions(entries: Iterable[Entry]) -> list[str]:
    """Return the versions that a rollback can return to, the most recent one last."""
    previous: list[str] = []
    for entry in entries:
        if entry.action == "rollback" and entry.version in previous:
            previous = previous[: previous.index(entry.version)]
        elif entry.action == "promote":
            moved = {entry.version, entry.champion}
            previous = [version for version in previous if version not in moved]
            previous += [entry.champion] if entry.champion else []
    return previous


def history(registry: Registry, name: str) -> list[Entry]:
    """Return all decisions about a model, the oldest first."""
    run = registry.history(name)
    return _entries(run.params) if run else []


class ChampionHistory:
    """The history of a model's champions, read once, to which an entry can be appended."""

    def __init__(self, registry: Registry, name: str) -> None:
        """Read the history, and complete an entry whose alias a crashed process did not move.

        Raises:
            RegistryError: the model is unknown, or MLflow fails.
        """
        self._registry, self._name = registry, name
        self._run: Run = registry.open_history(name)
        params = self._run.params
        self.entries = _entries(params)
        number = _last_change(self.entries)
        self.completed: Entry | None = None
        """Entry of an interrupted process that was completed when the history was read, if any."""
        if number and _alias_moved_key(number) not in params:
            self._complete(number, self.entries[number - 1])

    def append(
        self,
        action: Action,
        version: str,
        champion: str | None,
        content: Mapping[str, Any],
        reason: str | None = None,
        forced: bool = False,
    ) -> Entry:
        """Append an entry, and move the alias if the entry makes a version champion.

        Args:
            action: the decision.
            version: the version that the decision is about.
            champion: the champion that the decision assumes; None for no champion.
            content: further content of the artifact.
            reason: an explanation for people.
            forced: whether the decision goes against the rules.

        Raises:
            RegistryError: the champion has changed in the meantime; the alias is not moved.
            ConfigError: see `check_reason`.
        """
        check_reason(reason)
        now = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
        record = f"decisions/{uuid.uuid4().hex}.json"
        entry = Entry(action, version, champion, actor(), now, reason, forced, record)
        self._run.log_json({**content, **asdict(entry)}, record)
        if entry.changes_champion:
            self._check_champion(entry)
        number = self._claim_number(entry)
        if entry.changes_champion:
            self._move_alias(number, entry)
        return entry

    def _claim_number(self, entry: Entry) -> int:
        """Write the entry under the next free number and return that number.

        Raises:
            RegistryError: another process changed the champion first.
        """
        number, text = len(self.entries), json.dumps(asdict(entry), ensure_ascii=False)
        while True:
            number += 1
            written = _entry(_key(number), self._run.set_param_once(_key(number), text))
            if written == entry:
                return number
            if entry.changes_champion and written.changes_champion:
                raise self._champion_changed(entry, written.version)

    def _check_champion(self, entry: Entry) -> None:
        """Refuse an entry if the alias no longer points to its champion."""
        current = self._champion()
        if current != entry.champion:
            raise self._champion_changed(entry, current)

    def _champion_changed(self, entry: Entry, current: str | None) -> RegistryError:
        """Return the error that refuses an entry whose champion is outdated."""
        was = f"version {entry.champion}" if entry.champion else "none"
        return RegistryError(
            f"the champion of {self._name} changed while version {entry.version} was compared "
            f"with it: it was {was} and is version {current} now; run the command again"
        )

    def _move_alias(self, number: int, entry: Entry) -> None:
        """Move the alias; repeat for later entries, so that a slow process does not undo them."""
        while True:
            try:
                self._registry.set_champion(self._name, entry.version)
            except RegistryError as error:
                if not error.missing:
                    raise
            self._run.set_param_once(_alias_moved_key(number), "true")
            entries = _entries(self._run.params)
            if (latest := _last_change(entries)) == number:
                return
            number, entry = latest, entries[latest - 1]

    def _complete(self, number: int, entry: Entry) -> None:
        """Move the alias for an interrupted process, unless the champion has changed since."""
        if self._champion() != entry.champion:
            self._run.set_param_once(_alias_moved_key(number), "true")
            return
        self._move_alias(number, entry)
        if self._champion() == entry.version:  # false if the version was deleted
            self.completed = entry

    def _champion(self) -> str | None:
        champion = self._registry.champion(self._name)
        return champion.version if champion else None


def _key(number: int) -> str:
    """Return the parameter that holds an entry."""
    return f"{number:06d}"


def _alias_moved_key(number: int) -> str:
    """Return the parameter that records that the alias was moved for an entry."""
    return f"{_key(number)}.done"


def _entries(params: Mapping[str, str]) -> list[Entry]:
    """Parse the entries among the parameters of a run, oldest first."""
    return [_entry(key, params[key]) for key in sorted(params) if key.isdecimal()]


def _entry(key: str, text: str) -> Entry:
    """Parse an entry.

    Raises:
        RegistryError: the parameter of the run that holds it was written by something else.
    """
    try:
        return Entry(**strict_json(text))
    except (ValueError, TypeError):
        raise RegistryError(f"entry {key} of the history of champions was altered") from None


def _last_change(entries: list[Entry]) -> int:
    """Return the number of the last entry that changes the champion, 0 for none."""
    return max((n for n, entry in enumerate(entries, 1) if entry.changes_champion), default=0)


def main(arguments: list[str] | None = None) -> int:
    """Print the history of the model named by the argument as a JSON list, the oldest first."""
    (name,) = sys.argv[1:] if arguments is None else arguments
    try:
        entries = history(Registry(create=False), name)
    except RegistryError as error:
        sys.stderr.write(f"{masked(str(error))}\n")
        return FAULT
    sys.stdout.write(json.dumps([asdict(entry) for entry in entries]) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

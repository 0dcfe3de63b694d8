"""Define the decision on a challenger, with everything that the command prints about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from anomaly_vae.data.times import Period
from anomaly_vae.evaluation.metrics import Evaluation, Slice
from anomaly_vae.lifecycle.promotion import Rule, RuleResult
from anomaly_vae.lifecycle.registry import CHALLENGER, CHAMPION
from anomaly_vae.messages import NOUNS
from pipelines.promotion.refusals import refusal_in_words
from pipelines.promotion.renewal import Renewal

DOUBTFUL_CHAMPION = (
    "But the champion's own evaluation warned, see champion_warnings: if its figures are too good "
    "for that reason, no honest version can reach them; then promote with --force --reason TEXT."
)
"""Advice after a loss against a champion whose own figures are in doubt."""


@dataclass(frozen=True)
class SplitOrigin:
    """The version whose test split is frozen, with the split's row count and short digest."""

    version: str
    rows: int
    digest: str

    def __str__(self) -> str:
        return f"version {self.version}'s test split ({self.rows:,} rows, {self.digest})"


@dataclass(frozen=True)
class Promotion:
    """The decision on a challenger, with the results of all rules."""

    name: str
    version: str
    promoted: bool
    forced: bool
    rules: tuple[RuleResult, ...]
    champion: str | None
    judged_on: SplitOrigin | None = None
    drifted: tuple[Slice, ...] = ()
    """Periods of the frozen test split in which the challenger flags too many normal rows."""
    challenger_evaluation: Evaluation | None = None
    champion_evaluation: Evaluation | None = None
    champion_warnings: tuple[str, ...] = ()
    """Warnings from the champion's own evaluation."""
    kind: str = "tabular"
    """Kind of data of the challenger."""
    period: Period | None = None
    """Period of the frozen test split; None if its rows have no time."""
    labels: Mapping[str, Any] | None = None
    """Changes of the labels of the test split; None if they cannot change."""
    renewal: Renewal | None = None
    """Why the test split was due to be replaced; None if it was not."""
    on_old_split: Promotion | None = None
    """The decision on the test split that was replaced; None if none was."""

    @property
    def reasons(self) -> tuple[RuleResult, ...]:
        """Rules that the challenger fails."""
        return tuple(result for result in self.rules if not result.passed)

    def words(self, reason: RuleResult) -> str:
        """Return in plain words what a failed rule means, and whether the champion is in doubt."""
        words = refusal_in_words(reason, NOUNS[self.kind])
        doubtful = reason.rule == Rule.NO_WORSE and self.champion_warnings
        return f"{words} {DOUBTFUL_CHAMPION}" if doubtful else words

    @property
    def remedy(self) -> str | None:
        """How to proceed after a refusal if another version's test split no longer fits."""
        if self.promoted or not self.judged_on or self.judged_on.version == self.version:
            return None
        return (
            f"{self.judged_on} is frozen for {self.name}; where the data have changed for good, "
            f"register under another name, or freeze this version's own test split with: "
            f"anomaly-vae promote {self.name} --version {self.version} --force --reason TEXT"
        )

    def result(self) -> dict[str, Any]:
        """Return the JSON object that the command prints."""
        evaluations = {
            "challenger": self.challenger_evaluation,
            "champion": self.champion_evaluation,
        }
        drifted = [(s.name, s.fpr.value, s.fpr.total) for s in self.drifted]
        return {
            "name": self.name,
            "version": self.version,
            "promoted": self.promoted,
            "forced": self.forced,
            "alias": CHAMPION if self.promoted else CHALLENGER,
            "reasons": [
                {"why": str(r.refusal_reason), "text": r.text, "words": self.words(r)}
                for r in self.reasons
            ],
            "rules": [asdict(result) for result in self.rules],
            "remedy": self.remedy,
            "judged_on": asdict(self.judged_on) if self.judged_on else None,
            "drifted": [{"slice": n, "fpr": fpr, "rows": rows} for n, fpr, rows in drifted],
            "previous_champion": self.champion,
            "champion_warnings": list(self.champion_warnings),
            "evaluations": {k: e.to_json() for k, e in evaluations.items() if e},
            "labels": dict(self.labels) if self.labels else None,
            "renewal": self._renewal(),
        }

    def _renewal(self) -> dict[str, Any] | None:
        """Return what happened to a test split that was due to be replaced."""
        if self.renewal is None:
            return None
        old, keys = self.on_old_split, ("promoted", "reasons", "rules", "judged_on", "evaluations")
        before = {key: old.result()[key] for key in (*keys, "labels")} if old else None
        return {**asdict(self.renewal), "renewed": old is not None, "on_old_split": before}

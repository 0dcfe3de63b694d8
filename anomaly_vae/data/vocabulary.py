"""Say which verdict the value of a label column, or a word of a person, means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from anomaly_vae.data.converters import label_spellings, level_name
from anomaly_vae.messages import listed, shown

WORDS = ("normal", "anomaly", "unsure")
"""Words for the verdicts; the code of a verdict is its position. Unsure means no label."""
NORMAL, ANOMALY, UNSURE = range(3)
OPPOSITES = {"0": "1", "1": "0", "false": "true", "true": "false"}
"""The other value of each boolean label."""
MAX_SHOWN = 5
"""Maximum number of label values that a message lists."""


@dataclass(frozen=True)
class Vocabulary:
    """The label values that labels may have, besides the words in `WORDS`.

    >>> fraud = Vocabulary("fraud", frozenset({"genuine"}))
    >>> [fraud.code(name) for name in ("fraud", "genuine", "Unsure", "Fraud")]
    [1, 0, 2, None]
    """

    positive: Any = 1
    """Label value that means anomaly."""
    normal: frozenset[str] = frozenset()
    """Names of the label values that mean normal."""
    named_by: str = "data.positive"
    """Configuration key, or option of a command, that names ``positive``, for messages."""

    @property
    def normal_name(self) -> str:
        """Name for a normal row: one that is in use, else one that suits the positive value."""
        positive = level_name(self.positive) or ""
        opposite = OPPOSITES.get(positive, "normal" if positive != "normal" else "other")
        return opposite if opposite in self.normal or not self.normal else min(self.normal)

    def code(self, name: str) -> int | None:
        """Return the verdict that the name of a label value means; None if it means none."""
        positive, word = label_spellings(self.positive), name.casefold()
        if name in positive:
            return ANOMALY
        if word in WORDS:
            return WORDS.index(word)
        opposites = {OPPOSITES[value] for value in positive if value in OPPOSITES}
        return NORMAL if name in self.normal | opposites else None

    def explain_unknown(self, name: str) -> str:
        """Return why the name of a label value has no meaning.

        >>> Vocabulary("fraud").explain_unknown("Fraud")
        "'Fraud' is neither 'fraud', which data.positive names, nor anomaly, normal or unsure"
        """
        known = sorted(self.normal)
        of_data = f", nor a label of the data ({listed(known, most=MAX_SHOWN)})" if known else ""
        return (
            f"{shown(name)} is neither {shown(self.positive)}, which {self.named_by} names, nor "
            f"anomaly, normal or unsure{of_data}"
        )

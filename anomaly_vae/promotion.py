"""May this challenger become champion? A pure decision with typed reasons."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from anomaly_vae.evaluation import Evaluation


class Why(StrEnum):
    """Grounds for refusal."""

    WORSE = "worse_than_champion"
    TOO_MANY_FALSE_POSITIVES = "fpr_above_alpha"
    REJECTS_MORE = "rejects_more_rows"
    READS_OTHERWISE = "reads_otherwise"


@dataclass(frozen=True)
class Policy:
    """What a challenger must hold to; frozen at the first promotion."""

    metric: Literal["average_precision", "auroc"]
    tolerance: float
    test: str = "the frozen test split"
    """how reasons call the rows that both were evaluated on"""


@dataclass(frozen=True)
class Lost:
    """Rows that the challenger cannot score, though the champion can, and such a one."""

    rows: int
    such_as: str


@dataclass(frozen=True)
class Reason:
    """One ground for refusal, in words with its figures."""

    why: Why
    text: str


def decide(
    champion: Evaluation | None,
    challenger: Evaluation,
    policy: Policy,
    lost: Lost | None = None,
    shared: Evaluation | None = None,
) -> list[Reason]:
    """Grounds against the challenger; none is a yes.

    The false positive rate speaks against it when it is above alpha by more than chance explains
    (`evaluation.highest_kept_rate`).

    Args:
        champion: on the rows that both can score.
        challenger: on all that it can score.
        policy: what it must hold to.
        lost: what it cannot score.
        shared: the challenger on the champion's rows; absent: they are all that it can score.
    """
    found = (
        _too_many_false_positives(challenger, policy),
        _rejects_more(lost, policy),
        _worse(champion, shared or challenger, policy) if champion else None,
    )
    return [reason for reason in found if reason]


def _too_many_false_positives(challenger: Evaluation, policy: Policy) -> Reason | None:
    fpr, interval, limit = challenger.fpr, challenger.fpr_interval, challenger.fpr_limit
    if fpr is None or interval is None or limit is None or fpr <= limit:
        return None
    text = (
        f"false positive rate {fpr:.4f} [{interval[0]:.4f}, {interval[1]:.4f}] on the normal rows "
        f"of {policy.test} is above {limit:.4f}, the most that chance explains at alpha "
        f"{challenger.alpha:g}"
    )
    return Reason(Why.TOO_MANY_FALSE_POSITIVES, text)


def _rejects_more(lost: Lost | None, policy: Policy) -> Reason | None:
    if not lost:
        return None
    text = f"{lost.rows} rows of {policy.test} cannot be scored: {lost.such_as}"
    return Reason(Why.REJECTS_MORE, text)


def _worse(champion: Evaluation, challenger: Evaluation, policy: Policy) -> Reason | None:
    """A figure that the champion has and the challenger lacks is worse, too."""
    old, new = (getattr(evaluation, policy.metric) for evaluation in (champion, challenger))
    if old is None or (new is not None and new >= old - policy.tolerance):
        return None
    figure = f"{policy.metric.replace('_', ' ')} {'unknown' if new is None else f'{new:.4f}'}"
    text = f"{figure} on {policy.test} is below the champion's {old:.4f}"
    return Reason(Why.WORSE, text + (f" − {policy.tolerance:g}" if policy.tolerance else ""))

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


@dataclass(frozen=True)
class Policy:
    """What a challenger must hold to; frozen at the first promotion."""

    metric: Literal["average_precision", "auroc"]
    tolerance: float


@dataclass(frozen=True)
class Reason:
    """One ground for refusal, in words with its figures."""

    why: Why
    text: str


def decide(champion: Evaluation | None, challenger: Evaluation, policy: Policy) -> list[Reason]:
    """Grounds against the challenger, both evaluated on the same frozen test split; none is a yes.

    The false positive rate speaks against it when it is above alpha by more than chance explains
    (`evaluation.highest_kept_rate`).
    """
    reasons = []
    if (excess := _too_many_false_positives(challenger)) is not None:
        reasons.append(excess)
    if challenger.rejected > (champion.rejected if champion else 0):
        text = f"{challenger.rejected} rows of the frozen test split cannot be scored"
        reasons.append(Reason(Why.REJECTS_MORE, text))
    if champion and (worse := _worse(champion, challenger, policy)):
        reasons.append(worse)
    return reasons


def _too_many_false_positives(challenger: Evaluation) -> Reason | None:
    fpr, interval, limit = challenger.fpr, challenger.fpr_interval, challenger.fpr_limit
    if fpr is None or interval is None or limit is None or fpr <= limit:
        return None
    text = (
        f"false positive rate {fpr:.4f} [{interval[0]:.4f}, {interval[1]:.4f}] on the test normals "
        f"is above {limit:.4f}, the most that chance explains at alpha {challenger.alpha:g}"
    )
    return Reason(Why.TOO_MANY_FALSE_POSITIVES, text)


def _worse(champion: Evaluation, challenger: Evaluation, policy: Policy) -> Reason | None:
    old, new = (getattr(evaluation, policy.metric) for evaluation in (champion, challenger))
    if old is None or new is None or new >= old - policy.tolerance:
        return None
    name = policy.metric.replace("_", " ")
    text = f"{name} {new:.4f} on the frozen test split is below the champion's {old:.4f}"
    return Reason(Why.WORSE, text + (f" − {policy.tolerance:g}" if policy.tolerance else ""))

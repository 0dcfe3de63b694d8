"""Say the figures of an evaluation in plain words, for people who answer for a model.

The words need no knowledge of statistics: what is flagged in a day, how much of it is right, how
much is found, and on which data that was measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from anomaly_vae.data.times import Period
from anomaly_vae.messages import NOUNS, counted, plain_number

Figures = Mapping[str, Any]


def in_words(figures: Figures, kind: str = "tabular") -> str:
    """Return a paragraph on the figures of an evaluation.

    Args:
        figures: the result of `EvaluationReport.to_json`, also of older versions.
        kind: the kind of data, a key of `NOUNS`.

    >>> figures = {
    ...     "rows": 70_000, "anomalies": 700, "flagged": 1_100, "fpr": 0.01, "recall": 0.58,
    ...     "fpr_interval": (0.009, 0.011), "precision": 0.37,
    ...     "period": ["2018-07-24", "2018-07-30"],
    ... }
    >>> print(in_words(figures).split(". ")[0])
    On the test rows of 24 to 30 July 2018, about 99 normal rows are flagged a day (89 to 109), \
about 37 of 100 flagged rows are anomalies, and about 58 of 100 anomalies are found
    """
    noun = NOUNS[kind]
    if not figures["rows"]:
        return f"None of the {noun} has both a label and a score, so nothing can be said."
    period = Period.from_json(figures["period"]) if figures.get("period") else None
    daily = period if period and period.days >= 1 else None
    place = f"On the test {noun}" + (f" of {period}" if period else "")
    *first, last = _facts(figures, daily, noun)
    sentences = [f"{place}, " + (f"{', '.join(first)}, and {last}" if first else last)]
    if figures.get("fpr_interval") or figures.get("recall_interval"):
        sentences.append("The numbers in brackets are the range that chance leaves open")
    sentences += _reservations(figures, daily, noun)
    like = f"those of {period}" if period else f"these {noun}"
    sentences.append(f"Expect the same only if the data are like {like}")
    return ". ".join(sentences) + "."


def _facts(figures: Figures, daily: Period | None, noun: str) -> Iterator[str]:
    """Yield what is flagged, how much of it is right, and how much is found."""
    if figures["fpr"] is None:
        yield f"all {noun} are anomalies, so that false alarms cannot be counted"
    elif daily:
        per_day = (figures["rows"] - figures["anomalies"]) / daily.days
        yield _about(figures, "fpr", per_day, f"normal {noun} are flagged a day")
    else:
        yield _about(figures, "fpr", 1000, f"of 1,000 normal {noun} are flagged")
    if figures["anomalies"] and figures["precision"] is not None:
        yield _about(figures, "precision", 100, f"of 100 flagged {noun} are anomalies")
    if figures["recall"] is not None:
        yield _about(figures, "recall", 100, "of 100 anomalies are found")


def _about(figures: Figures, key: str, scale: float, counted: str) -> str:
    """Return how many are counted, with the interval if it is known: "about 37 … (31 to 44)"."""
    interval: Sequence[float] | None = figures.get(f"{key}_interval")
    ends = f" ({_count(interval[0] * scale)} to {_count(interval[1] * scale)})" if interval else ""
    return f"about {_count(figures[key] * scale)} {counted}{ends}"


def _count(number: float) -> str:
    """Return a count with two significant digits, or more before the point."""
    return f"{number:,.0f}" if number >= 10 else plain_number(float(f"{number:.2g}"))


def _reservations(figures: Figures, daily: Period | None, noun: str) -> Iterator[str]:
    """Yield what the figures do not say."""
    if not figures["anomalies"]:
        yield (
            f"No anomaly is known among these {noun}: all count as normal, and nothing can be said "
            "about how many anomalies are found or how many flags are right"
        )
    if not daily:
        why = "have no time" if not figures.get("period") else "cover less than a day"
        yield f"Nothing can be said of a day, because these {noun} {why}"
        if figures["anomalies"] and figures["precision"] is not None:
            share = _count(100 * figures["anomalies"] / figures["rows"])
            yield (
                f"{share} of 100 of these {noun} are anomalies; where anomalies are rarer, fewer "
                f"flagged {noun} are"
            )
    if figures.get("unlabelled"):
        are = "is" if figures["unlabelled"] == 1 else "are"
        yield f"{counted(figures['unlabelled'], noun)} without a label {are} not counted"
    if figures.get("rejected"):
        yield f"{counted(figures['rejected'], noun)} could not be scored"

"""Show what other thresholds of a model would come to, in a table and a picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from anomaly_vae import plots
from anomaly_vae.calibration.conformal import Calibration
from anomaly_vae.calibration.daily_alerts import CONFIDENCE, MIN_DAYS, WEEK
from anomaly_vae.config.calibration import CalibrationConfig, CostConfig
from anomaly_vae.data.arrow import numbers_from_arrow
from anomaly_vae.data.days import Days, complete_days, day_numbers, zone_of_days
from anomaly_vae.errors import CalibrationError, ConfigError, DataError
from anomaly_vae.evaluation.label_maturity import LabelMaturity
from anomaly_vae.evaluation.leakage import Duplicates
from anomaly_vae.evaluation.what_if import (
    ALPHAS,
    Observed,
    WhatIf,
    calibrations,
    smallest_alpha,
    without_rows,
)
from anomaly_vae.files import atomic_path
from anomaly_vae.messages import listed
from pipelines import console
from pipelines.batch.common import warn_missing_group
from pipelines.datasets.labels import column_codes
from pipelines.datasets.loading import load_labelled
from pipelines.registry.model_uri import LoadedModel
from pipelines.reports.labelled import Judged, Labelled, judge
from pipelines.reports.report import SAME_AS_CALIBRATION, equal_scores, with_labels

KEPT_KEYS = ("group_by", "trim_scores", "density_ratio")
"""Keys of the calibration that stay when another alpha is chosen."""
MIN_WHOLE = 100
"""Least number that the table shows without decimals."""
MAX_SHOWN_DAYS = 62
"""Maximum number of days in the table of single days; the JSON object has all of them."""
COLUMNS = {
    "alerts_per_day": "alerts a day",
    "entities_per_day": "{entity} a day",
    "alerts_per_1000": "alerts in 1,000 {rows}",
    "fpr": "false positive rate",
    "precision": "precision",
    "recall": "recall",
    "cost_per_day": "cost a day",
    "cost_per_1000": "cost per 1,000 rows",
}
"""Heading of each column of the table, which is omitted if it is empty."""

PER_DAY = {"alerts_per_1000": "alerts_per_day", "cost_per_1000": "cost_per_day"}
"""Column that makes another one superfluous."""


@dataclass(frozen=True)
class Question:
    """The rows to try thresholds on, and what to count and to write down."""

    paths: Sequence[str] = ()
    """Files; none to use what the model has recorded."""
    label: str | None = None
    positive: Any = 1
    per_day: bool = False
    """Whether to list the alerts of each day."""
    entity: str | None = None
    """Column whose values count once a day; None for that of the configuration, if present."""
    choose: float | None = None
    """Alpha whose configuration is printed; None for none."""
    csv: Mapping[str, Any] = field(default_factory=dict)
    labels: Sequence[str] | None = None
    """Late labels; None for those of the version's configuration."""
    label_delay: str | None = None
    """Age from which labels are final; None for that of the configuration."""
    history: Sequence[str] = ()
    """Files with earlier rows, which feed windows only."""

    def check(self, calibration: Calibration) -> None:
        """Check that the options fit together and that the model resolves the chosen alpha.

        Raises:
            ConfigError: an option needs data, and there are none.
            CalibrationError: the calibration rows do not resolve the chosen alpha.
        """
        given = {"--label": self.label, "--per-day": self.per_day, "--entity": self.entity}
        late = {"--labels": self.labels, "--label-delay": self.label_delay}
        for name, value in {**given, **late, "--history": self.history}.items():
            if value and not self.paths:
                raise ConfigError(f"{name} needs rows to count; add --data PATH")
        for name in (name for name, value in late.items() if value and self.label is None):
            raise ConfigError(f"{name} needs the column of the labels; add --label COLUMN")
        alpha, smallest = self.choose, smallest_alpha(calibration)
        if alpha is not None and alpha < smallest and alpha != calibration.alpha:
            raise CalibrationError(
                f"--choose {alpha:g}: {len(calibration.scores):,} calibration rows resolve no "
                f"alpha below {smallest:.3g}; choose a larger one, or calibrate on more rows"
            )


@dataclass(frozen=True, eq=False)
class Trial:
    """A model, and the rows that other thresholds are tried on."""

    source: LoadedModel
    observed: Observed | None = None
    """The scored rows; None without data."""
    entity: str | None = None
    """Column whose values count once a day."""
    rejected: int = 0
    """Number of rows that could not be scored."""
    label: str | None = None
    maturity: LabelMaturity | None = None
    """How many labels are final; None without a delay of labels or without times."""

    @property
    def calibration(self) -> Calibration:
        """The model's own calibration."""
        return self.source.bundle.detector.calibration

    @property
    def days(self) -> Days | None:
        """Complete days of the rows; None without times."""
        return self.observed.days if self.observed else None

    def at(self, calibration: Calibration) -> WhatIf:
        """Return what a calibration comes to."""
        current = calibration is self.calibration
        if self.observed is None:
            evaluation = self.source.bundle.manifest["evaluation"]
            return without_rows(calibration, current, evaluation)
        return self.observed.at(calibration, current)

    def summary(self) -> dict[str, Any]:
        """Return the counts of rows and days, as JSON values."""
        observed, days = self.observed, self.days
        return {
            "rows": observed and len(observed.anomaly),
            "rejected": self.rejected,
            "anomalies": int(observed.anomaly.sum()) if observed and self.label else None,
            "days": None if days is None else len(days),
            "days_left_out": None if days is None else days.left_out,
            "entity": self.entity,
            "labels": self.maturity and self.maturity.to_json(),
        }

    def unknown(self) -> Iterator[str]:
        """Yield what the table cannot tell, with the remedy."""
        calibration, smallest = self.calibration, smallest_alpha(self.calibration)
        if finer := [f"{alpha:g}" for alpha in ALPHAS if alpha < smallest]:
            yield (
                f"alpha {', '.join(finer)}: {len(calibration.scores):,} calibration rows resolve "
                f"none below 1/(n + 1) = {smallest:.3g}; calibrate on more rows"
            )
        yield from self._unknown_rates()
        yield from self._unknown_days()

    def _unknown_rates(self) -> Iterator[str]:
        observed = self.observed
        wanted = "precision and recall"
        if observed and observed.costs is not None:
            wanted = "precision, recall and cost"
        if observed is None:
            yield (
                "precision and recall at other alphas, and alerts a day: the model records none; "
                "add --data PATH --label COLUMN"
            )
        elif self.label is None:
            yield f"{wanted}: name the column of the labels with --label"
        elif not (observed.anomaly & observed.labelled).any():
            final = " with a final label" if self.maturity else ""
            yield f"{wanted}: no row{final} is a known anomaly"
        if observed and observed.costs is None:
            yield "cost: the model was calibrated without costs (calibration.method: cost)"

    def _unknown_days(self) -> Iterator[str]:
        days, observed = self.days, self.observed
        if observed is None:
            return
        if days is None:
            yield "alerts a day: the rows have no times"
        elif len(days) < MIN_DAYS:
            yield f"alerts a day: {few_days(days)}"
        elif len(days) < WEEK:
            yield f"how weekdays differ: the rows have {len(days)} complete days; give 7 or more"
        if days is not None and self.entity is None:
            yield "alerts by entity, such as a customer: name its column with --entity"


def few_days(days: Days) -> str:
    """Return why there are too few complete days."""
    return (
        f"{len(days)} of the days with rows are complete, at least {MIN_DAYS} are needed; days "
        "that begin or end within the data do not count, give more days"
    )


def thresholds(source: LoadedModel, question: Question, out: Path) -> dict[str, Any]:
    """Print the table, draw the picture, and return the JSON object that the command prints.

    Nothing is registered or changed.

    Args:
        source: the model.
        question: the data, and what to count.
        out: the file of the picture.

    Raises:
        ConfigError: options contradict each other.
        DataError: the data cannot be read, or lack a column or times that an option needs.
        CalibrationError: the calibration rows do not resolve the chosen alpha.
        NotCalibratedError: the model has no threshold yet.
    """
    if out.suffix.lower() != ".png":
        raise ConfigError(f"--out '{out}': the file must end in .png")
    question.check(source.bundle.detector.calibration)
    trial = _observe(source, question) if question.paths else Trial(source)
    alphas = ALPHAS if question.choose is None else (*ALPHAS, question.choose)
    tried = sorted(calibrations(trial.calibration, alphas), key=lambda one: one.alpha)
    rows, unknown = [trial.at(one) for one in tried], list(trial.unknown())
    _show(trial, rows, unknown)
    with atomic_path(out) as whole:
        plots.what_if(rows, trial.entity).savefig(whole, format="png", dpi=120)
    console.info(f"Picture: {out}")
    days = _single_days(trial, tried) if question.per_day else None
    return {
        "model": source.to_json(),
        "confidence": CONFIDENCE,
        "calibration_rows": len(trial.calibration.scores),
        "smallest_alpha": smallest_alpha(trial.calibration),
        **trial.summary(),
        "thresholds": [row.to_json() for row in rows],
        **({"per_day": days} if days is not None else {}),
        "unknown": unknown,
        "picture": str(out),
        **_chosen(trial, rows, question.choose),
    }


# ---------------------------------------------------------------- reading


def _observe(source: LoadedModel, question: Question) -> Trial:
    """Score the data."""
    recorded = source.bundle.manifest["config"]
    costs = _costs(recorded)
    entity = question.entity or _usual_entity(recorded)
    also = [name for name in (entity, costs and costs.amount) if name]
    given = load_labelled(
        source.bundle, question.paths, question.label, question.csv, also, question.history
    )
    table = given.table
    if question.entity and question.entity not in table.column_names:
        found = listed(table.column_names)
        raise DataError(f"--entity '{question.entity}' is not in the data; found {found}")
    warn_missing_group(source.bundle.detector.calibration, table.column_names)
    late = question.label_delay, question.labels
    labelled = with_labels(source, given, question.label, question.positive, *late)
    judged = judge(source.bundle.detector, labelled)
    scored = judged.scored
    if not scored.any():
        why = f": {judged.problem}" if judged.problem else ""
        raise DataError(f"none of the {len(table)} rows can be scored{why}")
    _warn_of_calibration_rows(judged)
    days = _days(judged, zone_of_days(recorded))
    _check_days(days, question)
    entity = entity if entity in table.column_names and days is not None else None
    observed = Observed(
        judged.detections,
        labelled.anomaly[scored],
        (~labelled.unlabelled & labelled.final & (question.label is not None))[scored],
        tuple(unit[scored] for unit in _clusters(labelled)),
        days,
        column_codes(table, entity)[scored] if entity else None,
        *_amounts(costs, judged),
    )
    counted = int((~scored).sum()), question.label, judged.labels
    return Trial(source, observed, entity, *counted)


def _warn_of_calibration_rows(judged: Judged) -> None:
    score, anomaly = judged.detections.score, judged.labelled.anomaly[judged.scored]
    same = equal_scores(score, judged.detector.calibration.scores)
    seen = Duplicates.from_mask(same, anomaly, score)
    if warning := seen.warning(len(score), SAME_AS_CALIBRATION):
        console.info(f"Warning: {warning}")


def _costs(recorded: Mapping[str, Any]) -> CostConfig | None:
    """Return the costs of the configuration; None if the threshold does not follow from costs."""
    calibration = recorded["calibration"]
    return CostConfig(**calibration["costs"]) if calibration["method"] == "cost" else None


def _usual_entity(recorded: Mapping[str, Any]) -> str | None:
    """Return the column of the entity that the configuration names, if any."""
    evaluation = recorded.get("evaluation", {})
    found: str | None = recorded["calibration"].get("entity") or evaluation.get("entity")
    return found or recorded["data"].get("group")


def _days(judged: Judged, zone: str | None) -> Days | None:
    """Return the complete days of the scored rows; None without times."""
    seconds, scored = judged.labelled.seconds, judged.scored
    if seconds is None or np.isnan(seconds).all():
        return None
    return complete_days(seconds, scored, zone=zone).take(scored)


def _check_days(days: Days | None, question: Question) -> None:
    """Check that alerts can be counted by day if an option asks for that."""
    option = "--per-day" if question.per_day else question.entity and "--entity"
    if not option:
        return
    if days is None:
        raise DataError(
            f"{option} counts by day, and the rows have no times; leave it out, or train with "
            "data.time and give rows that have this column"
        )
    if len(days) < MIN_DAYS:
        raise DataError(f"{option} counts by day: {few_days(days)}")


def _clusters(labelled: Labelled) -> Iterator[NDArray[Any]]:
    """Yield the units (N,) whose rows resemble each other: days, and groups."""
    if labelled.seconds is not None:
        yield day_numbers(labelled.seconds)
    if labelled.group is not None:
        yield labelled.group


def _amounts(
    costs: CostConfig | None, judged: Judged
) -> tuple[CostConfig | None, NDArray[np.float64] | None]:
    """Return the costs and the amounts of the scored rows; no costs if amounts are unknown."""
    if costs is None or costs.amount is None:
        return costs, None
    table, anomaly = judged.labelled.table, judged.labelled.anomaly & judged.scored
    if costs.amount in table.column_names:
        amounts = numbers_from_arrow(table.column(costs.amount))[0]
        if (amounts[anomaly] >= 0).all():
            return costs, amounts[judged.scored]
    console.info(f"cost is unknown: anomalies without an amount in '{costs.amount}'")
    return None, None


# ---------------------------------------------------------------- on the terminal


def _show(trial: Trial, rows: Sequence[WhatIf], unknown: Sequence[str]) -> None:
    headings = _headings(trial, rows)
    cells = [
        (_alpha(row), row.threshold, *(_with_interval(row, key) for key in headings))
        for row in rows
    ]
    console.table("If alpha were", ("alpha", "threshold", *headings.values()), cells)
    if (days := trial.days) is not None and len(days) >= MIN_DAYS:
        console.info(
            f"Means of {len(days)} complete days; in brackets where 95 of 100 future days lie, if "
            f"they are like these. Incomplete days left out: {days.left_out}."
        )
    if trial.rejected:
        console.info(f"{trial.rejected:,} rows could not be scored and are not counted.")
    if trial.maturity:
        console.info(f"Labels: {trial.maturity}.")
    for text in unknown:
        console.info(f"Not known: {text}")


def _headings(trial: Trial, rows: Sequence[WhatIf]) -> dict[str, str]:
    """Return the heading of each figure that is known, without those that another replaces."""
    words = {"entity": trial.entity, "rows": "rows" if trial.observed else "normal rows"}
    known = [key for key in COLUMNS if any(getattr(row, key) is not None for row in rows)]
    shown = (key for key in known if PER_DAY.get(key) not in known)
    return {key: COLUMNS[key].format(**words) for key in shown}


def _alpha(row: WhatIf) -> str:
    return f"{row.alpha:.4g}{' (now)' if row.current else ''}"


def _with_interval(row: WhatIf, key: str) -> str:
    """Return a figure with its interval: that of a future day, if it is known."""
    value = getattr(row, key)
    interval = row.interval(key)
    text = "–" if value is None else _short(value)
    return f"{text} ({' to '.join(map(_short, interval))})" if interval else text


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= MIN_WHOLE else f"{value:.3g}"


def _single_days(trial: Trial, tried: Sequence[Calibration]) -> list[dict[str, Any]]:
    """Print the alerts of each complete day at each alpha, and return them as JSON values."""
    observed = trial.observed
    assert observed is not None, "Question.check() wants data"
    assert observed.days is not None, "_check_days() wants days"
    dates = [str(np.datetime64(int(date), "D")) for date in observed.days.dates]
    counts = [observed.alerts(one).tolist() for one in tried]
    what = trial.entity or "rows"
    header = ("day", *(f"{one.alpha:.4g}" for one in tried))
    table = list(zip(dates, *counts, strict=True))
    console.table(f"Alerts ({what}) on each day, by alpha", header, table[:MAX_SHOWN_DAYS])
    if len(table) > MAX_SHOWN_DAYS:
        console.info(f"and {len(table) - MAX_SHOWN_DAYS:,} more days; see the JSON object")
    return [{"day": day, "alerts": alerts} for day, *alerts in table]


# ---------------------------------------------------------------- choosing


def _chosen(trial: Trial, rows: Sequence[WhatIf], alpha: float | None) -> dict[str, Any]:
    """Print the lines of the configuration that give an alpha, and return them; {} for none."""
    if alpha is None:
        return {}
    recorded = trial.source.bundle.manifest["config"]["calibration"]
    row = next(row for row in rows if row.alpha == alpha)
    keys = _own_keys(recorded) if row.current else {"method": "conformal", "alpha": alpha}
    kept = {key: recorded[key] for key in KEPT_KEYS if recorded.get(key)}
    lines = yaml.safe_dump({"calibration": {**keys, **kept}}, sort_keys=False, allow_unicode=True)
    comment = "".join(f"# {text}\n" for text in _expectations(row, trial))
    text = f"{comment}{lines}"
    console.heading("For the configuration")
    console.info(text.rstrip())
    console.info(
        "Then: anomaly-vae calibrate CONFIG --model URI --no-alias registers a version with this "
        "threshold; without --no-alias it becomes challenger"
    )
    return {"configuration": text}


def _own_keys(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of the model's own method that differ from their defaults."""
    config = CalibrationConfig.model_validate(recorded)
    given = config.model_dump(mode="json", exclude_defaults=True)
    return {"method": config.method, **({"alpha": config.alpha} if config.promises_alpha else {}),
            **given}  # fmt: skip


def _expectations(row: WhatIf, trial: Trial) -> Iterator[str]:
    """Yield what is expected at an alpha, one comment a line."""
    for key, heading in _headings(trial, [row]).items():
        yield f"expected {heading}: {_with_interval(row, key)}"

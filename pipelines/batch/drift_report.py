"""Whether a batch looks like the rows that its model was calibrated on, in words."""

from __future__ import annotations

from anomaly_vae.monitoring.drift import Drift
from anomaly_vae.monitoring.exchangeability import Report
from pipelines import console

MEANS = {
    "holding": "nothing in {rows:,} rows speaks against the promise",
    "doubtful": "{rows:,} rows are not like the calibration rows, so alpha may not hold for them",
    "broken": "{flagged:,} of {rows:,} rows are flagged, a kept promise explains {flagged_limit:,}",
}
MOST_SHOWN = 8
"""Columns that a table lists, those that drifted most first."""
DRIFTED = 0.1
"""A stability index that is worth a line; 0.25 is usually called a shift (Siddiqi 2006)."""
SHARES_APART = 0.05
"""A difference of missing or unseen shares that is."""


def show_guarantee(report: Report) -> None:
    """Say how the promise stands, and which columns differ; of no rows there is nothing to say."""
    if not report.rows:
        return
    console.say(f"guarantee {report.status}: " + MEANS[report.status].format(**vars(report)))
    rows = [drift for drift in report.columns or () if _stands_out(drift)]
    if rows:
        rows.sort(key=lambda drift: -(drift.psi or 0.0))
        header = ["column", "drift (PSI)", "missing", "calibration", "unseen", "calibration"]
        console.table("Columns that differ", header, [_line(drift) for drift in rows[:MOST_SHOWN]])


def _stands_out(drift: Drift) -> bool:
    unseen = (drift.unseen or 0.0) - (drift.reference_unseen or 0.0)
    apart = max(abs(drift.missing - drift.reference_missing), abs(unseen))
    return (drift.psi or 0.0) >= DRIFTED or apart >= SHARES_APART


def _line(drift: Drift) -> list[object]:
    shares = drift.missing, drift.reference_missing, drift.unseen, drift.reference_unseen
    return [drift.column, drift.psi, *shares]

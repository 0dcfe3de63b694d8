"""Report whether a batch looks like the rows that its model was calibrated on."""

from __future__ import annotations

from anomaly_vae.monitoring.drift import Drift
from anomaly_vae.monitoring.exchangeability import Report
from pipelines import console

EXPLANATIONS = {
    "holding": "{rows:,} rows are consistent with it",
    "unknown": "{rows:,} rows are too few to tell whether it holds",
    "doubtful": "{rows:,} rows are not like the calibration rows, so alpha may not hold for them",
    "broken": "{flagged:,} of {rows:,} rows are flagged; while it holds, at most "
    "{flagged_limit:,} are",
}
"""Explanation of each status of the guarantee."""
MAX_COLUMNS = 8
"""Maximum number of columns in the table, which lists those that drifted most."""
MIN_PSI = 0.1
"""Population stability index from which a column is listed; 0.25 is a shift (Siddiqi 2006)."""
MIN_EVIDENCE = 2.0
"""Evidence, as a power of ten, that the values of a column shifted, from which it is listed."""
MIN_SHARE_CHANGE = 0.05
"""Change in the share of missing or unseen values from which a column is listed."""


def show_guarantee(report: Report) -> None:
    """Print the status of the guarantee and the columns that differ, unless there are no rows."""
    if not report.rows:
        return
    console.info(
        f"guarantee {report.status}: " + EXPLANATIONS[report.status].format(**vars(report))
    )
    rows = [drift for drift in report.columns or () if _stands_out(drift)]
    if rows:
        rows.sort(key=lambda drift: -(drift.psi or 0.0))
        header = ["column", "drift (PSI)", "missing", "calibration", "unseen", "calibration"]
        console.table("Columns that differ", header, [_line(drift) for drift in rows[:MAX_COLUMNS]])


def _stands_out(drift: Drift) -> bool:
    unseen = (drift.unseen or 0.0) - (drift.reference_unseen or 0.0)
    change = max(abs(drift.missing - drift.reference_missing), abs(unseen))
    shifted = (drift.martingale_log10 or 0.0) >= MIN_EVIDENCE
    return shifted or (drift.psi or 0.0) >= MIN_PSI or change >= MIN_SHARE_CHANGE


def _line(drift: Drift) -> list[object]:
    shares = drift.missing, drift.reference_missing, drift.unseen, drift.reference_unseen
    return [drift.column, drift.psi, *shares]

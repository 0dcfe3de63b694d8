"""Report whether a batch looks like the rows that its model was calibrated on."""

from __future__ import annotations

from anomaly_vae.messages import NOUNS, listed
from anomaly_vae.monitoring.drift import Drift
from anomaly_vae.monitoring.exchangeability import Report
from pipelines import console

EXPLANATIONS = {
    "holding": "{rows:,} {noun} look like those that the threshold was set on, so no more normal "
    "{noun} should be flagged than promised",
    "rows": "the {noun} are too few ({rows:,}) to tell whether they look like those that the "
    "threshold was set on. Nothing needs to be done; more {noun} at once tell more",
    "calibration": "{rows:,} {noun} cannot be compared with those that the threshold was set on, "
    "which cover too few days or are too few to tell how the number of flagged {noun} varies by "
    "itself. More {noun} at once do not help; calibrate on more {noun}, of 14 days or more if they "
    "have times",
    "doubtful": "{rows:,} {noun} do not look like those that the threshold was set on, so more or "
    "fewer normal {noun} may be flagged than promised. To do: look at the columns that differ, if "
    "any are listed; if one is filled in another way, mend it at its source; if the data have "
    "changed for good, calibrate or train on newer data",
    "broken": "{flagged:,} of {rows:,} {noun} are flagged; while it holds, at most "
    "{flagged_limit:,} are. Either there are many more anomalies, or normal {noun} are flagged "
    "more often than promised. To do: check a few flagged {noun} with their reasons (--explain 3); "
    "if they are normal, find out what changed, and calibrate or train on newer data",
}
"""What each status of the guarantee means, and what to do; `unknown` by what is missing."""
UNNOTICED = (
    "a change of a tenth of the rows would not be noticed in {columns}, whose values drift by "
    "themselves"
)
"""Message about columns in which only larger changes are noticed."""
MAX_COLUMNS = 8
"""Maximum number of columns in the table, which lists those that drifted most."""
MIN_PSI = 0.1
"""Population stability index from which a column is listed, unless there is evidence against a
shift; 0.25 is a shift (Siddiqi 2006)."""
MIN_EVIDENCE = 2.0
"""Evidence, as a power of ten, that the values of a column shifted, from which it is listed."""
MIN_SHARE_CHANGE = 0.05
"""Change in the share of missing or unseen values from which a column is listed."""


def show_guarantee(report: Report, kind: str) -> None:
    """Print the status of the guarantee and the columns that differ, unless there are no rows.

    Args:
        report: the status.
        kind: the kind of data, a key of `NOUNS`.
    """
    if not report.rows:
        return
    words = EXPLANATIONS[report.lacks or report.status].format(**vars(report), noun=NOUNS[kind])
    console.info(f"guarantee {report.status}: {words}")
    tested = [drift for drift in report.columns or () if drift.martingale_log10 is not None]
    unnoticed = [drift.column for drift in tested if not _notices(drift, report.rows)]
    if report.status == "holding" and 0 < len(unnoticed) < len(tested):
        console.info(UNNOTICED.format(columns=listed(unnoticed)))
    rows = [drift for drift in report.columns or () if _stands_out(drift)]
    if rows:
        rows.sort(key=lambda drift: (drift.martingale_log10 or 0.0, drift.psi or 0.0), reverse=True)
        header = ["column", "drift (PSI)", "missing", "calibration", "unseen", "calibration"]
        console.table("Columns that differ", header, [_line(drift) for drift in rows[:MAX_COLUMNS]])


def _notices(drift: Drift, rows: int) -> bool:
    """Return whether a change of a tenth of the rows is usually noticed."""
    return drift.noticed_after is not None and drift.noticed_after <= rows


def _stands_out(drift: Drift) -> bool:
    """Return whether a column differs, beyond what the hours and weekdays of the rows explain."""
    unseen = (drift.unseen or 0.0) - (drift.reference_unseen or 0.0)
    change = max(abs(drift.missing - drift.reference_missing), abs(unseen))
    evidence = drift.martingale_log10
    drifted = (drift.psi or 0.0) >= MIN_PSI and (evidence is None or evidence > 0)
    return drifted or (evidence or 0.0) >= MIN_EVIDENCE or change >= MIN_SHARE_CHANGE


def _line(drift: Drift) -> list[object]:
    shares = drift.missing, drift.reference_missing, drift.unseen, drift.reference_unseen
    return [drift.column, drift.psi, *shares]

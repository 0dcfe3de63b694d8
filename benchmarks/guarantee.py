"""Measure the drift monitor: its false alarm rate without a shift and its delay after one.

The monitor tests whether traffic is exchangeable with the calibration rows. Scores are simulated,
then calibrated and monitored as in the scoring service. Conformal p-values depend only on ranks, so
Gaussian scores represent the scores of any model. False alarms are counted on streams without a
shift; each stream has its own calibration sample and, in some settings, a known fraction of
anomalies. Delays are measured on streams whose scores shift after one full monitoring window.

A second part simulates traffic with times: scores that vary with the hour, the weekday, and from
one day to the next, at several numbers of rows a day, each calibrated on two weeks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray

from anomaly_vae.calibration.conformal import Calibration, calibrate
from anomaly_vae.data.splitting import DAY
from anomaly_vae.files import atomic_path
from anomaly_vae.monitoring.cycles import Timeline
from anomaly_vae.monitoring.exchangeability import (
    DOUBT_LEVEL,
    Monitor,
    Reference,
    Report,
    TimedRows,
    Window,
    fit_times,
)
from benchmarks.common import Options, environment, markdown_table

Scores = NDArray[np.float64]
Shift = Callable[[Scores], Scores]

STREAMS, SHORT_STREAMS = 100, 20
"""Number of simulated streams per setting, in the full and the short form."""
STREAM_ROWS = 40_000
"""Number of rows in a stream without a shift: ten monitoring windows at alpha 0.01."""
REPORT_INTERVAL = 250
"""Number of rows between two reports."""
ROWS_BEFORE_SHIFT = 4_000
"""Number of rows before a shift."""
ROWS_AFTER_SHIFT = 10_000
"""Number of rows observed after a shift."""
NO_COLUMNS: Any = SimpleNamespace(layout=SimpleNamespace(n_columns=1))
"""Encoding of no columns: only scores are monitored, not the inputs."""
ALARMS = ("doubtful", "broken")
"""Statuses that say that traffic is not like the calibration rows."""
ANOMALY_OFFSET = 8.0
"""Amount by which anomalies score above normal rows, in standard deviations."""


@dataclass(frozen=True)
class Setting:
    """A simulated calibration and its traffic."""

    n_calibration: int
    """Number of calibration rows."""
    alpha: float
    """Target false positive rate."""
    anomaly_share: float = 0.0
    """Known fraction of anomalies in the traffic."""
    tied: bool = False
    """Whether scores are rounded to a tenth of a standard deviation."""

    @property
    def title(self) -> str:
        """Return a label for tables."""
        return f"{self.n_calibration:,} rows, alpha {self.alpha:g}" + ", ties" * self.tied

    def draw_normal(self, rng: np.random.Generator, rows: int) -> Scores:
        """Draw the scores of normal rows."""
        scores = rng.normal(size=rows)
        return np.round(scores, 1) if self.tied else scores

    def draw_traffic(self, rng: np.random.Generator, rows: int) -> Scores:
        """Draw the scores of traffic: normal rows and anomalies."""
        return self.draw_normal(rng, rows) + ANOMALY_OFFSET * (
            rng.uniform(size=rows) < self.anomaly_share
        )


SETTINGS = (
    Setting(200, 0.05),
    Setting(2_000, 0.05),
    Setting(2_000, 0.01),
    Setting(2_000, 0.01, anomaly_share=0.01),
    Setting(2_000, 0.01, tied=True),
    Setting(10_000, 0.01, anomaly_share=0.01),
)
SHIFT_SETTINGS = (
    Setting(2_000, 0.01),
    Setting(2_000, 0.01, anomaly_share=0.01),
    Setting(500, 0.05),
)
SHIFTS: Mapping[str, Shift] = {
    "up by 0.1 σ": lambda scores: scores + 0.1,
    "up by 0.2 σ": lambda scores: scores + 0.2,
    "up by 0.5 σ": lambda scores: scores + 0.5,
    "up by 1 σ": lambda scores: scores + 1,
    "1.3 times as wide": lambda scores: 1.3 * scores,
    "down by 0.3 σ": lambda scores: scores - 0.3,
}


def simulate_reports(
    setting: Setting, seed: int, before: int, shift: Shift | None = None, after: int = 0
) -> Iterator[Report]:
    """Simulate one stream and yield a monitoring report every `REPORT_INTERVAL` rows.

    Args:
        setting: calibration and traffic.
        seed: seed of all random draws.
        before: number of rows without the shift; if there is a shift, they yield no reports.
        shift: function applied to the scores of later rows; None for no shift.
        after: number of rows with the shift.
    """
    rng = np.random.default_rng(seed)
    calibration = calibrate(setting.draw_normal(rng, setting.n_calibration), setting.alpha)
    monitor = Monitor(calibration, NO_COLUMNS, Reference(setting.anomaly_share))
    window = Window(monitor)
    for start in range(0, before + after, REPORT_INTERVAL):
        scores = setting.draw_traffic(rng, REPORT_INTERVAL)
        if shift and start >= before:
            scores = shift(scores)
        window.add(monitor.count(scores, calibration.flags(scores), None))
        if start >= before or not shift:
            yield monitor.report(window.blocks)


def false_alarms(setting: Setting, streams: int, rows: int = STREAM_ROWS) -> dict[str, float]:
    """Return the fraction of reports with each alarm, and the number of streams that had one."""
    statuses = [
        [report.status for report in simulate_reports(setting, seed, rows)]
        for seed in range(streams)
    ]
    n_reports = sum(map(len, statuses))
    return {
        "doubtful": sum(stream.count("doubtful") for stream in statuses) / n_reports,
        "broken": sum(stream.count("broken") for stream in statuses) / n_reports,
        "ever_doubtful": sum("doubtful" in stream for stream in statuses),
        "ever_broken": sum("broken" in stream for stream in statuses),
    }


def detection_delays(setting: Setting, shift: Shift, streams: int) -> dict[str, Scores]:
    """Return the rows after a shift until the status is "doubtful" and until it is "broken".

    Both arrays are (streams,); infinity means that the status was never reached.
    """
    delays = {"noticed": np.full(streams, np.inf), "broken": np.full(streams, np.inf)}
    for seed in range(streams):
        for number, report in enumerate(
            simulate_reports(setting, seed, ROWS_BEFORE_SHIFT, shift, ROWS_AFTER_SHIFT), 1
        ):
            if report.status in ALARMS:
                delays["noticed"][seed] = min(delays["noticed"][seed], number * REPORT_INTERVAL)
            if report.status == "broken":
                delays["broken"][seed] = number * REPORT_INTERVAL
                break
    return delays


# ---------------------------------------------------------------- traffic with times

CALIBRATION_DAYS, CALIBRATION_ROWS_A_DAY = 14, 2_000
"""Calibration period, and maximum number of its rows a day."""
EPISODES, EPISODE_ROWS = 4, 4_500
"""Number of periods of a stream that are simulated, and number of rows in each."""
TIMED_STREAMS = 4
"""Number of simulated streams per setting with times."""
TIMED_SHIFT = 0.5
"""Shift of the scores, in standard deviations."""
DAILY_RATES = (100, 1_000, 10_000, 100_000, 1_000_000)
"""Numbers of rows a day."""


@dataclass(frozen=True)
class Rhythm:
    """The variation of scores over time, in standard deviations of the scores at one time."""

    title: str
    daily: float = 0.0
    """Amplitude of the wave over a day."""
    weekly: float = 0.0
    """Increase on Saturdays and Sundays."""
    days: float = 0.0
    """Standard deviation of the means of days."""

    def draw(self, rng: np.random.Generator, times: Scores, day_means: Scores) -> Scores:
        """Draw the scores of rows at times (N,) in seconds; ``day_means`` has one per day."""
        days = (times // DAY).astype(np.int64)
        wave = self.daily * np.sin(2 * np.pi * times / DAY)
        weekend = self.weekly * (days % 7 >= 5)
        return rng.normal(size=len(times)) + wave + weekend + self.days * day_means[days]


RHYTHMS = (
    Rhythm("none"),
    Rhythm("daily", daily=0.5),
    Rhythm("daily and weekly", daily=0.5, weekly=0.3),
    Rhythm("daily, weekly, days", daily=0.5, weekly=0.3, days=0.05),
)


class TimedStream:
    """Traffic with times, calibrated on its first `CALIBRATION_DAYS` days."""

    def __init__(self, rhythm: Rhythm, daily_rows: int, seed: int) -> None:
        self.rhythm, self.daily_rows = rhythm, daily_rows
        self.rng = np.random.default_rng(seed)
        self.n_days = CALIBRATION_DAYS + EPISODES * (EPISODE_ROWS // daily_rows + 9)
        self.day_means = self.rng.normal(size=self.n_days)
        rows = CALIBRATION_DAYS * min(daily_rows, CALIBRATION_ROWS_A_DAY)
        times = np.sort(self.rng.uniform(0, CALIBRATION_DAYS * DAY, rows))
        scores = rhythm.draw(self.rng, times, self.day_means)
        self.calibration = calibrate(scores, 0.01)
        self.monitor = _timed_monitor(self.calibration, scores, times)

    def episodes(self, shift: float = 0.0) -> Iterator[Iterator[tuple[int, Report]]]:
        """Yield the reports of each period, with the number of rows since its scores shifted."""
        days = (self.n_days - CALIBRATION_DAYS) // EPISODES
        for number in range(EPISODES):
            start = (CALIBRATION_DAYS + number * days + 7 * self.rng.random()) * DAY
            span = EPISODE_ROWS / self.daily_rows * DAY
            times = np.sort(self.rng.uniform(start, start + span, EPISODE_ROWS))
            yield self._reports(times, shift)

    def _reports(self, times: Scores, shift: float) -> Iterator[tuple[int, Report]]:
        scores, half = self.rhythm.draw(self.rng, times, self.day_means), len(times) // 2
        scores[half:] += shift
        window, step = Window(self.monitor), min(REPORT_INTERVAL, max(self.daily_rows // 8, 25))
        for start in range(0, len(times), step):
            part = scores[start : start + step]
            flags, seconds = self.calibration.flags(part), times[start : start + step]
            window.add(self.monitor.count(part, flags, None, seconds))
            yield start + len(part) - half, self.monitor.report(window.blocks)


def _timed_monitor(calibration: Calibration, scores: Scores, times: Scores) -> Monitor:
    """Return a monitor of scores that has learned the calibration rows' times."""
    timeline = Timeline("at", times, is_read=True)
    rows = TimedRows(scores, np.zeros((len(scores), 0), np.float32), timeline)
    return Monitor(
        calibration, NO_COLUMNS, fit_times(calibration, NO_COLUMNS, Reference(), rows, rows)
    )


def timed_alarms(rhythm: Rhythm, daily_rows: int, streams: int) -> dict[str, float]:
    """Return the shares of reports with each status, and the rows until a shift is said.

    ``rows`` suffice in half of the periods, ``late_rows`` in nine of ten; infinity means never.
    """
    statuses: list[str] = []
    delays = []
    for seed in range(streams):
        stream = TimedStream(rhythm, daily_rows, seed)
        statuses += [report.status for reports in stream.episodes() for _, report in reports]
        delays += [_rows_until_alarm(reports) for reports in stream.episodes(TIMED_SHIFT)]
    shares = {s: statuses.count(s) / len(statuses) for s in ("doubtful", "broken", "unknown")}
    median, late = (float(np.quantile(delays, q, method="higher")) for q in (0.5, 0.9))
    return {**shares, "rows": median, "late_rows": late}


def _rows_until_alarm(reports: Iterator[tuple[int, Report]]) -> float:
    """Return the number of shifted rows until the status says so; infinity if it never does."""
    alarms = (rows for rows, report in reports if rows > 0 and report.status in ALARMS)
    return next(alarms, np.inf)


def plot(path: Path, streams: int) -> None:
    """Plot the martingale after each shift: the median and the central 90% of the streams."""
    setting, rows = SHIFT_SETTINGS[1], REPORT_INTERVAL * np.arange(1, 4_000 // REPORT_INTERVAL + 1)
    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    shifts = {"no shift": lambda scores: scores, **SHIFTS}
    for name in ("no shift", "up by 0.2 σ", "up by 0.5 σ", "1.3 times as wide"):
        simulations = [
            simulate_reports(setting, seed, ROWS_BEFORE_SHIFT, shifts[name], rows[-1])
            for seed in range(streams)
        ]
        martingales = [[report.martingale_log10 for report in reports] for reports in simulations]
        low, median, high = np.quantile(martingales, (0.05, 0.5, 0.95), axis=0)
        (line,) = axes.plot(rows, median, label=name)
        axes.fill_between(rows, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.axhline(-np.log10(DOUBT_LEVEL), color="black", linestyle="--", linewidth=0.8)
    axes.text(rows[-1], -np.log10(DOUBT_LEVEL) + 0.1, "doubtful", ha="right", va="bottom")
    axes.set(xlabel="rows after the shift", ylabel="log10 of the martingale", ylim=(-1.5, 8))
    figure.legend(loc="outside right upper", frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    plt.close(figure)


def run(options: Options) -> None:
    """Print the tables of false alarms and delays, and plot the martingales."""
    streams = SHORT_STREAMS if options.short else STREAMS
    shift_streams = max(streams // 2, 10)
    print(environment())
    print(_false_alarm_table(streams))
    print(_delay_table(shift_streams))
    print(_timed_table(1 if options.short else TIMED_STREAMS))
    plot(options.result_path("guarantee.png"), shift_streams)


def _false_alarm_table(streams: int) -> str:
    headings = ("calibration", "anomalies", *ALARMS, "streams ever doubtful", "broken")
    return markdown_table(headings, [_false_alarm_row(setting, streams) for setting in SETTINGS])


def _delay_table(streams: int) -> str:
    headings = ("calibration", "anomalies", "shift", "noticed", "nine in ten by", "broken")
    pairs = product(SHIFT_SETTINGS, SHIFTS.items())
    rows = [_delay_row(setting, name, shift, streams) for setting, (name, shift) in pairs]
    return markdown_table((*headings, "streams"), rows)


def _timed_table(streams: int) -> str:
    headings = ("scores vary", "rows a day", *ALARMS, "unknown", "shift said after", "9 in 10")
    rows = [_timed_row(*setting, streams) for setting in product(RHYTHMS, DAILY_RATES)]
    return markdown_table(headings, rows)


def _timed_row(rhythm: Rhythm, daily_rows: int, streams: int) -> Sequence[str]:
    found = timed_alarms(rhythm, daily_rows, streams)
    shares = (f"{found[status]:.2%}" for status in (*ALARMS, "unknown"))
    delays = (_format_delay(found[name], daily_rows) for name in ("rows", "late_rows"))
    return (rhythm.title, f"{daily_rows:,}", *shares, *delays)


def _format_delay(rows: float, daily_rows: int) -> str:
    if not np.isfinite(rows):
        return "–"
    return f"{rows:,.0f} rows, {rows / daily_rows:.2g} days"


def _false_alarm_row(setting: Setting, streams: int) -> Sequence[str]:
    alarms = false_alarms(setting, streams)
    shares = (f"{100 * alarms[status]:.3f}%" for status in ("doubtful", "broken"))
    stream_counts = (
        f"{alarms[f'ever_{status}']:.0f} of {streams}" for status in ("doubtful", "broken")
    )
    return (setting.title, f"{setting.anomaly_share:g}", *shares, *stream_counts)


def _delay_row(setting: Setting, name: str, shift: Shift, streams: int) -> Sequence[str]:
    delays = detection_delays(setting, shift, streams)
    noticed = delays["noticed"]
    noticed_rows = (
        _format_rows(float(np.quantile(noticed, q, method="higher"))) for q in (0.5, 0.9)
    )
    broken = _format_rows(float(np.median(delays["broken"])))
    count = f"{np.isfinite(noticed).sum()} of {streams}"
    return (setting.title, f"{setting.anomaly_share:g}", name, *noticed_rows, broken, count)


def _format_rows(count: float) -> str:
    return f"{count:,.0f}" if np.isfinite(count) else "–"

"""The promise that is watched: how often it is doubted for nothing, and how soon after a shift.

Scores are drawn, calibrated on and monitored as the service does; p-values depend on ranks alone,
so that normal ones stand for those of any model. Quiet: streams without a shift, each with a
calibration sample of its own and, where there are any, anomalies in the share that is known.
Shifts: a stream that changes after a whole window of rows like the calibration rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray

from anomaly_vae.calibration.conformal import calibrate
from anomaly_vae.files import atomic_path
from anomaly_vae.monitoring.exchangeability import DOUBT_LEVEL, Monitor, Reference, Report, Window
from benchmarks.common import Options, environment, markdown

Scores = NDArray[np.float64]
Shift = Callable[[Scores], Scores]

STREAMS, SHORT_STREAMS = 100, 20
ROWS = 40_000
"""Of a quiet stream: ten windows at alpha 0.01."""
STEP = 250
"""Rows between two looks."""
WINDOW = 4_000
"""Rows before a shift."""
PATIENCE = 10_000
"""Rows after a shift."""
NO_COLUMNS: Any = SimpleNamespace(layout=SimpleNamespace(n_columns=1))
FAR = 8.0
"""Where anomalies score, in standard deviations above a normal row."""


@dataclass(frozen=True)
class Setting:
    """Calibration rows, alpha, and the known share of anomalies."""

    n: int
    alpha: float
    share: float = 0.0
    tied: bool = False
    """scores are rounded to a tenth of a standard deviation"""

    @property
    def title(self) -> str:
        """In words."""
        return f"{self.n:,} rows, alpha {self.alpha:g}" + ", ties" * self.tied

    def draw(self, rng: np.random.Generator, rows: int) -> Scores:
        """Scores of normal rows."""
        scores = rng.normal(size=rows)
        return np.round(scores, 1) if self.tied else scores

    def traffic(self, rng: np.random.Generator, rows: int) -> Scores:
        """The same with anomalies among them."""
        return self.draw(rng, rows) + FAR * (rng.uniform(size=rows) < self.share)


SETTINGS = (
    Setting(200, 0.05),
    Setting(2_000, 0.05),
    Setting(2_000, 0.01),
    Setting(2_000, 0.01, share=0.01),
    Setting(2_000, 0.01, tied=True),
    Setting(10_000, 0.01, share=0.01),
)
SHIFTED = (Setting(2_000, 0.01), Setting(2_000, 0.01, share=0.01), Setting(500, 0.05))
SHIFTS: Mapping[str, Shift] = {
    "up by 0.1 σ": lambda scores: scores + 0.1,
    "up by 0.2 σ": lambda scores: scores + 0.2,
    "up by 0.5 σ": lambda scores: scores + 0.5,
    "up by 1 σ": lambda scores: scores + 1,
    "1.3 times as wide": lambda scores: 1.3 * scores,
    "down by 0.3 σ": lambda scores: scores - 0.3,
}


def watched(
    setting: Setting, seed: int, before: int, shift: Shift | None = None, after: int = 0
) -> Iterator[Report]:
    """A report every `STEP` rows: ``before`` of them without the shift, ``after`` with it."""
    rng = np.random.default_rng(seed)
    calibration = calibrate(setting.draw(rng, setting.n), setting.alpha)
    monitor = Monitor(calibration, NO_COLUMNS, Reference(setting.share))
    window = Window(monitor)
    for start in range(0, before + after, STEP):
        scores = setting.traffic(rng, STEP)
        if shift and start >= before:
            scores = shift(scores)
        window.add(monitor.count(scores, calibration.flags(scores), None))
        if start >= before or not shift:
            yield monitor.report(window.blocks)


def quiet(setting: Setting, streams: int, rows: int = ROWS) -> dict[str, float]:
    """Shares of all moments, and how many streams were ever called so."""
    found = [[r.status for r in watched(setting, seed, rows)] for seed in range(streams)]
    moments = sum(map(len, found))
    return {
        "doubtful": sum(one.count("doubtful") for one in found) / moments,
        "broken": sum(one.count("broken") for one in found) / moments,
        "ever_doubtful": sum("doubtful" in one for one in found),
        "ever_broken": sum("broken" in one for one in found),
    }


def delays(setting: Setting, shift: Shift, streams: int) -> dict[str, Scores]:
    """(streams,) rows after the shift until it is no longer holding, and until broken; ∞ never."""
    first = {"noticed": np.full(streams, np.inf), "broken": np.full(streams, np.inf)}
    for seed in range(streams):
        for number, report in enumerate(watched(setting, seed, WINDOW, shift, PATIENCE), 1):
            if report.status != "holding":
                first["noticed"][seed] = min(first["noticed"][seed], number * STEP)
            if report.status == "broken":
                first["broken"][seed] = number * STEP
                break
    return first


def plot(path: Path, streams: int) -> None:
    """The evidence after each shift: median, and the range of nine in ten streams."""
    setting, rows = SHIFTED[1], STEP * np.arange(1, 4_000 // STEP + 1)
    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    shown = {"no shift": lambda scores: scores, **SHIFTS}
    for name in ("no shift", "up by 0.2 σ", "up by 0.5 σ", "1.3 times as wide"):
        looks = [watched(setting, seed, WINDOW, shown[name], rows[-1]) for seed in range(streams)]
        found = [[report.martingale_log10 for report in one] for one in looks]
        low, median, high = np.quantile(found, (0.05, 0.5, 0.95), axis=0)
        (line,) = axes.plot(rows, median, label=name)
        axes.fill_between(rows, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.axhline(-np.log10(DOUBT_LEVEL), color="black", linestyle="--", linewidth=0.8)
    axes.text(rows[-1], -np.log10(DOUBT_LEVEL) + 0.1, "doubtful", ha="right", va="bottom")
    axes.set(xlabel="rows after the shift", ylabel="log10 of the martingale", ylim=(-1.5, 8))
    figure.legend(loc="outside right upper", frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as whole:
        figure.savefig(whole, format="png", dpi=110)
    plt.close(figure)


def run(options: Options) -> None:
    """Print both tables and draw the evidence."""
    streams = SHORT_STREAMS if options.short else STREAMS
    print(environment())
    heads = ("calibration", "anomalies", "doubtful", "broken", "streams ever doubtful", "broken")
    print(markdown(heads, [_quiet_line(setting, streams) for setting in SETTINGS]))
    heads = ("calibration", "anomalies", "shift", "noticed", "nine in ten by", "broken", "streams")
    fewer = max(streams // 2, 10)
    print(markdown(heads, [
        _delay_line(setting, name, shift, fewer)
        for setting in SHIFTED for name, shift in SHIFTS.items()
    ]))  # fmt: skip
    plot(options.result("guarantee.png"), fewer)


def _quiet_line(setting: Setting, streams: int) -> Sequence[str]:
    found = quiet(setting, streams)
    shares = (f"{100 * found[status]:.3f}%" for status in ("doubtful", "broken"))
    ever = (f"{found[f'ever_{status}']:.0f} of {streams}" for status in ("doubtful", "broken"))
    return (setting.title, f"{setting.share:g}", *shares, *ever)


def _delay_line(setting: Setting, name: str, shift: Shift, streams: int) -> Sequence[str]:
    found = delays(setting, shift, streams)
    noticed = found["noticed"]
    times = (_rows(float(np.quantile(noticed, q, method="higher"))) for q in (0.5, 0.9))
    broken = _rows(float(np.median(found["broken"])))
    count = f"{np.isfinite(noticed).sum()} of {streams}"
    return (setting.title, f"{setting.share:g}", name, *times, broken, count)


def _rows(count: float) -> str:
    return f"{count:,.0f}" if np.isfinite(count) else "–"

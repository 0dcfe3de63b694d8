"""Measure the CPU time of a fit against PyOD's networks, at equal epochs and at equal quality.

Equal epochs: PyOD's VAE and AutoEncoder run with their defaults, and our estimator runs with the
same number of epochs and the same batch size. The data are simulated rows as in `sizes` and two
data sets of `tabular`. Three rounds alternate between the methods; the table has the medians of
the ratios within a round. The whole call of `fit` is timed. Our `fit` holds out a tenth of the rows
for calibration and a tenth of the rest for validation, trains three networks (one with the preset
``fast``), fits their prior, exports and verifies the scoring graph, and calibrates a threshold.
PyOD's `fit` also scores its training rows.

Equal quality: on ten data sets of `tabular`, find the fewest epochs, at our own batch size, with
which our estimator reaches the AUROC of PyOD's defaults, and compare the CPU-seconds of both fits.
The number of epochs is chosen with test labels, so it measures the cost of reaching that quality;
it is not a stopping rule.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pyod.models.auto_encoder import AutoEncoder
from pyod.models.vae import VAE

from benchmarks import degraded, sizes
from benchmarks.common import Ledger, Options, environment, markdown_table
from benchmarks.tabular import Method, Task, load_task, measure, ours, peer

PEERS: dict[str, Any] = {"PyOD VAE": VAE, "PyOD AutoEncoder": AutoEncoder}
PRESETS = {"VAE (ours)": "default", "ours, preset: fast": "fast"}
"""Preset of each of our methods, by its label."""


# ---------------------------------------------------------------- equal epochs and batch

SIMULATED_SET = "5,000 × 30, drawn"
"""Name of the simulated data set."""
EQUAL_SETS = (SIMULATED_SET, "10_cover", "5_campaign")
ROUNDS = 3


def equal_methods(name: str) -> tuple[Method, ...]:
    """Return a peer with its defaults, and ours with the same epochs and batch size."""
    peer_defaults = PEERS[name]()
    overrides = {"epochs": peer_defaults.epoch_num, "batch_size": peer_defaults.batch_size}
    return (_peer(name), *(ours(n, preset=preset, **overrides) for n, preset in PRESETS.items()))


def _peer(name: str) -> Method:
    return peer(name, lambda seed: PEERS[name](random_state=seed, verbose=0))


def load_equal_task(name: str, folder: Path) -> Task:
    """Load a data set, or simulate it if it is `SIMULATED_SET`."""
    if name != SIMULATED_SET:
        return load_task(folder / f"{name}.npz", 0)
    simulator, generator = (
        sizes.RowSimulator(sizes.DEFAULT_COLUMNS, 0),
        np.random.default_rng(0),
    )
    normal = [simulator.normal(sizes.DEFAULT_ROWS, generator) for _ in range(2)]
    anomalies = simulator.anomalies("local", sizes.ANOMALIES_PER_KIND, generator)
    anomaly = np.repeat([False, True], [sizes.DEFAULT_ROWS, sizes.ANOMALIES_PER_KIND])
    return Task(normal[0], np.concatenate([normal[1], anomalies]), anomaly)


def run_equal(ledger: Ledger, options: Options) -> None:
    """Run the missing fits at equal epochs, alternating between methods in every round."""
    task = cache(lambda name: load_equal_task(name, options.data_folder("adbench")))
    for round_number in range(1 if options.short else ROUNDS):
        for name in EQUAL_SETS[:1] if options.short else EQUAL_SETS:
            for peer_name in filter(options.wants, PEERS):
                for method in equal_methods(peer_name):
                    if (key := (peer_name, method.name, name, round_number)) not in ledger:
                        ledger.add(key, measure(method.make(round_number), task(name)))


def report_equal(rows: pd.DataFrame) -> str:
    """Tabulate median CPU-seconds, and the peer's time divided by ours, by peer and data set."""
    lines = []
    for (peer_name, name), group in rows.groupby(["against", "set"], sort=False):
        seconds = group.pivot(index="round", columns="method", values="fit_seconds")
        ratios = (_format_ratios(seconds[peer_name] / seconds[method]) for method in PRESETS)
        medians = (f"{seconds[method].median():.2f}" for method in (peer_name, *PRESETS))
        lines.append((str(peer_name), str(name), *medians, *ratios))
    headings = ("peer", "set", "peer, CPU-s", *PRESETS, *(f"ratio, {name}" for name in PRESETS))
    return markdown_table(headings, lines)


def _format_ratios(ratios: pd.Series[float]) -> str:
    """Format the median and the range of ratios."""
    return f"{ratios.median():.2f} ({ratios.min():.2f} to {ratios.max():.2f})"


# ---------------------------------------------------------------- to the same quality

EPOCH_STEPS = (1, 2, 3, 5, 8, 13, 20)
"""Numbers of epochs tried for ours, in ascending order."""


def quality_methods(short: bool) -> Iterator[Method]:
    """Yield the peers, then ours with an increasing number of epochs."""
    yield from map(_peer, PEERS)
    for epochs in EPOCH_STEPS[::3] if short else EPOCH_STEPS:
        yield from (
            ours(_with_epochs(n, epochs), preset=p, epochs=epochs) for n, p in PRESETS.items()
        )


def _with_epochs(name: str, epochs: int) -> str:
    return f"{name}, epochs: {epochs}"


def run_quality(ledger: Ledger, options: Options) -> None:
    """Run the missing fits of every method on every data set."""
    folder, names = options.data_folder("adbench"), degraded.SET_NAMES
    for seed in range(1 if options.short else options.seeds):
        for name in names[:3] if options.short else names:
            task = load_task(folder / f"{name}.npz", seed)
            for method in quality_methods(options.short):
                if options.wants(method.name) and (key := (method.name, name, seed)) not in ledger:
                    ledger.add(key, measure(method.make(seed), task))


def report_quality(rows: pd.DataFrame) -> str:
    """Tabulate the epochs that ours needs to match each peer, per data set and on their mean."""
    by_set = rows.groupby(["method", "set"], sort=False)[["auroc", "fit_seconds"]].mean()
    means = by_set.groupby(level="method", sort=False).mean()
    parts = []
    for peer_name in PEERS:
        for name in PRESETS:
            lines = [
                (str(set_name), *_fewest_epochs(part.droplevel("set"), peer_name, name))
                for set_name, part in by_set.groupby(level="set", sort=False)
            ]
            lines.append((MEAN_ROW, *_fewest_epochs(means, peer_name, name)))
            parts.append(f"{name} against {peer_name}\n\n{markdown_table(HEADINGS, lines)}")
    return "\n".join(parts)


MEAN_ROW = "**mean over the sets**"
HEADINGS = ("set", "peer AUROC", "peer, CPU-s", "epochs", "AUROC", "CPU-s", "ratio")


def _fewest_epochs(means: pd.DataFrame, peer_name: str, name: str) -> tuple[str, ...]:
    """Format the fewest epochs with which ours reaches the AUROC of the peer, and its cost."""
    auroc, seconds = means["auroc"].to_dict(), means["fit_seconds"].to_dict()
    peer_cells = (f"{auroc[peer_name]:.3f}", f"{seconds[peer_name]:.2f}")
    for epochs in EPOCH_STEPS:
        key = _with_epochs(name, epochs)
        if auroc.get(key, 0.0) >= auroc[peer_name]:
            ratio = f"{seconds[peer_name] / seconds[key]:.1f}"
            return (*peer_cells, str(epochs), f"{auroc[key]:.3f}", f"{seconds[key]:.3f}", ratio)
    return (*peer_cells, f"more than {EPOCH_STEPS[-1]}", "", "", "")


# ---------------------------------------------------------------- the run


def run(options: Options) -> None:
    """Run the missing measurements and write the tables."""
    equal = Ledger(options.result_path("fitting.csv"), ("against", "method", "set", "round"))
    quality = Ledger(options.result_path("fitting-quality.csv"), ("method", "set", "seed"))
    _warm_up()
    run_equal(equal, options)
    run_quality(quality, options)
    tables = f"{report_equal(equal.rows)}\n{report_quality(quality.rows)}"
    options.result_path("fitting.md").write_text(f"{tables}\n{environment()}", encoding="utf-8")
    print(f"\n{tables}\n{environment()}")


def _warm_up() -> None:
    """Fit each method once, so that lazy imports do not count as fitting time."""
    rows = sizes.RowSimulator(sizes.DEFAULT_COLUMNS, 0).normal(200, np.random.default_rng(0))
    for name in PEERS:
        for method in equal_methods(name):
            method.make(0).fit(rows)

"""How long a fit takes: beside PyOD's networks at equal epochs and batch, and to do as well.

Equal: rows drawn as in `sizes` and two sets of `tabular`, PyOD's VAE and AutoEncoder at their
defaults, and ours with as many epochs of batches as large, in turn, three rounds; medians of the
ratios within a round. A fit is all that `fit` does: ours holds a tenth of its rows out to calibrate
and a tenth of the rest to measure itself on, fits three networks (one by the preset fast), their
prior, writes the scoring graph, checks it and calibrates; PyOD's scores its training rows.

Quality: ten sets of `tabular`; the fewest epochs of ours, at its own batch size, whose AUROC is
PyOD's at its defaults, and the CPU-seconds of both. Test labels choose these epochs: they say how
long the way is, not when to stop.
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
from benchmarks.common import Ledger, Options, environment, markdown
from benchmarks.tabular import Method, Task, load_task, measure, ours, peer

PEERS: dict[str, Any] = {"PyOD VAE": VAE, "PyOD AutoEncoder": AutoEncoder}
PRESETS = {"VAE (ours)": "default", "ours, preset: fast": "fast"}


# ---------------------------------------------------------------- equal epochs and batch

DRAWN = "5,000 × 30, drawn"
EQUAL_SETS = (DRAWN, "10_cover", "5_campaign")
ROUNDS = 3


def equals(name: str) -> tuple[Method, ...]:
    """A peer at its defaults, then ours at the same epochs and batch."""
    usual = PEERS[name]()
    same = {"epochs": usual.epoch_num, "batch_size": usual.batch_size}
    return (_peer(name), *(ours(n, preset=preset, **same) for n, preset in PRESETS.items()))


def _peer(name: str) -> Method:
    return peer(name, lambda seed: PEERS[name](random_state=seed, verbose=0))


def equal_task(name: str, folder: Path) -> Task:
    """A set, or what is drawn in its place."""
    if name != DRAWN:
        return load_task(folder / f"{name}.npz", 0)
    world, generator = sizes.World(sizes.USUAL_COLUMNS, 0), np.random.default_rng(0)
    normal = [world.normal(sizes.USUAL_ROWS, generator) for _ in range(2)]
    odd = world.anomalies("local", sizes.EACH_KIND, generator)
    anomaly = np.repeat([False, True], [sizes.USUAL_ROWS, sizes.EACH_KIND])
    return Task(normal[0], np.concatenate([normal[1], odd]), anomaly)


def run_equal(found: Ledger, options: Options) -> None:
    """In turn: peer, ours, ours by the preset fast, and again."""
    task = cache(lambda name: equal_task(name, options.folder("adbench")))
    for turn in range(1 if options.short else ROUNDS):
        for name in EQUAL_SETS[:1] if options.short else EQUAL_SETS:
            for against in filter(options.wants, PEERS):
                for method in equals(against):
                    if (key := (against, method.name, name, turn)) not in found:
                        found.add(key, measure(method.make(turn), task(name)))


def report_equal(rows: pd.DataFrame) -> str:
    """For each peer and set the seconds, and how many times less ours takes."""
    lines = []
    for (against, name), group in rows.groupby(["against", "set"], sort=False):
        seconds = group.pivot(index="round", columns="method", values="fit_seconds")
        ratios = (_times(seconds[against] / seconds[method]) for method in PRESETS)
        medians = (f"{seconds[method].median():.2f}" for method in (against, *PRESETS))
        lines.append((str(against), str(name), *medians, *ratios))
    heads = ("peer", "set", "peer, CPU-s", *PRESETS, *(f"ratio, {name}" for name in PRESETS))
    return markdown(heads, lines)


def _times(ratios: pd.Series[float]) -> str:
    """The median with the least and the largest."""
    return f"{ratios.median():.2f} ({ratios.min():.2f} to {ratios.max():.2f})"


# ---------------------------------------------------------------- to the same quality

EPOCHS = (1, 2, 3, 5, 8, 13, 20)


def trails(short: bool) -> Iterator[Method]:
    """The peers, and ours with ever more epochs."""
    yield from map(_peer, PEERS)
    for epochs in EPOCHS[::3] if short else EPOCHS:
        yield from (ours(_named(n, epochs), preset=p, epochs=epochs) for n, p in PRESETS.items())


def _named(name: str, epochs: int) -> str:
    return f"{name}, epochs: {epochs}"


def run_quality(found: Ledger, options: Options) -> None:
    """Every method on every set."""
    folder, names = options.folder("adbench"), degraded.SETS
    for seed in range(1 if options.short else options.seeds):
        for name in names[:3] if options.short else names:
            task = load_task(folder / f"{name}.npz", seed)
            for method in trails(options.short):
                if options.wants(method.name) and (key := (method.name, name, seed)) not in found:
                    found.add(key, measure(method.make(seed), task))


def report_quality(rows: pd.DataFrame) -> str:
    """For each peer and preset the epochs at which ours is as good, set by set and on all."""
    found = rows.groupby(["method", "set"], sort=False)[["auroc", "fit_seconds"]].mean()
    means = found.groupby(level="method", sort=False).mean()
    parts = []
    for against in PEERS:
        for name in PRESETS:
            lines = [
                (str(each), *_reached(part.droplevel("set"), against, name))
                for each, part in found.groupby(level="set", sort=False)
            ]
            lines.append((ALL, *_reached(means, against, name)))
            parts.append(f"{name} against {against}\n\n{markdown(HEADS, lines)}")
    return "\n".join(parts)


ALL = "**mean over the sets**"
HEADS = ("set", "peer AUROC", "peer, CPU-s", "epochs", "AUROC", "CPU-s", "ratio")


def _reached(means: pd.DataFrame, against: str, name: str) -> tuple[str, ...]:
    """The fewest epochs at which ours is as good as the peer."""
    auroc, seconds = means["auroc"].to_dict(), means["fit_seconds"].to_dict()
    theirs = (f"{auroc[against]:.3f}", f"{seconds[against]:.2f}")
    for epochs in EPOCHS:
        key = _named(name, epochs)
        if auroc.get(key, 0.0) >= auroc[against]:
            ratio = f"{seconds[against] / seconds[key]:.1f}"
            return (*theirs, str(epochs), f"{auroc[key]:.3f}", f"{seconds[key]:.3f}", ratio)
    return (*theirs, f"more than {EPOCHS[-1]}", "", "", "")


# ---------------------------------------------------------------- the run


def run(options: Options) -> None:
    """Measure what is not yet measured, and write the tables."""
    equal = Ledger(options.result("fitting.csv"), ("against", "method", "set", "round"))
    quality = Ledger(options.result("fitting-quality.csv"), ("method", "set", "seed"))
    _warm_up()
    run_equal(equal, options)
    run_quality(quality, options)
    tables = f"{report_equal(equal.rows)}\n{report_quality(quality.rows)}"
    options.result("fitting.md").write_text(f"{tables}\n{environment()}", encoding="utf-8")
    print(f"\n{tables}\n{environment()}")


def _warm_up() -> None:
    """A fit of each, so that whatever is loaded late, is now."""
    rows = sizes.World(sizes.USUAL_COLUMNS, 0).normal(200, np.random.default_rng(0))
    for name in PEERS:
        for method in equals(name):
            method.make(0).fit(rows)

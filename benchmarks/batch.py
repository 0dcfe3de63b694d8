"""Measure batch scoring: rate, scaling over workers and memory, against a floor and two peers.

One million rows of 30 numeric columns are scored from Parquet files into a folder. The floor reads
the same columns, runs the scoring graph on one tile of encoded rows again and again, and writes the
same columns: it neither decodes, encodes, decides nor counts. The peers score the same rows as a
matrix that is in memory already, and write nothing. Rounds go over all methods in turn, since the
machine may be shared: ratios of times within a round are comparable, times of different rounds are
not. Memory is the peak of a process of its own, for the files once and for several times as many.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pyod.models.vae import VAE
from sklearn.ensemble import IsolationForest

from anomaly_vae import TabularVAEDetector
from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.data.encoding import Matrix as Encoded
from benchmarks.common import Ledger, Options, cpu_seconds, environment, markdown_table
from benchmarks.sizes import DEFAULT_COLUMNS, RowSimulator
from benchmarks.tabular import Matrix, Peer
from pipelines.batch.run import RunOptions
from pipelines.batch.tables import score_files
from pipelines.registry.model_uri import LoadedModel

TRAIN_ROWS, FILE_ROWS, FILES, SHORT_FILES = 3_000, 125_000, 8, 1
"""Numbers of rows to train on and in each file, and of files, in the usual and the short form."""
ROUNDS = 2
MORE = 5
"""Number of times that all files are scored to measure memory."""
BATCH_ROWS = 65_536
WORKERS = (1, 2)
FLOOR, FOREST, PYOD = "read, graph, write", "scikit-learn IsolationForest", "PyOD VAE"
PROCESS = """
import sys
from anomaly_vae.artifacts.bundle import load_bundle
from pipelines.batch.run import RunOptions
from pipelines.batch.tables import score_files
from pipelines.registry.model_uri import LoadedModel
bundle, out, workers, *paths = sys.argv[1:]
run = RunOptions(workers=int(workers))
summary = score_files(LoadedModel(load_bundle(bundle)), paths, out, run=run)
print(summary["peak_memory_bytes"])
"""


class Setting:
    """The files, the matrix of their rows and the fitted models."""

    def __init__(self, folder: Path, files: int) -> None:
        self.folder, simulator = folder, RowSimulator(DEFAULT_COLUMNS, 0)
        rng = np.random.default_rng(0)
        self.train, part = simulator.normal(TRAIN_ROWS, rng), simulator.normal(FILE_ROWS, rng)
        self.matrix = np.tile(part, (files, 1))
        self.paths = [folder / f"rows-{i:02d}.parquet" for i in range(files)]
        names = [f"x{i}" for i in range(part.shape[1])]
        table = pa.table(dict(zip(names, part.T, strict=True)))
        for path in self.paths:
            pq.write_table(table, path)
        rows = pd.DataFrame(self.train, columns=names)
        detector = TabularVAEDetector(epochs=1, random_state=0).fit(rows)
        self.bundle: Bundle = detector.bundle_

    @cache  # noqa: B019  # lives as long as the process
    def peer(self, name: str) -> Peer:
        """Return a fitted peer."""
        estimators: dict[str, Callable[[], Any]] = {
            FOREST: lambda: IsolationForest(random_state=0),
            PYOD: lambda: VAE(epoch_num=1, random_state=0, verbose=0),
        }
        peer = Peer(estimators[name]())
        peer.fit(self.train)
        return peer

    def ours(self, workers: int) -> None:
        """Score the files into a folder."""
        shutil.rmtree(self.folder / "scores", ignore_errors=True)
        options = RunOptions(workers=workers)
        source, paths = LoadedModel(self.bundle), list(map(str, self.paths))
        score_files(source, paths, self.folder / "scores", run=options)

    def floor(self) -> None:
        """Read the files, run the graph on as many rows, and write as many results."""
        scorer = self.bundle.scorer
        tile = self._encoded()[: scorer.encoding.tile]
        for path in self.paths:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(BATCH_ROWS, use_threads=False):
                    tiles = -(-len(batch) // len(tile))
                    scores = np.concatenate([scorer.score_encoded(tile) for _ in range(tiles)])
                    self._write(scores[: len(batch)])

    def _encoded(self) -> Encoded:
        scorer = self.bundle.scorer
        batch = next(pq.ParquetFile(self.paths[0]).iter_batches(1_024))
        return scorer.encoding.encode(scorer.schema.from_arrow(batch))

    def _write(self, scores: Matrix) -> None:
        rows = pa.array(np.arange(len(scores)))
        columns = {"row": rows, "score": scores, "p_value": scores, "is_anomaly": scores > 0}
        path = self.folder / "floor.parquet"
        pq.write_table(pa.table(columns), path, compression="zstd", use_dictionary=["p_value"])


def run(options: Options) -> None:
    """Run the missing measurements and write the tables."""
    ledger = Ledger(options.result_path("batch.csv"), ("method", "round"))
    memory = Ledger(options.result_path("batch-memory.csv"), ("workers", "times"))
    with tempfile.TemporaryDirectory() as place:
        setting = Setting(Path(place), SHORT_FILES if options.short else FILES)
        for round_number in range(1 if options.short else ROUNDS):
            for name, call in _methods(setting):
                if options.wants(name) and (name, round_number) not in ledger:
                    ledger.add((name, round_number), _measure(call, len(setting.matrix)))
        for workers in WORKERS:
            for times in (1, MORE):
                if (workers, times) not in memory:
                    memory.add((workers, times), _peak(setting, workers, times))
    text = f"{report(ledger.rows)}\n{memory_report(memory.rows)}\n{environment()}"
    options.result_path("batch.md").write_text(text, encoding="utf-8")
    print(f"\n{text}")


def _methods(setting: Setting) -> Iterator[tuple[str, Callable[[], Any]]]:
    yield FLOOR, setting.floor
    for workers in WORKERS:
        yield f"workers: {workers}", partial(setting.ours, workers)
    for name in (FOREST, PYOD):
        yield name, partial(setting.peer(name).score, setting.matrix)


def _measure(call: Callable[[], Any], rows: int) -> dict[str, float]:
    """Measure the CPU-microseconds and the microseconds per row."""
    start = time.perf_counter()
    _, cpu = cpu_seconds(call)
    return {"cpu_us": 1e6 * cpu / rows, "wall_us": 1e6 * (time.perf_counter() - start) / rows}


def _peak(setting: Setting, workers: int, times: int) -> dict[str, float]:
    """Measure the peak memory, in MiB, of a process that scores all files several times."""
    folder = setting.folder / f"many-{times}"
    folder.mkdir(exist_ok=True)
    for i in range(times):
        for path in setting.paths:
            link = folder / f"{i}-{path.name}"
            link.unlink(missing_ok=True)
            link.hardlink_to(path)
    bundle, out = setting.folder / "bundle", setting.folder / "scores"
    setting.bundle.save(bundle)
    shutil.rmtree(out, ignore_errors=True)
    arguments = [sys.executable, "-c", PROCESS, bundle, out, workers, folder]
    done = subprocess.run(list(map(str, arguments)), stdout=subprocess.PIPE, text=True, check=True)
    return {"rows": len(setting.matrix) * times, "peak_mib": int(done.stdout) / 2**20}


def report(rows: pd.DataFrame) -> str:
    """Tabulate medians over the rounds, and the medians of the ratios to the floor."""
    lines = []
    by_round = rows.set_index(["method", "round"])
    for name in rows["method"].unique():
        part = by_round.loc[name]
        ratios = [
            (part[cost] / by_round.loc[FLOOR][cost]).median() for cost in ("cpu_us", "wall_us")
        ]
        medians = part.median()
        cells = f"{medians['cpu_us']:.2f}", f"{1e6 / medians['wall_us']:,.0f}"
        lines.append((name, *cells, *(f"{ratio:.2f}" for ratio in ratios)))
    header = ("method", "CPU-µs per row", "rows/s", "CPU / floor", "time / floor")
    return markdown_table(header, lines)


def memory_report(rows: pd.DataFrame) -> str:
    """Tabulate peak memory by workers and rows."""
    columns = (rows[name].astype(int) for name in ("workers", "rows", "peak_mib"))
    lines = [tuple(f"{value:,}" for value in line) for line in zip(*columns, strict=True)]
    return markdown_table(("workers", "rows", "peak memory, MiB"), lines)

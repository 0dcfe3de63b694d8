"""Run programs in processes that need not import MLflow and torch again: forks of one that did."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tests.support.paths import ROOT

SERVER = """
import json, os, sys, traceback
import anomaly_vae.plots, pipelines.promotion.promote, pipelines.cli
import mlflow.store.tracking.sqlalchemy_store, mlflow.store.model_registry.sqlalchemy_store

def start(folder, environment, code, arguments, err):
    if pid := os.fork():
        return pid
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    os.dup2(0, 1)
    os.dup2(os.open(err, os.O_WRONLY | os.O_CREAT), 2)
    sys.argv[1:] = arguments
    ended = 0
    try:
        exec(compile(code, "<program>", "exec"), {"__name__": "__main__"})
    except SystemExit as end:
        ended = end.code or 0
    except BaseException:
        ended = 1
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(ended)  # as `multiprocessing` ends forks

for line in sys.stdin:
    started = [start(*each) for each in json.loads(line)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in started]
    print(json.dumps(codes), flush=True)
"""
"""Forks itself for each program of a line, and answers with their exit codes."""


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    code: int
    err: str


class Forks:
    """A process that waits to be forked."""

    def __init__(self, server: subprocess.Popen[str], folder: Path) -> None:
        self.server, self.folder = server, folder

    @classmethod
    @contextmanager
    def started(cls, folder: Path) -> Iterator[Self]:
        """Start the process; it writes what programs write to stderr into a folder."""
        with subprocess.Popen(
            [sys.executable, "-c", SERVER],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as server:
            yield cls(server, folder)

    def run(self, *programs: Sequence[str]) -> list[Ended]:
        """Run programs at once, each given as its code and its arguments, in this folder.

        They have the environment variables of this moment.
        """
        errors = [self.folder / f"{number}.err" for number in range(len(programs))]
        for path in errors:
            path.unlink(missing_ok=True)
        jobs: list[Any] = [
            (str(Path.cwd()), dict(os.environ), code, arguments, str(path))
            for (code, *arguments), path in zip(programs, errors, strict=True)
        ]
        assert self.server.stdin
        assert self.server.stdout
        self.server.stdin.write(json.dumps(jobs) + "\n")
        self.server.stdin.flush()
        codes = json.loads(self.server.stdout.readline())
        return [Ended(*each) for each in zip(codes, (p.read_text() for p in errors), strict=True)]

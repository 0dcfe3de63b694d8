"""Compare the CPU time of a lone scoring request between this source tree and another one.

Usage: `python -m benchmarks.serving_versions OTHER_TREE MODELS [CLIENTS]`, where MODELS is the
folder `serving-models` among the results of `python -m benchmarks serving`.

The servers of both trees, with both models, and the empty FastAPI endpoint run side by side. Every
round visits each of them in turn, so that other work on the machine affects all alike. Compare the
ratios, which are medians over the rounds of the ratio to the empty endpoint within a round.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from benchmarks.serving import (
    EMPTY_FASTAPI,
    PRESETS,
    RegisteredModels,
    RunningServer,
    Server,
    rows,
    running,
)

ROUNDS, REQUESTS = 7, 400
"""Number of rounds, and of requests to each server in a round."""
CODE = "import sys; sys.path.insert(0, {tree!r}); from pipelines.cli import main; main()"
"""Program that runs the command line of a source tree."""


def servers(models: RegisteredModels, trees: dict[str, str]) -> Iterator[Server]:
    """Yield the empty endpoint, and the service of each tree with each model."""
    body = json.dumps({"records": json.loads(rows(1).to_json(orient="records"))}).encode()
    empty = sys.executable, "-m", "benchmarks.serving_peers", "empty", "{port}"
    yield Server(EMPTY_FASTAPI, empty, "/score", body)
    for preset in PRESETS.values():
        for version, tree in trees.items():
            program = sys.executable, "-c", CODE.format(tree=tree)
            options = "serve", "--model", str(models.bundle(preset)), "--port", "{port}"
            yield Server(f"{version}, {preset}", (*program, *options), "/score", body)


def cpu_microseconds(server: RunningServer, clients: int) -> float:
    """Return the CPU time of a request, in microseconds."""
    server.send(clients, 4 * clients)
    before = server.cpu_seconds()
    server.send(clients, REQUESTS)
    return 1e6 * (server.cpu_seconds() - before) / REQUESTS


def main(other: str, models: str, clients: str = "1") -> None:
    """Measure both trees and print the medians."""
    registered = RegisteredModels(Path(models).resolve())
    trees = {"other": str(Path(other).resolve()), "this": str(Path.cwd())}
    found: dict[str, list[float]] = defaultdict(list)
    with ExitStack() as stack:
        ready = [
            stack.enter_context(running(one, registered)) for one in servers(registered, trees)
        ]
        for one in ready:
            one.send(int(clients), REQUESTS)
        for _ in range(ROUNDS):
            for one in ready:
                found[one.server.name].append(cpu_microseconds(one, int(clients)))
    empty = np.array(found[EMPTY_FASTAPI])
    for name, times in found.items():
        ratio = np.median(np.array(times) / empty)
        print(f"{name:24} {np.median(times):7.1f} µs, {ratio:.2f} times the empty endpoint")


if __name__ == "__main__":
    main(*sys.argv[1:])

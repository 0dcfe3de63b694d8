"""Fill a window store in a process of its own, which is killed."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from tests.support.paths import ROOT

PROCESS = """
import sys
from anomaly_vae.features.store import StoreOptions, open_store
from tests.support.window_streams import INPUTS, batches, stream
url, count, seed, size = sys.argv[1], *map(int, sys.argv[2:])
store = open_store(StoreOptions(url), INPUTS)
for rows in batches(stream(count, seed=seed), size):
    print("begun", flush=True)
    store.load(rows)
    print("recorded", flush=True)
"""
"""Loads the events of `window_streams.stream` in groups."""


def kill_while_loading(url: str, count: int, seed: int, size: int, groups: int, wait: float) -> int:
    """Kill a process that loads events in groups, while it loads one of them.

    Args:
        url: the store.
        count: number of events.
        seed: seed of the events.
        size: number of events in a group.
        groups: number of groups that are recorded before.
        wait: time for which it may load the next group, in seconds.

    Returns:
        The number of groups that the process knows to be recorded.
    """
    arguments = [sys.executable, "-c", PROCESS, url, *map(str, (count, seed, size))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for _ in range(2 * groups + 1):
            assert process.stdout.readline()
        time.sleep(wait)
        process.kill()
        return groups + process.stdout.read().split().count("recorded")

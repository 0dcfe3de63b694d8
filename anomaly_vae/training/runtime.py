"""Control the threads and the memory of the process that fits."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch
from threadpoolctl import ThreadpoolController

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1
"""Parameters of mallopt(3)."""
MAX_MMAP_THRESHOLD = 32 << 20
"""Maximum of glibc's dynamic threshold for mmap, in bytes; its trim threshold is twice as much."""


_forked = threading.Event()
"""Whether this process is a fork of one that had imported torch."""
os.register_at_fork(after_in_child=_forked.set)


def survive_fork() -> None:
    """Run torch with one thread from now on if this process is a fork.

    The threads of an OpenMP library do not survive a fork, and waiting for them would never end.
    """
    if _forked.is_set():
        torch.set_num_threads(1)


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Run torch, scikit-learn and BLAS with this number of threads, then as before.

    In a forked process the number is 1; see `survive_fork`.
    """
    count = 1 if _forked.is_set() else count
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with _thread_pools(len(sys.modules)).limit(limits=count):
            yield
    finally:
        torch.set_num_threads(before)


@lru_cache(maxsize=1)
def _thread_pools(modules: int) -> ThreadpoolController:
    """Return the thread pools of a process with this number of loaded modules.

    Looking for them takes milliseconds, and there are others only once something was imported.
    """
    del modules
    return ThreadpoolController()


@contextmanager
def retained_memory() -> Iterator[None]:
    """Keep freed memory in the process and return it to the system at the end.

    By default glibc returns a large block at once, and the next step has every page zeroed again,
    which takes half the time of a fit of images. Other C libraries are left unchanged.
    """
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(MMAP_THRESHOLD, MAX_MMAP_THRESHOLD)
    libc.mallopt(TRIM_THRESHOLD, 32 * MAX_MMAP_THRESHOLD)
    try:
        yield
    finally:
        libc.mallopt(TRIM_THRESHOLD, 2 * MAX_MMAP_THRESHOLD)
        libc.malloc_trim(0)

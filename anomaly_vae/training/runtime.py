"""The process that fits: its threads, and the memory it keeps."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1
"""Parameters of mallopt(3)."""
LARGEST_MMAP_THRESHOLD = 32 << 20
"""Bytes; the other threshold is twice that, where glibc comes to it by itself."""


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Run torch with this many threads, then as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def memory_kept() -> Iterator[None]:
    """Keep memory that is freed for what comes next, and give it back at the end.

    As glibc has it, a large block goes back to the system at once, and the next step has every
    page of it zeroed anew: half the time of a fit of images. Another C library is left alone.
    """
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
    libc.mallopt(TRIM_THRESHOLD, 32 * LARGEST_MMAP_THRESHOLD)
    try:
        yield
    finally:
        libc.mallopt(TRIM_THRESHOLD, 2 * LARGEST_MMAP_THRESHOLD)
        libc.malloc_trim(0)

"""Threads and memory of the process that fits."""

from __future__ import annotations

import platform
import resource
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection

import pytest
import torch
from threadpoolctl import threadpool_info

from anomaly_vae.training.runtime import cpu_threads, retained_memory


def test_the_number_of_threads_is_put_back() -> None:
    before = torch.get_num_threads()
    with cpu_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_every_library_has_the_number_of_threads() -> None:
    """OpenMP libraries run the k-means of scikit-learn, too."""
    before = {info["filepath"]: info["num_threads"] for info in threadpool_info()}
    with cpu_threads(1):
        assert {info["num_threads"] for info in threadpool_info()} == {1}
    assert {info["filepath"]: info["num_threads"] for info in threadpool_info()} == before


def test_a_forked_process_has_one_thread() -> None:
    def threads(connection: Connection) -> None:
        with cpu_threads(2):
            connection.send(torch.get_num_threads())

    here, there = Pipe()
    child = get_context("fork").Process(target=threads, args=(there,))
    child.start()
    assert here.poll(60)
    assert here.recv() == 1
    child.join()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc has what this is about")
def test_what_a_step_frees_is_there_for_the_next() -> None:
    """Its pages are not zeroed again: ten steps of 128 MiB have fewer faults than one of them."""

    def step() -> None:
        [torch.ones(2**22) for _ in range(8)]

    def faults() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    with retained_memory():
        step()
        before = faults()
        for _ in range(10):
            step()
        assert faults() - before < 128 * 2**20 // resource.getpagesize()

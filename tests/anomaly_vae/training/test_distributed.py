"""Two real processes fit one model, as torchrun starts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from anomaly_vae.training.distributed import ALONE, Group, current_group, process_group
from tests.support.distributed_fit import EPOCHS, fit_example
from tests.support.paths import ROOT
from tests.support.ports import free_port

SEEDS = 8


def start(rank: int, port: int, *arguments: object) -> subprocess.Popen[str]:
    """Start one process with the variables that torchrun sets."""
    variables = {
        "TORCHELASTIC_RUN_ID": "test",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "RANK": str(rank),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "tests.support.distributed_fit", *map(str, arguments)]
    return subprocess.Popen(command, env=os.environ | variables, stdout=-1, stderr=-1, text=True)


def fit_in_two(*arguments: object) -> list[tuple[int, str, str]]:
    """Return exit code, stdout and stderr of both processes."""
    port = free_port()
    pair = [start(rank, port, *arguments) for rank in range(2)]
    texts = [process.communicate(timeout=500) for process in pair]
    return [(process.returncode, *text) for process, text in zip(pair, texts, strict=True)]


@pytest.mark.slow
def test_two_processes_repeat_themselves_and_reach_the_elbo_of_one() -> None:
    """Slow for its processes, each of which imports torch."""
    (code, out, err), (other, nothing, _) = fit_in_two()
    assert (code, other, nothing) == (0, 0, ""), err
    first, second = map(json.loads, out.splitlines())
    assert first == second
    assert (first["processes"], first["epochs"]) == (2, EPOCHS)
    alone = [fit_example(seed).history.best.validation_elbo for seed in range(3)]
    spread = max(alone) - min(alone)
    assert abs(first["best"]["validation_elbo"] - np.mean(alone)) < 2 * spread


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_over_seeds_two_processes_reach_the_elbo_of_one_within_its_noise() -> None:
    (code, out, err), (other, _, _) = fit_in_two("seeds", SEEDS)
    assert (code, other) == (0, 0), err
    shared = np.array(list(map(float, out.splitlines())))
    alone = np.array([fit_example(s).history.best.validation_elbo for s in range(SEEDS)])
    error = np.sqrt((shared.var(ddof=1) + alone.var(ddof=1)) / SEEDS)
    assert len(shared) == SEEDS
    assert abs(shared.mean() - alone.mean()) < 3 * error
    assert shared.std(ddof=1) < 3 * alone.std(ddof=1)


@pytest.mark.slow
def test_an_interrupted_fit_of_two_processes_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    checkpoint = tmp_path / "fit.safetensors"
    (code, out, _), (other, _, err) = fit_in_two(checkpoint, "interrupt")
    assert (code, out) == (130, "")
    assert other == 1
    assert err.splitlines()[-1].startswith("error: process 1 of 2 lost the connection")
    assert "Traceback" not in err
    assert checkpoint.exists()
    (code, out, err), _ = fit_in_two(checkpoint)
    assert code == 0, err
    resumed, whole = map(json.loads, out.splitlines())
    assert resumed == whole


def test_one_process_records_no_number_of_processes() -> None:
    assert "processes" not in fit_example().bundle.manifest["training"]
    assert current_group() == ALONE
    with process_group() as group:
        assert group == ALONE


@pytest.mark.parametrize("size", [1, 2, 3])
def test_shares_are_disjoint_and_those_of_an_epoch_are_equal(size: int) -> None:
    rows = torch.arange(11)
    groups = [Group(rank, size) for rank in range(size)]
    assert sorted(torch.cat([group.share(rows) for group in groups]).tolist()) == rows.tolist()
    equal = [group.equal_share(rows).tolist() for group in groups]
    assert {len(part) for part in equal} == {11 // size}
    assert len({row for part in equal for row in part}) == 11 // size * size


def test_each_process_and_epoch_has_noise_of_its_own() -> None:
    seeds = {Group(rank, 3).seed(0, epoch) for rank in range(3) for epoch in range(5)}
    assert len(seeds) == 15
    assert Group(1, 3).seed(0, 2) == Group(1, 3).seed(0, 2)

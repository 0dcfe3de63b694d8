"""Share a fit among the processes that torchrun starts, on one machine or on several.

Process 0 reads the data, and sends the encoded rows, the configuration and the initial state to the
others. Each process takes its share of every batch, and the gradients are averaged, so that all
have the same weights after each step. Everything else is done by process 0 alone: checkpoints, the
bundle, MLflow. Messages are safetensors files; nothing is pickled.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from anomaly_vae.errors import TrainingError


@dataclass(frozen=True)
class Group:
    """The processes of a fit: this one's number, from 0, and how many there are."""

    rank: int = 0
    size: int = 1

    def average(self, tensor: Tensor) -> Tensor:
        """Replace a tensor by its mean over the processes, and return it."""
        if self.size > 1:
            with self._connected():
                dist.all_reduce(tensor)
            tensor.div_(self.size)
        return tensor

    def mean(self, values: Tensor) -> float:
        """Return the mean of the values of all processes together."""
        if self.size == 1:
            return values.mean().item()
        totals = torch.stack([values.double().sum(), torch.tensor(float(values.numel()))])
        total, count = self.average(totals).tolist()
        return float(total / count)

    def share(self, rows: Tensor) -> Tensor:
        """Return this process's part of the rows (N, ...): every ``size``-th one."""
        return rows[self.rank :: self.size]

    def equal_share(self, rows: Tensor) -> Tensor:
        """Return a share of the same number of rows in each process: (N // size, ...).

        Up to ``size`` − 1 rows at the end are left out, of an order that changes each epoch.
        """
        return self.share(rows[: len(rows) - len(rows) % self.size])

    def broadcast(self, content: bytes = b"") -> bytes:
        """Send bytes from process 0 to the others; return them in every process."""
        length = torch.tensor([len(content)])
        with self._connected():
            dist.broadcast(length, src=0)
            data = torch.empty(int(length), dtype=torch.uint8)
            if self.rank == 0:
                data = torch.frombuffer(bytearray(content), dtype=torch.uint8)
            dist.broadcast(data, src=0)
        return data.numpy().tobytes()

    @contextmanager
    def _connected(self) -> Iterator[None]:
        """Translate the errors of a lost connection, which have no class of their own."""
        try:
            yield
        except RuntimeError:
            raise TrainingError(
                f"process {self.rank} of {self.size} lost the connection to another one; "
                "see the output of that process"
            ) from None

    def seed(self, seed: int, epoch: int) -> int:
        """Return a seed for the noise of one epoch in this process."""
        words = np.random.SeedSequence([seed, epoch, self.rank, self.size])
        return int(words.generate_state(1, np.uint64)[0])


ALONE = Group()
_group = ALONE


def current_group() -> Group:
    """Return the processes that share the fits of this one; `ALONE` outside `process_group`."""
    return _group


@contextmanager
def process_group() -> Iterator[Group]:
    """Join the processes that torchrun started; without torchrun, yield `ALONE`."""
    global _group  # noqa: PLW0603  # one process belongs to one group
    if not dist.is_torchelastic_launched() or os.environ["WORLD_SIZE"] == "1":
        yield ALONE
        return
    dist.init_process_group("gloo")
    _group = Group(dist.get_rank(), dist.get_world_size())
    try:
        yield _group
    finally:
        _group = ALONE
        dist.destroy_process_group()

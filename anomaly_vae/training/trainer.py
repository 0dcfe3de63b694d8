"""Fitting a model: schedules, clipping, early stopping, checkpoints.

The data sit in one tensor and batches are index slices; all weights sit in another, which one call
clips and one moves. Of small batches a step takes the time of its calls, so there are few of them.
All randomness comes from one generator whose state is part of the checkpoint, so that a resumed fit
ends where an unbroken one does.
"""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import Parameter
from torch.optim.adamw import adamw

from anomaly_vae.config import ImageTrainingConfig, ResolvedFit, TrainingConfig
from anomaly_vae.errors import TrainingError
from anomaly_vae.files import atomic_path
from anomaly_vae.models.vae import VAE
from anomaly_vae.training.augmentation import Identity, Views
from anomaly_vae.training.gradients import Batch, gradient_of
from anomaly_vae.training.runtime import cpu_threads, memory_kept

LEARNING_RATE_WARMUP = 0.05
"""Share of the steps over which the learning rate rises."""
VALIDATION_DRAWS = 4096
"""Draws over all validation rows together, at least one for each: their noise is frozen.
Where they decide nothing, one for each is enough."""
VALIDATION_VALUES = 1 << 18
"""Numbers in those draws, at most, where there can be fewer."""
CHUNK_ROWS, CHUNK_VALUES = 8192, 1 << 19
"""Validation rows that are looked at together, and how many values they may have."""
ADAMW: dict[str, Any] = {
    "beta1": 0.9,
    "beta2": 0.999,
    "eps": 1e-8,
    "amsgrad": False,
    "maximize": False,
    "fused": True,
}
"""All other arguments of the library's function, which takes half the time of its class."""
CHECKPOINT_SECONDS = 1.0
"""At most one checkpoint in this time, but for the first and, interrupted, the last."""


class Means(NamedTuple):
    """Per-row means of the bound's two terms, nats."""

    log_prob: float
    kl: float


@dataclass(frozen=True)
class Epoch:
    """What one epoch measured; terms are per-row means in nats, training ones under noise."""

    epoch: int
    beta: float
    learning_rate: float
    train_log_prob: float
    train_kl: float
    validation_log_prob: float
    validation_kl: float
    validation_objective: float

    @property
    def validation_elbo(self) -> float:
        """log_prob − kl on the validation rows."""
        return self.validation_log_prob - self.validation_kl


@dataclass(frozen=True)
class History:
    """Every epoch of a fit, and the one whose weights were kept."""

    epochs: tuple[Epoch, ...]
    best_epoch: int
    stopped_early: bool

    @property
    def best(self) -> Epoch:
        """The epoch whose weights were kept."""
        return self.epochs[self.best_epoch]


OnEpoch = Callable[[Epoch, int], None]
"""Called with each finished epoch and the number of epochs planned."""


def fit(
    model: VAE,
    train: NDArray[np.float32],
    validation: NDArray[np.float32],
    config: TrainingConfig | ImageTrainingConfig,
    on_epoch: OnEpoch | None = None,
    checkpoint: Path | None = None,
    views: Views | None = None,
) -> History:
    """Maximise the ELBO of ``train`` (N, F), NaN where missing; keep the best validation weights.

    Args:
        model: fitted in place and left on the CPU in evaluation mode.
        train: encoded training rows.
        validation: encoded rows that decide when to stop.
        config: resolved here for the number of training rows.
        on_epoch: called after each epoch; the first one's number tells where the fit resumed.
        checkpoint: file to resume from if it fits, kept up to date, removed at the end.
        views: how batches are shown; absent: as they are.

    Raises:
        TrainingError: the loss became NaN or infinite.
    """
    trainer = _Trainer(model, train, validation, config.resolve(len(train)), views)
    with cpu_threads(config.threads), memory_kept(), _resumable(trainer, checkpoint) as keep:
        for epoch in trainer.epochs():
            keep()
            if on_epoch:
                on_epoch(epoch, trainer.planned)
    return trainer.finish()


class State(NamedTuple):
    """What a fit continues from; as a file, safetensors."""

    tensors: dict[str, Tensor]
    epochs: tuple[Epoch, ...]
    best_epoch: int

    def save(self, path: Path) -> None:
        """Write it; the old file stays until the new is whole."""
        epochs = json.dumps([asdict(epoch) for epoch in self.epochs])
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as whole:
            text = {"epochs": epochs, "best_epoch": str(self.best_epoch)}
            save_file(self.tensors, whole, text)

    @classmethod
    def load(cls, path: Path) -> State:
        """The inverse of `save`."""
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # not a dict
            text = file.metadata()
        epochs = tuple(Epoch(**record) for record in json.loads(text["epochs"]))
        return cls(tensors, epochs, int(text["best_epoch"]))


class Moments(NamedTuple):
    """What AdamW (Loshchilov & Hutter 2019) remembers of the gradients (P,)."""

    exp_avg: Tensor
    exp_avg_sq: Tensor
    steps: Tensor

    @classmethod
    def of(cls, weights: Tensor) -> Moments:
        """Before the first step."""
        nothing = torch.zeros_like(weights.detach())
        return cls(nothing, nothing.clone(), nothing.new_zeros(()))

    @torch.no_grad()
    def step(self, weights: Tensor, gradient: Tensor, rate: float, decay: float) -> None:
        """Move the weights."""
        first, second, none = [self.exp_avg], [self.exp_avg_sq], list[Tensor]()
        own = {"lr": rate, "weight_decay": decay, **ADAMW}
        adamw([weights], [gradient], first, second, none, [self.steps], **own)


class _Trainer:
    def __init__(
        self,
        model: VAE,
        train: NDArray[np.float32],
        validation: NDArray[np.float32],
        config: ResolvedFit,
        views: Views | None = None,
    ) -> None:
        self.device = torch.device(_device(config.device))
        self.model = model.to(self.device)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster convolutions
        self.x = torch.from_numpy(train).to(self.device)
        self.validation = torch.from_numpy(validation).to(self.device)
        self.config, self.planned, self.batch_size = config, config.epochs, config.batch_size
        self.views: Views = views or Identity()
        self.steps_per_epoch = len(batches(torch.arange(len(self.x)), self.batch_size))
        self.steps = self.planned * self.steps_per_epoch
        self.generator = torch.Generator(self.device).manual_seed(config.seed)
        self.weights, self.gradient = in_one(list(model.parameters()))
        self.moments = Moments.of(self.weights)
        self.backward = gradient_of(model, config, self.views.loss_scale)
        self.noise = self._validation_noise(len(validation)).to(self.device)
        self.history: list[Epoch] = []
        self.best: dict[str, Tensor] = {}
        self.best_epoch = 0

    # ------------------------------------------------------------ schedules

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then cosine to zero."""
        warm = LEARNING_RATE_WARMUP * self.steps
        if step < warm:
            return self.config.learning_rate * (step + 1) / (warm + 1)
        turn = (step - warm) / max(1.0, self.steps - warm)
        return self.config.learning_rate * 0.5 * (1 + math.cos(math.pi * turn))

    def beta(self, step: int) -> float:
        """The KL term's weight, rising linearly from 0 (Bowman et al. 2016)."""
        warm = self.config.kl_warmup * self.steps
        return self.config.beta * min(1.0, step / warm if warm else 1.0)

    # ------------------------------------------------------------ one epoch

    def epochs(self) -> Iterator[Epoch]:
        """Train until the last epoch, or until the validation objective stops improving."""
        while len(self.history) < self.planned and not self.stalled:
            epoch = self._epoch(len(self.history))
            self.history.append(epoch)
            if not self.best or self._better(epoch):
                self.best_epoch = epoch.epoch
                self.best = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
            yield epoch

    @property
    def stalled(self) -> bool:
        """Whether patience has run out since the KL warm-up ended."""
        if self.config.keep == "last":
            return False
        warm = math.ceil(self.config.kl_warmup * self.planned)
        return len(self.history) - max(self.best_epoch, warm) > self.config.patience

    def _better(self, epoch: Epoch) -> bool:
        """Whether this epoch's weights are those to keep, so far."""
        best = self.history[self.best_epoch].validation_objective
        return self.config.keep == "last" or epoch.validation_objective > best

    def _epoch(self, number: int) -> Epoch:
        self.model.train()
        totals = torch.zeros(2, device=self.device)
        first = number * self.steps_per_epoch
        for step, batch in enumerate(self._batches(), first):
            totals += self._step(batch, step)
        log_prob, kl = (totals / (len(self.x) * self.model.members)).tolist()
        validation = self._validate()
        self._check_finite(number, log_prob - kl, *validation)
        return Epoch(
            epoch=number,
            beta=self.beta(first),
            learning_rate=self.learning_rate(first),
            train_log_prob=log_prob,
            train_kl=kl,
            validation_log_prob=validation.log_prob,
            validation_kl=validation.kl,
            validation_objective=validation.log_prob - self.config.beta * validation.kl,
        )

    def _order(self) -> Tensor:
        """The rows of an epoch (N,), or each member's own order of them (N, E)."""
        each = [
            torch.randperm(len(self.x), generator=self.generator, device=self.device)
            for _ in range(self.model.members)
        ]
        return torch.stack(each, -1) if len(each) > 1 else each[0]

    def _batches(self) -> Iterator[Batch]:
        """Those of an epoch; small ones are drawn several at once."""
        values = self.batch_size * self.x.shape[1] * self.model.members
        several = max(1, self.views.together // max(values, 1))
        for rows in batches(self._order(), several * self.batch_size):
            sizes = [len(part) for part in batches(rows, self.batch_size)]
            yield from self._drawn(self.x[rows.movedim(-1, 0)]).split(sizes)

    def _drawn(self, x: Tensor) -> Batch:
        view = self.views(x, self.generator)
        shape = (*x.shape[:-1], self.model.latent_dim)
        noise = torch.randn(shape, generator=self.generator, device=self.device)
        return Batch(self.model.features(view.seen), view.target, noise, view.tampered)

    def _step(self, batch: Batch, step: int) -> Tensor:
        """One step downhill; sums of the terms before it (2,), nats."""
        totals = self.backward(batch, self.beta(step))
        self._descend(self.learning_rate(step))
        return totals

    def _descend(self, learning_rate: float) -> None:
        """A step of AdamW, with the gradient's norm held (Pascanu et al. 2013)."""
        norm = torch.linalg.vector_norm(self.gradient)
        self.gradient.mul_((self.config.clip_norm / norm).clamp_max(1.0))
        self.moments.step(self.weights, self.gradient, learning_rate, self.config.weight_decay)

    @torch.no_grad()
    def _validate(self) -> Means:
        self.model.eval()
        chunk = max(1, min(CHUNK_ROWS, CHUNK_VALUES // max(self.x.shape[1], 1)))
        chunks = zip(self.validation.split(chunk), self.noise.split(chunk), strict=True)
        terms = [self.model.elbo(x, noise) for x, noise in chunks]
        log_prob = torch.cat([t.log_prob.sum(-1) for t in terms], -1).mean().item()
        return Means(log_prob, torch.cat([t.kl.sum(-1) for t in terms], -1).mean().item())

    def _validation_noise(self, rows: int) -> Tensor:
        """(rows, K, L): each row its own draws, so that the mean over rows has little noise."""
        most = min(VALIDATION_DRAWS, VALIDATION_VALUES // self.model.latent_dim)
        draws = max(1, most // rows) if self.config.keep == "best" else 1
        generator = torch.Generator().manual_seed(self.config.seed)
        return torch.randn(rows, draws, self.model.latent_dim, generator=generator)

    def _check_finite(self, epoch: int, *values: float) -> None:
        if not all(map(math.isfinite, values)):
            raise TrainingError(
                f"the loss is not finite after epoch {epoch + 1}: the fit diverged; lower "
                f"training.learning_rate (now {self.config.learning_rate:g}) or "
                f"training.clip_norm (now {self.config.clip_norm:g}), or raise model.variance_floor"
            )

    def finish(self) -> History:
        """Put the weights to keep back and tell what happened."""
        self.model.load_state_dict(self.best)
        self.model.to("cpu").eval()
        for weight in self.model.parameters():
            weight.data = weight.data.contiguous()  # as files have it
        early = len(self.history) < self.planned
        return History(tuple(self.history), self.best_epoch, early)

    # ------------------------------------------------------------ checkpoints

    def state(self) -> State:
        """A copy of everything the next epoch depends on."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"best.{k}": v for k, v in self.best.items()}
        tensors |= {f"optimizer.{k}": v for k, v in self.moments._asdict().items()}
        tensors["generator"] = self.generator.get_state()
        copies = {k: v.contiguous().clone() for k, v in tensors.items()}
        return State(copies, tuple(self.history), self.best_epoch)

    def restore(self, saved: State) -> None:
        """Continue from there; where it does not fit, raise whatever comes and change nothing."""
        groups = defaultdict(dict, _grouped(saved.tensors))
        shapes, moments = _shapes(self.model.state_dict()), _shapes(self.moments._asdict())
        found = [_shapes(groups[name]) for name in ("model", "best", "optimizer")]
        if found != [shapes, shapes if saved.epochs else {}, moments]:
            raise ValueError("of another model")
        self.generator.set_state(saved.tensors["generator"])  # refuses that of another device
        # Whatever could fail has not: from here on nothing is left half restored.
        self.model.load_state_dict(groups["model"])
        self.moments = Moments(**{k: v.to(self.device) for k, v in groups["optimizer"].items()})
        self.best = {k: v.to(self.device) for k, v in groups["best"].items()}
        self.history, self.best_epoch = list(saved.epochs), saved.best_epoch


class _Checkpoint:
    """A file beside a fit: its state after the last epoch, written at most once a second."""

    def __init__(self, trainer: _Trainer, path: Path) -> None:
        self.trainer, self.path = trainer, path
        with suppress(Exception):
            trainer.restore(State.load(path))
        self.state = trainer.state()
        self.write()

    def keep(self) -> None:
        """Remember the state between two epochs; write it when that is due."""
        self.state = self.trainer.state()
        if time.monotonic() - self.written >= CHECKPOINT_SECONDS:
            self.write()

    def write(self) -> None:
        """Bring the file up to date."""
        self.state.save(self.path)
        self.written = time.monotonic()


@contextmanager
def _resumable(trainer: _Trainer, path: Path | None) -> Iterator[Callable[[], None]]:
    """Continue from the file if it fits, and remove it at the end; call what it gives each epoch.

    An interrupted fit leaves its last whole epoch behind.
    """
    if path is None:
        yield lambda: None
        return
    checkpoint = _Checkpoint(trainer, path)
    try:
        yield checkpoint.keep
    except KeyboardInterrupt:
        checkpoint.write()
        raise
    path.unlink(missing_ok=True)


def in_one(weights: Sequence[Parameter]) -> tuple[Parameter, Tensor]:
    """One tensor (P,) of all weights, and one of their gradients, of which they become views.

    What is done to each of them alike is then done in one call.
    """
    places = [torch.as_strided(weight.detach(), (weight.numel(),), (1,)) for weight in weights]
    whole = Parameter(torch.cat(places))
    whole.grad = gradient = torch.zeros_like(whole)
    sizes = [len(place) for place in places]
    parts = whole.detach().split(sizes), gradient.split(sizes)
    for weight, *its in zip(weights, *parts, strict=True):
        weight.data, weight.grad = (_laid_out(part, weight) for part in its)
    return whole, gradient


def _laid_out(part: Tensor, like: Tensor) -> Tensor:
    """(n,) in the shape of a tensor, and with its order in memory."""
    return part.as_strided(like.shape, like.stride(), part.storage_offset())


def batches(rows: Tensor, size: int) -> list[Tensor]:
    """(N,) in parts of ``size``; one row left alone joins the last part: batch norm needs two."""
    parts = list(rows.split(size))
    if len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


def _grouped(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """By what their names begin with, up to the first dot."""
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        head, _, rest = name.partition(".")
        groups.setdefault(head, {})[rest] = tensor
    return groups


def _shapes(tensors: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def _device(wanted: str) -> str:
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise TrainingError("training.device is cuda, but no CUDA device is available; use auto")
    return wanted

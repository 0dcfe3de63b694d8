"""Fit a model: schedules, gradient clipping, early stopping and checkpoints.

The data are one tensor, and batches are selected from it by index. All weights are views of one
flat tensor, so that one call clips all gradients and one call updates all weights: on small
batches, the time of a step is mostly the overhead of calls. All randomness comes from one generator
whose state is part of the checkpoint, so that a resumed fit ends with the same weights as an
uninterrupted one.
"""

from __future__ import annotations

import json
import math
import tempfile
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

from anomaly_vae.config.training import ImageTrainingConfig, ResolvedFit, TrainingConfig
from anomaly_vae.errors import TrainingError
from anomaly_vae.files import atomic_path
from anomaly_vae.models.vae import VAE
from anomaly_vae.training.augmentation import Identity, Views
from anomaly_vae.training.distributed import current_group
from anomaly_vae.training.gradients import Batch, gradient_of
from anomaly_vae.training.runtime import cpu_threads, retained_memory

LEARNING_RATE_WARMUP = 0.05
"""Fraction of the steps during which the learning rate rises."""
VALIDATION_DRAWS = 4096
"""Number of posterior draws for all validation rows together, at least one per row, with frozen
noise. If the last weights are kept, one draw per row is used."""
MAX_VALIDATION_VALUES = 1 << 18
"""Maximum number of latent values in the validation draws, unless one draw per row needs more."""
MAX_CHUNK_ROWS, MAX_CHUNK_VALUES = 8192, 1 << 19
"""Maximum number of validation rows, and of their values, that are evaluated at a time."""
ADAMW_OPTIONS: dict[str, Any] = {
    "beta1": 0.9,
    "beta2": 0.999,
    "eps": 1e-8,
    "amsgrad": False,
    "maximize": False,
    "fused": True,
}
"""Fixed arguments of torch's function `adamw`, which is twice as fast as the class `AdamW`."""
CHECKPOINT_SECONDS = 1.0
"""Minimum time between two checkpoints, in seconds; it does not apply to the first one
and to the one that is written on interruption."""


class Means(NamedTuple):
    """The means over rows of the bound's two terms, in nats."""

    log_prob: float
    kl: float


@dataclass(frozen=True)
class Epoch:
    """The measurements of one epoch: means over rows, in nats; training rows include noise."""

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
        """Mean of log_prob − kl over the validation rows, in nats."""
        return self.validation_log_prob - self.validation_kl


@dataclass(frozen=True)
class History:
    """All epochs of a fit, and the one whose weights were kept."""

    epochs: tuple[Epoch, ...]
    best_epoch: int
    stopped_early: bool

    @property
    def best(self) -> Epoch:
        """Epoch whose weights were kept."""
        return self.epochs[self.best_epoch]


OnEpoch = Callable[[Epoch, int], None]
"""Function called with each finished epoch and the planned number of epochs."""


def fit(
    model: VAE,
    train: NDArray[np.float32],
    validation: NDArray[np.float32],
    config: TrainingConfig | ImageTrainingConfig,
    on_epoch: OnEpoch | None = None,
    checkpoint: Path | None = None,
    views: Views | None = None,
) -> History:
    """Maximise the ELBO of encoded rows and keep the weights of the best or last epoch.

    Args:
        model: model to fit, in place; afterwards it is on the CPU, in evaluation mode.
        train: (N, F), encoded training rows, NaN where missing.
        validation: (M, F), encoded rows that decide when to stop.
        config: settings of the fit, resolved here for the number of training rows.
        on_epoch: called after each epoch; the first epoch number shows where a fit resumed.
        checkpoint: file to resume from if it is of the same model; it is updated during the fit and
            removed at the end.
        views: function that turns batches into training views; None leaves them unchanged.

    Raises:
        TrainingError: the loss became NaN or infinite.

    Example:
        >>> import numpy as np
        >>> from anomaly_vae.config.model import ModelConfig
        >>> from anomaly_vae.config.training import TrainingConfig
        >>> from anomaly_vae.data.encoding import Layout
        >>> from anomaly_vae.models import build
        >>> rows = np.random.default_rng(0).standard_normal((60, 3), dtype=np.float32)
        >>> model = build(ModelConfig(members=1), Layout(3, 0, ()))
        >>> history = fit(model, rows[:50], rows[50:], TrainingConfig(epochs=4))
        >>> [epoch.epoch for epoch in history.epochs], history.best_epoch
        ([0, 1, 2, 3], 3)
    """
    trainer = _Trainer(model, train, validation, config.resolve(len(train)), views)
    with (
        cpu_threads(config.threads),
        retained_memory(),
        _checkpointed(trainer, checkpoint) as record,
    ):
        trainer.synchronize()
        for epoch in trainer.epochs():
            record()
            if on_epoch:
                on_epoch(epoch, trainer.planned)
    return trainer.finish()


class State(NamedTuple):
    """The complete state of a fit, stored in a safetensors file for resumption."""

    tensors: dict[str, Tensor]
    epochs: tuple[Epoch, ...]
    best_epoch: int

    def save(self, path: Path) -> None:
        """Write the file atomically."""
        epochs = json.dumps([asdict(epoch) for epoch in self.epochs])
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            metadata = {"epochs": epochs, "best_epoch": str(self.best_epoch)}
            save_file(self.tensors, temporary, metadata)

    @classmethod
    def load(cls, path: Path) -> State:
        """Read a file written by `save`."""
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # not a dict
            metadata = file.metadata()
        epochs = tuple(Epoch(**record) for record in json.loads(metadata["epochs"]))
        return cls(tensors, epochs, int(metadata["best_epoch"]))


class Moments(NamedTuple):
    """The running moments of AdamW (Loshchilov & Hutter 2019) over the flat weights (P,)."""

    exp_avg: Tensor
    exp_avg_sq: Tensor
    steps: Tensor

    @classmethod
    def of(cls, weights: Tensor) -> Moments:
        """Return the moments before the first step."""
        zeros = torch.zeros_like(weights.detach())
        return cls(zeros, zeros.clone(), zeros.new_zeros(()))

    @torch.no_grad()
    def step(self, weights: Tensor, gradient: Tensor, rate: float, decay: float) -> None:
        """Update the weights (P,) by one step of AdamW."""
        first, second, none = [self.exp_avg], [self.exp_avg_sq], list[Tensor]()
        options = {"lr": rate, "weight_decay": decay, **ADAMW_OPTIONS}
        adamw([weights], [gradient], first, second, none, [self.steps], **options)


class _Trainer:
    """A fit in progress: model, data, optimiser, random generator and history."""

    def __init__(
        self,
        model: VAE,
        train: NDArray[np.float32],
        validation: NDArray[np.float32],
        config: ResolvedFit,
        views: Views | None = None,
    ) -> None:
        self.group = current_group()
        self.device = torch.device(_device(config.device, self.group.size))
        self.model = model.to(self.device)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster convolutions
        self.x = torch.from_numpy(train).to(self.device)
        self.validation = self.group.share(torch.from_numpy(validation)).to(self.device)
        self.config, self.planned = config, config.epochs
        self.batch_size = _batch_share(config.batch_size, self.group.size)
        self.views: Views = views or Identity()
        self.rows = len(self.x) // self.group.size
        self.steps_per_epoch = len(batches(torch.arange(self.rows), self.batch_size))
        self.steps = self.planned * self.steps_per_epoch
        self.generator = torch.Generator(self.device).manual_seed(config.seed)
        self.noise_generator = self.generator if self.group.size == 1 else torch.Generator()
        self.weights, self.gradient = flatten_weights(list(model.parameters()))
        self.moments = Moments.of(self.weights)
        self.backward = gradient_of(model, config, self.views.loss_scale)
        self.noise = self.group.share(self._validation_noise(len(validation))).to(self.device)
        self.history: list[Epoch] = []
        self.best: dict[str, Tensor] = {}
        self.best_epoch = 0

    # ------------------------------------------------------------ schedules

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step: it rises linearly, then falls to zero as a cosine."""
        warm = LEARNING_RATE_WARMUP * self.steps
        if step < warm:
            return self.config.learning_rate * (step + 1) / (warm + 1)
        turn = (step - warm) / max(1.0, self.steps - warm)
        return self.config.learning_rate * 0.5 * (1 + math.cos(math.pi * turn))

    def beta(self, step: int) -> float:
        """Return the weight of the KL term, which rises linearly from 0 (Bowman et al. 2016)."""
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
        """Whether patience has run out since the end of the KL warm-up."""
        if self.config.keep == "last":
            return False
        warm = math.ceil(self.config.kl_warmup * self.planned)
        return len(self.history) - max(self.best_epoch, warm) > self.config.patience

    def _better(self, epoch: Epoch) -> bool:
        """Return whether the weights of this epoch replace those kept so far."""
        best = self.history[self.best_epoch].validation_objective
        return self.config.keep == "last" or epoch.validation_objective > best

    def _epoch(self, number: int) -> Epoch:
        self.model.train()
        if self.group.size > 1:
            self.noise_generator.manual_seed(self.group.seed(self.config.seed, number))
        totals = torch.zeros(2, device=self.device)
        first = number * self.steps_per_epoch
        for step, batch in enumerate(self._batches(), first):
            totals += self._step(batch, step)
        self._average_buffers()
        totals = self.group.average(totals)
        log_prob, kl = (totals / (self.rows * self.model.members)).tolist()
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
        """Return the order of an epoch's rows: (N,), or (N, E) with one order per member."""
        orders = [
            torch.randperm(len(self.x), generator=self.generator, device=self.device)
            for _ in range(self.model.members)
        ]
        return torch.stack(orders, -1) if len(orders) > 1 else orders[0]

    def _batches(self) -> Iterator[Batch]:
        """Yield the batches of an epoch; several small ones are drawn in one call."""
        values = self.batch_size * self.x.shape[1] * self.model.members
        per_draw = max(1, self.views.max_values // max(values, 1))
        order = self.group.equal_share(self._order())
        for rows in batches(order, per_draw * self.batch_size):
            sizes = [len(part) for part in batches(rows, self.batch_size)]
            yield from self._draw(self.x[rows.movedim(-1, 0)]).split(sizes)

    def _draw(self, x: Tensor) -> Batch:
        view = self.views(x, self.noise_generator)
        shape = (*x.shape[:-1], self.model.latent_dim)
        noise = torch.randn(shape, generator=self.noise_generator, device=self.device)
        return Batch(self.model.features(view.encoder_input), view.target, noise, view.synthetic)

    def _step(self, batch: Batch, step: int) -> Tensor:
        """Take one step; return the sums of log_prob and kl before the step, (2,), in nats."""
        totals = self.backward(batch, self.beta(step))
        self.group.average(self.gradient)
        self._descend(self.learning_rate(step))
        return totals

    def _descend(self, learning_rate: float) -> None:
        """Clip the gradient's norm (Pascanu et al. 2013) and take a step of AdamW."""
        norm = torch.linalg.vector_norm(self.gradient)
        self.gradient.mul_((self.config.clip_norm / norm).clamp_max(1.0))
        self.moments.step(self.weights, self.gradient, learning_rate, self.config.weight_decay)

    @torch.no_grad()
    def _validate(self) -> Means:
        self.model.eval()
        chunk = max(1, min(MAX_CHUNK_ROWS, MAX_CHUNK_VALUES // max(self.x.shape[1], 1)))
        chunks = zip(self.validation.split(chunk), self.noise.split(chunk), strict=True)
        terms = [self.model.elbo(x, noise) for x, noise in chunks]
        log_prob = self.group.mean(torch.cat([t.log_prob.sum(-1) for t in terms], -1))
        return Means(log_prob, self.group.mean(torch.cat([t.kl.sum(-1) for t in terms], -1)))

    @torch.no_grad()
    def _average_buffers(self) -> None:
        """Average what each process measured on its rows, such as the means of normalisation."""
        for buffer in self.model.buffers() if self.group.size > 1 else ():
            if buffer.is_floating_point():
                self.group.average(buffer)

    def _validation_noise(self, rows: int) -> Tensor:
        """Return frozen noise (rows, K, L) for K draws per row, which reduce the variance."""
        total = min(VALIDATION_DRAWS, MAX_VALIDATION_VALUES // self.model.latent_dim)
        draws = max(1, total // rows) if self.config.keep == "best" else 1
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
        """Load the kept weights into the model and return the history."""
        self.model.load_state_dict(self.best)
        self.model.to("cpu").eval()
        for weight in self.model.parameters():
            weight.data = weight.data.contiguous()  # the order of stored tensors
        early = len(self.history) < self.planned
        return History(tuple(self.history), self.best_epoch, early)

    # ------------------------------------------------------------ checkpoints

    def state(self) -> State:
        """Return a copy of everything that the next epoch depends on."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"best.{k}": v for k, v in self.best.items()}
        tensors |= {f"optimizer.{k}": v for k, v in self.moments._asdict().items()}
        tensors["generator"] = self.generator.get_state()
        copies = {k: v.contiguous().clone() for k, v in tensors.items()}
        return State(copies, tuple(self.history), self.best_epoch)

    def synchronize(self) -> None:
        """Take over the state of process 0: a checkpoint, or the weights of another model."""
        if self.group.size == 1:
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "state.safetensors"
            if self.group.rank == 0:
                self.state().save(path)
                self.group.broadcast(path.read_bytes())
            else:
                path.write_bytes(self.group.broadcast())
                self.restore(State.load(path))

    def restore(self, saved: State) -> None:
        """Continue from a saved state; if it is of another model, raise and change nothing."""
        groups = defaultdict(dict, _grouped_by_prefix(saved.tensors))
        shapes, moments = _shapes(self.model.state_dict()), _shapes(self.moments._asdict())
        stored = [_shapes(groups[name]) for name in ("model", "best", "optimizer")]
        if stored != [shapes, shapes if saved.epochs else {}, moments]:
            raise ValueError("the checkpoint is of another model")
        self.generator.set_state(saved.tensors["generator"])  # raises for another device
        # All checks have passed: nothing below can fail and leave a partial state.
        self.model.load_state_dict(groups["model"])
        self.moments = Moments(**{k: v.to(self.device) for k, v in groups["optimizer"].items()})
        self.best = {k: v.to(self.device) for k, v in groups["best"].items()}
        self.history, self.best_epoch = list(saved.epochs), saved.best_epoch


class _Checkpoint:
    """A checkpoint file that is updated after an epoch, at most once per `CHECKPOINT_SECONDS`."""

    def __init__(self, trainer: _Trainer, path: Path) -> None:
        self.trainer, self.path = trainer, path
        with suppress(Exception):
            trainer.restore(State.load(path))
        self.state = trainer.state()
        self.write()

    def record(self) -> None:
        """Take over the state after an epoch, and write it if an update is due."""
        self.state = self.trainer.state()
        if time.monotonic() - self.written >= CHECKPOINT_SECONDS:
            self.write()

    def write(self) -> None:
        """Write the most recent state to the file."""
        self.state.save(self.path)
        self.written = time.monotonic()


@contextmanager
def _checkpointed(trainer: _Trainer, path: Path | None) -> Iterator[Callable[[], None]]:
    """Resume from a file if it is of the same model, and remove it at the end.

    Yields the function to call after each epoch. If the fit is interrupted, the file holds the
    state after its last complete epoch.
    """
    if path is None:
        yield lambda: None
        return
    checkpoint = _Checkpoint(trainer, path)
    try:
        yield checkpoint.record
    except KeyboardInterrupt:
        checkpoint.write()
        raise
    path.unlink(missing_ok=True)


def flatten_weights(weights: Sequence[Parameter]) -> tuple[Parameter, Tensor]:
    """Move all weights into one flat tensor (P,), and their gradients into another.

    The weights and their gradients become views of these tensors, so that one call acts on all.
    """
    flat = [torch.as_strided(weight.detach(), (weight.numel(),), (1,)) for weight in weights]
    whole = Parameter(torch.cat(flat))
    whole.grad = gradient = torch.zeros_like(whole)
    sizes = [len(part) for part in flat]
    parts = whole.detach().split(sizes), gradient.split(sizes)
    for weight, *views in zip(weights, *parts, strict=True):
        weight.data, weight.grad = (_view_like(part, weight) for part in views)
    return whole, gradient


def _view_like(part: Tensor, like: Tensor) -> Tensor:
    """View a slice (n,) of the flat tensor with the shape and memory order of a weight."""
    return part.as_strided(like.shape, like.stride(), part.storage_offset())


def batches(rows: Tensor, size: int) -> list[Tensor]:
    """Split row indices (N,) into batches of ``size``; a single last row joins the batch before it.

    Batch normalisation needs at least two rows.
    """
    parts = list(rows.split(size))
    if len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


def _grouped_by_prefix(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Group tensors by the part of their name before the first dot."""
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        head, _, rest = name.partition(".")
        groups.setdefault(head, {})[rest] = tensor
    return groups


def _shapes(tensors: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def _batch_share(rows: int, processes: int) -> int:
    """Return the number of rows of a batch for each process; at least two, as in `batches`."""
    return max(2, rows // processes) if processes > 1 else rows


def _device(name: str, processes: int = 1) -> str:
    if processes > 1 and name == "cuda":
        raise TrainingError("training.device is cuda, but torchrun fits on CPUs; use one process")
    if processes > 1:
        return "cpu"
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise TrainingError("training.device is cuda, but no CUDA device is available; use auto")
    return name

"""Measure what the hand-written gradient and scoring graph of tables save.

Gradients: the default configuration is fitted to a drawn table, with the gradient in closed form,
by automatic differentiation (with the trainer's fused AdamW on one flat tensor, and with the class
`torch.optim.AdamW` and `clip_grad_norm_`), by `torch.compile`, and with the closed form whose
likelihood alone is differentiated by autograd or `torch.func`. A few epochs are measured, the first
one apart because it compiles, and extrapolated to the epochs of the default configuration.

Graphs: the graph built node by node beside the graph that ``torch.onnx.export(dynamo=True)`` traces
from the same fitted model: seconds to export, size, session start, latency of one row, throughput,
and the rows whose score alone differs in any bit from their score in a batch. The export of the
likelihood alone is measured as well.

CPU-seconds of this process and its children, one thread; methods alternate within each round.
"""

from __future__ import annotations

import logging
import resource
import time
import warnings
from collections.abc import Callable, Sequence
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from safetensors.numpy import save as save_tensors
from torch import Tensor, nn

from anomaly_vae.config.model import ModelConfig
from anomaly_vae.config.scoring import ScoreConfig
from anomaly_vae.config.training import TrainingConfig
from anomaly_vae.data.encoding import Layout
from anomaly_vae.export.onnx_tabular import OPSET, export_graph, weight_tensors
from anomaly_vae.models.builder import build, tabular_parts
from anomaly_vae.models.likelihoods import TabularLikelihood
from anomaly_vae.models.vae import VAE, frozen_noise
from anomaly_vae.scoring.scorer import OUTPUTS, Scorer
from anomaly_vae.training import trainer
from anomaly_vae.training.aggregated_posterior import finalize
from anomaly_vae.training.augmentation import NoisyCells
from anomaly_vae.training.gradients import Autograd, Batch, ClosedForm
from benchmarks.common import Ledger, Options, environment, markdown

Matrix = NDArray[np.float32]

LAYOUTS = {10: Layout(6, 2, (4, 4)), 62: Layout(38, 12, (5,) * 12)}
"""Layout of the table by its number of encoded columns."""
TRAIN_ROWS, VALIDATION_ROWS = 4_050, 450
"""Rows of a table of 5,000 after a tenth was held out to calibrate, and a tenth to validate."""
ROUNDS = 3
EPOCHS, DEFAULT_EPOCHS, STEPS_PER_EPOCH = 6, 80, 32
"""Measured epochs, and epochs and steps of the default configuration on these tables."""
TILE = 512
"""Rows that the scorer passes to the graph at a time."""


def rows(layout: Layout, count: int, seed: int) -> Matrix:
    """Draw encoded rows (count, F) with three correlated factors."""
    generator = np.random.default_rng(seed)
    loadings = np.random.default_rng(0).standard_normal((3, layout.n_columns))
    x = generator.standard_normal((count, 3)) @ loadings
    x = (x + 0.5 * generator.standard_normal(x.shape)) / 2
    levels = np.array([2] * layout.n_binary + list(layout.n_levels))
    codes = np.clip(np.floor((x[:, layout.n_numeric :] + 2) / 4 * levels), 0, levels - 1)
    return np.hstack([x[:, : layout.n_numeric], codes]).astype(np.float32)


def cpu_seconds() -> float:
    """Return the CPU-seconds of this process and of its finished children."""
    each = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in each)


# ---------------------------------------------------------------- gradients


class Compiled(Autograd):
    """Automatic differentiation of a loss that `torch.compile` has compiled."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.compiled = torch.compile(self.loss)

    def __call__(self, batch: Batch, beta: float) -> Tensor:
        """See `Gradient`; beta is a tensor, since each new number would be compiled again."""
        loss, totals = self.compiled(batch, torch.tensor(beta))
        self.model.zero_grad(set_to_none=False)
        loss.backward()
        return totals


class DifferentiatedLikelihood:
    """A tabular likelihood whose gradient comes from autograd or `torch.func`, not by hand."""

    def __init__(self, likelihood: TabularLikelihood, functional: bool) -> None:
        self.likelihood, self.functional = likelihood, functional

    def __call__(self, outputs: Tensor) -> DifferentiatedLikelihood:
        """Remember the decoder outputs."""
        self.outputs = outputs
        return self

    def log_prob_and_grad(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return log p(x) and its derivatives by the decoder outputs."""

        def log_prob(outputs: Tensor) -> tuple[Tensor, Tensor]:
            each = self.likelihood(outputs).log_prob(x)
            return each.sum(), each

        if self.functional:
            grad, each = torch.func.grad(log_prob, has_aux=True)(self.outputs)
            return each, grad
        with torch.enable_grad():
            outputs = self.outputs.detach().requires_grad_()
            total, each = log_prob(outputs)
            (grad,) = torch.autograd.grad(total, outputs)
        return each.detach(), grad

    def backward(self, outputs: Tensor, grad: Tensor) -> Tensor:
        """Return the derivatives unchanged."""
        del outputs
        return grad


class PartlyClosed(ClosedForm):
    """The closed form except for the likelihood's derivatives."""

    functional = False

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.likelihood = DifferentiatedLikelihood(self.likelihood, self.functional)

    def __call__(self, batch: Batch, beta: float) -> Tensor:
        """See `Gradient`."""
        with torch.no_grad():  # autograd cannot record tensors of inference mode
            return ClosedForm.__call__.__wrapped__(self, batch, beta)  # type: ignore[attr-defined]


class PartlyFunctional(PartlyClosed):
    """The closed form whose likelihood is differentiated by `torch.func.grad`."""

    functional = True


def textbook_step(self: Any, learning_rate: float) -> None:
    """Take the place of `_Trainer._descend`: `clip_grad_norm_` and `torch.optim.AdamW`."""
    if not hasattr(self, "optimizer"):
        parameters = list(self.model.parameters())
        decay = self.config.weight_decay
        self.optimizer = torch.optim.AdamW(parameters, weight_decay=decay, fused=True)
    for group in self.optimizer.param_groups:
        group["lr"] = learning_rate
    torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
    self.optimizer.step()


GRADIENTS: dict[str, tuple[Any, bool]] = {
    "closed form": (ClosedForm, False),
    "autograd": (Autograd, False),
    "autograd, optim.AdamW(fused)": (Autograd, True),
    "closed form, likelihood by autograd": (PartlyClosed, False),
    "closed form, likelihood by torch.func": (PartlyFunctional, False),
    "torch.compile, first fit": (Compiled, False),
    "torch.compile, later fit": (Compiled, False),
}
"""Class of the gradient, and whether the step is the textbook one, by method."""


def fit_with(method: str, columns: int) -> tuple[VAE, dict[str, float]]:
    """Fit a few epochs; return the model and the CPU-seconds."""
    layout, (gradient, textbook) = LAYOUTS[columns], GRADIENTS[method]
    model = build(ModelConfig(), layout)
    train, validation = rows(layout, TRAIN_ROWS, 1), rows(layout, VALIDATION_ROWS, 2)
    views = NoisyCells(0.02, range(layout.n_columns), 0.2, layout.n_numeric)
    step = textbook_step if textbook else trainer._Trainer._descend
    times = [cpu_seconds()]
    with (
        patch.object(trainer, "gradient_of", gradient),
        patch.object(trainer._Trainer, "_descend", step),
    ):
        config = TrainingConfig(epochs=EPOCHS)
        trainer.fit(
            model, train, validation, config, lambda *_: times.append(cpu_seconds()), views=views
        )
    first, epoch = times[1] - times[0], (times[-1] - times[1]) / (EPOCHS - 1)
    return model, {
        "first_epoch_seconds": first,
        "step_milliseconds": 1e3 * epoch / STEPS_PER_EPOCH,
        "default_fit_seconds": first + (DEFAULT_EPOCHS - 1) * epoch,
    }


def run_gradients(found: Ledger, options: Options) -> None:
    """Measure every method, in turn; `torch.compile` starts with an empty cache."""
    with TemporaryDirectory() as cache, patch.dict("os.environ", TORCHINDUCTOR_CACHE_DIR=cache):
        _run_gradients(found, options)


def _run_gradients(found: Ledger, options: Options) -> None:
    for turn in range(1 if options.short else ROUNDS):
        for columns in LAYOUTS:
            for method in GRADIENTS:
                key = ("gradient", method, columns, turn)
                once = method == "torch.compile, first fit"
                if options.wants(method) and key not in found and not (once and turn):
                    found.add(key, fit_with(method, columns)[1])


# ---------------------------------------------------------------- graphs


class TracedScore(nn.Module):
    """The scoring graph's outputs as a torch module, as far as tables need it."""

    def __init__(self, model: VAE, score: ScoreConfig) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("noise", frozen_noise(score.draws, model.latent_dim, score.seed))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return score, nats, kl, expected and latent of encoded rows (N, F)."""
        model = self.model
        inference = model.infer(x, torch.zeros(1, model.latent_dim))
        terms = model.average_members(model.aggregated_elbo(x, self.noise))
        nats, kl = -terms.log_prob, terms.kl.double().sum(-1)
        expected = model.likelihood(inference.outputs).mean.squeeze(-2)[0]
        return nats.double().sum(-1) + kl, nats, kl, expected, inference.mean.squeeze(-2)[0]


def by_hand(model: VAE, score: ScoreConfig) -> tuple[bytes, bytes]:
    """Return the graph built node by node, and its weights file."""
    weights = save_tensors(weight_tensors(model, score))
    return export_graph(model, score, weights), weights


def traced(model: VAE, score: ScoreConfig, optimize: bool = False) -> tuple[bytes, bytes]:
    """Return the traced graph with its weights inside."""
    module, x = TracedScore(model, score), torch.zeros(2, layout_of(model).n_columns)
    return trace(module.eval(), (x,), OUTPUTS, optimize), save_tensors({})


def trace(
    module: nn.Module, inputs: tuple[Tensor, ...], outputs: Sequence[str], optimize: bool = False
) -> bytes:
    """Trace a module whose inputs (N, ...) may have any number of rows."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            inputs,
            dynamo=True,
            optimize=optimize,
            verbose=False,
            opset_version=OPSET,
            input_names=["x", "outputs"][: len(inputs)],
            output_names=outputs,
            dynamic_shapes=tuple({0: torch.export.Dim("N")} for _ in inputs),
        )
    return program.model_proto.SerializeToString()


class TracedLikelihood(nn.Module):
    """The log-likelihood alone, from encoded rows and decoder outputs."""

    def __init__(self, likelihood: nn.Module) -> None:
        super().__init__()
        self.likelihood = likelihood

    def forward(self, x: Tensor, outputs: Tensor) -> Tensor:
        """Return log p(x) per column (N, F)."""
        return self.likelihood(outputs).log_prob(x)


def likelihood_figures(layout: Layout) -> dict[str, float]:
    """Measure the export of the likelihood alone."""
    likelihood = build(ModelConfig(members=1), layout).likelihood.eval()
    inputs = torch.zeros(2, layout.n_columns), torch.zeros(2, likelihood.n_outputs)
    start = cpu_seconds()
    trace(TracedLikelihood(likelihood), inputs, ["log_prob"])
    return {"export_seconds": cpu_seconds() - start}


def layout_of(model: VAE) -> Layout:
    """Return the encoded columns of a tabular model."""
    return tabular_parts(model).likelihood.layout


def traced_optimized(model: VAE, score: ScoreConfig) -> tuple[bytes, bytes]:
    """Return the traced graph after the exporter's own optimisation."""
    return traced(model, score, optimize=True)


GRAPHS: dict[str, Callable[[VAE, ScoreConfig], tuple[bytes, bytes]]] = {
    "by hand": by_hand,
    "traced": traced,
    "traced, optimized": traced_optimized,
}


LIKELIHOOD = "traced, likelihood alone"


def graph_figures(method: str, model: VAE, x: Matrix) -> dict[str, float]:
    """Measure one way to make the graph of a fitted model."""
    start = cpu_seconds()
    graph, weights = GRAPHS[method](model, ScoreConfig())
    exported = cpu_seconds()
    scorer = Scorer(None, SimpleNamespace(tile=TILE), graph, weights)  # type: ignore[arg-type]
    opened = cpu_seconds()
    batch = scorer.score_encoded(x[:TILE])
    alone = np.concatenate([scorer.score_encoded(row[None]) for row in x[:TILE]])
    shifted = np.concatenate([scorer.score_encoded(x[i : i + 13]) for i in range(0, TILE, 13)])
    return {
        "export_seconds": exported - start,
        "kilobytes": (len(graph) + len(weights)) / 1024,
        "session_milliseconds": 1e3 * (opened - exported),
        "row_microseconds": 1e6 * seconds_per_call(lambda: scorer.score_encoded(x[:1])),
        "batch_microseconds": 1e6 * seconds_per_call(lambda: scorer.score_encoded(x[:TILE])) / TILE,
        "rows_that_differ_alone": float((batch != alone).sum()),
        "rows_that_differ_in_batches_of_13": float((batch != shifted[:TILE]).sum()),
    }


def seconds_per_call(call: Callable[[], object], seconds: float = 1.0) -> float:
    """Return the median of the CPU-seconds of calls, over about this many seconds."""
    each, until = list[float](), time.perf_counter() + seconds
    while time.perf_counter() < until:
        before = time.process_time()
        call()
        each.append(time.process_time() - before)
    return float(np.median(each))


def run_graphs(found: Ledger, options: Options) -> None:
    for columns, layout in LAYOUTS.items():
        model, _ = fit_with("closed form", columns)
        parts = (torch.from_numpy(rows(layout, n, s)) for n, s in ((TRAIN_ROWS, 1), (450, 2)))
        finalize(model, *parts, ModelConfig(), TrainingConfig())
        x = rows(layout, 4 * TILE, 3)
        for turn in range(1 if options.short else ROUNDS):
            for method in GRAPHS:
                key = ("graph", method, columns, turn)
                if options.wants(method) and key not in found:
                    found.add(key, graph_figures(method, model, x))
            if (key := ("graph", LIKELIHOOD, columns, turn)) not in found:
                found.add(key, likelihood_figures(layout))


# ---------------------------------------------------------------- the run


GRADIENT_FIGURES = ("first_epoch_seconds", "step_milliseconds", "default_fit_seconds")
GRAPH_FIGURES = (
    "export_seconds",
    "kilobytes",
    "session_milliseconds",
    "row_microseconds",
    "batch_microseconds",
    "rows_that_differ_alone",
    "rows_that_differ_in_batches_of_13",
)


def report(found: pd.DataFrame, figures: Sequence[str]) -> str:
    """Return a Markdown table of the medians over the rounds."""
    medians = found.groupby(["method", "columns"], sort=False)[[*figures]].median()
    lines = [(*map(str, key), *(f"{value:.4g}" for value in line)) for key, line in
             zip(medians.index, medians.to_numpy(), strict=True)]  # fmt: skip
    return markdown(("method", "columns", *figures), lines)


def run(options: Options) -> None:
    """Measure what is missing and write the tables."""
    found = Ledger(options.result("handmade.csv"), ("part", "method", "columns", "round"))
    run_graphs(found, options)
    run_gradients(found, options)
    parts = {part: found.rows[found.rows["part"] == part] for part in ("graph", "gradient")}
    graphs = report(parts["graph"], GRAPH_FIGURES)
    gradients = report(parts["gradient"], GRADIENT_FIGURES)
    tables = f"{graphs}\n{gradients}"
    options.result("handmade.md").write_text(f"{tables}\n{environment()}", encoding="utf-8")
    print(f"\n{tables}\n{environment()}")

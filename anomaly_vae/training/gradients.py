"""What a batch teaches: the gradient of its loss.

`Automatic` differentiates whatever a model computes. A step over a small batch takes the time of
its calls, though, and recording and replaying them makes twice as many as there need be. So what
tables are fitted with unless they ask for something else has its gradient in closed form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn import functional as F

from anomaly_vae.config import FitConfig
from anomaly_vae.models.likelihoods import TabularLikelihood
from anomaly_vae.models.vae import VAE, Inference, Terms
from anomaly_vae.training.augmentation import Tampered


class Batch(NamedTuple):
    """What a step sees of its rows, or of each member's."""

    features: Tensor
    """(N, inputs) of the encoder; of images (N, C, H, W)"""
    target: Tensor
    """(N, F): what is to be explained"""
    noise: Tensor
    """(N, L): of the draws from the posterior, one for each row"""
    tampered: Tampered | None = None

    def split(self, sizes: list[int]) -> Iterator[Batch]:
        """So many rows each; images come one batch at a time (`Views.together`)."""
        if len(sizes) == 1:
            return iter([self])
        parts = (part.split(sizes, -2) for part in (self.features, self.target, self.noise))
        return map(Batch, *parts)


Gradient = Callable[[Batch, float], Tensor]
"""Leaves the derivatives of a batch's loss in the weights' ``grad``, whatever it held, given the
weight of the KL term; returns the sums of log_prob and kl over the batch (2,), nats."""


def gradient_of(model: VAE, config: FitConfig, loss_scale: float = 1.0) -> Gradient:
    """In closed form where there is one; a row's loss is divided by ``loss_scale``."""
    if ClosedForm.covers(model, config):
        return ClosedForm(model, config, loss_scale)
    return Automatic(model, config, loss_scale)


class Automatic:
    """By differentiating what the model computes, whatever the model."""

    def __init__(self, model: VAE, config: FitConfig, loss_scale: float = 1.0) -> None:
        self.model, self.config, self.loss_scale = model, config, loss_scale
        self.trims = config.trims(model.members)

    def __call__(self, batch: Batch, beta: float) -> Tensor:
        """See `Gradient`."""
        with self._autocast(batch.target.device):
            found = self.model.infer_from(batch.features, batch.noise.unsqueeze(-2))
        found = Inference(*(part.to(batch.target.dtype) for part in found))
        every = self.model.terms(found, batch.target)
        rows = rows_kept(every.kl.shape[-2], self.trims)
        terms = self._trusted(every, beta, rows)
        loss = beta * self._kl(terms.kl, rows) - terms.log_prob.sum()
        loss = loss / (sum(rows) * self.loss_scale)
        if batch.tampered and self.model.contamination:
            loss = loss + self._sleep(self.model.contamination, batch.tampered)
        self.model.zero_grad(set_to_none=False)
        loss.backward()
        return torch.stack([every.log_prob.detach().sum(), every.kl.detach().sum()])

    def _trusted(self, terms: Terms, beta: float, rows: Sequence[int]) -> Terms:
        """Nothing of the rows that are trimmed."""
        if not any(self.trims):
            return terms
        stays = keep_best_rows(terms.objective(beta).detach(), rows).unsqueeze(-1)
        return Terms(*(part * stays for part in terms))

    def _sleep(self, contamination: Module, tampered: Tampered) -> Tensor:
        """−log q(m|x) per pixel, of a model that learns where something was inserted."""
        with self._autocast(tampered.seen.device):
            log_odds = contamination(tampered.seen)
        return F.binary_cross_entropy_with_logits(log_odds.float(), tampered.where)

    def _kl(self, kl: Tensor, rows: Sequence[int]) -> Tensor:
        """That of so many rows; with free bits, no dimension's mean over them is less than that."""
        if not self.config.free_bits:
            return kl.sum()
        least = kl.new_tensor(rows).unsqueeze(-1) * self.config.free_bits
        return torch.maximum(kl.sum(-2), least).sum()

    def _autocast(self, device: torch.device) -> AbstractContextManager[object]:
        """Networks in half the precision, where that is wanted; likelihoods never."""
        if self.config.precision == "bfloat16":
            return torch.autocast(device.type, torch.bfloat16)
        return nullcontext()


class ClosedForm:
    """Of dense networks with one posterior variance for all rows, and columns not of Student's t.

    With z = μ + σε the loss is Σ (β KL − log p(x|z)), over the number of rows (of all members) and
    the scale. Its derivatives go back from the likelihood through the decoder to z, and from there
    to μ, the encoder's outputs, and log σ², where they meet those of the KL term.
    """

    def __init__(self, model: VAE, config: FitConfig, loss_scale: float = 1.0) -> None:
        self.encoder: Any = model.encoder
        self.decoder: Any = model.decoder
        self.likelihood: Any = model.likelihood
        self.prior, self.loss_scale = model.prior, loss_scale
        self.trims = config.trims(model.members)

    @staticmethod
    def covers(model: VAE, config: FitConfig) -> bool:
        """Whether this is the gradient of such a fit."""
        plain = config.precision == "float32" and not config.free_bits
        known = isinstance(model.likelihood, TabularLikelihood) and model.likelihood.raw_df is None
        return plain and known and type(model) is VAE and model.encoder.log_var is not None

    @torch.inference_mode()
    def __call__(self, batch: Batch, beta: float) -> Tensor:
        """See `Gradient`."""
        encoder, decoder = self.encoder.network, self.decoder.network
        found = encoder.activations(batch.features)
        mean, log_var = found.outputs, self.encoder.shared_log_var()
        offset = torch.exp(0.5 * log_var) * batch.noise
        made = decoder.activations(mean + offset)
        joint = self.likelihood(made.outputs)
        log_prob, grad = joint.log_prob_and_grad(batch.target)
        kl, kl_by_mean, kl_by_log_var = self.prior.kl_and_grad(mean, log_var)

        weight = self._weight(Terms(log_prob, kl), beta)
        by_outputs = self.likelihood.backward(made.outputs, grad).mul_(-weight)
        by_z = decoder.backward_inputs(by_outputs, decoder.backward(made, by_outputs))
        encoder.backward(found, torch.addcmul(by_z, weight, kl_by_mean, value=beta))
        by_log_var = torch.addcmul(0.5 * offset * by_z, weight, kl_by_log_var, value=beta)
        self.encoder.backward_log_var(log_var, by_log_var)
        return torch.stack([log_prob.sum(), kl.sum()])

    def _weight(self, terms: Terms, beta: float) -> Tensor:
        """(..., N, 1), or (1,) for all: how much a row counts, nothing if it is trimmed."""
        rows = rows_kept(terms.kl.shape[-2], self.trims)
        each = 1 / (sum(rows) * self.loss_scale)
        if not any(self.trims):
            return terms.kl.new_full((1,), each)
        return (each * keep_best_rows(terms.objective(beta), rows)).unsqueeze(-1)


def rows_kept(rows: int, trims: Sequence[float]) -> list[int]:
    """How many of so many rows teach each member, at least one."""
    return [max(1, rows - round(trim * rows)) for trim in trims]


def keep_best_rows(bound: Tensor, rows: Sequence[int]) -> Tensor:
    """1 for so many rows of each member, those of the highest ``bound`` (E, N) or (N,); else 0.

    Iterative trimmed loss minimisation (Shen & Sanghavi 2019, algorithm 1) keeps these; of
    batches one at a time and from the first, as what has been learned is hard to forget.
    """
    stays, total = torch.ones_like(bound), bound.shape[-1]
    bounds, each = bound.view(-1, total), stays.view(-1, total)
    for member, count in enumerate(rows):
        if count < total:
            worst = bounds[member].topk(total - count, largest=False, sorted=False).indices
            each[member].index_fill_(0, worst, 0.0)
    return stays

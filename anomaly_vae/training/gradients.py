"""Compute the gradient of a batch's loss, by automatic differentiation or in closed form.

`Autograd` differentiates any model; `ClosedForm` covers the default tabular model. Table batches
are small, so the time of a step is mostly the overhead of tensor operations, and automatic
differentiation about doubles their number. docs/architecture.md states the measured difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn import functional as F

from anomaly_vae.config.training import FitConfig
from anomaly_vae.models.likelihoods import TabularLikelihood
from anomaly_vae.models.vae import VAE, Inference, Terms
from anomaly_vae.training.augmentation import SyntheticAnomalies


class Batch(NamedTuple):
    """The input of one training step.

    If each of E members has separate rows, every field has a leading axis E.
    """

    features: Tensor
    """(N, inputs): input of the encoder; (N, F) for images."""
    target: Tensor
    """(N, F): encoded rows whose log-likelihood is maximised."""
    noise: Tensor
    """(N, L): standard normal noise of one posterior draw per row."""
    synthetic: SyntheticAnomalies | None = None
    """Images with inserted anomalies, for models with a localization head."""

    def split(self, sizes: list[int]) -> Iterator[Batch]:
        """Yield batches of the given numbers of rows.

        Image batches are drawn one at a time (see `Views.max_values`), so ``synthetic`` is never
        split.
        """
        if len(sizes) == 1:
            return iter([self])
        parts = (part.split(sizes, -2) for part in (self.features, self.target, self.noise))
        return map(Batch, *parts)


Gradient = Callable[[Batch, float], Tensor]
"""Function (batch, beta) that overwrites the ``grad`` of every weight with the derivative of the
batch's loss, where beta weights the KL term, and returns the sums of log_prob and kl over the batch
as (2,), nats."""


def gradient_of(model: VAE, config: FitConfig, loss_scale: float = 1.0) -> Gradient:
    """Return the closed-form gradient if it covers the model, else automatic differentiation.

    Args:
        model: the model to fit; its weights must already have a ``grad``.
        config: determines precision, free bits and trimming.
        loss_scale: divisor of each row's loss.
    """
    if ClosedForm.covers(model, config):
        return ClosedForm(model, config, loss_scale)
    return Autograd(model, config, loss_scale)


class Autograd:
    """The gradient of any model, by automatic differentiation."""

    def __init__(self, model: VAE, config: FitConfig, loss_scale: float = 1.0) -> None:
        self.model, self.config, self.loss_scale = model, config, loss_scale
        self.trims = config.trims(model.members)

    def __call__(self, batch: Batch, beta: float) -> Tensor:
        """Compute the gradient; see `Gradient`."""
        loss, totals = self.loss(batch, beta)
        self.model.zero_grad(set_to_none=False)
        loss.backward()
        return totals

    def loss(self, batch: Batch, beta: float) -> tuple[Tensor, Tensor]:
        """Return the loss () and the detached sums of log_prob and kl over the batch (2,)."""
        with self._autocast(batch.target.device):
            inference = self.model.infer_from(batch.features, batch.noise.unsqueeze(-2))
        inference = Inference(*(part.to(batch.target.dtype) for part in inference))
        terms = self.model.terms(inference, batch.target)
        rows = rows_kept(terms.kl.shape[-2], self.trims)
        kept = self._trimmed(terms, beta, rows)
        loss = beta * self._kl(kept.kl, rows) - kept.log_prob.sum()
        loss = loss / (sum(rows) * self.loss_scale)
        if batch.synthetic and self.model.contamination:
            loss = loss + self._localization_loss(self.model.contamination, batch.synthetic)
        return loss, torch.stack([terms.log_prob.detach().sum(), terms.kl.detach().sum()])

    def _trimmed(self, terms: Terms, beta: float, rows: Sequence[int]) -> Terms:
        """Set the terms of trimmed rows to zero."""
        if not any(self.trims):
            return terms
        kept = keep_best_rows(terms.objective(beta).detach(), rows).unsqueeze(-1)
        return Terms(*(part * kept for part in terms))

    def _localization_loss(self, head: Module, synthetic: SyntheticAnomalies) -> Tensor:
        """Return −log q(m|x) per pixel, where m marks the inserted anomalies."""
        with self._autocast(synthetic.images.device):
            log_odds = head(synthetic.images)
        return F.binary_cross_entropy_with_logits(log_odds.float(), synthetic.mask)

    def _kl(self, kl: Tensor, rows: Sequence[int]) -> Tensor:
        """Sum the KL term; with free bits, each latent dimension counts at least its allowance."""
        if not self.config.free_bits:
            return kl.sum()
        allowance = kl.new_tensor(rows).unsqueeze(-1) * self.config.free_bits
        return torch.maximum(kl.sum(-2), allowance).sum()

    def _autocast(self, device: torch.device) -> AbstractContextManager[object]:
        """Run networks in bfloat16 if configured; likelihoods always run in float32."""
        if self.config.precision == "bfloat16":
            return torch.autocast(device.type, torch.bfloat16)
        return nullcontext()


class ClosedForm:
    """The gradient of the default tabular model, derived by hand.

    It covers dense networks whose posterior variance is the same for all rows, and tables without
    Student's t likelihoods. With z = μ + σε the loss is Σ (β KL − log p(x|z)), divided by the
    number of kept rows (of all members) and by ``loss_scale``. Its derivatives are propagated back
    from the likelihood through the decoder to z, and from z to μ (the encoder's output) and to log
    σ², where the derivatives of the KL term are added.
    """

    def __init__(self, model: VAE, config: FitConfig, loss_scale: float = 1.0) -> None:
        self.encoder: Any = model.encoder
        self.decoder: Any = model.decoder
        self.likelihood: Any = model.likelihood
        self.prior, self.loss_scale = model.prior, loss_scale
        self.trims = config.trims(model.members)

    @staticmethod
    def covers(model: VAE, config: FitConfig) -> bool:
        """Return whether the closed form applies to a model and a configuration."""
        plain = config.precision == "float32" and not config.free_bits
        known = isinstance(model.likelihood, TabularLikelihood) and model.likelihood.raw_df is None
        return plain and known and type(model) is VAE and model.encoder.log_var is not None

    @torch.inference_mode()
    def __call__(self, batch: Batch, beta: float) -> Tensor:
        """Compute the gradient; see `Gradient`."""
        encoder, decoder = self.encoder.network, self.decoder.network
        encoded = encoder.activations(batch.features)
        mean, log_var = encoded.outputs, self.encoder.shared_log_var()
        offset = torch.exp(0.5 * log_var) * batch.noise
        decoded = decoder.activations(mean + offset)
        joint = self.likelihood(decoded.outputs)
        log_prob, grad = joint.log_prob_and_grad(batch.target)
        kl, kl_by_mean, kl_by_log_var = self.prior.kl_and_grad(mean, log_var)

        weight = self._weight(Terms(log_prob, kl), beta)
        by_outputs = self.likelihood.backward(decoded.outputs, grad).mul_(-weight)
        by_z = decoder.backward_inputs(by_outputs, decoder.backward(decoded, by_outputs))
        encoder.backward(encoded, torch.addcmul(by_z, weight, kl_by_mean, value=beta))
        by_log_var = torch.addcmul(0.5 * offset * by_z, weight, kl_by_log_var, value=beta)
        self.encoder.backward_log_var(log_var, by_log_var)
        return torch.stack([log_prob.sum(), kl.sum()])

    def _weight(self, terms: Terms, beta: float) -> Tensor:
        """Return the weight of each row in the loss, (..., N, 1); (1,) if no row is trimmed."""
        rows = rows_kept(terms.kl.shape[-2], self.trims)
        each = 1 / (sum(rows) * self.loss_scale)
        if not any(self.trims):
            return terms.kl.new_full((1,), each)
        return (each * keep_best_rows(terms.objective(beta), rows)).unsqueeze(-1)


def rows_kept(rows: int, trims: Sequence[float]) -> list[int]:
    """Return the number of rows that train each member, at least one.

    Args:
        rows: number of rows in the batch.
        trims: fraction of the rows that is trimmed for each member.
    """
    return [max(1, rows - round(trim * rows)) for trim in trims]


def keep_best_rows(bound: Tensor, rows: Sequence[int]) -> Tensor:
    """Return a mask of each member's rows with the highest bounds: 1 for those kept, else 0.

    Iterative trimmed loss minimisation (Shen & Sanghavi 2019, algorithm 1) keeps these rows. Here
    it is applied to each batch, from the first one on, because a network hardly forgets what it
    has learned.

    Args:
        bound: (E, N) or (N,), the bound on log p(x) of each row, nats.
        rows: number of rows to keep for each member.
    """
    kept, total = torch.ones_like(bound), bound.shape[-1]
    bounds, masks = bound.view(-1, total), kept.view(-1, total)
    for member, count in enumerate(rows):
        if count < total:
            worst = bounds[member].topk(total - count, largest=False, sorted=False).indices
            masks[member].index_fill_(0, worst, 0.0)
    return kept

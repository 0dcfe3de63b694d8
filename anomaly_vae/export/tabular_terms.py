"""Build the nodes of a tabular model's likelihoods and expected values, for `onnx_tabular`."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from anomaly_vae.export.tabular_networks import NetworkNodes
from anomaly_vae.models.likelihoods import LOG_2PI, UNIFORM_SHARE, StudentT

ABSENT = -1e9
"""Logit of the levels beyond those of a column."""


class TermNodes(NetworkNodes):
    """The nodes of each column's −log p(x|z) and expected value, from the decoder's outputs."""

    def unscaled(self, parameters: list[str]) -> str:
        """Compute −log p(x|z) per column over `term_factors`; see `likelihoods.Joint.log_prob`."""
        g = self.g
        mean, raw, binary, levels = parameters
        numbers, flags, codes = self.kinds(self.filled)
        pieces = []
        if mean:
            pieces.append(self.numeric(self.align_rows(numbers), mean, raw))
        if binary:
            flagged = g("Mul", self.align_rows(flags), binary)
            pieces.append(g("Sub", g("Softplus", binary), flagged))
        if levels:
            pieces.append(self.categorical(self.align_rows(codes, -1), levels))
        return g("Where", self.align_rows(self.missing), 0.0, self.joined(pieces))

    @cached_property
    def term_factors(self) -> str:
        """Factors (F,) of the columns' terms, with which a sum multiplies them anyway."""
        g, layout = self.g, self.layout
        counts = layout.n_numeric, layout.n_binary, layout.n_categorical
        numeric = 1.0 if self.likelihood.raw_df is not None else 0.5
        pairs = zip((numeric, 1.0, -1.0), counts, strict=True)
        pieces = [g("Expand", g.constant(np.float32(f)), g.axes(n)) for f, n in pairs if n]
        return self.joined(pieces)

    def categorical(self, codes: str, levels: str) -> str:
        """Compute the logarithm of `likelihoods.Categorical` for codes (..., C, 1)."""
        g, most = self.g, self.layout.max_levels
        chosen = g.cast(g("Equal", codes, g.constant(np.arange(most, dtype=np.float32))))
        likely = g.stable_sum(g("Mul", self.softmax(levels), chosen), most, np.float32)
        mixed = g("Add", g("Mul", likely, 1 - UNIFORM_SHARE), g.constant(self.uniform[:, :1]))
        log = g("Log", self.share(chosen, mixed))
        return g("Squeeze", log, g.axes(-1))

    def numeric(self, x: str, mean: str, raw: str) -> str:
        """Compute `likelihoods.Gaussian` or `StudentT`; ONNX has no lgamma, hence a constant."""
        g = self.g
        variance = g("Add", g("Exp", raw), self.likelihood.variance_floor)
        factor, limit = (
            self.align_per_column(self.weight(f"likelihood.variance_{name}"))
            for name in ("factor", "limit")
        )
        variance = g("Min", g("Mul", variance, factor), limit)
        log_var = g("Log", variance)
        residual = g("Sub", x, mean)
        squared = g("Div", g("Mul", residual, residual), variance)
        if self.likelihood.raw_df is None:
            return g("Add", g("Add", squared, log_var), LOG_2PI)
        df = self.likelihood.df().detach()
        norm, slope, spread = (
            self.align_per_column(g.constant(value.numpy()))
            for value in (StudentT.log_norm(df.double()).float(), (df + 1) / 2, df)
        )
        ratio = g("Div", squared, spread)
        tail = g("Mul", g("Log", g("Add", ratio, 1.0)), slope)
        return g("Sub", g("Add", tail, g("Mul", log_var, 0.5)), norm)

    @property
    def uniform(self) -> NDArray[np.float32]:
        """Shares (C, Kmax) of a uniform distribution in the probabilities of levels."""
        present = self.likelihood.present.numpy()
        shares = UNIFORM_SHARE * present / present.sum(-1, keepdims=True)
        return np.asarray(shares, np.float32)

    def softmax(self, levels: str) -> str:
        """Compute the softmax of logits (..., C, Kmax) over the levels that a column has."""
        g, present = self.g, self.likelihood.present.numpy()
        if not present.all():
            levels = g("Add", levels, g.constant(np.where(present, 0, ABSENT).astype(np.float32)))
        return g("Softmax", levels, axis=-1)

    def probs(self, levels: str) -> str:
        """Compute probabilities (..., C, Kmax); see `likelihoods.Categorical.probs`."""
        g = self.g
        softmax = g("Mul", self.softmax(levels), 1 - UNIFORM_SHARE)
        return g("Add", softmax, g.constant(self.uniform))

    def share(self, chosen: str, prob: str) -> str:
        """Multiply probabilities (..., C, 1) of levels by the shares of single values."""
        g, shares = self.g, self.likelihood.shares
        if shares is None:
            return prob
        own = g("Mul", chosen, g.constant(shares.numpy()))
        return g("Mul", prob, g.stable_sum(own, self.layout.max_levels, np.float32))

    def expected(self, parameters: list[str]) -> str:
        """Compute expected values; see `likelihoods.Joint.mean`."""
        g = self.g
        mean, _, binary, levels = parameters
        pieces = [mean] if mean else []
        if binary:
            pieces.append(g("Sigmoid", binary))
        if levels:
            pieces.append(g.cast(g("ArgMax", self.probs(levels), axis=-1, keepdims=0)))
        return self.joined(pieces)

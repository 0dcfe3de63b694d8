"""Build the nodes of a tabular model's encoder and decoder, for `onnx_tabular`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from anomaly_vae.config.scoring import ScoreConfig
from anomaly_vae.data.encoding import Layout
from anomaly_vae.export.graph_builder import GraphBuilder
from anomaly_vae.models.builder import tabular_parts
from anomaly_vae.models.likelihoods import LINEAR_RANGE, LOGIT_BOUND
from anomaly_vae.models.networks import MLP, Encoder
from anomaly_vae.models.vae import VAE


class NetworkNodes:
    """The nodes of encoder and decoder, from the graph's input ``x`` to the decoder's outputs.

    With several members, E of them, everything that depends on weights has a member axis after that
    of the rows, and draws have another axis after it.

    Args:
        model: the model.
        score: type and draws of the score.
    """

    def __init__(self, model: VAE, score: ScoreConfig) -> None:
        self.model, self.score, self.members = model, score, model.members
        self.networks = tabular_parts(model)
        self.likelihood = self.networks.likelihood
        self.layout: Layout = self.likelihood.layout
        self.g = GraphBuilder()
        self.used: set[str] = set()
        """Names of the tensors of the weights file that the nodes read."""
        self.with_draws = False
        """Whether the nodes under construction have a draw axis; it is the last but one."""
        self.split_rows: dict[str, list[str]] = {}
        self.missing = self.g("IsNaN", "x")
        self.filled = self.g("Where", self.missing, 0.0, "x")
        self.means, self.log_var = self.posterior()

    def kinds(self, x: str) -> list[str]:
        """Split rows (..., F) into numeric, binary and categorical columns; "" for none.

        The same rows are split only once.
        """
        layout = self.layout
        widths = layout.n_numeric, layout.n_binary, layout.n_categorical
        if x not in self.split_rows:
            self.split_rows[x] = self.blocks(x, widths)
        return self.split_rows[x]

    def blocks(self, value: str, widths: Sequence[int]) -> list[str]:
        """Split the last axis into blocks of these widths; "" for empty ones."""
        filled = [int(width) for width in widths if width]
        parts = [value]
        if len(filled) > 1:
            parts = self.g.add_split("Split", len(filled), value, self.g.axes(*filled), axis=-1)
        return [parts.pop(0) if width else "" for width in widths]

    def features(self) -> str:
        """Compute the encoder's input; see `likelihoods.TabularFeatures`."""
        g, layout = self.g, self.layout
        numeric, binary, _ = self.kinds(self.filled)
        pieces = ([self.squash(numeric)] if numeric else []) + ([binary] if binary else [])
        if layout.max_levels > 1:
            pieces.append(self.one_hot())
        return g("Concat", *pieces, g.cast(self.missing), axis=-1)

    def one_hot(self) -> str:
        """Compute which level a row has but the first one, (N, C (Kmax − 1)); 0 where missing."""
        g, layout = self.g, self.layout
        columns = np.arange(layout.n_columns - layout.n_categorical, layout.n_columns)
        levels = np.arange(1, layout.max_levels, dtype=np.float32)
        codes = g("Gather", "x", g.constant(columns.repeat(len(levels))), axis=1)
        return g.cast(g("Equal", codes, g.constant(np.tile(levels, len(columns)))))

    def squash(self, x: str) -> str:
        """Limit large numbers; see `likelihoods.squash`. Zeros and ones are unchanged."""
        g = self.g
        excess = g("Relu", g("Sub", g("Abs", x), LINEAR_RANGE))
        bent = g("Sub", excess, g("Log", g("Add", excess, 1.0)))
        return g("Sub", x, g("Mul", g("Sign", x), bent))

    @property
    def n_features(self) -> int:
        """Number of the encoder's inputs."""
        return int(self.networks.encoder.network.skip.weight.shape[-1])

    def posterior(self) -> tuple[list[str], str]:
        """Compute each member's mean and all log-variances of q(z|x); see `networks.Encoder`."""
        g, latent = self.g, self.model.latent_dim
        means = self.mlp([self.features()], self.networks.encoder.network, "encoder.network")
        if self.networks.encoder.log_var is not None:
            log_var = self.weight("encoder.log_var")
            log_var = g("Squeeze", log_var, g.axes(1)) if self.members > 1 else log_var
        else:
            halves = [g.add_split("Split", 2, out, axis=-1, num_outputs=2) for out in means]
            means = [mean for mean, _ in halves]
            log_var = self.stacked([log_var for _, log_var in halves], latent)
        return means, g("Clip", log_var, *Encoder.LOG_VAR_BOUNDS)

    @cached_property
    def mean(self) -> str:
        """The members' posterior means (N, E, L)."""
        return self.stacked(self.means, self.model.latent_dim)

    def parameters(self, rows: Sequence[str]) -> list[str]:
        """Compute decoder outputs per block of `TabularLikelihood.widths`, "" for empty blocks.

        Logits are bounded, and those of levels have the axes (..., C, Kmax).

        Args:
            rows: latents (N, L) of each member, or draws (N K, L).
        """
        mean, raw, binary, levels = self.likelihood.widths
        network = self.networks.decoder.network
        out = self.stacked(
            self.mlp(rows, network, "decoder.network"), int(self.likelihood.n_outputs)
        )
        numbers = self.blocks(out, (mean, raw, binary + levels))
        logits = self.bounded(numbers[2]) if numbers[2] else ""
        flags, logits = self.blocks(logits, (binary, levels))
        present = self.likelihood.present
        if logits:
            axes = 1 + (self.members > 1) + self.with_draws
            logits = self.g("Reshape", logits, self.g.axes(*[0] * axes, *present.shape))
        return [*numbers[:2], flags, logits]

    def bounded(self, logits: str) -> str:
        """Limit logits; see `likelihoods.bounded`."""
        g = self.g
        return g("Mul", g("Tanh", g("Div", logits, LOGIT_BOUND)), LOGIT_BOUND)

    # ------------------------------------------------------------ layers

    def mlp(self, inputs: Sequence[str], network: MLP, prefix: str) -> list[str]:
        """Compute a dense network of each member; see `networks.MLP`. Members may share inputs."""
        firsts = self.first_layers(inputs, network, prefix)
        if network.out is None:
            return [skip for skip, _ in firsts]
        return [
            self.further_layers(member, *first, network, prefix)
            for member, first in enumerate(firsts)
        ]

    def further_layers(self, member: int, y: str, h: str, network: MLP, prefix: str) -> str:
        """Compute the output of a member's network from its linear path and its first layer."""
        for layer in range(1, len(network.hidden)):
            h = self.silu(self.affine(h, *self.layer(f"{prefix}.hidden.{layer}", member)))
        return self.affine(h, self.of_member(f"{prefix}.out.weight", member), y)

    def layer(self, name: str, member: int) -> tuple[str, str]:
        """Refer to weights and biases of a member's layer."""
        return self.of_member(f"{name}.weight", member), self.of_member(f"{name}.bias", member)

    def first_layers(
        self, inputs: Sequence[str], network: MLP, prefix: str
    ) -> list[tuple[str, str]]:
        """Compute each member's linear path and first layer, "" if there is none.

        All of these are one product if the members share the inputs.
        """
        names = [f"{prefix}.skip"] + [f"{prefix}.hidden.0"] * (network.out is not None)
        if len(inputs) < self.members:
            layers = [network.skip, *network.hidden][: len(names)]
            widths = [int(layer.weight.shape[-2]) for layer in layers]
            return self.shared_layers(inputs[0], names, widths)
        return [self.own_layers(member, x, names) for member, x in enumerate(inputs)]

    def own_layers(self, member: int, x: str, names: Sequence[str]) -> tuple[str, str]:
        """Compute the first layers of one member."""
        y, *h = (self.affine(x, *self.layer(name, member)) for name in names)
        return y, self.silu(h[0]) if h else ""

    def shared_layers(
        self, x: str, names: Sequence[str], widths: Sequence[int]
    ) -> list[tuple[str, str]]:
        """Compute the first layers of all members."""
        g, members = self.g, self.members
        weights = [self.of_all(f"{name}.weight", -1, self.n_features) for name in names]
        shifts = [self.of_all(f"{name}.bias", -1) for name in names]
        out = self.affine(x, self.joined(weights, axis=0), self.joined(shifts, axis=0))
        sizes = [widths[0]] * members + [members * width for width in widths[1:]]
        *skips, hidden = g.add_split("Split", len(sizes), out, g.axes(*sizes), axis=-1)
        if len(widths) == 1:
            return [(skip, "") for skip in [*skips, hidden]]
        parts = g.add_split("Split", members, self.silu(hidden), axis=-1, num_outputs=members)
        return list(zip(skips, parts, strict=True))

    def affine(self, x: str, weights: str, shift: str) -> str:
        """Compute x Wᵀ + b of rows; b is (out,) or (N, out).

        Each member has a product of its own: ONNX Runtime prepares the weights of a product of
        matrices on loading, and those of a product with a member axis at every run.
        """
        return self.g("Gemm", x, weights, shift, transB=1)

    def silu(self, h: str) -> str:
        """Compute h σ(h)."""
        return self.g("Mul", h, self.g("Sigmoid", h))

    # ------------------------------------------------------------ weights and members

    def weight(self, name: str) -> str:
        """Refer to a tensor of ``weights.safetensors``."""
        self.used.add(name)
        return name

    def part(self, whole: str, member: int) -> str:
        """Take a member's part of a tensor of weights."""
        g = self.g
        return g("Gather", whole, g.constant(np.int64(member))) if self.members > 1 else whole

    def of_member(self, name: str, member: int) -> str:
        """Refer to a member's part of a stored tensor."""
        return self.part(self.weight(name), member)

    def of_all(self, name: str, *shape: int) -> str:
        """Refer to a stored tensor of all members, with another shape."""
        return self.g("Reshape", self.weight(name), self.g.axes(*shape))

    def joined(self, pieces: Sequence[str], axis: int = -1) -> str:
        """Join values along an axis."""
        return pieces[0] if len(pieces) == 1 else self.g("Concat", *pieces, axis=axis)

    def side_by_side(self, value: str) -> str:
        """Join the members' values (N, E, w) as (N, E w)."""
        return self.g("Flatten", value, axis=1) if self.members > 1 else value

    def stacked(self, values: Sequence[str], width: int) -> str:
        """Join the members' values (N, w), or (N K, w) of draws, as (N, E, w) or (N, E, K, w)."""
        g, draws = self.g, [self.score.draws] if self.with_draws else []
        if self.members == 1:
            return g("Reshape", values[0], g.axes(-1, *draws, width)) if draws else values[0]
        if not draws:
            shape = g.axes(-1, self.members, width)
            return g("Reshape", g("Concat", *values, axis=-1), shape)
        shape = g.axes(-1, 1, *draws, width)
        return g("Concat", *(g("Reshape", value, shape) for value in values), axis=1)

    def drawn_rows(self, z: str) -> list[str]:
        """Return each member's draws of (N, E, K, L) as rows (N K, L)."""
        g, parts = self.g, [z]
        if self.members > 1:
            parts = g.add_split("Split", self.members, z, axis=1, num_outputs=self.members)
        return [g("Reshape", part, g.axes(-1, self.model.latent_dim)) for part in parts]

    def first_member(self, value: str) -> str:
        """Return the values (N, w) of the first member among (N, E, w)."""
        g = self.g
        return g("Gather", value, g.constant(np.int64(0)), axis=1) if self.members > 1 else value

    def align_per_column(self, value: str) -> str:
        """Shape members' values (E, 1, 1, n) as (E, n), or (E, 1, n) for draws."""
        g, axes = self.g, [1] if self.with_draws else [1, 2]
        return g("Squeeze", value, g.axes(*axes)) if self.members > 1 else value

    def align_rows(self, value: str, *further: int) -> str:
        """Insert the axes of members and draws, and further ones, into rows (N, w)."""
        axes = [*range(1, 1 + (self.members > 1) + self.with_draws), *further]
        return self.g("Unsqueeze", value, self.g.axes(*axes)) if axes else value

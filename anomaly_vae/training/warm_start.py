"""Start a fit from the weights of an earlier model, if they have the same meaning."""

from __future__ import annotations

from safetensors.torch import load as load_tensors

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.config import Config
from anomaly_vae.models.vae import VAE
from anomaly_vae.scoring.modality import Encoding
from anomaly_vae.training.kinds import KINDS, UNRECORDED

AFTER_FIT = {"prior", "components", "exemplars", "known"}
"""Keys of the ``model`` section that do not affect the networks."""
FINALIZED = {"likelihood.variance_factor", "likelihood.variance_limit"}
"""Tensors that are set after the networks are fitted, and so are not taken over."""


def incompatibility(bundle: Bundle, config: Config, encoding: Encoding) -> str | None:
    """Explain why a fit cannot start from a bundle's weights; None if it can.

    Args:
        bundle: the earlier model.
        config: the resolved configuration of the fit.
        encoding: the encoding of the rows to fit.
    """
    used = bundle.manifest
    if used["kind"] != config.kind:
        return f"it is a model of kind {used['kind']}"
    before = UNRECORDED | used["config"]["model"]
    for key, value in config.model.model_dump(mode="json", exclude=AFTER_FIT).items():
        if before.get(key) != value:
            return f"its model.{key} is {before.get(key)}, this one's {value}"
    return KINDS[config.kind].difference(used["encoding"], encoding)


def start_from(model: VAE, bundle: Bundle) -> None:
    """Copy the weights of a bundle into a new model for which `incompatibility` is None."""
    tensors = load_tensors(bundle.weights)
    for name, value in model.state_dict().items():
        if name not in FINALIZED:
            value.copy_(tensors[name].view_as(value))

"""Make bundles of untrained models, for tests that hold for any weights."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from safetensors.torch import save as save_tensors

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.config import ImageConfig, validate_config
from anomaly_vae.images.encoding import ImageEncoding, ImageLayout
from anomaly_vae.images.schema import ImageSchema
from anomaly_vae.models.builder import build

TINY = {"network": "convolutional", "latent_dim": 3, "width": 4, "hidden_dim": 16}


def untrained(channels: int = 1, size: int = 16, **model: Any) -> Bundle:
    """Return a bundle of an image model without a graph: it can generate, but not score."""
    content = {"kind": "image", "name": "untrained", "data": {"path": "x", "size": size}}
    content["data"] |= {"channels": channels}  # type: ignore[operator]
    config = validate_config({**content, "model": {**TINY, **model}})
    assert isinstance(config, ImageConfig)
    encoding = ImageEncoding(ImageLayout(channels, size), "standardise")
    config = config.resolve(encoding.layout.n_columns, 1)
    built = build(config.model, encoding.layout)
    manifest = {"kind": "image", "name": "untrained", "config": config.recorded()}
    bundle = Bundle(manifest, b"", save_tensors(built.state_dict()))
    scorer = SimpleNamespace(encoding=encoding, schema=ImageSchema(size, channels))
    vars(bundle)["scorer"] = scorer  # stored as the cached property would store it
    return bundle

"""Make estimators that fit within a moment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from anomaly_vae.config import validate_config
from anomaly_vae.config.base import Section
from anomaly_vae.config.loading import fields
from anomaly_vae.estimators.arguments import value_at
from anomaly_vae.estimators.base import VAEDetector
from anomaly_vae.estimators.image import ImageVAEDetector
from anomaly_vae.estimators.tabular import TabularVAEDetector

TINY: dict[str, Any] = {"epochs": 2, "latent_dim": 2, "hidden_dim": 8, "depth": 1, "draws": 1}
TINY_IMAGES: dict[str, Any] = {
    "network": "convolutional", "size": 16, "width": 4, "hidden_dim": 8, "latent_dim": 2,
    "epochs": 2, "alpha": 0.1,
}  # fmt: skip


def tiny(**arguments: Any) -> TabularVAEDetector:
    """Return an estimator with a tiny network and alpha 0.2."""
    return TabularVAEDetector(**{**TINY, "alpha": 0.2, **arguments})


def tiny_images(**arguments: Any) -> ImageVAEDetector:
    """Return an estimator of images with a tiny network and alpha 0.1.

    Tests that change neither the network nor the size share its graph, which takes seconds.
    """
    return ImageVAEDetector(**{**TINY_IMAGES, **arguments})


def check_every_key_is_an_argument(
    config: type[Section], arguments: Mapping[str, Sequence[str]], excused: Mapping[str, str]
) -> None:
    """Check that each configuration key is set by an argument or excused, and none is both."""
    named = {key for keys in arguments.values() for key in keys}
    keys = {key for key, _ in fields(config)}
    leaves = {key for key in keys if not any(other.startswith(key + ".") for other in keys)}
    spared = {key for key in leaves if {key, key.partition(".")[0]} & excused.keys()}
    assert leaves - spared == named
    assert spared.isdisjoint(named)
    assert {key for key in excused if "." in key} <= keys


def check_defaults_are_those_of_files(
    kind: str, detector: VAEDetector[Any, Any], arguments: Mapping[str, Sequence[str]]
) -> None:
    """Check that each default of a constructor that is not None is the configuration's own."""
    content = {"kind": kind, "name": "x", "data": {"path": "x"}}
    default = validate_config(content).model_dump()
    for argument, value in detector.get_params().items():
        for key in arguments[argument] if value is not None else ():
            assert value_at(default, key) == value, argument

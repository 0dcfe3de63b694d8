"""Draw the content of the shapes that are inserted into images."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from anomaly_vae.images.encoding import STANDARDISED_STD
from anomaly_vae.training.insertion.draws import Draw, box_blur, mixed

AMPLITUDE = (0.35, 1.6)
"""Minimum and maximum shift, in standard deviations of the image intensities."""
SHIFTED, FOREIGN, TEXTURE = 0.5, 0.25, 0.25
"""Fraction of fillings with shifted tissue, with foreign tissue, and with texture."""


def filling(draw: Draw) -> Tensor:
    """Draw what the shapes are filled with, (N, C, H, H)."""
    return mixed(draw, [(SHIFTED, _shifted), (FOREIGN, _foreign), (TEXTURE, _texture)])


def _shifted(draw: Draw) -> Tensor:
    """Return the image itself, brighter or darker, optionally blurred, with some unevenness."""
    blur = draw.uniform() * (draw.uniform() < 0.5)
    uneven = draw.field(draw.side // 4) * draw.uniform(0, 0.5)
    uneven = uneven + draw.field(draw.side // 8) * draw.uniform(0, 0.5)
    shift = draw.uniform(*AMPLITUDE) * draw.sign()
    blurred = torch.lerp(draw.images, _blurred(draw.images), blur)
    return blurred + STANDARDISED_STD * (shift + uneven)


def _foreign(draw: Draw) -> Tensor:
    """Return tissue of another image of the batch, or of another place of the same image."""
    others = draw.pool[draw.others()]
    others = torch.where(draw.uniform() < 0.5, others.flip(-1), others)
    span = draw.side // 3
    near, far = ((draw.integer(-r, r), draw.integer(-r, r)) for r in (span // 2, span))
    moved = torch.roll(others, near, (-2, -1)), torch.roll(draw.images, far, (-2, -1))
    return torch.where(draw.uniform() < 0.5, *moved)


def _texture(draw: Draw) -> Tensor:
    """Return blurred tissue with fine or coarse noise."""
    noise = draw.noise(draw.side)
    fine = 3 * box_blur(noise, 3) * draw.uniform(0.2, 1.2) * (draw.uniform() < 0.5)
    return _blurred(draw.images) + STANDARDISED_STD * (
        fine + draw.field(draw.side // 3) * draw.uniform(0.5, 2)
    )


def _blurred(images: Tensor) -> Tensor:
    """Return images at a quarter of their resolution."""
    small = F.interpolate(images, scale_factor=0.25, mode="bilinear", antialias=True)
    return F.interpolate(small, images.shape[-2:], mode="bilinear", align_corners=False)

"""Turn images into rows of patch features of a network that was trained on photographs.

The network is EfficientNet-Lite0 (Tan & Le 2019, arXiv 1905.11946, without squeeze-and-excitation
and with ReLU6) up to the stride of 16 pixels. Its weights are never changed. The features of a
position are averaged with those of its eight neighbours, as in PatchCore (Roth et al. 2022, arXiv
2106.08265), standardised, and rotated to their principal components on normal images. Each position
is then one row of numbers, which the VAE of a table models. None of the components is left out:
defects deviate most in those of little variance. `PictureLevel` models a picture as a whole.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anomaly_vae.images.encoding import ImageLayout
from anomaly_vae.models.picture_level import PictureLevel

STRIDE = 16
"""Distance between neighbouring patches, in pixels."""
PIXEL_MEAN, PIXEL_STD = 0.498, 0.502
"""Mean and standard deviation that the network's training images were scaled with, on [0, 1]."""
TAPS = (7, 10)
"""Blocks whose outputs are features: the last ones of 80 and of 112 channels."""
MIN_SCALE = 1e-6
"""Smallest standard deviation by which a feature is divided."""


class BlockSize(NamedTuple):
    """The size of an inverted bottleneck (Sandler et al. 2018)."""

    expansion: int
    """Factor by which the channels grow inside the block."""
    channels: int
    """Number of channels of the output."""
    kernel: int
    """Side of the depthwise convolution, in positions."""
    stride: int
    """Factor by which the resolution falls."""


STEM_CHANNELS = 32
"""Number of channels of the first convolution."""
BLOCKS = tuple(
    BlockSize(*size)
    for size in (
        (1, 16, 3, 1),
        (6, 24, 3, 2),
        (6, 24, 3, 1),
        (6, 40, 5, 2),
        (6, 40, 5, 1),
        (6, 80, 3, 2),
        (6, 80, 3, 1),
        (6, 80, 3, 1),
        (6, 112, 5, 1),
        (6, 112, 5, 1),
        (6, 112, 5, 1),
    )
)
"""Sizes of the blocks up to the stride of 16."""
N_FEATURES = sum(BLOCKS[tap].channels for tap in TAPS)
"""Number D of features of a patch, and of columns of its row."""


class FrozenConv(nn.Module):
    """A convolution whose weights are no parameters, with the batch norm that followed it in them.

    It pads as TensorFlow's ``SAME`` does, which the weights were trained with: strides above 1 pad
    more to the right and below.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, groups: int) -> None:
        super().__init__()
        self.kernel, self.stride, self.groups = kernel, stride, groups
        self.register_buffer("weight", torch.zeros(outputs, inputs // groups, kernel, kernel))
        self.register_buffer("bias", torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Convert (N, inputs, H, W) into (N, outputs, ⌈H/stride⌉, ⌈W/stride⌉)."""
        width, height = (self._padding(side) for side in (x.shape[-1], x.shape[-2]))
        padded = F.pad(x, (*width, *height))
        return F.conv2d(padded, self.weight, self.bias, self.stride, groups=self.groups)

    def _padding(self, side: int) -> tuple[int, int]:
        """Return the number of zeros before and after a side."""
        total = max((-(-side // self.stride) - 1) * self.stride + self.kernel - side, 0)
        return total // 2, total - total // 2


class FrozenBlock(nn.Module):
    """An inverted bottleneck, with a shortcut where input and output have the same shape."""

    def __init__(self, inputs: int, size: BlockSize) -> None:
        super().__init__()
        inner = inputs * size.expansion
        self.expand = FrozenConv(inputs, inner, 1, 1, 1) if size.expansion > 1 else None
        self.depthwise = FrozenConv(inner, inner, size.kernel, size.stride, inner)
        self.project = FrozenConv(inner, size.channels, 1, 1, 1)
        self.shortcut = size.stride == 1 and inputs == size.channels

    def forward(self, x: Tensor) -> Tensor:
        """Convert (N, inputs, H, W) into (N, channels, ⌈H/stride⌉, ⌈W/stride⌉)."""
        inner = F.relu6(self.expand(x)) if self.expand else x
        out: Tensor = self.project(F.relu6(self.depthwise(inner)))
        return x + out if self.shortcut else out


class EfficientNetLite0(nn.Module):
    """The blocks of EfficientNet-Lite0 up to the stride of 16; all weights are 0 until loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = FrozenConv(3, STEM_CHANNELS, 3, 2, 1)
        widths = (STEM_CHANNELS, *(size.channels for size in BLOCKS))
        pairs = zip(widths, BLOCKS, strict=False)
        self.blocks = nn.ModuleList(FrozenBlock(inputs, size) for inputs, size in pairs)

    def forward(self, x: Tensor) -> Tensor:
        """Convert scaled colour images (N, 3, S, S) into features (N, D, ⌈S/16⌉, ⌈S/16⌉)."""
        x, taps = F.relu6(self.stem(x)), list[Tensor]()
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in TAPS:
                taps.append(x)
        return torch.cat(taps, 1)


class Patches(nn.Module):
    """The rows of patch features of images, D numbers for each of P positions.

    Args:
        layout: shape of the images; grey ones are given to the network three times.

    Example:
        >>> import torch
        >>> patches = Patches(ImageLayout(channels=1, size=64))
        >>> patches(torch.zeros(2, 64 * 64)).shape  # 4 × 4 positions
        torch.Size([2, 16, 192])
    """

    center: Tensor
    rotation: Tensor

    def __init__(self, layout: ImageLayout) -> None:
        super().__init__()
        self.layout = layout
        self.network = EfficientNetLite0()
        self.register_buffer("center", torch.zeros(N_FEATURES))
        self.register_buffer("rotation", torch.zeros(N_FEATURES, N_FEATURES))
        self.picture: PictureLevel | None = None
        """Model of whole pictures, added after the fit; None in models of earlier versions."""
        self.pictures: Tensor | None = None
        """(N, 2D): extremes of the training pictures, which it is fitted to; None after that."""

    @property
    def grid(self) -> int:
        """Number of patches along a side."""
        return -(-self.layout.size // STRIDE)

    def forward(self, x: Tensor) -> Tensor:
        """Convert encoded images (N, F) into rows (N, P, D)."""
        return self.rotated(self.features(self.maps(x)))

    def rotated(self, features: Tensor) -> Tensor:
        """Standardise and rotate features (..., D)."""
        return (features - self.center) @ self.rotation

    def maps(self, x: Tensor) -> Tensor:
        """Convert encoded images (N, F) into the network's features (N, D, √P, √P)."""
        images = x.view(-1, *self.layout.shape).expand(-1, 3, -1, -1)
        found: Tensor = self.network((images - PIXEL_MEAN) / PIXEL_STD)
        return found

    def features(self, maps: Tensor) -> Tensor:
        """Average the network's features (N, D, √P, √P) with their neighbours, to (N, P, D)."""
        local = F.avg_pool2d(maps, 3, 1, 1, count_include_pad=False)
        return local.movedim(1, -1).reshape(-1, self.grid**2, N_FEATURES)

    def fit_picture(self) -> None:
        """Fit the model of whole pictures, after all processes have fitted that of patches."""
        assert self.pictures is not None, "the rows were made of pictures"
        self.picture, self.pictures = PictureLevel.fit(self.pictures), None

    def fit_rotation(self, features: Tensor) -> None:
        """Set the rotation to the principal components of features (R, D), once standardised."""
        center, scale = features.mean(0), features.std(0).clamp_min(MIN_SCALE)
        correlation = torch.cov(((features - center) / scale).T.double())
        axes = torch.linalg.eigh(correlation).eigenvectors.flip(1)
        self.center.copy_(center)
        self.rotation.copy_(axes * _signs(axes) / scale[:, None])


def _signs(axes: Tensor) -> Tensor:
    """Return the sign of the largest entry of each axis (D, D), which eigenvectors leave open."""
    largest = axes.abs().argmax(0, keepdim=True)
    return axes.gather(0, largest).sign()

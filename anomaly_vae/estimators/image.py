"""Detect anomalies in images through scikit-learn's interface."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.random import RandomState
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted

from anomaly_vae.config import ImageConfig
from anomaly_vae.data.encoding import Matrix
from anomaly_vae.data.schema import RawBatch
from anomaly_vae.errors import DataError
from anomaly_vae.estimators.arguments import SHARED_KEYS
from anomaly_vae.estimators.base import (
    Data,
    FitInput,
    VAEDetector,
    figure_titles,
    load_plots,
    usable,
)
from anomaly_vae.generation import images
from anomaly_vae.images.pixels import MAX_PIXEL, DecodedImage, DecodeFailure
from anomaly_vae.images.schema import ImageSchema
from anomaly_vae.scoring.detector import Explanation
from anomaly_vae.scoring.localization import region_explanations
from anomaly_vae.scoring.modality import image_modality
from anomaly_vae.scoring.scorer import ScoreParts
from anomaly_vae.types import Fit, Spacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CONFIG_KEYS: dict[str, tuple[str, ...]] = {
    **SHARED_KEYS,
    "standardise": ("score.standardise",),
    "network": ("model.network",),
    "width": ("model.width",),
    "upsampling": ("model.upsampling",),
    "localization_head": ("model.localization_head",),
    "corruption": ("training.corruption.type",),
    "corruption_strength": ("training.corruption.strength",),
    "flip": ("training.augmentation.flip",),
    "rotation": ("training.augmentation.rotation",),
    "degrees": ("training.augmentation.degrees",),
    "size": ("data.size",),
    "fit_mode": ("data.fit",),
    "spacing": ("data.spacing",),
    "channels": ("data.channels",),
    "intensity": ("data.intensity",),
    "intensity_window": ("data.intensity_window",),
    "axis": ("data.axis",),
    "max_pixels": ("data.max_pixels",),
    "max_bytes": ("data.max_bytes",),
    "max_frames": ("data.max_frames",),
    "max_seconds": ("data.max_seconds",),
}
"""Configuration keys that each constructor argument sets."""


class ImageVAEDetector(VAEDetector[ImageConfig, ImageSchema]):
    """Outlier detector for images: a variational autoencoder with a conformal threshold.

    `fit` learns from normal images; leave known anomalies out of X. It holds out a fraction of the
    images, whose scores give the threshold, ``-offset_``. On images exchangeable with those held
    out, `predict` returns −1 with probability at most ``alpha`` (Vovk et al. 2005). This takes at
    least 1/alpha − 1 held-out images: 19 for 0.05. `calibrate` replaces the threshold by one from
    other images. Use it if images come in groups, such as several of each patient, with one image
    of each group that the model was not fitted on.

    X is an array (N, H, W) or (N, H, W, C), with C 1 or 3, of uint8, uint16 or floats on [0, 1]; a
    sequence of N arrays (H, W) or (H, W, C); or a sequence of paths of image files with one image
    each. Images that are not square are padded, see ``fit_mode``. An image whose pixels are all
    alike is refused.

    Most arguments set the configuration key of the same name (docs/configuration.md). An argument
    left at None takes the value of the preset, which is the default given here unless the preset
    changes it.

    Args:
        {arguments}

    Attributes:
        offset_: minus the threshold: ``decision_function(X) = score_samples(X) − offset_``.
        bundle_: the fitted `Bundle`.
        n_iter_: number of epochs trained.
        notes_: empty; tables have decisions about columns here.

    >>> import numpy as np
    >>> images = np.random.default_rng(0).normal(0.5, 0.1, (40, 16, 16)).clip(0, 1)
    >>> detector = ImageVAEDetector(
    ...     network="dense", size=16, hidden_dim=8, latent_dim=2, epochs=1, alpha=0.2
    ... ).fit(images)
    >>> detector.transform(images[:3]).shape
    (3, 2)
    >>> detector.sample(2).shape
    (2, 16, 16)
    """

    KIND: ClassVar[str] = "image"
    KEYS: ClassVar[Mapping[str, tuple[str, ...]]] = CONFIG_KEYS

    def __init__(
        self,
        *,
        preset: Literal["fast", "default", "best"] = "default",
        alpha: float = 0.05,
        score_type: Literal[
            "neg_elbo", "reconstruction", "importance_weighted", "structural", "contamination"
        ] = "neg_elbo",
        epochs: int | None = None,
        random_state: int | RandomState | None = 0,
        standardise: bool | None = None,
        network: Literal["convolutional", "residual", "dense", "hierarchical"] | None = None,
        latent_dim: int | None = None,
        width: int | None = None,
        likelihood: Literal["contrast", "structural", "gaussian", "laplace", "bernoulli"]
        | None = None,
        size: int | None = None,
        fit_mode: Fit | None = None,
        spacing: Spacing | None = None,
        channels: Literal[1, 3] | None = None,
        intensity: Literal["standardise", "unit"] | None = None,
        method: Literal["conformal", "certified", "evt", "quantile"] | None = None,
        draws: int | None = None,
        model: Literal["vae", "autoencoder"] | None = None,
        hidden_dim: int | None = None,
        upsampling: Literal["shuffle", "transposed"] | None = None,
        localization_head: bool | None = None,
        variance_floor: float | None = None,
        corruption: Literal["none", "coarse", "pixel", "mask", "downsample"] | None = None,
        corruption_strength: float | None = None,
        flip: float | None = None,
        rotation: float | None = None,
        degrees: float | None = None,
        batch_size: int | None = None,
        learning_rate: float | None = None,
        weight_decay: float | None = None,
        clip_norm: float | None = None,
        beta: float | None = None,
        kl_warmup: float | None = None,
        free_bits: float | None = None,
        trim: float | None = None,
        keep: Literal["best", "last"] | None = None,
        patience: int | None = None,
        threads: int | None = None,
        device: Literal["auto", "cpu", "cuda"] | None = None,
        intensity_window: Literal["auto", "percentile"] | tuple[float, float] | None = None,
        axis: Literal[0, 1, 2] | None = None,
        max_pixels: int | None = None,
        max_bytes: int | None = None,
        max_frames: int | None = None,
        max_seconds: float | None = None,
        calibration_fraction: float | None = None,
        validation_fraction: float | None = None,
        unusual_alpha: float | None = None,
        verbose: int = 0,
    ) -> None:
        self._store(locals())

    # ------------------------------------------------------------ latent space

    def inverse_transform(self, X: ArrayLike) -> Matrix:
        """Decode latents (N, L) into the most probable images, shaped as those of `sample`."""
        check_is_fitted(self, "bundle_")
        latents = np.asarray(X, np.float32)
        return _channels_last(images.decode(self.bundle_, latents))

    def sample(self, n_samples: int = 1, random_state: int | RandomState | None = None) -> Matrix:
        """Draw images from the model, on [0, 1]: (n, S, S), in colour (n, S, S, 3).

        Args:
            n_samples: number of images, n.
            random_state: seed; None takes the estimator's, so that two calls agree.
        """
        check_is_fitted(self, "bundle_")
        seed = self._seed(random_state)
        return _channels_last(images.sample(self.bundle_, n_samples, seed))

    # ------------------------------------------------------------ figures

    def plot_explanation(self, X: Data, most: int = 8) -> Axes:  # noqa: ARG002  # of tables
        """Draw each image, what the model expects, and the map that adds up to its score.

        Args:
            X: at most 12 images; the axes of the first are returned, and ``.figure`` is the figure.
            most: ignored; a map shows all pixels.
        """
        batch = self._batch(X)
        scorer = self.bundle_.scorer
        parts = scorer.explain(batch)
        titles = figure_titles(parts.score)
        axes: Axes = load_plots().reconstructions(scorer.encoding, parts, titles).axes[0]
        return axes

    @classmethod
    def _arguments(cls, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """Return the recorded arguments, with the geometry of models that record none."""
        schema = ImageSchema.from_json(manifest["schema"])
        geometry = {"fit_mode": schema.fit, "spacing": schema.spacing}
        return super()._arguments(manifest) | geometry

    # ------------------------------------------------------------ reading X

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        return tags

    def _fit_input(
        self,
        X: Data,
        y: object,  # noqa: ARG002  # images have no head that learns from labels
        config: ImageConfig,
    ) -> FitInput[ImageSchema]:
        schema = ImageSchema.from_config(config.data)
        return FitInput(schema, _read(schema, X), {})

    def _batch(self, X: Data) -> RawBatch:
        return _read(self._schema(), X)

    def _explanations(
        self, batch: RawBatch, explained: ScoreParts, most: int | None
    ) -> list[Explanation]:
        del batch
        bundle = self.bundle_
        _, encoding = image_modality(bundle.scorer.schema, bundle.scorer.encoding)
        return region_explanations(encoding, bundle.heat_scale, explained, most)


def _read(schema: ImageSchema, X: Data) -> RawBatch:
    """Read X as a model with this schema does.

    Raises:
        DataError: X holds neither arrays nor paths, is empty, or an image cannot be used.
    """
    batch = schema.from_images(_decoded(schema, image) for image in _one_by_one(X))
    if not len(batch):
        raise DataError("X holds no image; give at least one")
    return usable(batch, "; mend it or leave it out")


def _decoded(schema: ImageSchema, image: Any) -> DecodedImage | DecodeFailure:
    if isinstance(image, str | os.PathLike):
        return schema.read(Path(image))
    try:
        return decoded_image(np.asarray(image))
    except ValueError as error:  # a DataError, or numpy's of rows that differ in length
        return DecodeFailure(str(error), None)


def _one_by_one(X: Data) -> Iterable[Any]:
    """Return X if it has one entry per image.

    Raises:
        DataError: X is a single image or path, or something else.
    """
    if isinstance(X, str | bytes | os.PathLike) or not isinstance(X, Iterable):
        raise DataError("X must be images or their paths; put a single one into a list")
    if isinstance(X, np.ndarray) and X.dtype.kind not in "OU" and X.ndim not in {3, 4}:
        raise DataError(f"X must be of shape (N, H, W) or (N, H, W, C), got {X.shape}")
    return X


def decoded_image(image: NDArray[Any]) -> DecodedImage:
    """Convert an array to a decoded image of 16-bit pixels.

    Args:
        image: (H, W), (H, W, 1) or (H, W, 3), of uint8, uint16 or floats on [0, 1].

    Raises:
        DataError: the shape or type is another, or a value is outside [0, 1] or not finite.
    """
    if image.ndim not in {2, 3} or image.shape[2:] not in {(), (1,), (3,)} or 0 in image.shape:
        raise DataError(f"an image must be (H, W), (H, W, 1) or (H, W, 3), got {image.shape}")
    pixels = image[..., 0] if image.shape[2:] == (1,) else image
    if pixels.dtype == np.uint8:
        return DecodedImage(pixels.astype(np.uint16) * 257, 0)
    if pixels.dtype.newbyteorder("=") == np.uint16:
        return DecodedImage(pixels.astype(np.uint16), 0)
    if not np.issubdtype(pixels.dtype, np.floating):
        raise DataError(f"images must be uint8, uint16 or floats on [0, 1], got {pixels.dtype}")
    if not (pixels.min() >= 0 and pixels.max() <= 1):  # NaN is neither
        raise DataError("images of floats must lie on [0, 1] and be finite; scale them first")
    full = pixels.astype(np.float64) * MAX_PIXEL  # more than a float16 can hold
    return DecodedImage(np.rint(full).astype(np.uint16), 0)


def _channels_last(images: Matrix) -> Matrix:
    """Convert (N, C, S, S) to (N, S, S), in colour to (N, S, S, 3)."""
    return images[:, 0] if images.shape[1] == 1 else np.moveaxis(images, 1, -1)

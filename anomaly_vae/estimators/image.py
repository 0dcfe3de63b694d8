"""The detector of images as a scikit-learn estimator.

detector = ImageVAEDetector(size=64, alpha=0.05).fit(normal_scans)
detector.predict(new_scans)    # 1 normal, −1 anomalous
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.random import RandomState
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted

from anomaly_vae.config import Config, ImageConfig
from anomaly_vae.data.encoding import Matrix
from anomaly_vae.data.schema import RawBatch
from anomaly_vae.errors import DataError
from anomaly_vae.estimators.base import SHARED_KEYS, Data, Learned, VAEDetector, usable
from anomaly_vae.generation import images
from anomaly_vae.images.pixels import MAX_PIXEL, DecodedImage, DecodeFailure
from anomaly_vae.images.schema import ImageSchema

CONFIG_KEYS: dict[str, tuple[str, ...]] = {
    **SHARED_KEYS,
    "standardise": ("score.standardise",),
    "network": ("model.network",),
    "width": ("model.width",),
    "upsampling": ("model.upsampling",),
    "contamination": ("model.contamination",),
    "corruption": ("training.corruption.type",),
    "corruption_strength": ("training.corruption.strength",),
    "flip": ("training.augmentation.flip",),
    "rotation": ("training.augmentation.rotation",),
    "degrees": ("training.augmentation.degrees",),
    "size": ("data.size",),
    "channels": ("data.channels",),
    "intensity": ("data.intensity",),
    "window": ("data.window",),
    "axis": ("data.axis",),
    "max_pixels": ("data.max_pixels",),
    "max_bytes": ("data.max_bytes",),
    "max_frames": ("data.max_frames",),
    "max_seconds": ("data.max_seconds",),
}
"""Constructor argument → the keys of the configuration that it sets."""


class ImageVAEDetector(VAEDetector):
    """Anomaly detection in images with a variational autoencoder and a conformal threshold.

    `fit` learns what normal images look like (y is ignored; leave known anomalies out) from all
    but a held-out share of them, whose scores give the threshold ``-offset_``. On images
    exchangeable with those held out, `predict` returns −1 with probability at most ``alpha``
    (Vovk et al. 2005). That takes at least 1/alpha − 1 held-out images: 19 for 0.05. `calibrate`
    replaces the threshold by one from fresh images; use it where images come in groups, with one
    of each that trained nothing.

    X is an array (N, H, W) or (N, H, W, C), C 1 or 3, of uint8, uint16 or floats on [0, 1]; or a
    sequence of N arrays (H, W) or (H, W, C); or a sequence of paths of image files, one image
    each. Images are cropped to their centre square and resized. One that is of one colour shows
    nothing and is refused.

    Args:
        preset: "fast", "default" or "best"; arguments left at None follow it.
        alpha: share of normal images that may be flagged.
        score: "neg_elbo", "reconstruction", "importance_weighted" or what else the configuration
            knows.
        epochs: upper bound; None: by the number of images.
        random_state: of everything random, the held-out images too. An int makes fits repeat;
            None draws a new one from numpy's global state.
        standardise: each pixel by the mean and deviation that it has on held-out normals.
        network: "convolutional", "residual", "dense" or "hierarchical".
        latent_dim: length of the latent vector; hierarchical: channels of the coarsest level.
        width: channels of the finest convolutions.
        likelihood: "contrast", "structural", "gaussian", "laplace" or "bernoulli".
        size: side in pixels that images are resized to.
        channels: 1 is grey, 3 is colour.
        intensity: "standardise": each image by its own mean and deviation; "unit": as it is.
        method: "conformal" keeps alpha on average; "certified" with 95% confidence in this very
            threshold; "evt" reads it off a fitted tail, which is a model; "quantile" is the plain
            empirical quantile.
        draws: posterior draws behind a score, frozen when fitted.
        model: "vae" or "autoencoder".
        hidden_dim: units of the dense layers.
        upsampling: "shuffle" or "transposed".
        contamination: hierarchical: a head that learns which pixels do not belong.
        variance_floor: smallest variance that a Gaussian or a Laplace learns.
        corruption: "none", "coarse", "pixel", "mask" or "downsample"; makes it a denoiser.
        corruption_strength: deviation of the noise, share of the side, or of the resolution lost.
        flip: probability of mirroring left to right while fitting.
        rotation: probability of turning by up to ``degrees`` while fitting.
        degrees: the largest turn to either side.
        batch_size: None: a 32nd of the images as a power of two, 32 to 512.
        learning_rate: peak of the cosine schedule.
        weight_decay: of AdamW.
        clip_norm: largest norm of the gradient.
        beta: weight of the KL term.
        kl_warmup: share of the steps over which beta rises from 0.
        free_bits: nats per latent dimension that cost nothing.
        trim: share of the rows, those that fit worst, that do not teach, 0; give what may be
            anomalous among them.
        keep: weights of the "last" epoch (default), or of the "best" validation ELBO.
        patience: keep best: epochs without a better one before stopping.
        threads: of the CPU while fitting.
        device: "auto", "cpu" or "cuda".
        window: grey levels of DICOM and NIfTI: "auto", "percentile" or (center, width).
        axis: NIfTI: the axis along which a volume is cut.
        max_pixels: of one image file's picture; more are refused before they are decoded.
        max_bytes: of one image file.
        max_frames: images in one file.
        max_seconds: for decoding one file.
        calibration_fraction: share of the images held out for the threshold; None: a tenth, and no
            more than 20/alpha.
        validation_fraction: share of the others that the fit leaves out, 0.1: what is measured on
            unknown images is measured on them.

    Attributes:
        offset_: minus the threshold; ``decision_function = score_samples − offset_``.
        bundle_: the fitted `Bundle`.
        n_iter_: epochs trained.
        notes_: what was decided on the way; of images, nothing.
    """

    KIND: ClassVar[str] = "image"
    KEYS: ClassVar[Mapping[str, tuple[str, ...]]] = CONFIG_KEYS

    def __init__(
        self,
        *,
        preset: Literal["fast", "default", "best"] = "default",
        alpha: float = 0.05,
        score: str = "neg_elbo",
        epochs: int | None = None,
        random_state: int | RandomState | None = 0,
        standardise: bool | None = None,
        network: Literal["convolutional", "residual", "dense", "hierarchical"] | None = None,
        latent_dim: int | None = None,
        width: int | None = None,
        likelihood: Literal["contrast", "structural", "gaussian", "laplace", "bernoulli"]
        | None = None,
        size: int | None = None,
        channels: Literal[1, 3] | None = None,
        intensity: Literal["standardise", "unit"] | None = None,
        method: Literal["conformal", "certified", "evt", "quantile"] | None = None,
        draws: int | None = None,
        model: Literal["vae", "autoencoder"] | None = None,
        hidden_dim: int | None = None,
        upsampling: Literal["shuffle", "transposed"] | None = None,
        contamination: bool | None = None,
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
        window: Literal["auto", "percentile"] | tuple[float, float] | None = None,
        axis: Literal[0, 1, 2] | None = None,
        max_pixels: int | None = None,
        max_bytes: int | None = None,
        max_frames: int | None = None,
        max_seconds: float | None = None,
        calibration_fraction: float | None = None,
        validation_fraction: float | None = None,
    ) -> None:
        super().__init__(
            preset=preset,
            alpha=alpha,
            score=score,
            epochs=epochs,
            random_state=random_state,
            method=method,
            draws=draws,
            model=model,
            latent_dim=latent_dim,
            hidden_dim=hidden_dim,
            likelihood=likelihood,
            variance_floor=variance_floor,
            batch_size=batch_size,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            clip_norm=clip_norm,
            beta=beta,
            kl_warmup=kl_warmup,
            free_bits=free_bits,
            trim=trim,
            keep=keep,
            patience=patience,
            threads=threads,
            device=device,
            calibration_fraction=calibration_fraction,
            validation_fraction=validation_fraction,
        )
        self.standardise = standardise
        self.network = network
        self.width = width
        self.size = size
        self.channels = channels
        self.intensity = intensity
        self.upsampling = upsampling
        self.contamination = contamination
        self.corruption = corruption
        self.corruption_strength = corruption_strength
        self.flip = flip
        self.rotation = rotation
        self.degrees = degrees
        self.window = window
        self.axis = axis
        self.max_pixels = max_pixels
        self.max_bytes = max_bytes
        self.max_frames = max_frames
        self.max_seconds = max_seconds

    # ------------------------------------------------------------ latent space

    def inverse_transform(self, X: ArrayLike) -> Matrix:
        """Latents (N, L) → the images they stand for, shaped as those of `sample`."""
        check_is_fitted(self, "bundle_")
        latents = np.asarray(X, np.float32)
        return _as_given(images.decode(self.bundle_, latents))

    def sample(self, n_samples: int = 1, random_state: int | RandomState | None = None) -> Matrix:
        """Images drawn from the model: (n, S, S), of colour (n, S, S, 3), on [0, 1].

        ``random_state`` None is the estimator's own, so that two calls agree.
        """
        check_is_fitted(self, "bundle_")
        seed = self._seed(random_state)
        return _as_given(images.sample(self.bundle_, n_samples, seed))

    # ------------------------------------------------------------ reading X

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        return tags

    def _learn(self, X: Data, config: Config) -> Learned:
        assert isinstance(config, ImageConfig), "see KIND"
        schema = ImageSchema.from_config(config.data)
        return Learned(schema, _read(schema, X), {})

    def _batch(self, X: Data) -> RawBatch:
        check_is_fitted(self, "bundle_")
        schema = self.bundle_.scorer.schema
        assert isinstance(schema, ImageSchema), "see KIND"
        return _read(schema, X)


def _read(schema: ImageSchema, X: Data) -> RawBatch:
    """X as a model with this schema reads it.

    Raises:
        DataError: it is neither arrays nor paths, holds none, or one of it cannot be used.
    """
    batch = schema.from_images(_picture(schema, image) for image in _one_by_one(X))
    if not len(batch):
        raise DataError("X holds no image; give at least one")
    return usable(batch, "; mend it or leave it out")


def _picture(schema: ImageSchema, image: Any) -> DecodedImage | DecodeFailure:
    if isinstance(image, str | os.PathLike):
        return schema.read(Path(image))
    try:
        return picture_of(np.asarray(image))
    except ValueError as error:  # a DataError, or numpy's of rows that differ in length
        return DecodeFailure(str(error), None)


def _one_by_one(X: Data) -> Iterable[Any]:
    """X, if it has one entry for each image.

    Raises:
        DataError: it is one image, one path, or none of that.
    """
    if isinstance(X, str | bytes | os.PathLike) or not isinstance(X, Iterable):
        raise DataError("X must be images or their paths; put a single one into a list")
    if isinstance(X, np.ndarray) and X.dtype.kind not in "OU" and X.ndim not in {3, 4}:
        raise DataError(f"X must be of shape (N, H, W) or (N, H, W, C), got {X.shape}")
    return X


def picture_of(image: NDArray[Any]) -> DecodedImage:
    """(H, W) or (H, W, C) of uint8, uint16 or floats on [0, 1] → a picture.

    Raises:
        DataError: another shape or type, a value off [0, 1] or not finite.
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


def _as_given(pictures: Matrix) -> Matrix:
    """(N, C, S, S) → (N, S, S) or (N, S, S, 3)"""
    return pictures[:, 0] if pictures.shape[1] == 1 else np.moveaxis(pictures, 1, -1)

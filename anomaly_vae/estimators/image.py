"""Detect anomalies in images through scikit-learn's interface."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import numpy as np
from numpy.random import RandomState
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted

from anomaly_vae.config import ImageConfig
from anomaly_vae.data.encoding import Matrix
from anomaly_vae.data.schema import RawBatch
from anomaly_vae.errors import ConfigError
from anomaly_vae.estimators.arguments import SHARED_KEYS
from anomaly_vae.estimators.base import (
    Data,
    FitInput,
    VAEDetector,
    figure_titles,
    load_plots,
)
from anomaly_vae.estimators.image_inputs import (
    decoded_images,
    holds_volumes,
    prepare_images,
    unranged,
)
from anomaly_vae.generation import images
from anomaly_vae.images.notes import colour_note, image_notes
from anomaly_vae.images.pixels import DecodedImage
from anomaly_vae.images.schema import ImageBatch, ImageSchema
from anomaly_vae.scoring.detector import Explanation
from anomaly_vae.scoring.localization import region_explanations
from anomaly_vae.scoring.modality import image_modality
from anomaly_vae.scoring.scorer import ScoreParts
from anomaly_vae.types import Fit, Spacing, Window, WindowPreset

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CONFIG_KEYS: dict[str, tuple[str, ...]] = {
    **SHARED_KEYS,
    "standardise": ("score.standardise",),
    "network": ("model.network",),
    "width": ("model.width",),
    "upsampling": ("model.upsampling",),
    "localization_head": ("model.localization_head",),
    "symmetry": ("model.symmetry",),
    "backbone": ("model.backbone",),
    "corruption": ("training.corruption.type",),
    "corruption_strength": ("training.corruption.strength",),
    "flip": ("training.augmentation.flip",),
    "rotation": ("training.augmentation.rotation",),
    "degrees": ("training.augmentation.degrees",),
    "size": ("data.size",),
    "tiles": ("data.tiles",),
    "tile_overlap": ("data.tile_overlap",),
    "fit_mode": ("data.fit",),
    "spacing": ("data.spacing",),
    "mask": ("data.mask",),
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
NO_PIXELS = "a model with a backbone expects features and no pixels; fit one with backbone='none'"


class ImageVAEDetector(VAEDetector[ImageConfig, ImageSchema]):
    """Outlier detector for images: a variational autoencoder with a conformal threshold.

    `fit` learns from normal images; leave known anomalies out of X. It holds out a fraction of the
    images, whose scores give the threshold, ``-offset_``. On images exchangeable with those held
    out, `predict` returns −1 with probability at most ``alpha`` (Vovk et al. 2005). This takes at
    least 1/alpha − 1 held-out images: 19 for 0.05. `calibrate` replaces the threshold by one from
    other images. Use it if images come in groups, such as several of each patient, with one image
    of each group that the model was not fitted on.

    X is one of

    - an array of N images (N, H, W) or (N, H, W, C), with C 1 or 3;
    - a volume (D, H, W), or N volumes (N, D, H, W) with D and W above 4: each slice is an image,
      in order, with its own score, so that ``scores.reshape(N, D)`` has those of each volume;
    - a sequence of N arrays (H, W) or (H, W, C);
    - a sequence of paths of image files with one image each.

    Arrays of uint8 and uint16 are scaled by the range of their type, and floats must lie on [0, 1].
    Other integers, such as Hounsfield units, state no range: ``intensity_window`` maps them, by
    default by percentiles of each image; so it maps other floats, if it is a window in numbers or
    by name. Images that are not square are padded, see ``fit_mode``. An image whose pixels are all
    alike is refused. With ``mask="own"``, the masked pixels of numpy masked arrays do not count,
    such as those outside the brain.

    Most arguments set the configuration key of the same name (docs/configuration.md). An argument
    left at None takes the value of the preset, which is the default given here unless the preset
    changes it.

    Args:
        {arguments}

    Attributes:
        offset_: minus the threshold: ``decision_function(X) = score_samples(X) − offset_``.
        bundle_: the fitted `Bundle`.
        n_iter_: number of epochs trained.
        notes_: what `fit` saw of X: colours, with a warning if a grey model loses them, shapes,
            integers without a range, slices of volumes; empty after `load`.

    >>> import numpy as np
    >>> images = np.random.default_rng(0).normal(0.5, 0.1, (40, 16, 16)).clip(0, 1)
    >>> detector = ImageVAEDetector(
    ...     network="dense", size=16, hidden_dim=8, latent_dim=2, epochs=1, alpha=0.2
    ... ).fit(images)
    >>> detector.transform(images[:3]).shape
    (3, 2)
    >>> detector.sample(2).shape
    (2, 16, 16)
    >>> detector.heatmap(images[:3]).shape, detector.reconstruct(images[:3]).shape
    ((3, 16, 16), (3, 16, 16))
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
        tiles: int | None = None,
        tile_overlap: float | None = None,
        fit_mode: Fit | None = None,
        spacing: Spacing | None = None,
        mask: str | None = None,
        channels: Literal[1, 3] | None = None,
        intensity: Literal["standardise", "unit"] | None = None,
        method: Literal["conformal", "certified", "evt", "quantile"] | None = None,
        draws: int | None = None,
        model: Literal["vae", "autoencoder"] | None = None,
        hidden_dim: int | None = None,
        upsampling: Literal["resize", "shuffle", "transposed"] | None = None,
        localization_head: bool | None = None,
        symmetry: bool | None = None,
        backbone: Literal["none", "efficientnet_lite0"] | None = None,
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
        intensity_window: Literal["auto", "percentile"]
        | WindowPreset
        | Window
        | tuple[WindowPreset | Window, WindowPreset | Window, WindowPreset | Window]
        | None = None,
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

    # ------------------------------------------------------------ maps

    def heatmap(
        self, X: Data, source_pixels: bool = False
    ) -> NDArray[np.float32] | list[NDArray[np.float32]]:
        """Return the anomaly map of each image: what every pixel adds to its score.

        The unit is that of the score, nats, or standard deviations if it is standardised. Not
        every score localises: ``bundle_.localizes`` says whether this one shows inserted lesions,
        and ``localization_head=True`` with ``score_type="contamination"`` is made for it.

        Args:
            X: N images.
            source_pixels: False: maps of the square of S × S pixels that the model sees, whose sum
                and ``explain(X)[i].kl`` add up to the score. True: maps in the pixels of each
                image, enlarged linearly, of which padding is cut off; NaN where cropping hides
                the image from the model. These do not add up.

        Returns:
            (N, S, S); with ``source_pixels``, a list of N maps (H, W), each of its image's size.
        """
        schema = self._schema()
        images = list(decoded_images(schema, X))
        parts = self.bundle_.scorer.explain(prepare_images(schema, images))
        maps = parts.nats.reshape(-1, schema.size, schema.size).astype(np.float32)
        if not source_pixels:
            return maps
        pairs = zip(maps, images, strict=True)
        return [
            schema.to_source(heat, cast("DecodedImage", image), np.nan) for heat, image in pairs
        ]

    def reconstruct(self, X: Data) -> Matrix:
        """Return the image that the model expects in place of each: (N, S, S) or (N, S, S, 3).

        It covers the square of S × S pixels that the model sees, on [0, 1]. With ``intensity``
        "standardise", the default, that is the scale on which every image of X has mean 0.5 and
        standard deviation 0.25.

        Args:
            X: N images.

        Raises:
            ConfigError: the model has a backbone, so that it expects features and no pixels.
        """
        batch = self._batch(X)
        if not self.bundle_.draws:
            raise ConfigError(NO_PIXELS, key="model.backbone")
        scorer = self.bundle_.scorer
        _, encoding = image_modality(scorer.schema, scorer.encoding)
        return _channels_last(encoding.to_images(scorer.explain(batch).expected))

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
        axes: Axes = (
            load_plots()
            .reconstructions(scorer.encoding, parts, titles, self.bundle_.heat_scale)
            .axes[0]
        )
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
        batch = prepare_images(schema, decoded_images(schema, X))
        if schema.channels == 1 and batch.seen.in_colour:
            warnings.warn(colour_note(batch, schema.channels)[0], stacklevel=3)
        return FitInput(schema, batch, {}, _notes(X, batch, schema))

    def _batch(self, X: Data) -> RawBatch:
        schema = self._schema()
        return prepare_images(schema, decoded_images(schema, X))

    def _explanations(
        self, batch: RawBatch, explained: ScoreParts, most: int | None
    ) -> list[Explanation]:
        del batch
        bundle = self.bundle_
        _, encoding = image_modality(bundle.scorer.schema, bundle.scorer.encoding)
        return region_explanations(encoding, bundle.heat_scale, explained, most)


def _notes(X: Data, batch: ImageBatch, schema: ImageSchema) -> tuple[str, ...]:
    """Return what a user should know of how X was read."""
    notes = list(image_notes(batch, schema))
    if (kind := unranged(X)) and (
        isinstance(schema.options.intensity_window, str) and not schema.options.windows
    ):
        notes.append(
            f"integers of type {kind} state no range: each image is stretched between its 0.5th "
            "and 99.5th percentile; give uint8 or uint16, or set intensity_window=(center, width)"
        )
    if holds_volumes(X):
        notes.append(
            "the slices of a volume are both trained on and held out; for a threshold that holds "
            "for new volumes, call calibrate(X) with slices of other ones"
        )
    return tuple(notes)


def _channels_last(images: Matrix) -> Matrix:
    """Convert (N, C, S, S) to (N, S, S), in colour to (N, S, S, 3)."""
    return images[:, 0] if images.shape[1] == 1 else np.moveaxis(images, 1, -1)

"""Define the steps of training that differ between tables and images, in one class each.

`KINDS` is the only place where training and generation distinguish the two.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from safetensors.numpy import save as save_tensors

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.config import Config, ImageConfig, TabularConfig
from anomaly_vae.config.model import ImageModelConfig, ModelConfig
from anomaly_vae.data.encoding import (
    Categorical,
    EncodedColumn,
    Matrix,
    PooledLevels,
    TabularEncoding,
    fit_encoding,
    pooled_levels,
)
from anomaly_vae.data.schema import RawBatch, TabularSchema
from anomaly_vae.data.type_inference import feature_options
from anomaly_vae.errors import DataError
from anomaly_vae.evaluation.inserted_lesions import measure_localization
from anomaly_vae.export.graph_check import check_graph
from anomaly_vae.export.onnx_tabular import export_graph, weight_tensors
from anomaly_vae.export.onnx_traced import check_traced, image_score, image_tensors, shared_graph
from anomaly_vae.images.encoding import ImageEncoding, ImageLayout
from anomaly_vae.images.heatmaps import fit_scale
from anomaly_vae.images.schema import ImageSchema
from anomaly_vae.images.tiling import Tiling
from anomaly_vae.models.backbone import N_FEATURES, Patches
from anomaly_vae.models.builder import build_image, build_tabular, patch_model
from anomaly_vae.models.pretrained import load_pretrained, origin
from anomaly_vae.models.priors import DRAWING, LatentGaussian
from anomaly_vae.models.vae import VAE
from anomaly_vae.scoring.modality import Encoding, Schema
from anomaly_vae.training.aggregated_posterior import finalize
from anomaly_vae.training.augmentation import DistortedImages, NoisyCells, Views
from anomaly_vae.training.insertion import synthetic
from anomaly_vae.training.patches import PATCH_NOISE, patch_rows

MEASURED = {"center", "offset", "scale", "shift", "limits", "usual"}
"""Keys of an encoded column that are measured on the rows; the other keys define its meaning."""
UNRECORDED = {"backbone": "none", "upsampling": "shuffle", "symmetry": False}
"""Values of keys of the ``model`` section of images that a manifest leaves out."""
MAX_LATENTS, LATENT_CHUNK = 2000, 64
"""Maximum number of images whose latents are drawn from, and number that are encoded at once."""

ConfigT = TypeVar("ConfigT", bound=Config)
SchemaT = TypeVar("SchemaT", bound=Schema)
EncodingT = TypeVar("EncodingT", bound=Encoding)


class Kind(ABC, Generic[ConfigT, SchemaT, EncodingT]):
    """The steps of training that depend on the kind of data."""

    @abstractmethod
    def fit_encoding(self, config: ConfigT, schema: SchemaT, train: RawBatch) -> EncodingT:
        """Fit the encoding on the training rows.

        Raises:
            DataError: no column is left to learn from.
        """

    @abstractmethod
    def align(self, encoding: EncodingT, earlier: EncodingT) -> EncodingT:
        """Return the encoding with arbitrary choices (order of levels) as in an earlier one."""

    def pooled_levels(self, encoding: EncodingT, train: RawBatch) -> tuple[PooledLevels, ...]:
        """Describe the columns some of whose values are not kept as levels; images have none."""
        del encoding, train
        return ()

    @abstractmethod
    def difference(self, earlier: Any, encoding: EncodingT) -> str | None:
        """Explain why weights for the earlier encoding do not fit the new one; None if they do.

        Args:
            earlier: the encoding in the manifest of a bundle.
            encoding: the encoding of the rows to fit.
        """

    @abstractmethod
    def build(self, config: ConfigT, encoding: EncodingT) -> VAE:
        """Return an untrained model; the training seed determines its initial weights."""

    @abstractmethod
    def build_stored(self, section: Mapping[str, Any], encoding: EncodingT) -> VAE:
        """Return an untrained model for the ``model`` section of a bundle's configuration."""

    @abstractmethod
    def views(self, config: ConfigT, encoding: EncodingT) -> Views:
        """Return the function that turns batches into training views."""

    def rows(
        self,
        model: VAE,
        config: ConfigT,
        encoding: EncodingT,
        train: Matrix,
        validation: Matrix,
        fit: bool,
    ) -> tuple[Matrix, Matrix]:
        """Return the rows that the model is fitted to and measured on: the encoded rows (N, F).

        Args:
            model: the untrained model; what it needs to make rows of images is set in place.
            config: the configuration.
            encoding: the encoding of the rows.
            train: encoded training rows.
            validation: encoded validation rows.
            fit: whether to estimate from the training rows how rows are made; False if the model
                starts from the weights of another one, which have it.
        """
        del model, config, encoding, fit
        return train, validation

    @abstractmethod
    def finalize(self, model: VAE, config: ConfigT, train: Matrix, validation: Matrix) -> None:
        """Estimate the parameters that are set after the fit, from rows as of `rows`."""

    @abstractmethod
    def freeze(
        self,
        model: VAE,
        config: ConfigT,
        encoding: EncodingT,
        manifest: dict[str, Any],
        validation: Matrix,
    ) -> tuple[Bundle, float]:
        """Export the scoring graph and compare it with torch on the validation rows.

        Returns:
            The bundle, and the largest relative difference between its scores and those of torch.

        Raises:
            ExportError: the difference is too large.
        """


class Tables(Kind[TabularConfig, TabularSchema, TabularEncoding]):
    """The steps of training for tables."""

    def fit_encoding(
        self, config: TabularConfig, schema: TabularSchema, train: RawBatch
    ) -> TabularEncoding:
        """Fit the encoding of each column; see `Kind.fit_encoding`."""
        encoding = fit_encoding(schema, train, feature_options(config.data))
        if not encoding.columns:
            raise DataError(
                "no column is left to learn from: the only ones are dates without a cycle"
            )
        return encoding

    def align(self, encoding: TabularEncoding, earlier: TabularEncoding) -> TabularEncoding:
        """Restore the earlier order of levels in columns whose set of levels has not changed.

        Levels are ordered by frequency, which depends on the rows and has no meaning.
        """
        known = {column.name: column for column in earlier.columns}
        columns = tuple(
            _with_order_of(column, known.get(column.name)) for column in encoding.columns
        )
        return replace(encoding, columns=columns)

    def pooled_levels(self, encoding: TabularEncoding, train: RawBatch) -> tuple[PooledLevels, ...]:
        """Describe such columns; see `Kind.pooled_levels`."""
        return pooled_levels(encoding, train)

    def difference(self, earlier: Any, encoding: TabularEncoding) -> str | None:
        """Compare the names and meanings of columns; see `Kind.difference`."""
        planned = encoding.to_json()
        before, now = ([column["name"] for column in columns] for columns in (earlier, planned))
        if before != now:
            return f"its columns are {', '.join(before)}"
        for old, new in zip(earlier, planned, strict=True):
            if _meaning(old) != _meaning(new):
                return f"its column '{new['name']}' has other levels or another scale"
        return None

    def build(self, config: TabularConfig, encoding: TabularEncoding) -> VAE:
        """Return an untrained model; see `Kind.build`."""
        return build_tabular(config.model, encoding.layout, config.training.seed)

    def build_stored(self, section: Mapping[str, Any], encoding: TabularEncoding) -> VAE:
        """Return an untrained model; see `Kind.build_stored`."""
        return build_tabular(ModelConfig.model_validate(section), encoding.layout)

    def views(self, config: TabularConfig, encoding: TabularEncoding) -> Views:
        """Hide cells and add noise; see `Kind.views`."""
        hide, noise = config.training.hide, config.training.noise
        return NoisyCells(hide, encoding.sources.tolist(), noise, encoding.layout.n_numeric)

    def finalize(
        self, model: VAE, config: TabularConfig, train: Matrix, validation: Matrix
    ) -> None:
        """Estimate variances and the aggregated posterior; see `Kind.finalize`."""
        rows = torch.from_numpy(train), torch.from_numpy(validation)
        finalize(model, *rows, config.model, config.training)

    def freeze(
        self,
        model: VAE,
        config: TabularConfig,
        encoding: TabularEncoding,
        manifest: dict[str, Any],
        validation: Matrix,
    ) -> tuple[Bundle, float]:
        """Build the scoring graph node by node; see `Kind.freeze`."""
        weights = save_tensors(weight_tensors(model, config.score))
        graph, counts = export_graph(model, config.score, weights), encoding.counts()
        stored = save_tensors(counts) if counts else None
        bundle = Bundle(manifest, graph, weights, value_counts=stored)
        scores = bundle.scorer.score_encoded(validation)
        return bundle, check_graph(model, config.score, validation, scores)


class Images(Kind[ImageConfig, ImageSchema, ImageEncoding]):
    """The steps of training for images."""

    def fit_encoding(
        self, config: ImageConfig, schema: ImageSchema, train: RawBatch
    ) -> ImageEncoding:
        """Return the configured encoding, which needs no rows; see `Kind.fit_encoding`."""
        del schema, train
        data = config.data
        tiling = Tiling.of(data.size, data.tiles, data.tile_overlap)
        layout = ImageLayout(data.channels, data.size)
        return ImageEncoding(layout, data.intensity, tiling, data.mask is not None)

    def align(self, encoding: ImageEncoding, earlier: ImageEncoding) -> ImageEncoding:
        """Return the encoding unchanged; see `Kind.align`."""
        del earlier
        return encoding

    def difference(self, earlier: Any, encoding: ImageEncoding) -> str | None:
        """Compare the encodings for equality; see `Kind.difference`."""
        return None if earlier == encoding.to_json() else f"its images are encoded as {earlier}"

    def build(self, config: ImageConfig, encoding: ImageEncoding) -> VAE:
        """Return an untrained model, with the weights of its backbone; see `Kind.build`."""
        model = build_image(config.model, encoding.model_layout, config.training.seed)
        if isinstance(model.patches, Patches):
            load_pretrained(model.patches.network, config.model.backbone)
        return model

    def rows(
        self,
        model: VAE,
        config: ImageConfig,
        encoding: ImageEncoding,
        train: Matrix,
        validation: Matrix,
        fit: bool,
    ) -> tuple[Matrix, Matrix]:
        """Return the images, all of their tiles, or patches of them; see `Kind.rows`."""
        train, validation = encoding.pieces(train), encoding.pieces(validation)
        if not isinstance(model.patches, Patches):
            return train, validation
        return patch_rows(model.patches, train, validation, config.training.seed, fit)

    def build_stored(self, section: Mapping[str, Any], encoding: ImageEncoding) -> VAE:
        """Return an untrained model; see `Kind.build_stored`."""
        section = {**UNRECORDED, **section}
        return build_image(ImageModelConfig.model_validate(section), encoding.model_layout)

    def views(self, config: ImageConfig, encoding: ImageEncoding) -> Views:
        """Augment, corrupt and insert synthetic anomalies; see `Kind.views`."""
        if config.model.backbone != "none":
            return NoisyCells(0.0, range(N_FEATURES), PATCH_NOISE, N_FEATURES)
        training, layout = config.training, encoding.model_layout
        head = config.model.localization_head
        insert = partial(synthetic, standardise=encoding.standardises_pieces) if head else None
        return DistortedImages(layout, training.augmentation, training.corruption, insert)

    def finalize(self, model: VAE, config: ImageConfig, train: Matrix, validation: Matrix) -> None:
        """Estimate what a model has beyond its networks; see `Kind.finalize`."""
        rows = torch.from_numpy(train), torch.from_numpy(validation)
        if isinstance(model.patches, Patches):
            finalize(model, *rows, patch_model(config.model), config.training)
            model.patches.fit_picture()
        else:
            model.drawing = LatentGaussian.fit(_latents(model, rows[0][:MAX_LATENTS]))

    def freeze(
        self,
        model: VAE,
        config: ImageConfig,
        encoding: ImageEncoding,
        manifest: dict[str, Any],
        validation: Matrix,
    ) -> tuple[Bundle, float]:
        """Fit the score's statistics on the validation images and trace; see `Kind.freeze`."""
        size = encoding.layout.size
        score = image_score(model, encoding, config.score)
        score.fit_statistics(torch.from_numpy(encoding.pieces(validation)))
        weights = save_tensors({**image_tensors(score), **_drawing_tensors(model)})
        bundle = Bundle(manifest, shared_graph(score, encoding, weights, config.model), weights)
        explained = bundle.scorer.explain_encoded(validation)
        scale = fit_scale(explained.nats.reshape(-1, size, size), score.unit)
        error = check_traced(score, validation, explained.score)
        tested = measure_localization(bundle.scorer, encoding, validation)
        found = {"localization": tested.to_json()} if tested else {}
        if config.model.backbone != "none":
            found["backbone"] = origin(config.model.backbone)
        noted = {**manifest, "heat_scale": scale.to_json(), **found}
        return bundle.with_notes(manifest=noted), error


@torch.no_grad()
def _latents(model: VAE, images: torch.Tensor) -> torch.Tensor:
    """Return the posterior means (N, L) of images (N, F)."""
    model.eval()
    return torch.cat([model.posterior(part)[0] for part in images.split(LATENT_CHUNK)])


def _drawing_tensors(model: VAE) -> dict[str, Any]:
    """Return the tensors of the distribution that images are sampled from, by name."""
    if model.drawing is None:
        return {}
    parts = {name: getattr(model.drawing, name) for name in LatentGaussian.TENSORS}
    return {f"{DRAWING}{name}": value.contiguous().numpy() for name, value in parts.items()}


KINDS: dict[str, Kind[Any, Any, Any]] = {"tabular": Tables(), "image": Images()}
"""The steps of training by the ``kind`` of the configuration or manifest."""


def _with_order_of(column: EncodedColumn, earlier: EncodedColumn | None) -> EncodedColumn:
    """Return a column with the earlier order of levels, if the levels are the same."""
    if not (isinstance(column, Categorical) and isinstance(earlier, Categorical)):
        return column
    same = set(column.levels) == set(earlier.levels)
    return column.with_fields(levels=earlier.levels) if same else column


def _meaning(column: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of an encoded column that weights depend on."""
    meaning = {key: value for key, value in column.items() if key not in MEASURED}
    bands = len((column.get("bands") or {}).get("values", ()))
    return {**meaning, "unit": column.get("unit") is None, "bands": bands}

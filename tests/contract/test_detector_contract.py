"""What every detector keeps, whatever its modality, model and score.

One suite over a table of variants. A modality is a `Modality`: how to fit a detector on it,
ordinary rows, and rows at the extremes. Another one is a fixture and its lines in `VARIANTS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
from numpy.typing import NDArray

from anomaly_vae.artifacts.bundle import Bundle, load_bundle
from anomaly_vae.calibration.conformal import calibrate
from anomaly_vae.config import Config, validate_config
from anomaly_vae.config.detector import merged
from anomaly_vae.data.schema import RawBatch
from anomaly_vae.data.splitting import CALIBRATION, TEST, TRAIN, VALIDATION
from anomaly_vae.estimators.image_inputs import decoded_image
from anomaly_vae.images.schema import ImageSchema
from anomaly_vae.scoring.detector import Detector
from anomaly_vae.training.fit import fit_bundle, prepare
from anomaly_vae.types import ColumnType
from pipelines.datasets.dataset import Dataset
from tests.support.scans import blobs, coloured

ALPHA = 0.05
SAME = {"rtol": 1e-6, "atol": 1e-6}
"""How near scores of the same row must be, whatever the rows beside it."""


class Modality(Protocol):
    """A kind of data, with enough of it to fit a small detector."""

    def bundle(self, overrides: Mapping[str, Any]) -> Bundle:
        """A calibrated bundle."""

    @property
    def rows(self) -> RawBatch:
        """Some hundred ordinary rows."""

    @property
    def extremes(self) -> RawBatch:
        """Rows as far out as can be given, and the emptiest; of the first eight no doubt is
        possible."""


@dataclass(frozen=True)
class Tabular:
    """The simulated transactions."""

    config: Config
    data: Dataset

    def bundle(self, overrides: Mapping[str, Any]) -> Bundle:
        config = validate_config(
            {**self.config.model_dump(), "training": {"epochs": 2}, **overrides}
        )
        train, validation = self.data.part(TRAIN), self.data.part(VALIDATION)
        fitted = fit_bundle(
            config, prepare(config, self.data.schema, train, validation), self.data.summary()
        )
        scores = fitted.bundle.scorer.score(self.data.part(CALIBRATION))
        return fitted.bundle.calibrated(calibrate(scores, ALPHA), None)

    @property
    def rows(self) -> RawBatch:
        return self.data.part(TEST)

    @property
    def extremes(self) -> RawBatch:
        def record(number: float | None, level: str | None, time: str | None) -> dict[str, Any]:
            values = {
                ColumnType.NUMERIC: number,
                ColumnType.BINARY: None if number is None else int(number > 0),
                ColumnType.CATEGORICAL: level,
                ColumnType.DATETIME: time,
            }
            return {column.name: values[column.type] for column in self.data.schema.columns}

        far = [(sign * 10.0**power) for power in (3, 9, 30, 300) for sign in (1, -1)]
        records = [record(number, "never seen", "9999-12-31") for number in far]
        records += [record(0.0, "x" * 1_000, "0001-01-01"), record(5e-324, "chip", "2024-02-29")]
        records += [record(None, None, None), record(None, "never seen", None)]
        names = self.data.schema.names
        records += [{name: record(1e30, "never seen", "1969-07-20")[name]} for name in names]
        batch = self.data.schema.from_records(records)
        assert not batch.problems
        return batch


@dataclass(frozen=True)
class Images:
    """Small blobs, grey or in colour."""

    channels: int = 1
    size: int = 16

    @property
    def schema(self) -> ImageSchema:
        return ImageSchema(self.size, self.channels)

    def batch(self, images: NDArray[np.uint8]) -> RawBatch:
        given = coloured(images) if self.channels == 3 else images
        batch = self.schema.from_images([decoded_image(image) for image in given])
        assert not batch.problems
        return batch

    def bundle(self, overrides: Mapping[str, Any]) -> Bundle:
        base = {
            "kind": "image",
            "name": "scans",
            "data": {"path": "scans", "size": self.size, "channels": self.channels},
            "model": {
                "network": "convolutional",
                "likelihood": "gaussian",
                "width": 4,
                "hidden_dim": 16,
                "latent_dim": 4,
            },
            "training": {"epochs": 1, "corruption": {"type": "none"}},
            "score": {"standardise": False},
        }
        config = validate_config(merged(base, overrides))
        train, validation, calibration = (
            self.batch(blobs(n, seed, self.size)) for n, seed in ((96, 1), (16, 2), (60, 3))
        )
        fitted = fit_bundle(config, prepare(config, self.schema, train, validation), {})
        scores = fitted.bundle.scorer.score(calibration)
        return fitted.bundle.calibrated(calibrate(scores, ALPHA), None)

    @property
    def rows(self) -> RawBatch:
        return self.batch(blobs(80, 4, self.size))

    @property
    def extremes(self) -> RawBatch:
        rng, side = np.random.default_rng(0), self.size
        noise = rng.integers(0, 256, (6, side, side))
        checkers = 255 * (np.indices((side, side)).sum(0) % 2)
        speck = np.zeros((side, side), int)
        speck[3, 5] = 255
        nearly_constant = 128 + rng.integers(0, 2, (side, side))
        saturated = np.where(blobs(1, 5, side)[0] > 60, 255, 0)
        gradient = np.tile(np.linspace(0, 255, side), (side, 1))
        others = [checkers, 255 - checkers, speck, 255 - speck, nearly_constant]
        images = [*noise, *others, saturated, 255 - saturated, gradient, gradient.T]
        return self.batch(np.stack(images).astype(np.uint8))


@pytest.fixture(scope="session")
def image() -> Images:
    return Images()


@pytest.fixture(scope="session")
def colour() -> Images:
    return Images(channels=3)


@pytest.fixture(scope="session")
def tabular(config: Config, dataset: Dataset) -> Tabular:
    return Tabular(config, dataset)


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "tabular vae": ("tabular", {}),
    "tabular vae, one draw": ("tabular", {"score": {"draws": 1}}),
    "tabular vae, student t": ("tabular", {"model": {"likelihood": "student_t"}}),
    "tabular vae, linear": ("tabular", {"model": {"depth": 0, "latent_dim": 2}}),
    "tabular vae, reconstruction": ("tabular", {"score": {"type": "reconstruction"}}),
    "tabular vae, importance weighted": (
        "tabular",
        {"score": {"type": "importance_weighted", "draws": 5}},
    ),
    "tabular vae, student t, importance weighted": (
        "tabular",
        {"score": {"type": "importance_weighted"}, "model": {"likelihood": "student_t"}},
    ),
    "tabular autoencoder": ("tabular", {"model": {"type": "autoencoder"}}),
    "tabular autoencoder, student t": (
        "tabular",
        {"model": {"type": "autoencoder", "likelihood": "student_t"}},
    ),
    "image vae": ("image", {}),
    "image vae, four draws": ("image", {"score": {"draws": 4}}),
    "image vae, laplace": ("image", {"model": {"likelihood": "laplace"}}),
    "image vae, bernoulli": (
        "image",
        {"model": {"likelihood": "bernoulli"}, "data": {"intensity": "unit"}},
    ),
    "image vae, structural": ("image", {"model": {"likelihood": "structural"}}),
    "image vae, contrast": ("image", {"model": {"likelihood": "contrast"}}),
    "image vae, residual": ("image", {"model": {"network": "residual"}}),
    "image vae, dense": ("image", {"model": {"network": "dense", "latent_dim": 2}}),
    "image vae, transposed": ("image", {"model": {"upsampling": "transposed"}}),
    "image vae, hierarchical": ("image", {"model": {"network": "hierarchical"}}),
    "image vae, standardised": ("image", {"score": {"standardise": True}}),
    "image vae, reconstruction": ("image", {"score": {"type": "reconstruction"}}),
    "image vae, importance weighted": (
        "image",
        {"score": {"type": "importance_weighted", "draws": 5}},
    ),
    "image vae, structural score": ("image", {"score": {"type": "structural"}}),
    "image vae, contamination": (
        "image",
        {"model": {"localization_head": True}, "score": {"type": "contamination"}},
    ),
    "image vae, backbone": (
        "image",
        {"model": {"backbone": "efficientnet_lite0", "latent_dim": None, "hidden_dim": 16}},
    ),
    "image autoencoder": ("image", {"model": {"type": "autoencoder"}}),
    "image autoencoder, hierarchical": (
        "image",
        {"model": {"type": "autoencoder", "network": "hierarchical"}},
    ),
    "image vae, colour": ("colour", {}),
    "image vae, colour, as it comes": (
        "colour",
        {
            "model": {"network": "hierarchical", "likelihood": "contrast"},
            "score": {"standardise": None},
        },
    ),
}


@dataclass(frozen=True)
class Subject:
    """A detector under test, with rows to try it on."""

    bundle: Bundle
    rows: RawBatch
    extremes: RawBatch

    @property
    def detector(self) -> Detector:
        return self.bundle.detector

    @property
    def both(self) -> tuple[RawBatch, RawBatch]:
        return self.rows, self.extremes

    def score(self, batch: RawBatch) -> NDArray[np.float64]:
        return self.detector.scorer.score(batch)


SLOW = {
    "image vae, bernoulli",
    "image vae, structural",
    "image vae, residual",
    "image vae, four draws",
    "image vae, laplace",
    "image vae, contrast",
    "image vae, dense",
    "image vae, transposed",
    "image vae, hierarchical",
    "image vae, standardised",
    "image vae, reconstruction",
    "image vae, importance weighted",
    "image vae, structural score",
    "image autoencoder",
    "image autoencoder, hierarchical",
    "image vae, colour",
}
"""Variants that share all but one step with a quicker one of tables or with another of images."""


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(variant, id=name, marks=[pytest.mark.slow] if name in SLOW else [])
        for name, variant in VARIANTS.items()
    ],
)
def subject(request: pytest.FixtureRequest) -> Subject:
    name, overrides = request.param
    modality: Modality = request.getfixturevalue(name)
    return Subject(modality.bundle(overrides), modality.rows, modality.extremes)


def test_tiny_tiles_equal_one_chunk(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = [subject.score(batch) for batch in subject.both]
    one_only = not subject.bundle.draws  # the graph of a backbone takes one image
    for tile in (1,) if one_only else (1, 3, 64):
        monkeypatch.setattr(type(subject.detector.scorer.encoding), "tile", tile)
        for batch, expected in zip(subject.both, whole, strict=True):
            np.testing.assert_allclose(subject.score(batch), expected, **SAME)


def test_a_row_alone_scores_as_among_others(subject: Subject) -> None:
    """An extreme neighbour does not show either."""
    for batch in subject.both:
        among = subject.score(batch)
        for row in range(0, len(batch), max(len(batch) // 25, 1)):
            alone = subject.score(batch.take(np.array([row])))
            np.testing.assert_allclose(alone[0], among[row], **SAME)


def test_scores_do_not_depend_on_the_order_of_the_rows(subject: Subject) -> None:
    for batch in subject.both:
        order = np.random.default_rng(0).permutation(len(batch))
        np.testing.assert_allclose(
            subject.score(batch.take(order)), subject.score(batch)[order], **SAME
        )


def test_repeated_rows_score_alike_each_time(subject: Subject) -> None:
    repeated = subject.rows.take(np.tile(np.arange(5), 40))
    scores = subject.score(repeated).reshape(40, 5)
    np.testing.assert_allclose(scores, np.tile(scores[0], (40, 1)), **SAME)
    np.testing.assert_array_equal(subject.score(repeated), scores.ravel())


def test_what_is_loaded_decides_as_what_was_saved(subject: Subject, tmp_path: Path) -> None:
    again = load_bundle(subject.bundle.save(tmp_path / "bundle"), subject.bundle.digest)
    for batch in subject.both:
        before, after = subject.detector.detect(batch), again.detector.detect(batch)
        for name, values in vars(before).items():
            np.testing.assert_array_equal(getattr(after, name), values)


def test_contributions_rest_and_kl_are_the_score(subject: Subject) -> None:
    for batch in subject.both:
        for most in (2, None):
            detections, explanations = subject.detector.detect_and_explain(batch, most)
            sums = [sum(c.nats for c in e.contributions) + e.rest + e.kl for e in explanations]
            np.testing.assert_allclose(sums, detections.score, rtol=1e-9, atol=1e-9)
            np.testing.assert_allclose(detections.score, subject.score(batch), **SAME)


def test_scores_and_reasons_are_finite_at_the_extremes(subject: Subject) -> None:
    explained = subject.detector.scorer.explain(subject.extremes)
    for name in ("score", "nats", "kl", "latent", "expected"):
        assert np.isfinite(getattr(explained, name)).all(), name


def test_far_out_is_more_anomalous_than_ordinary(subject: Subject) -> None:
    """A row of values of 10³⁰ is worse than any ordinary one."""
    if subject.bundle.manifest["kind"] == "image":
        pytest.skip("three steps of training teach nothing of images; pixels have no far out")
    assert subject.score(subject.extremes)[:8].min() > subject.score(subject.rows).max()


def test_p_values_fall_as_scores_rise(subject: Subject) -> None:
    for batch in subject.both:
        detections = subject.detector.detect(batch)
        order = np.argsort(detections.score)
        assert np.all(np.diff(detections.p_value[order]) <= 0)
        assert np.all((detections.p_value > 0) & (detections.p_value <= 1))


def test_an_anomaly_is_a_row_whose_p_value_reaches_alpha(subject: Subject) -> None:
    for batch in subject.both:
        detections = subject.detector.detect(batch)
        np.testing.assert_array_equal(detections.is_anomaly, detections.p_value <= ALPHA)


def test_one_scorer_serves_many_threads(subject: Subject) -> None:
    """Eight threads, each with rows of its own, at once and again."""
    parts = np.array_split(np.arange(len(subject.rows)), 8)
    batches = [subject.rows.take(part) for part in parts]
    expected = [subject.score(batch) for batch in batches]
    scorer = Bundle(subject.bundle.manifest, subject.bundle.graph, subject.bundle.weights).scorer
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            for got, alone in zip(pool.map(scorer.score, batches), expected, strict=True):
                np.testing.assert_array_equal(got, alone)


def test_no_rows_have_no_decisions(subject: Subject) -> None:
    nothing = subject.rows.take(np.array([], int))
    detections, explanations = subject.detector.detect_and_explain(nothing, 3)
    assert all(len(part) == 0 for part in vars(detections).values() if part is not None)
    assert explanations == []

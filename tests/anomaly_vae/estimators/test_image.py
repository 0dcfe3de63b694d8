"""The estimator of images: what X may be, what is decided on it, and the bundle inside it."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone, is_outlier_detector
from sklearn.exceptions import NotFittedError

import anomaly_vae
from anomaly_vae.artifacts.bundle import Bundle, load_bundle
from anomaly_vae.config.detector import ImageConfig
from anomaly_vae.errors import (
    BundleError,
    CalibrationError,
    ConfigError,
    DataError,
    NotCalibratedError,
)
from anomaly_vae.estimators.image import CONFIG_KEYS, ImageVAEDetector
from anomaly_vae.estimators.image_inputs import decoded_image
from anomaly_vae.estimators.tabular import TabularVAEDetector
from anomaly_vae.generation.latent_space import latent_means
from anomaly_vae.images.pixels import MAX_PIXEL
from pipelines.datasets.images.dataset import ImageDataset
from tests.support import excused
from tests.support.estimators import (
    TINY_IMAGES,
    check_defaults_are_those_of_files,
    check_every_key_is_an_argument,
)
from tests.support.estimators import tiny_images as tiny
from tests.support.scans import blobs, coloured, patched

N, SIZE = 60, TINY_IMAGES["size"]

NO_ARGUMENT = excused.NO_ARGUMENT | {
    "data.path": "the images are X",
    "data.group": "X is taken as exchangeable images; else, use calibrate(X)",
    "data.layout": "the images are X, not folders",
    "data.splits.gap_days": "images come in no order",
    "calibration.group_by": "images have no columns",
    "calibration.density_ratio": "see calibration.group_by",
    "training.precision": "one of GPUs, where the command line fits",
}


@pytest.fixture(scope="module", name="X")
def images() -> np.ndarray:
    """(N, SIZE, SIZE) uint8."""
    return blobs(N, size=SIZE)


@pytest.fixture(scope="module")
def fitted(X: np.ndarray) -> ImageVAEDetector:
    return tiny().fit(X)


@pytest.fixture(scope="module")
def in_colour(X: np.ndarray) -> ImageVAEDetector:
    """Fitted on (N, SIZE, SIZE, 3)."""
    return tiny(network="dense", likelihood="gaussian", channels=3).fit(coloured(X))


@pytest.fixture
def detector(fitted: ImageVAEDetector) -> ImageVAEDetector:
    """One to change, with the bundle of the fitted one."""
    return copy.copy(fitted)


# ---------------------------------------------------------------- arguments


def test_it_is_an_outlier_detector_that_the_package_exports() -> None:
    assert is_outlier_detector(ImageVAEDetector())
    assert anomaly_vae.ImageVAEDetector is ImageVAEDetector
    tags = ImageVAEDetector().__sklearn_tags__().input_tags
    assert (tags.two_d_array, tags.three_d_array) == (False, True)


def test_clone_and_set_params_carry_every_argument() -> None:
    detector = tiny().set_params(beta=0.5, intensity_window=(40.0, 400.0), localization_head=True)
    copied = clone(detector)
    assert copied.get_params() == detector.get_params()
    assert copied.get_params()["intensity_window"] == (40.0, 400.0)
    assert ImageVAEDetector().get_params()["alpha"] == 0.05


def test_every_key_of_the_configuration_is_an_argument_or_excused() -> None:
    check_every_key_is_an_argument(ImageConfig, CONFIG_KEYS, NO_ARGUMENT)


def test_defaults_are_those_of_files() -> None:
    """None follows the file's; `random_state` 0 is the seed that files have."""
    check_defaults_are_those_of_files("image", ImageVAEDetector(), CONFIG_KEYS)


def test_arguments_are_called_as_their_keys_are() -> None:
    renamed = {
        "score_type", "model", "random_state", "calibration_fraction", "validation_fraction",
        "corruption", "corruption_strength", "fit_mode", "verbose",
    }  # fmt: skip
    assert CONFIG_KEYS.keys() == ImageVAEDetector().get_params().keys()
    for argument in CONFIG_KEYS.keys() - renamed:
        assert CONFIG_KEYS[argument][0].rpartition(".")[2] == argument


@pytest.mark.parametrize("argument", ["network", "likelihood", "model", "intensity", "upsampling"])
def test_the_choices_of_an_argument_are_those_of_its_key(argument: str) -> None:
    section, key = CONFIG_KEYS[argument][0].split(".")
    owner = ImageConfig.model_fields[section].annotation
    assert owner is not None
    offered = get_type_hints(ImageVAEDetector.__init__)[argument]
    choices = {choice for option in get_args(offered) for choice in get_args(option)}
    options = get_args(owner.model_fields[key].annotation)
    owned = {choice for option in options for choice in get_args(option) or (option,)}
    assert choices == owned - {type(None)}


def test_arguments_reach_the_manifest(fitted: ImageVAEDetector) -> None:
    recorded = fitted.bundle_.manifest["config"]
    assert recorded["model"]["network"] == "convolutional"
    assert [recorded["model"][key] for key in ("width", "hidden_dim", "latent_dim")] == [4, 8, 2]
    assert (recorded["data"]["size"], recorded["calibration"]["alpha"]) == (SIZE, 0.1)
    assert fitted.n_iter_ == 2
    assert fitted.notes_ == ()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": 0}, "training.epochs"),
        ({"size": 8}, "data.size"),
        ({"network": "huge"}, "model.network"),
        ({"corruption": "blur"}, "training.corruption.type"),
        ({"intensity_window": "wide"}, "data.intensity_window"),
        ({"score_type": "contamination"}, "needs model.localization_head: true"),
    ],
)
def test_a_wrong_argument_is_named_when_fitting(
    X: np.ndarray, wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny(**wrong).fit(X)


def test_an_unfitted_detector_says_so(X: np.ndarray, tmp_path: Path) -> None:
    unfitted = tiny()
    for method in (unfitted.predict, unfitted.calibrate, unfitted.explain, unfitted.transform):
        with pytest.raises(NotFittedError):
            method(X)
    for action in (unfitted.sample, lambda: unfitted.save(tmp_path)):
        with pytest.raises(NotFittedError):
            action()


# ---------------------------------------------------------------- scores and decisions


def test_the_parts_of_a_decision_agree(fitted: ImageVAEDetector, X: np.ndarray) -> None:
    some = np.concatenate([X, patched(X)])
    score = fitted.anomaly_score(some)
    np.testing.assert_array_equal(fitted.score_samples(some), -score)
    np.testing.assert_array_equal(fitted.decision_function(some), -score - fitted.offset_)
    flagged = fitted.predict(some) == -1
    assert 0 < flagged.sum() < len(some)
    np.testing.assert_array_equal(flagged, score > -fitted.offset_)
    np.testing.assert_array_equal(flagged, fitted.p_values(some) <= fitted.alpha)


def test_it_decides_as_the_detector_of_its_bundle_does(
    fitted: ImageVAEDetector, X: np.ndarray
) -> None:
    found = fitted.bundle_.detector.detect(fitted._batch(patched(X)))
    np.testing.assert_array_equal(fitted.anomaly_score(patched(X)), found.score)
    np.testing.assert_array_equal(fitted.p_values(patched(X)), found.p_value)
    np.testing.assert_array_equal(fitted.predict(patched(X)) == -1, found.is_anomaly)
    assert fitted.offset_ == -fitted.bundle_.detector.calibration.threshold


def test_a_score_at_the_threshold_is_normal(fitted: ImageVAEDetector, X: np.ndarray) -> None:
    """The threshold is a held-out image's score, which equality must not flag."""
    at_threshold = np.flatnonzero(fitted.anomaly_score(X) == -fitted.offset_)
    assert len(at_threshold) == 1
    assert fitted.predict(X)[at_threshold] == 1


def test_explanations_add_up_to_the_score(fitted: ImageVAEDetector, X: np.ndarray) -> None:
    some = patched(X[:5])
    score = fitted.anomaly_score(some)
    for most in (1, None):
        explained = fitted.explain(some, most)
        assert any(e.regions for e in explained)
        assert all(len(e.regions) <= (most or SIZE**2) for e in explained)
        sums = [sum(r.nats for r in e.regions) + e.rest + e.kl for e in explained]
        np.testing.assert_allclose(sums, score, rtol=1e-5, atol=1e-5)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(
    in_colour: ImageVAEDetector, X: np.ndarray, tmp_path: Path
) -> None:
    """The arguments that a saved detector comes back with are those of its fit."""
    arguments = clone(ImageVAEDetector.load(in_colour.save(tmp_path / "bundle")))
    again = arguments.fit(coloured(X))
    assert again.bundle_.weights == in_colour.bundle_.weights
    assert again.offset_ == in_colour.offset_
    other = clone(in_colour).set_params(random_state=1).fit(coloured(X))
    assert other.bundle_.weights != in_colour.bundle_.weights


# ---------------------------------------------------------------- calibration


def test_calibrate_replaces_the_threshold_and_nothing_else(
    detector: ImageVAEDetector, fitted: ImageVAEDetector
) -> None:
    fresh = patched(blobs(40, seed=9, size=SIZE))
    assert detector.set_params(alpha=0.2).calibrate(fresh) is detector
    assert detector.offset_ != fitted.offset_
    assert detector.bundle_.weights == fitted.bundle_.weights
    assert detector.bundle_.calibration is not None
    assert (detector.bundle_.calibration.alpha, len(detector.bundle_.calibration.scores)) == (
        0.2, 40
    )  # fmt: skip
    assert np.mean(detector.predict(fresh) == -1) <= 0.2
    with pytest.raises(CalibrationError, match="needs 4 normal calibration rows, there are 3"):
        detector.calibrate(fresh[:3])


def test_too_few_images_for_alpha_are_refused_with_the_remedy(X: np.ndarray) -> None:
    with pytest.raises(CalibrationError, match=r"n_samples=60 .* give at least 104 rows"):
        tiny(alpha=0.01).fit(X)


# ---------------------------------------------------------------- what X may be


AS: dict[str, Callable[[np.ndarray], Any]] = {
    "uint16": lambda X: X.astype(np.uint16) * 257,
    "uint16 of another byte order": lambda X: (X.astype(np.uint16) * 257).astype(">u2"),
    "float32": lambda X: X.astype(np.float32) / 255,
    "float64": lambda X: X / 255,
    "with a channel": lambda X: X[..., None],
    "three equal channels": lambda X: np.stack([X] * 3, -1),
    "a list": list,
    "a tuple of mixed types": lambda X: (X[0] / 255, *X[1:]),
    "a generator": iter,
}


@pytest.mark.parametrize("form", AS)
def test_the_same_images_have_the_same_scores_in_every_form(
    fitted: ImageVAEDetector, X: np.ndarray, form: str
) -> None:
    exact = form != "three equal channels"  # which sum up to grey within rounding
    score = fitted.anomaly_score(AS[form](X))
    np.testing.assert_allclose(score, fitted.anomaly_score(X), rtol=0 if exact else 1e-3)


def test_floats_of_half_precision_are_read_to_their_precision(X: np.ndarray) -> None:
    """Their largest number is below that of 16 bits."""
    half = decoded_image((X[0] / 255).astype(np.float16)).pixels.astype(float)
    np.testing.assert_allclose(half / MAX_PIXEL, X[0] / 255, atol=1e-3)
    assert decoded_image(np.array([[0, 1]], np.float16)).pixels.tolist() == [[0, 65_535]]


def test_images_of_different_sizes_are_resized(fitted: ImageVAEDetector, X: np.ndarray) -> None:
    larger = X[1].repeat(3, 0).repeat(3, 1)
    score = fitted.anomaly_score([X[0], larger, X[2]])
    truth = fitted.anomaly_score(X[:3])
    np.testing.assert_array_equal(score[[0, 2]], truth[[0, 2]])
    assert score[1] != truth[1]  # by smoothing between pixels
    assert score[1] == fitted.anomaly_score([larger, X[0]])[0]


@pytest.mark.parametrize("as_given", [list, np.array, lambda paths: [str(p) for p in paths]])
def test_paths_give_the_scores_of_what_lies_there(
    fitted: ImageVAEDetector, X: np.ndarray, tmp_path: Path, as_given: Callable[[Any], Any]
) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for path, image in zip(paths, X, strict=False):
        Image.fromarray(image).save(path)
    np.testing.assert_array_equal(
        fitted.anomaly_score(as_given(paths)), fitted.anomaly_score(X[:5])
    )
    np.testing.assert_array_equal(
        fitted.anomaly_score([paths[0], X[1]]), fitted.anomaly_score(X[:2])
    )


def test_colours_are_looked_at_where_there_are_channels(
    in_colour: ImageVAEDetector, X: np.ndarray
) -> None:
    score = in_colour.anomaly_score(coloured(X))
    np.testing.assert_array_equal(in_colour.anomaly_score(list(coloured(X))), score)
    assert (in_colour.anomaly_score(coloured(X)[..., ::-1]) != score).all()
    assert in_colour.anomaly_score(X).shape == (N,)  # grey is a colour


# ---------------------------------------------------------------- what it may not be


def flat(value: float) -> np.ndarray:
    return np.full((SIZE, SIZE), value)


ON_UNIT = r"lie on \[0, 1\] and be finite; scale them"
SHAPES = r"an image must be \(H, W\), \(H, W, 1\) or \(H, W, 3\), got "
TYPES = r"images must be integers or floats on \[0, 1\], got "


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (flat(0.4), "all pixels are alike: the image shows nothing; mend it or leave it out"),
        (flat(np.nan), ON_UNIT),
        (np.array([[0.1, np.nan], [0.5, 0.2]]), ON_UNIT),
        (np.array([[0, np.inf]]), ON_UNIT),
        (np.array([[0, 1.001]]), ON_UNIT),
        (np.array([[-0.001, 1]]), ON_UNIT),
        (np.array([[0, 255j]]), TYPES + "complex128"),
        (np.array([[True, False]]), TYPES + "bool"),
        (np.zeros(SIZE, np.uint8), SHAPES + r"\(16,\)"),
        (np.zeros((2, SIZE, SIZE, 3), np.uint8), SHAPES + r"\(2, 16, 16, 3\)"),
        (np.zeros((SIZE, SIZE, 2), np.uint8), SHAPES + r"\(16, 16, 2\)"),
        (np.zeros((0, SIZE), np.uint8), SHAPES + r"\(0, 16\)"),
        (None, SHAPES),
        ([[1, 2], [3]], "inhomogeneous shape"),
        ("nowhere.png", "it is no file; give the path of an image file"),
        (Path(__file__), "it is text and no image"),
    ],
)
def test_an_image_that_cannot_be_used_is_named_with_the_remedy(
    fitted: ImageVAEDetector, X: np.ndarray, image: Any, reason: str
) -> None:
    with pytest.raises(DataError, match=rf"^X, column 'image', row 2: .*{reason}") as raised:
        fitted.predict([X[0], X[1], image, X[3]])
    assert isinstance(raised.value, ValueError)
    assert "\n" not in str(raised.value)


def test_fitting_refuses_it_too_and_says_how_many_there_are(X: np.ndarray) -> None:
    dark = X.copy()
    dark[[3, 5]] = 0
    with pytest.raises(DataError, match=r"row 3: all pixels .* \(2 rows cannot be used\)"):
        tiny().fit(dark)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "X holds no image; give at least one"),
        (np.zeros((0, SIZE, SIZE), np.uint8), "X holds no image"),
        (np.zeros((SIZE, SIZE), np.uint8), r"X must be of shape .* got \(16, 16\)"),
        (np.zeros((1, 2, SIZE, SIZE, 3), np.uint8), r"X must be of shape .* got \(1, 2, 16, 16, 3"),
        ("scan.png", "put a single one into a list"),
        (Path("scan.png"), "put a single one into a list"),
        (None, "must be images or their paths"),
        (3, "must be images or their paths"),
    ],
)
def test_what_is_no_sequence_of_images_is_refused(
    fitted: ImageVAEDetector, given: Any, message: str
) -> None:
    for method in (fitted.predict, fitted.calibrate, tiny().fit):
        with pytest.raises(DataError, match=message):
            method(given)


def test_a_file_of_several_images_is_refused(
    fitted: ImageVAEDetector, X: np.ndarray, tmp_path: Path
) -> None:
    first, second = map(Image.fromarray, X[:2])
    first.save(tmp_path / "two.tif", save_all=True, append_images=[second])
    with pytest.raises(DataError, match="row 0: holds several images; give one at a time"):
        fitted.predict([tmp_path / "two.tif"])


# ---------------------------------------------------------------- maps


def test_a_map_and_its_kl_add_up_to_the_score(fitted: ImageVAEDetector, X: np.ndarray) -> None:
    some = patched(X[:4])
    maps = fitted.heatmap(some)
    assert isinstance(maps, np.ndarray)
    assert (maps.shape, maps.dtype) == ((4, SIZE, SIZE), np.float32)
    kl = [explanation.kl for explanation in fitted.explain(some)]
    sums = maps.sum((1, 2), dtype=np.float64) + kl
    np.testing.assert_allclose(sums, fitted.anomaly_score(some), rtol=1e-4)


def test_a_map_of_source_pixels_lies_on_its_image(fitted: ImageVAEDetector, X: np.ndarray) -> None:
    """Each has its image's own size, and lies where the image does in the square."""
    wide = X[0].repeat(2, 1)
    maps = fitted.heatmap([X[1], wide, X[2].repeat(3, 0).repeat(3, 1)], source_pixels=True)
    assert [heat.shape for heat in maps] == [(16, 16), (16, 32), (48, 48)]
    np.testing.assert_array_equal(maps[0], fitted.heatmap(X[1:2])[0])
    square = fitted.heatmap([wide])[0]
    assert square[4:12].min() <= maps[1].min() <= maps[1].max() <= square[4:12].max()


def test_what_cropping_hides_has_no_value_in_a_map(X: np.ndarray) -> None:
    cropping = tiny(fit_mode="crop", epochs=1).fit(X)
    (heat,) = cropping.heatmap([X[0].repeat(2, 1)], source_pixels=True)
    assert np.isnan(heat[:, :8]).all()
    assert np.isnan(heat[:, 24:]).all()
    assert np.isfinite(heat[:, 8:24]).all()


def test_reconstruct_returns_what_the_model_expects(
    fitted: ImageVAEDetector, in_colour: ImageVAEDetector, X: np.ndarray
) -> None:
    expected = fitted.reconstruct(X[:3])
    assert expected.shape == (3, SIZE, SIZE)
    assert (expected >= 0).all()
    assert (expected <= 1).all()
    parts = fitted.bundle_.scorer.explain(fitted._batch(X[:3]))
    np.testing.assert_array_equal(expected.reshape(3, -1), parts.expected.clip(0, 1))
    assert in_colour.reconstruct(coloured(X)[:2]).shape == (2, SIZE, SIZE, 3)
    with pytest.raises(NotFittedError):
        tiny().reconstruct(X)


# ---------------------------------------------------------------- what a fit says


def test_a_grey_model_of_images_in_colour_says_so(X: np.ndarray) -> None:
    said = "60 of 60 images are in colour, but the model sees grey; set data.channels: 3"
    with pytest.warns(UserWarning, match=said):
        detector = tiny(epochs=1).fit(coloured(X))
    assert [note for note in detector.notes_ if note.startswith(said)]


def test_a_fit_notes_integers_without_a_range_and_volumes(X: np.ndarray) -> None:
    volumes = X.reshape(4, 15, SIZE, SIZE).astype(np.int16) - 100
    detector = tiny(epochs=1).fit(volumes)
    stretched, slices = detector.notes_
    assert "integers of type int16 state no range" in stretched
    assert "call calibrate(X) with slices of other ones" in slices
    assert detector.predict(volumes).shape == (60,)
    windowed = tiny(epochs=1, intensity_window=(28, 256)).fit(list(X.astype(np.int16) - 100))
    assert windowed.notes_ == ()


def test_a_window_has_a_name(X: np.ndarray, tmp_path: Path) -> None:
    """Hounsfield units are read by it, and the name is the argument that comes back."""
    detector = tiny(epochs=1, intensity_window="lung").fit(X)
    again = ImageVAEDetector.load(detector.save(tmp_path / "bundle"))
    assert again.intensity_window == "lung"
    hounsfield = X.astype(np.int16) * 4 - 1100
    np.testing.assert_array_equal(
        again.anomaly_score(hounsfield), detector.anomaly_score(hounsfield.astype(np.float32))
    )


# ---------------------------------------------------------------- latent space


def test_transform_gives_latents_that_inverse_transform_makes_images_of(
    fitted: ImageVAEDetector, X: np.ndarray
) -> None:
    z = fitted.transform(X)
    assert z.shape == (N, 2)
    assert z.dtype == np.float64
    assert list(fitted.get_feature_names_out()) == ["latent0", "latent1"]
    back = fitted.inverse_transform(z)
    assert back.shape == X.shape
    assert (back >= 0).all()
    assert (back <= 1).all()
    assert len(np.unique(back)) > 10


def test_inverse_transform_refuses_latents_of_another_length(fitted: ImageVAEDetector) -> None:
    with pytest.raises(DataError):
        fitted.inverse_transform(np.zeros((3, 5)))


def test_samples_come_as_what_was_fitted_and_repeat_by_seed(
    fitted: ImageVAEDetector, in_colour: ImageVAEDetector
) -> None:
    assert fitted.sample().shape == (1, SIZE, SIZE)
    assert in_colour.sample(3).shape == (3, SIZE, SIZE, 3)
    np.testing.assert_array_equal(fitted.sample(3), fitted.sample(3))
    assert not np.array_equal(fitted.sample(3), fitted.sample(3, random_state=1))
    assert in_colour.inverse_transform(np.zeros((2, 2))).shape == (2, SIZE, SIZE, 3)


def test_samples_can_be_scored(fitted: ImageVAEDetector) -> None:
    assert np.isfinite(fitted.anomaly_score(fitted.sample(3))).all()


# ---------------------------------------------------------------- saving


def test_save_and_load_keep_scores_decisions_and_arguments(
    fitted: ImageVAEDetector, X: np.ndarray, tmp_path: Path
) -> None:
    loaded = ImageVAEDetector.load(fitted.save(tmp_path / "bundle"))
    assert loaded.bundle_.digest == fitted.bundle_.digest == load_bundle(tmp_path / "bundle").digest
    assert (loaded.offset_, loaded.n_iter_) == (fitted.offset_, 2)
    set_by_hand = {**TINY_IMAGES, "random_state": 0}
    assert {name: loaded.get_params()[name] for name in set_by_hand} == set_by_hand
    np.testing.assert_array_equal(loaded.p_values(X), fitted.p_values(X))
    np.testing.assert_array_equal(loaded.sample(2), fitted.sample(2))


@pytest.mark.parametrize("through", [lambda d: pickle.loads(pickle.dumps(d)), copy.deepcopy])
def test_pickle_and_deepcopy_keep_a_fitted_detector(
    fitted: ImageVAEDetector,
    X: np.ndarray,
    through: Callable[[ImageVAEDetector], ImageVAEDetector],
) -> None:
    fitted.predict(X[:1])  # a session that cannot be pickled is open now
    same = through(fitted)
    np.testing.assert_array_equal(same.predict(X), fitted.predict(X))
    assert same.bundle_.digest == fitted.bundle_.digest


def test_a_bundle_of_the_command_line_loads_and_can_be_calibrated(
    image_bundle: Bundle, image_dataset: ImageDataset, tmp_path: Path
) -> None:
    loaded = ImageVAEDetector.load(image_bundle.save(tmp_path / "bundle"))
    truth = image_bundle.scorer.score(image_dataset.batch)
    np.testing.assert_array_equal(loaded.anomaly_score(image_dataset.files), truth)
    for decide in (loaded.predict, loaded.decision_function, loaded.p_values):
        with pytest.raises(NotCalibratedError, match=r"call calibrate\(X\)"):
            decide(image_dataset.files[:2])
    normal = [
        file
        for file, odd in zip(image_dataset.files, image_dataset.rows.anomaly, strict=True)
        if not odd
    ]
    assert np.mean(loaded.set_params(alpha=0.1).calibrate(normal).predict(normal) == -1) <= 0.1


@pytest.mark.parametrize("version", ["format-1", "format-2"])
def test_a_bundle_with_the_old_names_of_keys_loads(version: str, fixtures: Path) -> None:
    loaded = ImageVAEDetector.load(fixtures / version / "image")
    arguments, head = loaded.get_params(), version == "format-2"
    assert (arguments["intensity_window"], arguments["localization_head"]) == ("auto", head)
    assert arguments["score_type"] == ("contamination" if head else "neg_elbo")
    assert clone(loaded).get_params() == arguments


def test_a_bundle_of_another_kind_is_refused(fitted: ImageVAEDetector, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="holds a model of kind 'image', not 'tabular'"):
        TabularVAEDetector.load(fitted.save(tmp_path / "bundle"))


def test_an_estimator_fits_and_records_images_that_are_not_square(tmp_path: Path) -> None:
    wide = np.random.default_rng(0).random((40, 16, 32))
    kept = tiny(epochs=1, alpha=0.2).fit(wide)
    again = ImageVAEDetector.load(kept.save(tmp_path / "bundle"))
    changed = wide.copy()
    changed[:, :, :6] = 1 - changed[:, :, :6]  # outside of the central square
    assert (again.fit_mode, again.spacing) == ("pad", "auto")
    np.testing.assert_array_equal(again.anomaly_score(wide), kept.anomaly_score(wide))
    assert (again.anomaly_score(changed) != kept.anomaly_score(wide)).all()


def test_a_model_that_records_no_geometry_still_crops(fixtures: Path) -> None:
    arguments = ImageVAEDetector.load(fixtures / "format-2" / "image").get_params()
    assert (arguments["fit_mode"], arguments["spacing"]) == ("crop", "ignore")


def test_tiles_of_a_large_image_give_one_score_one_map_and_no_blind_border(tmp_path: Path) -> None:
    X = blobs(40, size=40)
    marked = X.copy()
    marked[:, 36:, 36:] = 255 * (np.indices((4, 4)).sum(0) % 2)  # in the last tile alone
    detector = tiny(size=40, tiles=16, network="dense", likelihood="gaussian").fit(X)
    rise = detector.heatmap(marked) - detector.heatmap(X)
    assert rise.shape == (40, 40, 40)
    where = np.array([np.unravel_index(one.argmax(), one.shape) for one in rise])
    assert (where >= 28).all()
    for found, score in zip(detector.explain(X), detector.anomaly_score(X), strict=True):
        assert sum(one.nats for one in found.regions) + found.rest + found.kl == pytest.approx(
            score
        )
    assert detector.reconstruct(X[:2]).shape == (2, 40, 40)
    assert detector.transform(X[:2]).shape == (2, 2)
    assert detector.sample(2).shape == (2, 16, 16)
    loaded = ImageVAEDetector.load(detector.save(tmp_path / "model"))
    assert (loaded.tiles, loaded.tile_overlap) == (16, 0.25)
    np.testing.assert_array_equal(loaded.anomaly_score(marked), detector.anomaly_score(marked))
    with pytest.raises(BundleError, match="tiles of 16 × 16 pixels"):
        latent_means(loaded.bundle_, loaded._batch(X[:2]))

"""What generating tables and images share: endings that are known, and maps of latents."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.calibration.conformal import calibrate
from anomaly_vae.errors import ConfigError, DataError, NotCalibratedError
from pipelines.generate import common
from pipelines.generate.common import FLAGGED, GREY, Labels, Points


@pytest.mark.parametrize("name", ["a.csv", "b.CSV", "c.d.csv"])
def test_a_known_ending_is_found_in_any_case(name: str) -> None:
    assert common.ending(name, ".png", ".csv") == ".csv"


@pytest.mark.parametrize("name", ["a.txt", "csv", "a.csv.gz", "folder/"])
def test_an_unknown_ending_is_refused_with_those_that_are_known(name: str) -> None:
    with pytest.raises(ConfigError, match=r"must end in \.png or \.csv"):
        common.ending(name, ".png", ".csv")


def test_a_colour_is_for_maps() -> None:
    common.check_colour(".png", "score")
    common.check_colour(".csv", None)
    with pytest.raises(ConfigError, match="--color label is for maps"):
        common.check_colour(".csv", "label")


# ---------------------------------------------------------------- the plane


@pytest.mark.parametrize(
    ("rows", "dims"), [(1, 1), (1, 5), (3, 2), (2, 9), (50, 1), (70, 80), (1, 3000), (80, 3000)]
)
def test_the_plane_is_two_dimensional_whatever_the_latents(rows: int, dims: int) -> None:
    z = np.random.default_rng(0).normal(size=(rows, dims)).astype(np.float32)
    points, _ = common.plane(z)
    assert points.shape == (rows, 2)
    assert np.isfinite(points).all()


def test_the_plane_shows_two_dimensions_as_they_are_and_the_widest_of_more() -> None:
    z = np.random.default_rng(0).normal(size=(400, 5)).astype(np.float32)
    np.testing.assert_array_equal(common.plane(z[:, :2])[0], z[:, :2])
    points, labels = common.plane(z * np.float32([1, 9, 1, 1, 4]))
    assert points.var(0) == pytest.approx([81, 16], rel=0.2)
    assert labels[0].startswith("component 1 (8")


def test_thousands_of_latents_have_the_same_plane_as_all_components_would_give() -> None:
    rng = np.random.default_rng(0)
    spread = np.r_[9.0, 5.0, np.ones(498)]
    z = (rng.normal(size=(200, 500)) * spread).astype(np.float32)
    centred = z.astype(np.float64) - z.mean(0, dtype=np.float64)
    u, singular, _ = np.linalg.svd(centred, full_matrices=False)
    points, _ = common.plane(z)
    np.testing.assert_allclose(np.abs(points), np.abs(u[:, :2] * singular[:2]), atol=1e-6)
    np.testing.assert_array_equal(points, common.plane(z)[0])


# ---------------------------------------------------------------- the map


def points(bundle: Bundle, labels: Labels = ()) -> Points:
    x = np.random.default_rng(0).normal(size=(40, bundle.scorer.encoding.layout.n_columns))
    explained = bundle.scorer.explain_encoded(x.astype(np.float32))
    return Points(explained.observed, explained.latent, "images", labels)


def dots(figure: Figure) -> dict[str, int]:
    """Labels of a map's collections → how many dots each has."""
    found = [c for c in figure.axes[0].collections if isinstance(c, PathCollection)]
    return {str(c.get_label()): len(np.asarray(c.get_offsets())) for c in found}


def scale(figure: Figure) -> str:
    return figure.axes[1].get_ylabel()


def test_a_map_is_coloured_by_p_value_or_by_score_without_any(
    image_bundle: Bundle, image_calibrated: Bundle
) -> None:
    shown = points(image_bundle)
    assert scale(common.latent_map(image_bundle, shown)) == "score"
    assert scale(common.latent_map(image_calibrated, shown)) == "log10 p-value"
    assert scale(common.latent_map(image_calibrated, shown, "score")) == "score"
    with pytest.raises(NotCalibratedError, match="has no threshold yet"):
        common.latent_map(image_bundle, shown, "p_value")


def test_flagged_images_are_ringed(image_bundle: Bundle) -> None:
    """Of forty images that are their own calibration, three exceed the threshold of a tenth."""
    shown = points(image_bundle)
    own = calibrate(image_bundle.scorer.score_encoded(shown.x), alpha=0.1)
    found = dots(common.latent_map(image_bundle.calibrated(own, None), shown))
    assert found.pop("flagged (3)") == 3
    assert list(found.values()) == [40]


def test_labels_have_colours_and_the_rare_and_the_unknown_share_one(image_bundle: Bundle) -> None:
    known = [str(i) for i in range(9) for _ in range(9 - i)][:38]
    labels = [*known, None, None]
    figure = common.latent_map(image_bundle, points(image_bundle, labels), "label")
    found = dots(figure)
    assert found["label 0 (9)"] == 9
    assert sum(found.values()) == 40
    others = 2 + sum(labels.count(name) for name in map(str, range(7, 9)))
    assert found[f"label others ({others})"] == others


def test_a_map_by_labels_that_nobody_gave_is_refused(image_bundle: Bundle) -> None:
    for labels in ((), (None,) * 40):
        with pytest.raises(DataError, match="no input has a 'label'"):
            common.latent_map(image_bundle, points(image_bundle, labels), "label")


@given(st.lists(st.one_of(st.none(), st.sampled_from("abcdefghijk")), max_size=60))
def test_the_most_frequent_labels_have_colours_of_their_own(labels: list[str | None]) -> None:
    found = common.label_colours(labels)
    counts = [labels.count(name) for name in found]
    assert counts == sorted(counts, reverse=True)
    assert len(set(found.values()) - {GREY, FLAGGED}) == len(found)
    left_out = {name for name in labels if name is not None} - found.keys()
    assert all(labels.count(name) <= min(counts, default=0) for name in left_out)
    assert not left_out or len(found) == len(common.COLOURS)


def test_a_map_is_written_as_a_picture(image_bundle: Bundle, tmp_path: Path) -> None:
    common.write_map(image_bundle, points(image_bundle), None, tmp_path / "new" / "map.png")
    assert (tmp_path / "new" / "map.png").read_bytes().startswith(b"\x89PNG")

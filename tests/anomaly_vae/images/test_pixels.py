"""Values become grey levels, and limits refuse what exceeds them."""

import gzip

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomaly_vae.errors import ConfigError, DataError
from anomaly_vae.images.pixels import (
    MAX_PIXEL,
    DecodeOptions,
    check_finite,
    inflate,
    percentile_bounds,
    stretch,
    window_bounds,
)


@pytest.mark.parametrize(
    "wrong",
    [
        {"axis": 3},
        {"intensity_window": (40, 0.5)},
        {"intensity_window": (float("nan"), 5)},
        {"intensity_window": "wide"},
    ],
)
def test_a_reading_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        DecodeOptions(**wrong)


def test_the_bounds_are_percentiles_unless_they_coincide() -> None:
    assert percentile_bounds(np.arange(1001.0)) == (5.0, 995.0)
    rare = np.zeros(1000)
    rare[3] = 7
    assert percentile_bounds(rare) == (0.0, 7.0)
    assert percentile_bounds(np.full(9, 2)) == (2.0, 2.0)


def test_a_window_of_the_standard_is_half_a_value_left_of_its_center() -> None:
    assert window_bounds(2048, 4096) == (0.0, 4095.0)
    assert window_bounds(0, 100) == (-50.0, 49.0)


@given(st.floats(-1e3, 1e3), st.floats(0.5, 1e3))
def test_stretching_is_linear_between_black_and_white(low: float, width: float) -> None:
    shares = np.array([-1, 0, 0.25, 0.5, 1, 2])
    found = stretch(low + shares * width, (low, low + width))
    assert found.dtype == np.uint16
    np.testing.assert_allclose(found, np.clip(shares, 0, 1) * MAX_PIXEL, atol=1)


def test_without_a_range_what_exceeds_the_bound_is_white() -> None:
    found = stretch(np.array([1.0, 2.0, 3.0]), (2.0, 2.0))
    assert found.tolist() == [0, 0, MAX_PIXEL]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_counted(bad: float) -> None:
    check_finite(np.ones(3))
    with pytest.raises(DataError, match=r"^1 of its values are NaN or infinite"):
        check_finite(np.array([1.0, bad]))


def test_each_limit_is_the_largest_that_passes() -> None:
    options = DecodeOptions(max_pixels=12, max_frames=2, max_bytes=5)
    options.check_size(3, 4)
    options.check_frames(2)
    options.check_bytes(5)
    with pytest.raises(DataError, match="13 × 1 pixels is over the limit of 12"):
        options.check_size(1, 13)
    with pytest.raises(DataError, match="more than 2 frames"):
        options.check_frames(3)
    with pytest.raises(DataError, match="more than 5 bytes"):
        options.check_bytes(6)
    for check in (lambda: options.check_size(0, 4), lambda: options.check_frames(0)):
        with pytest.raises(DataError, match="its header says that it has no"):
            check()


def test_gzip_members_are_joined_and_a_cut_one_is_refused() -> None:
    whole = gzip.compress(b"ab" * 50) + gzip.compress(b"cd")
    assert inflate(whole, 31, DecodeOptions()) == b"ab" * 50 + b"cd"
    with pytest.raises(DataError, match="cut short"):
        inflate(whole[:-5], 31, DecodeOptions())


def test_what_unpacks_to_too_much_is_refused_without_unpacking_all() -> None:
    bomb = gzip.compress(bytes(10_000_000))
    with pytest.raises(DataError, match="more than 1000 bytes"):
        inflate(bomb, 31, DecodeOptions(max_bytes=1000))

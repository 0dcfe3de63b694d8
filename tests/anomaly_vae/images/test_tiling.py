"""Check that tiles cover an image, and that maps are put together of the best part of each."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomaly_vae.images.tiling import Tiling

TILINGS = st.builds(
    lambda side, more, overlap: Tiling(side + more, side, overlap),
    st.integers(4, 40),
    st.integers(1, 200),
    st.floats(0, 0.5),
)


@given(TILINGS)
def test_tiles_cover_the_image_to_its_last_row(tiling: Tiling) -> None:
    covered = {row for start in tiling.starts for row in range(start, start + tiling.side)}
    assert covered == set(range(tiling.size))


@given(TILINGS)
def test_neighbours_have_the_overlap_that_was_asked_for(tiling: Tiling) -> None:
    shared = tiling.side - np.diff(tiling.starts)
    assert (shared >= np.floor(tiling.overlap * tiling.side)).all()


@given(TILINGS)
def test_the_parts_that_a_map_takes_follow_each_other(tiling: Tiling) -> None:
    spans = [
        range(start + low, start + high)
        for start, (low, high) in zip(tiling.starts, tiling.kept, strict=True)
    ]
    assert [row for span in spans for row in span] == list(range(tiling.size))


@given(TILINGS)
def test_a_map_takes_every_row_from_the_tile_in_which_it_is_deepest(tiling: Tiling) -> None:
    for start, (low, high) in zip(tiling.starts, tiling.kept, strict=True):
        for row in (start + low, start + high - 1):
            depth = {
                other: min(row - other if other else row + tiling.size,
                           other + tiling.side - 1 - row
                           if other + tiling.side < tiling.size else tiling.size)
                for other in tiling.starts
                if other <= row < other + tiling.side
            }  # fmt: skip
            assert depth[start] >= max(depth.values()) - 1


@pytest.mark.parametrize("channels", [1, 3])
def test_tiles_are_parts_of_the_image(channels: int) -> None:
    tiling = Tiling(size=11, side=4, overlap=0.25)
    images = np.random.default_rng(0).random((2, channels, 11, 11), np.float32)
    tiles = tiling.cut(images.reshape(2, -1), channels)
    expected = [
        image[:, row : row + 4, column : column + 4]
        for image in images
        for row in tiling.starts
        for column in tiling.starts
    ]
    np.testing.assert_array_equal(tiles.reshape(-1, channels, 4, 4), expected)

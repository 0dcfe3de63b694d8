"""Types that several packages share agree with what these packages support."""

from typing import get_args

import pytest

from anomaly_vae.calibration.thresholds import METHODS
from anomaly_vae.config.data import Feature, ImageData
from anomaly_vae.images.pixels import DecodeOptions
from anomaly_vae.types import (
    MAX_BYTES,
    MAX_FRAMES,
    MAX_LEVELS,
    MAX_PIXELS,
    MAX_SECONDS,
    MIN_COUNT,
    ColumnType,
    Method,
)


def test_every_method_chooses_thresholds() -> None:
    assert set(get_args(Method)) == set(METHODS)


@pytest.mark.parametrize("kind", ColumnType)
def test_a_column_type_is_written_as_its_value(kind: ColumnType) -> None:
    assert Feature.model_validate({"type": kind.value}).type is kind
    assert f"{kind}" == kind.value == kind.name.lower()


@pytest.mark.parametrize("limits", [DecodeOptions(), ImageData(path="x")], ids=["code", "file"])
def test_images_have_these_limits_by_default(limits: DecodeOptions | ImageData) -> None:
    found = (limits.max_pixels, limits.max_bytes, limits.max_frames, limits.max_seconds)
    assert found == (MAX_PIXELS, MAX_BYTES, MAX_FRAMES, MAX_SECONDS)


def test_categorical_columns_have_these_limits_by_default() -> None:
    feature = Feature(type=ColumnType.CATEGORICAL)
    assert (feature.max_levels, feature.min_count) == (MAX_LEVELS, MIN_COUNT)

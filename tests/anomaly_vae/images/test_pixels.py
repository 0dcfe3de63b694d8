"""Values become grey levels, and limits refuse what exceeds them."""

import pytest

from anomaly_vae.errors import ConfigError
from anomaly_vae.images.pixels import DecodeOptions


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

"""The interval of a share of reviewed rows."""

import pytest

from anomaly_vae.review import Share


@pytest.mark.parametrize(
    ("found", "reviewed", "lower", "upper"),
    [
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (1, 10, 0.0179, 0.4042),
        (50, 100, 0.4038, 0.5962),
    ],
)
def test_it_is_that_of_wilson(found, reviewed, lower, upper):
    share = Share(found, reviewed)
    assert (share.lower, share.upper) == pytest.approx((lower, upper), abs=1e-4)

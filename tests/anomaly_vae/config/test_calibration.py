"""Each calibration method takes its own keys and no others."""

from typing import Any

import pytest

from anomaly_vae.config import validate_config
from anomaly_vae.errors import ConfigError
from tests.support.configurations import LEAST


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        (
            {"delta": 0.1},
            "method conformal has no delta, only alpha, group_by, trim_scores, density_ratio",
        ),
        ({"method": "certified", "tail": 0.2}, "method certified has no tail, only alpha, delta"),
        ({"method": "certifed"}, "did you mean certified"),
        ({"method": "budget"}, "method budget needs per_1000 or per_day"),
        ({"method": "cost"}, "method cost needs costs.review or costs.blocked"),
        ({"method": "budget", "per_1000": 1, "alpha": 0.2}, "method budget has no alpha"),
    ],
)
def test_a_key_of_another_method_is_refused(calibration: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate_config({**LEAST, "calibration": calibration})


def test_null_takes_back_what_a_file_says_of_another_method() -> None:
    calibration = {"method": "quantile", "alpha": 0.03, "delta": None}
    assert validate_config({**LEAST, "calibration": calibration}).calibration.alpha == 0.03

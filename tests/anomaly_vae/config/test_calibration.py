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
        ({"entity": "CUSTOMER_ID"}, "method conformal has no entity"),
        ({"method": "budget", "per_1000": 1, "entity": "C"}, "entity is for a budget per day"),
        ({"method": "budget", "per_1000": 1, "time_zone": "UTC"}, "time_zone is for a budget per"),
        ({"method": "budget", "per_day": 1, "time_zone": "Mars"}, "no such time zone; give a name"),
        ({"method": "budget", "per_day": 1, "time_zone": "Europe"}, "no such time zone"),
        ({"method": "budget", "per_day": 1, "time_zone": "../x"}, "no such time zone"),
    ],
)
def test_a_key_of_another_method_is_refused(calibration: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate_config({**LEAST, "calibration": calibration})


def test_null_takes_back_what_a_file_says_of_another_method() -> None:
    calibration = {"method": "quantile", "alpha": 0.03, "delta": None}
    assert validate_config({**LEAST, "calibration": calibration}).calibration.alpha == 0.03


def test_the_manifest_leaves_out_the_entity_and_the_zone_unless_they_are_set() -> None:
    """Older versions refuse unknown keys, and the same inputs keep their digest."""
    budget = {"method": "budget", "per_day": 9}
    plain = validate_config({**LEAST, "calibration": budget}).recorded()["calibration"]
    assert not {"entity", "time_zone"} & set(plain)
    given = {**budget, "entity": "CUSTOMER_ID", "time_zone": "Europe/Berlin"}
    recorded = validate_config({**LEAST, "calibration": given}).recorded()["calibration"]
    assert recorded.items() >= given.items()
    assert validate_config({**LEAST, "calibration": recorded}).calibration.entity == "CUSTOMER_ID"


def test_an_image_has_no_entity() -> None:
    content = {"kind": "image", "name": "scans", "data": {"path": "scans"}}
    calibration = {"method": "budget", "per_day": 9, "entity": "patient"}
    with pytest.raises(ConfigError, match="entity names a column, and an image"):
        validate_config({**content, "calibration": calibration})

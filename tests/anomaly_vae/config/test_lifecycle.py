"""Evaluation, promotion and the registry have defaults, and limits that mean something."""

from typing import Any

import pytest

from anomaly_vae.config import validate_config
from anomaly_vae.config.lifecycle import EvaluationConfig, MLflowConfig, PromotionConfig
from anomaly_vae.errors import ConfigError
from tests.support.configurations import LEAST, SCANS


@pytest.mark.parametrize("least", [LEAST, SCANS], ids=["table", "images"])
def test_every_kind_has_the_three_sections(least: dict[str, Any]) -> None:
    config = validate_config(least)
    assert config.evaluation == EvaluationConfig()
    assert config.promotion == PromotionConfig()
    assert config.mlflow == MLflowConfig()


def test_without_a_policy_a_challenger_must_be_shown_to_be_worse() -> None:
    policy = PromotionConfig()
    assert (policy.metric, policy.proof, policy.tolerance) == ("average_precision", "worse", 0.0)
    limits = (policy.agreement, policy.row_microseconds, policy.slowdown, policy.megabytes)
    assert limits == (None,) * 4


def test_null_lifts_the_limit_on_slices() -> None:
    assert PromotionConfig().slice_recall == 0.1
    config = validate_config({**LEAST, "promotion": {"slice_recall": None}})
    assert config.promotion.slice_recall is None


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("evaluation", "top", 0),
        ("evaluation", "slices", "channel"),
        ("promotion", "metric", "accuracy"),
        ("promotion", "tolerance", -0.1),
        ("promotion", "tolerance", 1),
        ("promotion", "proof", "better"),
        ("promotion", "confidence", 1),
        ("promotion", "slice_recall", 0),
        ("promotion", "agreement", 1.5),
        ("promotion", "row_microseconds", 0),
        ("promotion", "slowdown", -2),
        ("promotion", "megabytes", 0),
        ("mlflow", "tracking_uri", None),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_key(section: str, key: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        validate_config({**LEAST, section: {key: value}})
    assert caught.value.key == f"{section}.{key}"


TIMED = {**LEAST, "data": {**LEAST["data"], "time": "at"}}  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("renewal", "key"),
    [
        ({}, "promotion.renew_test"),
        ({"days": 0}, "promotion.renew_test.days"),
        ({"promotions": 0}, "promotion.renew_test.promotions"),
        ({"day": 3}, "promotion.renew_test.day"),
    ],
)
def test_a_renewal_needs_a_limit_that_can_be_reached(renewal: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate_config({**TIMED, "promotion": {"renew_test": renewal}})
    assert caught.value.key == key


@pytest.mark.parametrize("least", [LEAST, SCANS], ids=["table", "images"])
def test_a_renewal_needs_times(least: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"name data\.time"):
        validate_config({**least, "promotion": {"renew_test": {"promotions": 3}}})
    assert validate_config({**TIMED, "promotion": {"renew_test": {"days": 90}}})

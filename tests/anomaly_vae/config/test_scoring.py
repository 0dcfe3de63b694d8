"""A score can be written as its type alone."""

import pytest

from anomaly_vae.config.scoring import ImageScoreConfig, ScoreConfig
from tests.support.configurations import with_yaml


def test_a_score_may_be_written_as_its_type() -> None:
    assert with_yaml("score: reconstruction").score.type == "reconstruction"
    best = with_yaml("{preset: best, score: reconstruction}")
    assert best.score.type == "reconstruction"
    assert best.model.members == 8


@pytest.mark.parametrize(
    ("score", "unit"),
    [
        (ScoreConfig(), "nats"),
        (ScoreConfig(type="reconstruction"), "nats"),
        (ImageScoreConfig(), "sd"),
        (ImageScoreConfig(standardise=False), "nats"),
        (ImageScoreConfig(type="contamination"), "nats"),
        (ImageScoreConfig(type="contamination", standardise=True), "sd"),
    ],
)
def test_a_score_is_in_nats_unless_it_is_standardised(
    score: ScoreConfig | ImageScoreConfig, unit: str
) -> None:
    assert score.unit == unit

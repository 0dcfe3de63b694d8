"""What is said about the likeness of a row to known anomalies."""

from __future__ import annotations

import numpy as np
import pytest

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.scoring.detector import Contribution, Explanation, explanations
from anomaly_vae.scoring.known import LIKE, NOT_LIKE, column_shares
from anomaly_vae.scoring.wording import Wording
from anomaly_vae.training.fit import fit_bundle
from anomaly_vae.types import KNOWN_ANOMALIES
from tests.support.known import known_config, prepared_rows, rows


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    """Return a model that has learned from known anomalies."""
    config = known_config()
    return fit_bundle(config, prepared_rows(config), data={}).bundle


@pytest.fixture(scope="module")
def explained(bundle):
    """Return the explanations of 60 anomalies and 60 normal rows, with all contributions."""
    batch = bundle.scorer.schema.from_arrow(rows(120, seed=5))
    return explanations(bundle.scorer, batch, bundle.scorer.explain(batch), None)


def line(explanation):
    """Return the contribution of the likeness."""
    return next(c for c in explanation.contributions if c.feature == KNOWN_ANOMALIES)


def test_contributions_sum_to_the_score(bundle, explained):
    scores = bundle.scorer.score(bundle.scorer.schema.from_arrow(rows(120, seed=5)))
    sums = [sum(c.nats for c in one.contributions) + one.rest + one.kl for one in explained]
    np.testing.assert_allclose(sums, scores, rtol=1e-9)


def test_a_known_anomaly_is_said_to_be_one_by_its_columns(explained):
    anomalies = explained[:60]
    named = [line(one) for one in anomalies if line(one).nats >= LIKE]
    assert len(named) > 50
    assert all(c.expected == NOT_LIKE and "(+" in c.observed for c in named)
    by_b = [c for c in named if c.observed.startswith(("a 1.", "b -1."))]
    assert len(by_b) > 0.9 * len(named)
    first = [one.contributions[0].feature for one in anomalies]
    assert first.count(KNOWN_ANOMALIES) > 40


def test_nothing_is_said_of_rows_that_are_not_like_any(explained):
    unlike = [one for one in explained[60:] if line(one).nats < LIKE]
    assert len(unlike) > 40
    assert all(line(one).observed is None for one in unlike)
    assert not any("resembles" in text for one in unlike for text in Wording({}).reasons(one))


def test_shares_never_exceed_the_likeness(bundle):
    x = bundle.scorer.encoding.encode(bundle.scorer.schema.from_arrow(rows(120, seed=5)))
    known = bundle.scorer.known_surprise(x)
    shares = column_shares(bundle.scorer, x, known)
    assert shares.shape == (120, 4)
    assert (shares >= 0).all()
    assert (shares.sum(1) <= known + 1e-9).all()
    assert column_shares(bundle.scorer, x[:0], known[:0]).shape == (0, 4)


def test_reviewers_read_what_it_resembles():
    one = Contribution(KNOWN_ANOMALIES, 4.0, "amount 950 (+3.1), channel web (+0.8)", NOT_LIKE)
    explanation = Explanation((one,), 0.0, 0.0)
    assert Wording({}).reasons(explanation) == (
        "resembles known anomalies: amount 950, channel web",
    )
    fraud = Wording({}, known="known fraud")
    assert fraud.reasons(explanation) == ("resembles known fraud: amount 950, channel web",)


@pytest.mark.parametrize(("label", "said"), [("TX_FRAUD", "fraud"), ("broken", "anomalies")])
def test_fraud_is_called_fraud(bundle, label, said):
    assert Wording.of(bundle.scorer.encoding, {"label": label}).known == f"known {said}"


def test_a_model_without_a_head_says_nothing():
    config = known_config("off")
    plain = fit_bundle(config, prepared_rows(config), data={}).bundle.scorer
    batch = plain.schema.from_arrow(rows(70))
    (one, *_) = explanations(plain, batch, plain.explain(batch), None)
    assert [c.feature for c in one.contributions if c.feature == KNOWN_ANOMALIES] == []
    assert (plain.explain(batch).known == 0).all()

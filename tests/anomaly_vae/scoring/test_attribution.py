"""The column that makes a row odd is named first, and shares add up to the score."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from anomaly_vae.config import Config
from anomaly_vae.config.training import TrainingConfig
from anomaly_vae.data.encoding import Matrix
from anomaly_vae.scoring.attribution import sequential_dropout
from anomaly_vae.scoring.scorer import ScoreParts, Scorer
from anomaly_vae.training.fit import Prepared, fit_bundle
from pipelines.datasets.dataset import Dataset


@pytest.fixture(scope="module")
def scorer(config: Config, prepared: Prepared, dataset: Dataset) -> Scorer:
    """A detector fitted for several times as many epochs as that of other tests."""
    longer = config.model_copy(update={"training": TrainingConfig(epochs=20)})
    return fit_bundle(longer, prepared, dataset.summary()).bundle.scorer


def reasons(scorer: Scorer, x: Matrix) -> ScoreParts:
    return sequential_dropout(scorer, scorer.explain_encoded(x))


def numeric(scorer: Scorer) -> list[tuple[int, int]]:
    """Return each numeric column's position among the raw columns and in the matrix."""
    pairs = zip(scorer.encoding.columns, scorer.encoding.starts, strict=True)
    labels = scorer.encoding.labels
    return [(labels.index(c.name), start) for c, start in pairs if c.type == "numeric"]


@pytest.mark.parametrize(("odd_value", "share"), [(8, 0.9), (100, 0.95), (1e4, 0.95)])
def test_one_odd_value_in_an_ordinary_row_is_the_first_reason(
    scorer: Scorer, prepared: Prepared, odd_value: float, share: float
) -> None:
    """Each numeric column in turn is set to a number of deviations from the mean."""
    normal = np.nan_to_num(prepared.validation)
    hits = []
    for index, start in numeric(scorer):
        odd = normal.copy()
        odd[:, start] = odd_value
        hits.append(np.mean(reasons(scorer, odd).nats.argmax(1) == index))
    assert len(hits) > 5
    assert np.mean(hits) > share


def test_two_odd_values_are_the_first_two_reasons(scorer: Scorer, prepared: Prepared) -> None:
    normal = np.nan_to_num(prepared.validation)
    hits = []
    for (first, start), (second, other) in pairwise(numeric(scorer)):
        odd = normal.copy()
        odd[:, start], odd[:, other] = 20, -20
        found = np.argsort(-reasons(scorer, odd).nats, 1)[:, :2]
        hits.append(np.mean(np.sort(found, 1) == sorted((first, second))))
    assert np.mean(hits) > 0.8


def test_reasons_add_up_to_the_same_score(scorer: Scorer, prepared: Prepared) -> None:
    plain = scorer.explain_encoded(prepared.validation)
    named = sequential_dropout(scorer, plain)
    np.testing.assert_array_equal(named.score, plain.score)
    np.testing.assert_allclose(named.nats.sum(1) + named.kl, plain.score, rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(named.observed, plain.observed)
    assert np.all(named.nats.max(1) >= plain.nats.min(1))


def test_a_row_s_reasons_do_not_depend_on_the_rows_beside_it(
    scorer: Scorer, prepared: Prepared
) -> None:
    together = reasons(scorer, prepared.validation)
    for row in (0, 7, len(prepared.validation) - 1):
        alone = reasons(scorer, prepared.validation[row : row + 1])
        np.testing.assert_allclose(alone.nats[0], together.nats[row], rtol=1e-6, atol=1e-6)

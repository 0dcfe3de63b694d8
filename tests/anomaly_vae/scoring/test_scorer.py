"""The scoring kernel: tiles, shapes, explanations that add up, and empty batches."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save as save_tensors

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.config.model import ModelConfig
from anomaly_vae.config.scoring import ScoreConfig
from anomaly_vae.data.encoding import Categorical, Numeric, TabularEncoding
from anomaly_vae.data.schema import Column, RawBatch, TabularSchema
from anomaly_vae.data.splitting import TEST
from anomaly_vae.export.graph_check import torch_terms
from anomaly_vae.export.onnx_tabular import export_graph, weight_tensors
from anomaly_vae.models.builder import build
from anomaly_vae.scoring.scorer import Scorer
from anomaly_vae.training.fit import Fitted
from anomaly_vae.types import ColumnType
from pipelines.datasets.dataset import Dataset
from tests.support.paths import ROOT


@pytest.fixture(scope="module")
def rows(dataset: Dataset) -> RawBatch:
    return dataset.part(TEST)


def no_rows(batch: RawBatch) -> RawBatch:
    return batch.take(np.array([], int))


def test_a_score_is_the_negative_bound_of_the_model(fitted: Fitted, rows: RawBatch) -> None:
    scorer = fitted.bundle.scorer
    x = torch.from_numpy(scorer.encoding.encode(rows))
    with torch.no_grad():
        truth = -torch_terms(fitted.model, ScoreConfig(), x).bound
    scores = scorer.score(rows)
    assert scores.dtype == np.float64
    assert scores.shape == (len(rows),)
    np.testing.assert_allclose(scores, truth, rtol=1e-5, atol=1e-5)


def test_the_model_fitted_is_the_model_exported(fitted: Fitted) -> None:
    assert 0 <= fitted.graph_error < 1e-5


def test_a_score_and_its_rate_are_the_same_without_an_explanation(
    bundle: Bundle, rows: RawBatch
) -> None:
    scorer = bundle.scorer
    explained = scorer.explain(rows)
    score, (_, rate) = scorer.scores_and_terms(scorer.encoding.encode(rows))
    np.testing.assert_array_equal(score, explained.score)
    np.testing.assert_array_equal(rate, explained.kl)
    np.testing.assert_allclose(explained.nats.sum(1) + rate, score, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("tile", [1, 7, 299, 300, 301, 10_000])
def test_tiles_change_nothing(
    tile: int, bundle: Bundle, rows: RawBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = bundle.scorer.explain(rows)
    monkeypatch.setattr(TabularEncoding, "tile", tile)
    monkeypatch.setattr(bundle.scorer, "_tile_rows", tile)
    np.testing.assert_allclose(bundle.scorer.score(rows), whole.score, rtol=1e-6, atol=1e-6)
    tiled = bundle.scorer.explain(rows)
    for name, part in vars(tiled).items():
        np.testing.assert_allclose(part, getattr(whole, name), rtol=1e-5, atol=1e-5)


def test_an_explanation_has_the_score_and_its_parts(bundle: Bundle, rows: RawBatch) -> None:
    scorer = bundle.scorer
    explained = scorer.explain(rows)
    n, columns = len(rows), len(scorer.encoding.labels)
    np.testing.assert_array_equal(explained.score, scorer.score(rows))
    assert explained.nats.shape == (n, columns)
    np.testing.assert_allclose(
        explained.nats.sum(1) + explained.kl, explained.score, rtol=1e-10, atol=1e-10
    )
    losses = scorer.scored(rows).terms.loss
    np.testing.assert_allclose(losses, explained.nats.sum(1), rtol=1e-10, atol=1e-10)
    np.testing.assert_array_equal(explained.observed, scorer.encoding.encode(rows))
    assert explained.expected.shape == explained.observed.shape
    assert explained.latent.shape[0] == n
    assert np.all(explained.kl >= 0)


def test_a_missing_value_contributes_nothing(bundle: Bundle, rows: RawBatch) -> None:
    explained = bundle.scorer.explain(rows)
    x = explained.observed
    missing = bundle.scorer.encoding.per_column(np.isnan(x).astype(float)) > 0
    assert missing.any()
    assert np.all(explained.nats[missing] == 0)


def test_no_rows_have_no_scores(bundle: Bundle, rows: RawBatch) -> None:
    """A chunk may hold only rows that were refused."""
    nothing = no_rows(rows)
    assert bundle.scorer.score(nothing).shape == (0,)
    some, none = bundle.scorer.explain(rows), bundle.scorer.explain(nothing)
    for name, part in vars(none).items():
        whole = getattr(some, name)
        assert part.shape == (0, *whole.shape[1:]), name
        assert part.dtype == whole.dtype, name


def test_a_single_categorical_column_without_frequent_levels_is_scored() -> None:
    """Every level was rare in training, so the encoder sees only the missing mask."""
    schema = TabularSchema((Column("city", ColumnType.CATEGORICAL),))
    encoding = TabularEncoding((Categorical(name="city", levels=()),))
    model = build(ModelConfig(), encoding.layout)
    weights = save_tensors(weight_tensors(model, ScoreConfig()))
    scorer = Scorer(schema, encoding, export_graph(model, ScoreConfig(), weights), weights)
    scores = scorer.score(schema.from_records([{"city": "Bern"}, {"city": None}, {}]))
    assert np.isfinite(scores).all()
    assert scores[1] == scores[2]


def test_a_cycle_is_explained_as_one_column() -> None:
    """Sine and cosine belong to one column, so their shares are summed."""
    columns = (Numeric(name="a", center=0, scale=1), Numeric(name="b", center=0, scale=1, width=2))
    nats = np.array([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])
    assert TabularEncoding(columns).per_column(nats).tolist() == [[1, 6], [8, 48]]


def test_scoring_needs_no_torch(bundle: Bundle, tmp_path: Path) -> None:
    folder = bundle.save(tmp_path / "bundle")
    code = (
        "import sys\n"
        "from anomaly_vae.artifacts.bundle import load_bundle\n"
        f"bundle = load_bundle({str(folder)!r})\n"
        "rows = bundle.scorer.schema.from_records([bundle.example])\n"
        "print(bundle.scorer.score(rows)[0])\n"
        "heavy = {'torch', 'onnx', 'mlflow', 'pandas', 'scipy', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    command = [sys.executable, "-c", code]
    fresh = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert fresh.returncode == 0, fresh.stderr
    here = bundle.scorer.score(bundle.scorer.schema.from_records([bundle.example]))[0]
    assert float(fresh.stdout) == pytest.approx(here, rel=1e-9)

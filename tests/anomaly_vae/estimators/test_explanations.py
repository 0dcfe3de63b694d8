"""Explanations as a list, as a table, and as figures."""

from __future__ import annotations

import io
import sys

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from anomaly_vae import TabularVAEDetector
from anomaly_vae.errors import ConfigError, DataError
from anomaly_vae.scoring.detector import Explanation
from tests.support.estimators import tiny, tiny_images


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(200, 2)), columns=["amount ($)", "b"])
    return frame.assign(channel=np.where(rng.random(200) < 0.3, "web", "shop"))


@pytest.fixture(scope="module")
def fitted(rows: pd.DataFrame) -> TabularVAEDetector:
    return tiny().fit(rows)


@pytest.mark.parametrize("most", [None, 0, 1, 2])
def test_the_table_adds_up_to_the_scores(
    fitted: TabularVAEDetector, rows: pd.DataFrame, most: int | None
) -> None:
    found = fitted.explain(rows[:5], most)
    assert isinstance(found[0], Explanation)
    table = found.to_frame()
    listed = 3 if most is None else most
    assert table["part"].tolist() == (["column"] * listed + ["rest", "kl"]) * 5
    assert set(table["feature"].dropna()) <= {*rows.columns}
    total = table.groupby("row")["nats"].sum()
    np.testing.assert_allclose(total, fitted.anomaly_score(rows[:5]), rtol=1e-5)


def test_a_notebook_shows_the_table(fitted: TabularVAEDetector, rows: pd.DataFrame) -> None:
    shown = fitted.explain(rows[:2])._repr_html_()
    assert "<table" in shown
    assert "amount ($)" in shown


def test_nothing_to_explain_is_an_empty_table() -> None:
    from anomaly_vae.estimators.explanations import COLUMNS, Explanations

    assert tuple(Explanations().to_frame().columns) == COLUMNS


def test_scores_are_drawn_with_the_threshold(
    fitted: TabularVAEDetector, rows: pd.DataFrame
) -> None:
    axes = fitted.plot_scores(rows, np.arange(200) < 10)
    assert axes.lines[0].get_xdata()[0] == pytest.approx(-fitted.offset_)
    assert axes.figure.axes == [axes]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert {"normal (190)", "anomaly (10)"} <= set(labels)
    axes.figure.savefig(io.BytesIO())
    with pytest.raises(DataError, match="200 scores"):
        fitted.plot_scores(rows, [True])


def test_calibration_scores_are_drawn(fitted: TabularVAEDetector) -> None:
    axes = fitted.plot_calibration()
    held_out = len(fitted.bundle_.detector.calibration.scores)
    assert f"normal ({held_out})" in [t.get_text() for t in axes.get_legend().get_texts()]


def test_explanations_are_drawn(fitted: TabularVAEDetector, rows: pd.DataFrame) -> None:
    axes = fitted.plot_explanation(rows[:3], most=2)
    assert len(axes.figure.axes) == 3
    assert axes.get_title("left").startswith("row 0: score ")
    axes.figure.savefig(io.BytesIO())
    with pytest.raises(DataError, match="shows 1 to 12 rows, got 200"):
        fitted.plot_explanation(rows)


def test_images_are_drawn_with_their_maps() -> None:
    images: NDArray[np.float64] = np.random.default_rng(0).uniform(size=(40, 16, 16))
    detector = tiny_images(epochs=1, alpha=0.2).fit(images)
    axes = detector.plot_explanation(images[:2])
    assert len(axes.figure.axes) == 6
    assert detector.plot_scores(images).figure is not None
    assert set(detector.explain(images[:1]).to_frame()["part"]) >= {"rest", "kl"}


def test_an_install_without_matplotlib_names_what_is_missing(
    fitted: TabularVAEDetector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("anomaly_vae.plots", raising=False)
    monkeypatch.setitem(sys.modules, "anomaly_vae.plots", None)
    with pytest.raises(ConfigError, match=r"pip install 'anomaly-vae\[train\]'"):
        fitted.plot_calibration()

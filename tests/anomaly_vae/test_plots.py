"""Figures say what was measured: their lines, bars and labels are read back."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex
from PIL import Image
from sklearn.metrics import roc_curve

from anomaly_vae import plots
from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.calibration.conformal import calibrate
from anomaly_vae.evaluation.metrics import Evaluation, Rate, evaluate
from anomaly_vae.evaluation.p_values import UniformityPoint
from anomaly_vae.evaluation.report import EvaluationReport
from anomaly_vae.evaluation.slices import ColumnSlice
from anomaly_vae.evaluation.what_if import WhatIf
from anomaly_vae.scoring.detector import Contribution, Detections, Explanation
from anomaly_vae.training.fit import Fitted, Prepared
from anomaly_vae.training.trainer import Epoch, History


def history(elbos: list[float], best: int) -> History:
    epochs = [Epoch(i, 1.0, 1e-3, e + 1, 1.5, e + 2, 2.0, e) for i, e in enumerate(elbos)]
    return History(tuple(epochs), best, stopped_early=False)


def test_the_loss_curve_shows_the_bound_its_terms_and_the_epoch_kept() -> None:
    (axes,) = plots.loss_curve(history([-9.0, -5.0, -6.0], best=1)).axes
    lines = {str(line.get_label()): line for line in axes.lines}
    assert list(lines["ELBO, validation"].get_ydata()) == [-9.0, -5.0, -6.0]
    assert list(lines["ELBO, training"].get_ydata()) == [-9.5, -5.5, -6.5]
    terms = zip(lines["log p(x|z), validation"].get_ydata(), lines["−KL, validation"].get_ydata(),
                strict=True)  # fmt: skip
    assert [a + b for a, b in terms] == [-9.0, -5.0, -6.0]
    assert list(lines["ELBO, validation"].get_xdata()) == [1, 2, 3]
    assert list(axes.lines[-1].get_xdata()) == [2, 2]
    assert "nats" in axes.get_ylabel()


def test_a_fit_of_one_epoch_has_a_curve() -> None:
    (axes,) = plots.loss_curve(history([-9.0], best=0)).axes
    low, high = axes.get_ylim()
    assert low < -9.0 < high


def test_a_wild_first_epoch_does_not_flatten_the_curve() -> None:
    (axes,) = plots.loss_curve(history([-1e6] + [-9.0 + i / 50 for i in range(50)], best=50)).axes
    assert axes.get_ylim()[0] > -100


def test_the_histogram_shows_both_kinds_and_the_threshold(calibrated: Bundle) -> None:
    detector = calibrated.detector
    scores = np.concatenate([np.linspace(0, 10, 95), np.linspace(20, 30, 5)])
    anomaly = scores >= 20
    (axes,) = plots.score_histogram(detector, scores, anomaly).axes
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["normal (95)", "anomaly (5)", "threshold, alpha = 0.05"]
    assert axes.lines[0].get_xdata()[0] == detector.calibration.threshold


@pytest.mark.parametrize("outlier", [1e9, -1e9])
def test_the_tails_are_collected_at_the_histograms_ends(calibrated: Bundle, outlier: float) -> None:
    scores = np.concatenate([np.linspace(0, 10, 2_000), [outlier]])
    (axes,) = plots.score_histogram(calibrated.detector, scores, np.zeros(2_001, bool)).axes
    threshold = calibrated.detector.calibration.threshold
    assert abs(np.array(axes.get_xlim())).max() < abs(threshold) + 20
    assert len(axes.patches) == 1


# ---------------------------------------------------------------- evaluations


def test_the_ranking_shows_both_curves_and_where_the_threshold_lies() -> None:
    rng = np.random.default_rng(0)
    anomaly = np.arange(300) < 60
    scores = rng.normal(size=300) + 2 * anomaly
    promise = calibrate(rng.normal(size=200), 0.05)
    found = Detections(scores, promise.p_values(scores), promise.flags(scores))
    figures = evaluate(found, anomaly, promise)
    left, right = plots.ranking(scores, anomaly, figures).axes
    curve = np.column_stack([np.asarray(left.lines[0].get_xdata()), left.lines[0].get_ydata()])
    fpr, recall, _ = roc_curve(anomaly, scores, drop_intermediate=False)
    np.testing.assert_allclose(curve, np.column_stack([fpr, recall]))
    assert list(left.lines[2].get_xdata()) == [figures.fpr]
    assert list(left.lines[2].get_ydata()) == list(right.lines[2].get_xdata()) == [figures.recall]
    assert list(right.lines[2].get_ydata()) == [figures.precision]
    assert left.get_title().startswith(f"AUROC {figures.auroc:.3f} (")


def test_shares_of_p_values_are_shown_as_ratios_to_their_levels() -> None:
    steps = [UniformityPoint(0.01, 0.02, 0.0, 0.03), UniformityPoint(0.5, 0.5, 0.4, 0.6)]
    (axes,) = plots.p_values(steps, 0.01).axes
    shares = next(line for line in axes.lines if line.get_label() == "normal test rows")
    np.testing.assert_allclose(shares.get_ydata(), [2.0, 1.0])
    assert axes.get_ylim()[1] > 2
    assert axes.get_xscale() == "log"


def test_slices_above_their_limit_stand_out() -> None:
    def slice_of(level: str, value: float, limit: float | None) -> ColumnSlice:
        fpr = Rate(value, value / 2, 2 * value, 5, 100)
        return ColumnSlice("kind", level, 100, 0, fpr, limit, None, None)

    nothing = ColumnSlice("kind", "c", 100, 100, None, None, None, None)
    found = [slice_of("a", 0.01, 0.03), nothing, slice_of("b", 0.05, 0.03)]
    (axes,) = plots.slices(found, 0.01).axes
    names = [text.get_text() for text in axes.get_yticklabels()]
    assert names == ["kind = a (100)", "kind = b (100)"]
    dots = [to_hex(line.get_color()) for line in axes.lines if line.get_marker() == "o"]
    assert dots == [plots.BLUE, plots.ORANGE]


def test_an_evaluation_without_normal_rows_has_nothing_to_draw() -> None:
    nothing = ColumnSlice("kind", "c", 100, 100, None, None, None, None)
    figures = Evaluation(rows=100, anomalies=100, alpha=0.01, threshold=1.0, flagged=7)
    assert plots.report_figures(EvaluationReport(figures, slices=(nothing,))) == {}


# ---------------------------------------------------------------- reconstructions


def test_reconstructions_show_observed_against_expected(fitted: Fitted, prepared: Prepared) -> None:
    explained = fitted.bundle.scorer.explain_encoded(prepared.validation[:2])
    figure = plots.reconstructions(prepared.encoding, explained, ["first", "second"])
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["first", "second"]
    layout = prepared.encoding.layout
    count = layout.n_numeric + layout.n_binary
    for row, axes in enumerate(figure.axes):
        observed, expected = axes.lines[:2]
        assert np.array_equal(
            observed.get_ydata(), prepared.validation[row, :count], equal_nan=True
        )
        assert np.array_equal(expected.get_ydata(), explained.expected[row, :count])
    names = [text.get_text() for text in figure.axes[-1].get_xticklabels()]
    assert len(names) == count
    assert "TX_AMOUNT" in names


def test_reconstructions_of_missing_cells_and_of_fewer_rows_than_titles(
    fitted: Fitted, prepared: Prepared
) -> None:
    x = prepared.validation[:1].copy()
    x[:, ::2] = np.nan
    explained = fitted.bundle.scorer.explain_encoded(x)
    figure = plots.reconstructions(prepared.encoding, explained, ["one", "two", "three"])
    assert len(figure.axes) == 1
    figure.savefig(io.BytesIO())


def test_no_figure_is_left_in_pyplots_hands(fitted: Fitted) -> None:
    before = plt.get_fignums()
    figure = plots.loss_curve(fitted.history)
    assert plt.get_fignums() == before
    file = io.BytesIO()
    figure.savefig(file, format="png")
    with Image.open(file) as picture:
        picture.verify()


def test_kinds_are_told_apart_by_colours_that_the_colour_blind_see(calibrated: Bundle) -> None:
    scores = np.arange(10.0)
    (axes,) = plots.score_histogram(calibrated.detector, scores, scores > 7).axes
    colours = [to_hex(patch.get_facecolor()) for patch in axes.patches]
    assert colours == [plots.BLUE, plots.ORANGE]


def test_the_best_epoch_is_marked_where_it_is() -> None:
    for best in range(3):
        drawn = plots.loss_curve(replace(history([-3.0, -2.0, -1.0], 0), best_epoch=best))
        assert drawn.axes[0].lines[-1].get_xdata()[0] == best + 1


def test_contributions_are_bars_that_add_up_to_the_score() -> None:
    reasons = (
        Contribution("amount", 95.4, "722.37", 38.5631),
        Contribution("channel", 3.0, None, "chip"),
    )
    figure = plots.contributions(
        {"first": Explanation(reasons, rest=-1.5, kl=2.0), "second": Explanation((), 4.0, 1.0)}
    )
    first, second = figure.axes
    assert [bar.get_width() for bar in first.patches] == [95.4, 3.0, -1.5, 2.0]
    assert [label.get_text() for label in first.get_yticklabels()] == [
        "amount\nobserved 722.4, expected 38.56",
        "channel\nobserved missing, expected chip",
        "other columns",
        "KL term",
    ]
    assert (first.get_title(loc="left"), second.get_title(loc="left")) == ("first", "second")
    assert "nats" in second.get_xlabel()


def test_reviewers_see_the_bars_of_columns_that_raise_the_score() -> None:
    reasons = Contribution("amount", 9.0, "722", 38.0), Contribution("channel", -3.0, "web", "chip")
    found = {"one": Explanation(reasons, rest=-1.5, kl=2.0), "none": Explanation((), 4.0, 1.0)}
    first, second = plots.contributions(found, complete=False).axes
    assert [bar.get_width() for bar in first.patches] == [9.0]
    assert not second.patches


def test_a_dollar_sign_begins_no_formula() -> None:
    parts = (Contribution("$\\frac{$ in $", 1.0, "$a$", "$^$"),)
    figure = plots.contributions({"$x^$": Explanation(parts, 0.0, 0.0)})
    figure.savefig(io.BytesIO())
    assert plots.plain("Amount ($)") == r"Amount (\$)"


def test_what_if_draws_a_panel_for_all_that_is_known() -> None:
    rows = [WhatIf(alpha, 9.0, alpha == 0.01, alerts_per_1000=1_000 * alpha)
            for alpha in (0.001, 0.01, 0.1)]  # fmt: skip
    alone = plots.what_if(rows)
    assert [axes.get_ylabel() for axes in alone.axes] == ["alerts in 1,000 rows"]
    by_day = [
        replace(row, alerts_per_day=3.0, alerts_per_day_interval=(0.0, 9.0), recall=0.5,
                entities_per_day=2.0, cost_per_day=7.0, cost_per_day_interval=(1.0, 20.0))
        for row in rows
    ]  # fmt: skip
    figure = plots.what_if(by_day, "$CARD")
    assert [axes.get_ylabel() for axes in figure.axes] == ["alerts a day", "share", "cost a day"]
    names = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert names == ["rows", r"\$CARD", "now: 0.01"]
    assert figure.axes[0].get_ylim()[0] == 0
    ticks = [text.get_text() for text in figure.axes[-1].get_xticklabels()]
    assert ticks == ["0.001", "0.01", "0.1"]
    figure.canvas.draw()

"""The geometry of charts."""

import numpy as np
import pytest

from serving.console.charts import BASE, TOP, Day, day_chart, score_chart


@pytest.mark.parametrize("score", [-5.0, 0.5, 3.0, 9.0, 1e6])
def test_a_score_lies_within_the_chart(score):
    chart = score_chart([0.0, 1.0, 2.0, 3.0], 2.5, score)
    assert 0 <= chart.score <= 100
    assert 0 <= chart.threshold <= 100
    assert chart.is_beyond == (score > 9.0)
    assert (score > 2.5) == (chart.score > chart.threshold)


def test_bars_above_the_threshold_are_marked():
    chart = score_chart(np.arange(100.0), 89.5, 95.0)
    marked = [bar.x for bar in chart.bars if bar.is_marked]
    assert min(marked) > 88
    assert all(TOP <= bar.y <= BASE and bar.y + bar.height == BASE for bar in chart.bars)


def test_a_single_calibration_score_has_a_chart():
    chart = score_chart([1.0], 1.0, 1.0)
    assert np.isfinite([chart.low, chart.high, chart.score]).all()


def test_days_with_more_flags_than_chance_explains_are_marked():
    days = [Day(10, 1000, ""), Day(19, 1000, ""), Day(25, 1000, ""), Day(0, 0, "")]
    for shares in (False, True):
        chart = day_chart(days, 0.01, shares=shares)
        assert [bar.is_marked for bar in chart.bars] == [False, False, True, False]
        assert TOP <= chart.limit <= BASE


def test_days_without_flags_have_a_chart():
    assert day_chart([Day(0, 0, "")], 0.01).bars[0].height == 0


@pytest.mark.parametrize("count", [1, 2, 7, 8, 90])
def test_bars_of_days_are_slim_and_their_names_below_them(count):
    chart = day_chart([Day(1, 100, str(number)) for number in range(count)], 0.01)
    assert all(bar.x >= 0 and bar.x + bar.width <= 100 and bar.width <= 8 for bar in chart.bars)
    is_few = count <= 7
    first = chart.bars[0]
    assert (first.x < chart.first < first.x + first.width) == is_few
    assert (chart.last == 100) != is_few

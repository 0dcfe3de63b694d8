"""Features that separate anomalies on their own are found, others are not, in any form."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from anomaly_vae.data.converters import Levels
from anomaly_vae.evaluation.leakage import (
    MAX_ROWS,
    MIN_ROWS,
    Duplicates,
    single_feature_aurocs,
    warnings,
)

ANOMALY = np.arange(600) % 6 == 0


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def levels(codes: np.ndarray) -> Levels:
    return Levels(codes.astype(np.int32), tuple(map(str, range(int(codes.max()) + 1))))


def test_a_number_that_gives_the_label_away_is_found_in_whatever_direction() -> None:
    noise = rng().normal(size=600)
    columns = {
        "noise": noise,
        "above": noise + 9 * ANOMALY,
        "below": noise - 9 * ANOMALY,
        "beyond": noise + np.where(np.arange(600) % 12 == 0, 9, -9) * ANOMALY,
        "absent": np.where(ANOMALY, np.nan, noise),
    }
    found = {one.name: one.auroc for one in single_feature_aurocs(columns, ANOMALY)}
    assert found["noise"] < 0.6
    assert min(found[name] for name in columns if name != "noise") > 0.99


@pytest.mark.parametrize("fraud", [2.0, 50.0, np.nan], ids=["between", "outside", "absent"])
def test_a_code_that_gives_the_label_away_is_found_whatever_its_number(fraud: float) -> None:
    """A code among others has no direction, nor have frauds whose amount is always the same."""
    codes = np.where(ANOMALY, fraud, rng().choice([0.0, 1.0, 3.0, 4.0], 600))
    number = rng().normal(size=600)
    columns = {"code": codes, "exact": np.where(ANOMALY, 0.25, number), "number": number}
    found = {one.name: one.auroc for one in single_feature_aurocs(columns, ANOMALY)}
    assert min(found["code"], found["exact"]) > 0.99
    assert found["number"] < 0.6, "values that occur once separate nothing"


def test_the_auroc_is_that_of_the_column() -> None:
    values = rng().normal(size=600) + ANOMALY
    (one,) = single_feature_aurocs({"x": values}, ANOMALY)
    assert one.auroc == pytest.approx(roc_auc_score(ANOMALY, values))
    assert one.auroc - 0.07 < one.low < one.auroc


def test_a_level_that_gives_the_label_away_is_found() -> None:
    codes = np.where(ANOMALY, 3, rng().integers(0, 3, 600))
    (one,) = single_feature_aurocs({"kind": levels(codes)}, ANOMALY)
    assert one.auroc > 0.99


@pytest.mark.parametrize(
    "codes",
    [np.arange(600), np.zeros(600), rng().integers(0, 150, 600), np.full(600, -1)],
    ids=["all different", "all the same", "many", "all missing"],
)
def test_levels_that_know_nothing_separate_nothing(codes: np.ndarray) -> None:
    """Distinct names would separate all rows from which their levels were learned."""
    (one,) = single_feature_aurocs(
        {"kind": Levels(codes.astype(np.int32), tuple(map(str, range(600))))}, ANOMALY
    )
    assert one.auroc < 0.6


def test_warnings_name_the_column_and_the_remedy() -> None:
    columns = {"leak": ANOMALY.astype(float), "good": rng().normal(size=600) + 1.5 * ANOMALY}
    found = single_feature_aurocs(columns, ANOMALY)
    (text,) = warnings(found, 0.999)
    assert text.startswith("column 'leak' alone separates anomalies: AUROC 1.000")
    assert "data.ignore" in text
    better = warnings(found, 0.6)
    assert [text.split("'")[1] for text in better] == ["leak", "good"]
    assert "the detector's is 0.600" in better[1]


def test_a_column_that_is_better_by_chance_is_no_warning() -> None:
    (one,) = single_feature_aurocs({"x": rng().normal(size=600) + ANOMALY}, ANOMALY)
    assert one.warning(one.auroc - 0.01) is None
    assert one.warning(one.low - 0.01) is not None


def test_files_are_suspected_earlier_than_columns() -> None:
    values = {"size in bytes": rng().normal(size=600) + 1.6 * ANOMALY}
    assert not warnings(single_feature_aurocs(values, ANOMALY, "column"), 0.99)
    (text,) = warnings(single_feature_aurocs(values, ANOMALY, "file"), 0.99)
    assert text.startswith("the file's size in bytes alone")


def test_few_anomalies_are_too_few_to_suspect_by() -> None:
    assert single_feature_aurocs({"x": np.arange(600.0)}, np.zeros(600, bool)) == []
    few = np.arange(600) < MIN_ROWS - 1
    assert single_feature_aurocs({"x": few.astype(float)}, few) == []
    assert single_feature_aurocs({"x": few.astype(float)}, ~few) == []


def test_many_rows_are_thinned() -> None:
    many = np.arange(3 * MAX_ROWS) % 50 == 0
    values = rng().normal(size=len(many)) + many
    (one,) = single_feature_aurocs({"x": values}, many)
    assert one.auroc == pytest.approx(roc_auc_score(many, values), abs=0.02)


# ---------------------------------------------------------------- twins


def test_twins_are_told_apart_by_kind_and_left_out() -> None:
    score = rng().normal(size=600) + ANOMALY
    known = ~ANOMALY & (np.arange(600) % 2 == 1)
    found = Duplicates.from_mask(known, ANOMALY, score)
    assert (found.rows, found.anomalies) == (known.sum(), 0.0)
    assert found.normal == known.sum() / (~ANOMALY).sum()
    assert found.auroc_without == pytest.approx(roc_auc_score(ANOMALY[~known], score[~known]))
    text = found.warning(600, "are known")
    assert text == f"300 of 600 test rows are known; AUROC {found.auroc_without:.3f} without"


def test_a_few_twins_are_no_warning() -> None:
    known = np.arange(600) < 5
    assert Duplicates.from_mask(known, ANOMALY, np.zeros(600)).warning(600, "are known") is None


def test_where_all_are_twins_no_figure_is_left() -> None:
    found = Duplicates.from_mask(np.ones(600, bool), ANOMALY, np.zeros(600))
    assert found.auroc_without is None


# ---------------------------------------------------------------- columns that reveal it together


KINDS = np.arange(1, 4)[:, None]
CODE = np.where(ANOMALY, rng().choice([1, 2, 3], 600, p=[0.5, 0.3, 0.2]), 0)
NORMAL_CODE = np.where(ANOMALY, 0, rng().choice([1, 2, 3], 600, p=[0.5, 0.3, 0.2]))
INDICATORS = {
    "of anomalies": (KINDS == CODE) * 1.0,
    "of normal rows": (KINDS == NORMAL_CODE) * 1.0,
    "as text": list(map(levels, KINDS == CODE)),
    "as dates": np.where(KINDS == CODE, np.arange(600.0), np.nan),
}


@pytest.mark.parametrize("kind", INDICATORS)
def test_indicators_of_a_code_that_gives_the_label_away_are_found(kind: str) -> None:
    noise = rng()
    honest = {"number": noise.normal(size=600), "flag": (noise.random(600) < 0.2) * 1.0}
    indicators = {f"is_{k + 1}": values for k, values in enumerate(INDICATORS[kind])}
    first, *others = single_feature_aurocs(indicators | honest, ANOMALY)
    assert (first.name, first.kind) == ("'is_1', 'is_2', 'is_3'", "columns")
    assert first.auroc > 0.99 > max(one.auroc for one in others)
    (warning,) = warnings([first], auroc=0.999)
    assert "in any of the columns 'is_1', 'is_2', 'is_3'" in warning
    assert "data.ignore" in warning


def test_indicators_are_not_suspected_without_a_reason() -> None:
    """Many flags that have nothing to do with the label, and some that are good features."""
    chance = rng().random((300, 600))
    flags = {str(k): (row < 0.02) * 1.0 for k, row in enumerate(chance)}
    good = {f"good {k}": (row < 0.05 + 0.4 * ANOMALY) * 1.0 for k, row in enumerate(chance[:5])}
    for columns in (flags, good):
        assert {one.kind for one in single_feature_aurocs(columns, ANOMALY)} == {"column"}


def test_a_column_that_reveals_the_label_alone_is_not_named_with_others() -> None:
    columns = {"label": ANOMALY * 1.0, "flag": (np.arange(600) % 5 == 0) * 1.0}
    assert {one.kind for one in single_feature_aurocs(columns, ANOMALY)} == {"column"}

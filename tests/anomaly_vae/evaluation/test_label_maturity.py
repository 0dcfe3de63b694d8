"""Labels are final once their rows are old enough, and a report says how many are."""

import numpy as np

from anomaly_vae.evaluation.label_maturity import LabelMaturity

DAY = 86_400.0


def test_labelled_rows_are_counted_by_age() -> None:
    young = np.array([False, False, True, True])
    labelled = np.array([True, True, True, False])
    found = LabelMaturity.of("2d", young, labelled, DAY * np.array([0.0, 1.5, 3.0, 4.0]))
    assert found.to_json() == {
        "delay": "2d",
        "rows": 3,
        "young": 1,
        "mature": 2 / 3,
        "youngest_mature_day": "1970-01-02",
    }
    assert "66.7% of the labels are final (2d old), those of rows up to 1970-01-02" in str(found)
    assert LabelMaturity(**found.to_json()) == found


def test_without_final_labels_there_is_no_day_and_without_labels_no_share() -> None:
    all_young = LabelMaturity.of("2d", np.ones(2, bool), np.ones(2, bool), np.zeros(2))
    assert (all_young.mature, all_young.youngest_mature_day) == (0.0, None)
    none = LabelMaturity.of("2d", np.ones(2, bool), np.zeros(2, bool), np.zeros(2))
    assert (none.rows, none.mature) == (0, None)
    assert "no labels are final" in str(none)

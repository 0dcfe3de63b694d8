"""The highest scores of a run are shown with reasons in words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest

from anomaly_vae.data.encoding import Numeric
from anomaly_vae.scoring.detector import Contribution, Detections, Explanation
from anomaly_vae.scoring.wording import Wording
from pipelines.batch.highest import MAX_SHOWN, Highest

AMOUNT = Numeric(name="amount", center=30, scale=20, usual=(5, 80))


def add(highest: Highest, scores: Sequence[float]) -> None:
    score = np.array(scores)
    reasons = (Contribution("amount", s, 1000 + s, 28.0) for s in scores)
    lowering = Contribution("channel", -2.0, "web", "chip")
    explanations = [Explanation((one, lowering), rest=1.0, kl=2.0) for one in reasons]
    ids = {"id": pa.array([f"row {s:g}" for s in scores])}
    highest.add(ids, Detections(score, 1 / (1 + score), score > 5), explanations)


def test_the_highest_of_all_chunks_are_kept_in_order() -> None:
    highest = Highest(Wording({"amount": (AMOUNT,)}))
    for chunk in (range(0, 40, 2), range(1, 40, 2)):
        add(highest, list(map(float, chunk)))
    assert [row for _, row, *_ in highest.rows] == [f"row {s}" for s in range(39, 29, -1)]
    assert len(highest.rows) == MAX_SHOWN


def test_reasons_are_printed_without_what_lowers_the_score(
    capsys: pytest.CaptureFixture[str],
) -> None:
    highest = Highest(Wording({"amount": (AMOUNT,)}))
    add(highest, [9.0, 3.0])
    highest.show()
    told = capsys.readouterr().err
    assert "The 2 highest scores, and why" in told
    assert "amount 1009, usually 5 to 80" in told
    assert "channel" not in told


def test_nothing_is_printed_without_explanations(capsys: pytest.CaptureFixture[str]) -> None:
    highest = Highest(Wording({}))
    highest.add({"id": pa.array(["a"])}, Detections(*np.ones((3, 1))), [])
    highest.show()
    assert capsys.readouterr().err == ""

"""The highest scores of a result are shown with reasons in words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from anomaly_vae.data.encoding import Numeric
from anomaly_vae.scoring.detector import Contribution, Detections, Explanation
from anomaly_vae.scoring.wording import Wording
from pipelines.batch.common import result_table
from pipelines.batch.result.highest import MAX_SHOWN, show_highest

WORDING = Wording({"amount": (Numeric(name="amount", center=30, scale=20, usual=(5, 80)),)})


def explanation(score: float) -> Explanation:
    raising = Contribution("amount", score, 1000 + score, 28.0)
    lowering = Contribution("channel", -2.0, "web", "chip")
    return Explanation((raising, lowering), rest=1.0, kl=2.0)


def write_part(folder: Path, name: str, scores: Sequence[float], explained: bool = True) -> str:
    """Write a part in which the scores above 5 are flagged and explained; return its name."""
    score = np.array(scores)
    column = [explanation(s) if s > 5 else None for s in scores] if explained else None
    ids = {"id": pa.array([f"row {s:g}" for s in scores])}
    pq.write_table(
        result_table(ids, Detections(score, 1 / (1 + score), score > 5), column), folder / name
    )
    return name


def test_the_highest_of_all_parts_are_shown_in_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = [
        write_part(tmp_path, f"part-{i}.parquet", list(map(float, range(i, 40, 2)))) for i in (0, 1)
    ]
    show_highest(tmp_path, parts, WORDING)
    told = capsys.readouterr().err
    places = [told.find(f"row {s} ") for s in range(39, 29, -1)]
    assert f"The {MAX_SHOWN} highest scores, and why" in told
    assert -1 not in places
    assert places == sorted(places)
    assert "row 29 " not in told


def test_reasons_are_printed_without_what_lowers_the_score(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show_highest(tmp_path, [write_part(tmp_path, "part-0.parquet", [9.0, 3.0])], WORDING)
    told = capsys.readouterr().err
    assert "The 1 highest scores, and why" in told
    assert "amount 1009, usually 5 to 80" in told
    assert "channel" not in told


@pytest.mark.parametrize(("scores", "explained"), [([9.0], False), ([3.0], True)])
def test_nothing_is_printed_without_explanations(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], scores: list[float], explained: bool
) -> None:
    part = write_part(tmp_path, "part-0.parquet", scores, explained)
    show_highest(tmp_path, [part], WORDING)
    show_highest(tmp_path, [], WORDING)
    assert capsys.readouterr().err == ""

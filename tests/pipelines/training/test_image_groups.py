"""Check thresholds for groups of images, and the decisions of a batch on groups."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from anomaly_vae.artifacts.bundle import Bundle, from_files
from anomaly_vae.calibration.conformal import calibrate
from anomaly_vae.data.splitting import CALIBRATION, TEST
from pipelines.batch.images import score_images
from pipelines.batch.options import OutputOptions
from pipelines.batch.result.counts import Counts, Highest
from pipelines.datasets.dataset import Dataset
from pipelines.datasets.images.dataset import ImageDataset
from pipelines.registry.model_uri import LoadedModel
from pipelines.training.image_groups import calibrate_groups


@pytest.fixture(scope="module")
def grouped(image_calibrated: Bundle, image_dataset: ImageDataset) -> Bundle:
    """A model with a threshold for the groups of its manifest."""
    groups = calibrate_groups(image_calibrated.scorer, image_dataset, 0.1)
    assert image_calibrated.calibration is not None
    return image_calibrated.calibrated(image_calibrated.calibration, None, image_groups=groups)


def test_the_threshold_is_that_of_the_highest_image_of_each_normal_group(
    grouped: Bundle, image_dataset: ImageDataset
) -> None:
    data, rows = image_dataset, image_dataset.assignment.rows(CALIBRATION)
    scores = grouped.scorer.score(data.batch.take(rows))
    codes = data.image_groups["group"][rows]
    highest = [scores[codes == code].max() for code in np.unique(codes)]
    assert len(highest) < len(rows)
    expected = calibrate(highest, 0.1)
    found = grouped.image_groups["group"]
    assert found.threshold == expected.threshold
    np.testing.assert_array_equal(found.scores, expected.scores)
    tested = data.image_groups["group"][data.assignment.rows(TEST)]
    figures = found.figures
    assert figures["test_normal"] + figures["test_anomalous"] == len(np.unique(tested))
    assert figures["test_anomalous"] == 20


def test_a_group_with_images_in_other_splits_or_an_anomaly_does_not_calibrate(
    grouped: Bundle, image_dataset: ImageDataset
) -> None:
    codes, rows = image_dataset.image_groups["group"].copy(), image_dataset.assignment.rows
    codes[rows(TEST)[0]] = codes[rows(CALIBRATION)[-1]]
    codes[np.flatnonzero(image_dataset.rows.anomaly)[0]] = codes[rows(CALIBRATION)[-2]]
    changed = replace(image_dataset, image_groups={"group": codes})
    found = calibrate_groups(grouped.scorer, changed, 0.1)["group"]
    assert len(grouped.image_groups["group"].scores) - len(found.scores) == 2


def test_too_few_groups_give_no_threshold_and_a_message(
    grouped: Bundle, image_dataset: ImageDataset, capsys: pytest.CaptureFixture[str]
) -> None:
    assert calibrate_groups(grouped.scorer, image_dataset, 0.001) == {}
    assert "no threshold by group: alpha 0.001 needs 999" in " ".join(
        capsys.readouterr().err.split()
    )


def test_tables_have_no_groups_of_images(grouped: Bundle, dataset: Dataset) -> None:
    assert calibrate_groups(grouped.scorer, dataset, 0.1) == {}


def test_a_bundle_keeps_its_groups(grouped: Bundle) -> None:
    again = from_files(grouped.files)
    assert again.image_groups.keys() == {"group"}
    assert again.image_groups["group"].threshold == grouped.image_groups["group"].threshold
    assert again.digest == grouped.digest
    assert grouped.calibration is not None
    plain = grouped.calibrated(grouped.calibration, None)
    assert "image_groups" not in plain.manifest
    assert not from_files(plain.files).image_groups


@pytest.mark.parametrize("only_flagged", [False, True])
def test_a_batch_decides_on_each_group_by_its_highest_image(
    grouped: Bundle, manifest: Path, tmp_path: Path, only_flagged: bool
) -> None:
    out = tmp_path / "out"
    outputs = OutputOptions(only_flagged=only_flagged, columns=("group",))
    summary = score_images(LoadedModel(grouped), [str(manifest)], out, outputs=outputs)
    table = pq.read_table(out / "groups.parquet")
    assert table.column_names[:4] == ["group_by", "group", "images", "score"]
    assert summary["groups"]["group"]["scored"] == len(table) == 130
    assert summary["groups"]["group"]["flagged"] == sum(table["is_anomaly"].to_pylist())
    assert sum(table["images"].to_pylist()) == 140
    parts = pq.read_table(out / summary["parts"][0])
    assert parts.column_names[-2:] == ["series_uid", "slice_position"]
    rows = {(row["path"], row["frame"]): row for row in parts.to_pylist()}
    for group in table.to_pylist():
        assert group["is_anomaly"] == (group["score"] > grouped.image_groups["group"].threshold)
        if (key := (group["path"], group["frame"])) in rows:
            assert rows[key]["score"] == group["score"]
            assert rows[key]["group"] == group["group"]
    if not only_flagged:
        best: dict[str, float] = {}
        for row in rows.values():
            best[row["group"]] = max(best.get(row["group"], -np.inf), row["score"])
        assert best == {group["group"]: group["score"] for group in table.to_pylist()}


def test_images_that_name_no_group_leave_it_undecided_with_a_message(
    grouped: Bundle, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = str(manifest.parent / "images" / "00*.png")
    summary = score_images(LoadedModel(grouped), [images], tmp_path / "out")
    assert summary["groups"]["group"]["scored"] == 0
    assert "no image names its group" in " ".join(capsys.readouterr().err.split())


def test_counts_of_parts_keep_the_highest_image_of_a_group() -> None:
    total = Counts()
    for image in (Highest(1.0, 1, "b", 0), Highest(3.0, 1, "a", 1), Highest(3.0, 1, "a", 0)):
        part = Counts()
        part.add_image("patient", "P1", image)
        total.add(Counts.from_json(part.to_json()))
    assert total.groups == {"patient": {"P1": Highest(3.0, 3, "a", 0)}}

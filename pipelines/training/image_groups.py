"""Choose thresholds for groups of images, such as all slices of a patient or of a series.

A group's score is the highest score of its images. If the groups are exchangeable with those of
the calibration split, each counted once, the conformal threshold keeps the false positive rate per
group, whatever their number of images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from anomaly_vae.calibration.conformal import Calibration, calibrate, scores_needed
from anomaly_vae.data.splitting import CALIBRATION, TEST, one_row_per_group
from anomaly_vae.scoring.scorer import Scorer
from pipelines import console
from pipelines.datasets.dataset import Dataset
from pipelines.datasets.images.dataset import ImageDataset


class GroupScores(NamedTuple):
    """M groups with all their images in one split."""

    score: NDArray[np.float64]
    """Highest score of each group (M,)."""
    anomaly: NDArray[np.bool_]
    """Whether a group has an anomalous image (M,)."""
    first: NDArray[np.intp]
    """Position of the first image of each group (M,)."""


def calibrate_groups(scorer: Scorer, data: Dataset, alpha: float) -> dict[str, Calibration]:
    """Choose a threshold for each kind of groups in a data set, and test it on the test split.

    Kinds with too few groups for alpha get no threshold, which is said.

    Args:
        scorer: the model's scorer.
        data: the data set; tables have no groups of images.
        alpha: highest accepted false positive rate per group.
    """
    if not isinstance(data, ImageDataset) or not data.image_groups:
        return {}
    scores = np.full(len(data.rows), np.nan)
    for split in (CALIBRATION, TEST):
        rows = data.assignment.rows(split)
        scores[rows] = scorer.score(data.batch.take(rows))
    found = {}
    for kind, codes in data.image_groups.items():
        sample = _normal_sample(data, codes, scores)
        if len(sample) < scores_needed(alpha):
            console.info(
                f"no threshold by {kind}: alpha {alpha:g} needs {scores_needed(alpha)} normal ones "
                f"in the calibration split, there are {len(sample)}"
            )
            continue
        tested = _of_split(data, TEST, codes, scores)
        found[kind] = _tested(calibrate(sample, alpha), tested)
        _show(kind, found[kind])
    return found


def _of_split(
    data: ImageDataset, split: int, codes: NDArray[np.int32], scores: NDArray[np.float64]
) -> GroupScores:
    """Return the groups of a split; the ones with images in other splits are left out."""
    rows = data.assignment.rows(split)
    elsewhere = np.setdiff1d(np.flatnonzero(data.assignment.codes), rows)
    rows = rows[~np.isin(codes[rows], codes[elsewhere])]
    _, first, group = np.unique(codes[rows], return_index=True, return_inverse=True)
    highest = np.full(len(first), -np.inf)
    np.maximum.at(highest, group, scores[rows])
    anomaly = np.isin(codes[rows[first]], codes[data.rows.anomaly])
    return GroupScores(highest, anomaly, rows[first])


def _normal_sample(
    data: ImageDataset, codes: NDArray[np.int32], scores: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the scores of normal calibration groups, one from each group that splits keep."""
    groups = _of_split(data, CALIBRATION, codes, scores)
    normal = np.flatnonzero(~groups.anomaly)
    kept = None if data.rows.group is None else data.rows.group[groups.first]
    return groups.score[one_row_per_group(normal, kept)]


def _tested(calibration: Calibration, groups: GroupScores) -> Calibration:
    """Return a calibration with its figures on test groups."""
    flagged, anomaly = calibration.flags(groups.score), groups.anomaly
    figures = {
        "test_normal": int((~anomaly).sum()),
        "test_normal_flagged": int((flagged & ~anomaly).sum()),
        "test_anomalous": int(anomaly.sum()),
        "test_anomalous_flagged": int((flagged & anomaly).sum()),
    }
    return replace(calibration, figures=figures)


def _show(kind: str, calibration: Calibration) -> None:
    figures: Mapping[str, int] = calibration.figures
    console.info(
        f"By {kind}, whose score is that of its highest image: threshold "
        f"{calibration.threshold:.6g} from {len(calibration.scores)} normal ones; of the test "
        f"split, {figures['test_normal_flagged']} of {figures['test_normal']} normal and "
        f"{figures['test_anomalous_flagged']} of {figures['test_anomalous']} anomalous ones are "
        "flagged"
    )

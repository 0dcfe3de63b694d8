"""Decide on groups of images of one request, such as the slices of a series, by their highest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence

import numpy as np

from anomaly_vae.calibration.conformal import Calibration
from anomaly_vae.client.types import GroupResult, Result
from anomaly_vae.types import SERIES, VOLUME
from serving.problems import INVALID_REQUEST, ProblemError

GROUP = "group"
"""Query parameter that names the kind of group which all images of a request are of."""


def check_kind(kind: str | None, calibrations: Mapping[str, Calibration]) -> None:
    """Refuse a kind of groups for which the model has no threshold.

    Raises:
        ProblemError: it has none.
    """
    if kind is None or kind in calibrations:
        return
    kinds = ", ".join(f"'{name}'" for name in calibrations)
    known = f"it has thresholds by {kinds}" if kinds else "leave the parameter out"
    detail = f"query: '{GROUP}': the model has no threshold by '{kind[:100]}'; {known}"
    raise ProblemError(INVALID_REQUEST, detail)


def decide_groups(
    calibrations: Mapping[str, Calibration],
    results: Sequence[Result],
    series: Sequence[str],
    whole: str | None,
) -> Iterator[GroupResult]:
    """Yield the decisions on the groups of a request, of each kind that the model decides on.

    Args:
        calibrations: calibrations of groups by kind.
        results: results of N images; those with an error are in no group.
        series: UID of the DICOM series of each image (N,); empty for other images.
        whole: kind of the group that all images are of; None if the request is no such group.
    """
    for kind, calibration in calibrations.items():
        groups: dict[Hashable, list[Result]] = defaultdict(list)
        for result, uid in zip(results, series, strict=True):
            name = _name(kind, result, uid, whole)
            if result.error is None and name is not None:
                groups[name].append(result)
        yield from (_decided(kind, images, calibration) for images in groups.values())


def _name(kind: str, result: Result, series: str, whole: str | None) -> Hashable:
    """Return what tells the group of an image from others of its kind; None if it is in none."""
    if kind == whole:
        return kind
    return {SERIES: series or None, VOLUME: result.file}.get(kind)


def _decided(kind: str, images: Sequence[Result], calibration: Calibration) -> GroupResult:
    highest = max(images, key=lambda one: one.score)
    score = np.array([highest.score])
    return GroupResult(
        group_by=kind,
        files=tuple(sorted({one.file or 0 for one in images})),
        images=len(images),
        score=highest.score,
        p_value=float(calibration.p_values(score)[0]),
        is_anomaly=bool(calibration.flags(score)[0]),
        threshold=calibration.threshold,
        file=highest.file or 0,
        frame=highest.frame or 0,
    )

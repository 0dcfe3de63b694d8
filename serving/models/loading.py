"""Load, warm and check a detector before it is served."""

from __future__ import annotations

import dataclasses
import time

import numpy as np

from anomaly_vae.artifacts.bundle import load_bundle
from anomaly_vae.artifacts.registry_names import BundleRef
from anomaly_vae.data.schema import RawBatch
from anomaly_vae.errors import AnomalyVAEError, BundleError
from anomaly_vae.scoring.detector import Detections
from serving.models.store import IMAGE, ServedModel


def load_model(source: BundleRef) -> ServedModel:
    """Read, verify, warm and try a detector.

    Raises:
        BundleError: the folder is no bundle, or not the one it should be, or its example cannot be
            scored.
        NotCalibratedError: it has no threshold.
    """
    try:
        return _loaded(source)
    except AnomalyVAEError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise BundleError(f"bundle '{source.path}' cannot be scored with: {reason}") from error


def _loaded(source: BundleRef) -> ServedModel:
    start = time.perf_counter()
    loaded = load_bundle(source.path, source.digest)
    kind = loaded.manifest["kind"]
    served = ServedModel(
        name=source.name or loaded.manifest["name"],
        version=source.version,
        alias=source.alias,
        digest=source.digest or loaded.digest,
        kind=kind,
        detector=loaded.detector,
        monitor=loaded.monitor,
        example=loaded.example,
        load_seconds=0.0,
        loaded_at=0.0,
        registered_at=source.registered_at,
        heat_scale=loaded.heat_scale if kind == IMAGE else None,
    )
    check(served, warm_up(served))
    seconds = time.perf_counter() - start
    return dataclasses.replace(served, load_seconds=seconds, loaded_at=time.time())


def warm_up(served: ServedModel) -> Detections:
    """Score, explain and draw once, so that the first client does not wait for it."""
    batch = served.detector.scorer.schema.from_records([served.example])
    found = served.detector.detect(batch)
    served.detector.detect_and_explain(batch, None)
    if served.kind == IMAGE:
        _draw(served, batch)
    return found


def _draw(served: ServedModel, batch: RawBatch) -> None:
    """Draw the heatmaps of a batch of images."""
    from anomaly_vae.images.encoding import ImageEncoding
    from anomaly_vae.images.heatmaps import png
    from anomaly_vae.scoring.localization import localizations

    scorer = served.detector.scorer
    assert isinstance(scorer.encoding, ImageEncoding), "a model of images"
    assert served.heat_scale is not None, "a model of images"
    explained = scorer.explain(batch)
    for found in localizations(scorer.encoding, served.heat_scale, explained, range(len(batch))):
        png(found.draw())


def check(served: ServedModel, found: Detections) -> None:
    """Refuse a detector whose example has no score or no p-value.

    Raises:
        BundleError: it is not fit to serve.
    """
    score, p_value = float(found.score[0]), float(found.p_value[0])
    if not (np.isfinite(score) and 0 < p_value <= 1):
        raise BundleError(
            f"model '{served.name}' gives its own example the score {score} and the p-value "
            f"{p_value}; train it again"
        )

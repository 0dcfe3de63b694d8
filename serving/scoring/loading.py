"""Load, warm up and check a model before it is served."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from anomaly_vae.artifacts.bundle import Bundle, load_bundle
from anomaly_vae.artifacts.registry_names import BundleRef
from anomaly_vae.errors import AnomalyVAEError, BundleError
from anomaly_vae.features import WindowInputs
from anomaly_vae.review.case_maker import CaseColumns
from anomaly_vae.scoring.detector import Detections
from anomaly_vae.scoring.wording import Wording
from serving.models.store import ServedModel
from serving.scoring.tables import ServedTable

if TYPE_CHECKING:
    from anomaly_vae.data.schema import TabularSchema


def load_model(source: BundleRef) -> ServedModel:
    """Load, verify, warm up and check a model.

    Raises:
        BundleError: the folder is not the expected bundle, or its example cannot be scored.
        NotCalibratedError: the bundle has no threshold.
    """
    try:
        return _load(source)
    except AnomalyVAEError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise BundleError(f"bundle '{source.path}' cannot be scored with: {reason}") from error


def _load(source: BundleRef) -> ServedModel:
    start = time.perf_counter()
    model = _served(source, load_bundle(source.path, source.digest))
    check(model, model.warm_up())
    seconds = time.perf_counter() - start
    return dataclasses.replace(model, load_seconds=seconds, loaded_at=time.time())


def _served(source: BundleRef, bundle: Bundle) -> ServedModel:
    """Create a table model or an image model, depending on the kind of the bundle."""
    config = bundle.manifest["config"]
    common: dict[str, Any] = {
        "name": source.name or bundle.manifest["name"],
        "version": source.version,
        "alias": source.alias,
        "digest": source.digest or bundle.digest,
        "detector": bundle.detector,
        "monitor": bundle.monitor,
        "example": bundle.example,
        "id_column": config.get("data", {}).get("id"),
        "case_columns": CaseColumns.of_config(config, _time_format(bundle.manifest)),
        "wording": Wording.of(bundle.scorer.encoding, config.get("data", {})),
        "load_seconds": 0.0,
        "loaded_at": 0.0,
        "registered_at": source.registered_at,
    }
    if bundle.manifest["kind"] == ServedTable.kind:
        return _served_table(bundle, common)
    from serving.scoring.images.served import ServedImages  # needs Pillow, which tables do not

    return ServedImages(**common, heat_scale=bundle.heat_scale, image_groups=bundle.image_groups)


def _time_format(manifest: Mapping[str, Any]) -> str | None:
    """Return the format of times that was found in training, if windows needed it."""
    found: str | None = manifest.get("data", {}).get("windows", {}).get("time_format")
    return found


def _served_table(bundle: Bundle, common: dict[str, Any]) -> ServedTable:
    windows = WindowInputs.from_manifest(bundle.manifest)
    if windows is None:
        return ServedTable(**common)
    schema, names = cast("TabularSchema", bundle.scorer.schema), windows.definition.names
    raw = windows.raw_schema(schema)
    example = windows.example(raw) | common["example"]
    common["example"] = {name: example[name] for name in raw.names}
    converted = tuple(
        column
        for column in schema.columns
        if column.name in names and column.spec.storage != "number"
    )
    return ServedTable(**common, windows=windows, raw_schema=raw, converted=converted)


def check(model: ServedModel, detections: Detections) -> None:
    """Check that a model gives its own example a valid score and p-value.

    Raises:
        BundleError: the score is not finite, or the p-value is not in (0, 1].
    """
    score, p_value = float(detections.score[0]), float(detections.p_value[0])
    if not (np.isfinite(score) and 0 < p_value <= 1):
        raise BundleError(
            f"model '{model.name}' gives its own example the score {score} and the p-value "
            f"{p_value}; train it again"
        )

"""What `GET /models` says: what is loaded, how it stands with the registry, and its shadows."""

from __future__ import annotations

from collections.abc import Sequence

from anomaly_vae.calibration import Groups
from serving import wire
from serving.follow import Followed
from serving.metrics import Metrics, Tally
from serving.sources import is_followed
from serving.store import Served, Store


def describe(store: Store, followed: Sequence[Followed], metrics: Metrics) -> wire.Models:
    """Every model that is loaded."""
    return wire.Models([_model(one, store, followed, metrics) for one in store.current.values()])


def _model(
    served: Served, store: Store, followed: Sequence[Followed], metrics: Metrics
) -> wire.ModelInfo:
    calibration = served.detector.calibration
    shadow = store.shadows.get(served.name)
    return wire.ModelInfo(
        name=served.name,
        version=served.version,
        alias=served.alias,
        digest=served.digest,
        kind=served.kind,
        unit=served.detector.unit,
        alpha=calibration.alpha,
        threshold=calibration.threshold,
        groups=_groups(calibration.groups),
        guarantee_status=metrics.watches.of(served).report().status,
        schema=wire.schema_info(served.detector.scorer.schema),
        following=_following(served.name, False, followed),
        shadow=_shadow(served, shadow, followed, metrics) if shadow else None,
    )


def _groups(groups: Groups | None) -> wire.Groups | None:
    if groups is None:
        return None
    own = {level: calibration.threshold for level, calibration in groups.own.items()}
    return wire.Groups(groups.column, own)


def _shadow(
    served: Served, shadow: Served, followed: Sequence[Followed], metrics: Metrics
) -> wire.ShadowInfo:
    tally = metrics.tally(served.name, served.version, shadow.version)
    return wire.ShadowInfo(
        version=shadow.version,
        alias=shadow.alias,
        digest=shadow.digest,
        records=int(tally.records),
        agreement=_share(tally.agreed, tally),
        flagged=_share(tally.flagged, tally),
        shadow_flagged=_share(tally.shadow_flagged, tally),
        following=_following(shadow.name, True, followed),
    )


def _share(count: float, tally: Tally) -> float | None:
    return count / tally.records if tally.records else None


def _following(name: str, shadow: bool, followed: Sequence[Followed]) -> wire.Following | None:
    for one in followed:
        if (one.name, one.shadow) == (name, shadow) and is_followed(one.uri):
            return wire.Following(one.uri, one.looked_at, one.reason)
    return None

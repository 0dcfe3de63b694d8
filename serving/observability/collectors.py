"""What Prometheus reads as it stands when it asks: what is loaded, and what is watched of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import attrgetter

from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from anomaly_vae.monitoring.exchangeability import STATUSES
from serving.models.store import Store
from serving.observability.guarantee import Watches

PREFIX = "anomaly_vae"
MODEL, COLUMN = ("model", "version"), ("model", "version", "column")
OF_MODELS = {
    "model_load_seconds": ("Seconds to load and warm it.", "load_seconds"),
    "model_loaded_timestamp_seconds": ("When it was loaded.", "loaded_at"),
    "model_registered_timestamp_seconds": ("When it was registered.", "registered_at"),
    "model_alpha_ratio": (
        "Rate of false positives it is calibrated for.", "detector.calibration.alpha",
    ),
}  # fmt: skip
"""Gauge of each model → what it means, and what of a `Served` it is."""
OF_WINDOWS = {
    "martingale_log10": (
        "Evidence that the window is not like the calibration rows.", "martingale_log10",
    ),
    "window_flagged_ratio": ("Share of the window that is flagged.", "flagged_ratio"),
    "window_records": ("Records in the window.", "rows"),
}  # fmt: skip
"""The same of what a watch reports."""
OF_COLUMNS = {
    "drift_psi": ("Population stability index of the window against the calibration rows.", "psi"),
    "window_missing_ratio": ("Share of the window that lacks the column.", "missing"),
    "reference_missing_ratio": ("The same of the calibration rows.", "reference_missing"),
    "window_unseen_ratio": ("Share of the window with a category training did not keep.", "unseen"),
}
"""The same of the `Drift` of each column."""


def family(
    name: str,
    meaning: str,
    labels: Sequence[str],
    values: Iterable[tuple[Sequence[str], float | None]],
) -> Metric:
    """A gauge of what is known."""
    gauge = GaugeMetricFamily(f"{PREFIX}_{name}", meaning, labels=labels)
    for of, value in values:
        if value is not None:
            gauge.add_metric(of, value)
    return gauge


def families(
    facts: Mapping[str, tuple[str, str]],
    labels: Sequence[str],
    found: Sequence[tuple[Sequence[str], object]],
) -> Iterator[Metric]:
    """A gauge for each of these facts of what is found."""
    for name, (meaning, attribute) in facts.items():
        value = attrgetter(attribute)
        yield family(name, meaning, labels, ((of, value(one)) for of, one in found))


class Loaded(Collector):
    """What the store holds."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def collect(self) -> Iterator[Metric]:
        """One family for each fact."""
        current = [((one.name, one.version or ""), one) for one in self.store.current.values()]
        info = InfoMetricFamily(f"{PREFIX}_model", "The models served.", labels=["model"])
        for (name, version), one in current:
            facts = {"version": version, "alias": one.alias or "", "digest": one.digest}
            info.add_metric([name], {**facts, "kind": one.kind})
        yield info
        yield from families(OF_MODELS, MODEL, current)
        yield family("ready", "1 when ready.", (), [((), float(self.store.ready))])


class Watched(Collector):
    """What the watches say, at the moment they are asked."""

    def __init__(self, store: Store, watches: Watches) -> None:
        self.store, self.watches = store, watches

    def collect(self) -> Iterator[Metric]:
        """One family for each fact."""
        reports = [
            ((one.name, one.version or ""), self.watches.of(one).report())
            for one in self.store.current.values()
        ]
        yield family(
            "guarantee_status", "1 for how the promise stands, 0 for how it does not.",
            (*MODEL, "status"),
            (((*m, s), r.status == s) for m, r in reports for s in STATUSES),
        )  # fmt: skip
        yield from families(OF_WINDOWS, MODEL, reports)
        columns = [((*m, d.column), d) for m, r in reports for d in r.columns or ()]
        yield from families(OF_COLUMNS, COLUMN, columns)

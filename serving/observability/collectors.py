"""Collect metrics of loaded models and their guarantees whenever Prometheus scrapes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import attrgetter

from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from anomaly_vae.monitoring.exchangeability import LACKS, STATUSES
from serving.models.store import Store
from serving.observability.guarantee import GuaranteeTrackers

PREFIX = "anomaly_vae"
MODEL, COLUMN = ("model", "version"), ("model", "version", "column")
"""Labels of metrics by model, and by column of a model."""

Gauges = Mapping[str, tuple[str, str]]
"""Help text and value attribute of each gauge, by name."""

MODEL_GAUGES: Gauges = {
    "model_load_seconds": ("Seconds taken to load and warm up the model.", "load_seconds"),
    "model_loaded_timestamp_seconds": ("Unix time at which the model was loaded.", "loaded_at"),
    "model_registered_timestamp_seconds": (
        "Unix time at which the model was registered.", "registered_at",
    ),
    "model_alpha_ratio": (
        "False positive rate that the model is calibrated for.", "detector.calibration.alpha",
    ),
}  # fmt: skip
"""Gauges of a `ServedModel`."""
WINDOW_GAUGES: Gauges = {
    "martingale_log10": (
        "Evidence that the window differs from the calibration rows, as a power of ten.",
        "martingale_log10",
    ),
    "window_flagged_ratio": ("Share of records in the window that are flagged.", "flagged_ratio"),
    "window_records": ("Records in the window.", "rows"),
}
"""Gauges of a `Report` on the guarantee of a model."""
COLUMN_GAUGES: Gauges = {
    "drift_psi": ("Population stability index of the window against the calibration rows.", "psi"),
    "drift_martingale_log10": (
        "Evidence that the column differs from the calibration rows, as a power of ten.",
        "martingale_log10",
    ),
    "drift_noticed_records": (
        "Records after which a change of a tenth of them is usually noticed; absent if never.",
        "noticed_after",
    ),
    "window_missing_ratio": (
        "Share of records in the window without a value in the column.", "missing",
    ),
    "reference_missing_ratio": (
        "Share of calibration rows without a value in the column.", "reference_missing",
    ),
    "window_unseen_ratio": (
        "Share of records in the window with a category that training did not keep.", "unseen",
    ),
}  # fmt: skip
"""Gauges of the `Drift` of a column."""


def gauge(
    name: str,
    documentation: str,
    labels: Sequence[str],
    values: Iterable[tuple[Sequence[str], float | None]],
) -> Metric:
    """Build a gauge from pairs of label values and a value; those with None are skipped."""
    family = GaugeMetricFamily(f"{PREFIX}_{name}", documentation, labels=labels)
    for label_values, value in values:
        if value is not None:
            family.add_metric(label_values, value)
    return family


def gauges(
    definitions: Gauges, labels: Sequence[str], sources: Sequence[tuple[Sequence[str], object]]
) -> Iterator[Metric]:
    """Build each gauge from pairs of label values and the object that has the value."""
    for name, (documentation, attribute) in definitions.items():
        value = attrgetter(attribute)
        values = ((label_values, value(source)) for label_values, source in sources)
        yield gauge(name, documentation, labels, values)


class ModelCollector(Collector):
    """A collector of metrics about the models in the store."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def collect(self) -> Iterator[Metric]:
        """Collect one family per metric."""
        current = [((m.name, m.version or ""), m) for m in self.store.current.values()]
        info = InfoMetricFamily(f"{PREFIX}_model", "Models that are served.", labels=["model"])
        for (name, version), model in current:
            values = {"version": version, "alias": model.alias or "", "digest": model.digest}
            info.add_metric([name], {**values, "kind": model.kind})
        yield info
        yield from gauges(MODEL_GAUGES, MODEL, current)
        ready = float(self.store.ready)
        yield gauge("ready", "1 when the service is ready, else 0.", (), [((), ready)])


class GuaranteeCollector(Collector):
    """A collector of metrics about the guarantee of each model."""

    def __init__(self, store: Store, guarantees: GuaranteeTrackers) -> None:
        self.store, self.guarantees = store, guarantees

    def collect(self) -> Iterator[Metric]:
        """Collect one family per metric."""
        reports = [
            ((model.name, model.version or ""), self.guarantees.tracker(model).report())
            for model in self.store.current.values()
        ]
        yield gauge(
            "guarantee_status", "1 for the current status of the guarantee, 0 for the others.",
            (*MODEL, "status"),
            (((*m, s), r.status == s) for m, r in reports for s in STATUSES),
        )  # fmt: skip
        yield gauge(
            "guarantee_lacks",
            "1 for what an unknown guarantee lacks: rows, or days or rows of the calibration.",
            (*MODEL, "what"),
            (((*m, what), r.lacks == what) for m, r in reports for what in LACKS),
        )
        yield from gauges(WINDOW_GAUGES, MODEL, reports)
        columns = [((*m, d.column), d) for m, r in reports for d in r.columns or ()]
        yield from gauges(COLUMN_GAUGES, COLUMN, columns)

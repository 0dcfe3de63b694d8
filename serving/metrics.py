"""What Prometheus reads: prefix `anomaly_vae_`, base units, labels that no client chooses.

With several worker processes, prometheus_client keeps the values in the files of
`PROMETHEUS_MULTIPROC_DIR`, and any worker answers for all. What is loaded is read from the store
when it is asked for, so a swap leaves nothing stale.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

from anomaly_vae.detector import Detections
from anomaly_vae.encoding import Categorical, Matrix, TabularEncoding
from anomaly_vae.modality import Encoding
from serving.store import Served, Store

PREFIX = "anomaly_vae"
FILES = "PROMETHEUS_MULTIPROC_DIR"
LATENCIES = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
P_VALUES = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, *(i / 10 for i in range(1, 11)))
SIZES = (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000)


class BulkHistogram(Histogram):
    """A histogram that takes many observations at once, and one without a search by hand."""

    def observe(self, amount: float, exemplar: dict[str, str] | None = None) -> None:
        """Observe one value."""
        assert exemplar is None, "none are kept"
        self._sum.inc(amount)
        self._buckets[bisect_left(self._upper_bounds, amount)].inc(1)

    def observe_many(self, values: NDArray[Any]) -> None:
        """Observe each of ``values`` (N,)."""
        if len(values) == 1:
            self.observe(float(values[0]))
            return
        bins = np.searchsorted(self._upper_bounds, values, side="left")
        counts = np.bincount(bins, minlength=len(self._upper_bounds))
        for index in np.flatnonzero(counts):
            self._buckets[index].inc(int(counts[index]))
        self._sum.inc(float(values.sum()))


class ModelMetrics:
    """The counters of one version of one model; ``encoding`` names its columns."""

    def __init__(self, metrics: Metrics, model: str, version: str, encoding: Encoding) -> None:
        self.scored = metrics.scored.labels(model, version)
        self.flagged = metrics.flagged.labels(model, version)
        self.ignored = metrics.ignored.labels(model, version)
        self.p_values = metrics.p_values.labels(model, version)
        self.sizes = metrics.sizes.labels(model, version)
        self.inference = metrics.inference.labels(model, version)
        self.batches = metrics.batches.labels(model, version)
        self._cells = isinstance(encoding, TabularEncoding) and _Cells(metrics, model, encoding)

    def observe(self, found: Detections, x: Matrix | None) -> None:
        """Count rows that were scored; of a table, encoded as ``x`` (N, F)."""
        self.scored.inc(len(found.score))
        if flagged := int(found.is_anomaly.sum()):
            self.flagged.inc(flagged)
        self.p_values.observe_many(found.p_value)
        if self._cells and x is not None:
            self._cells.observe(x)


class _Cells:
    """Counters of missing values and unseen categories, by column of one table."""

    def __init__(self, metrics: Metrics, model: str, encoding: TabularEncoding) -> None:
        columns = list(zip(encoding.columns, encoding.starts.tolist(), strict=True))
        first = {column.name: at for column, at in reversed(columns)}
        self._missing = [metrics.missing.labels(model, name) for name in first]
        self._at = np.array(list(first.values()), np.intp)
        levels = {c.name: at for c, at in columns if isinstance(c, Categorical)}
        self._unseen = [metrics.unseen.labels(model, name) for name in levels]
        self._levels = np.array(list(levels.values()), np.intp)

    def observe(self, x: Matrix) -> None:
        """Count the cells of encoded rows (N, F)."""
        for counters, mask in (
            (self._missing, np.isnan(x[:, self._at])),
            (self._unseen, x[:, self._levels] == 0),
        ):
            if mask.any():
                for index, count in enumerate(mask.sum(axis=0).tolist()):
                    counters[index].inc(count)


class Loaded(Collector):
    """What the store holds, at the moment it is asked for."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def collect(self) -> Iterator[Metric]:
        """One family for each fact."""
        current = list(self.store.current.values())
        info = InfoMetricFamily(f"{PREFIX}_model", "The models served.", labels=["model"])
        for one in current:
            facts = {"version": one.version or "", "alias": one.alias or "", "digest": one.digest}
            info.add_metric([one.name], {**facts, "kind": one.kind})
        yield info
        yield self._gauge("model_load_seconds", "Seconds to load and warm it.", "load_seconds")
        yield self._gauge("model_loaded_timestamp_seconds", "When it was loaded.", "loaded_at")
        alpha = GaugeMetricFamily(
            f"{PREFIX}_model_alpha_ratio", "Rate of false positives it is calibrated for.",
            labels=["model", "version"],
        )  # fmt: skip
        for one in current:
            alpha.add_metric([one.name, one.version or ""], one.detector.calibration.alpha)
        yield alpha
        yield GaugeMetricFamily(f"{PREFIX}_ready", "1 when ready.", float(self.store.ready))

    def _gauge(self, name: str, help_text: str, attribute: str) -> Metric:
        family = GaugeMetricFamily(f"{PREFIX}_{name}", help_text, labels=["model", "version"])
        for one in self.store.current.values():
            family.add_metric([one.name, one.version or ""], getattr(one, attribute))
        return family


class Metrics:
    """Every metric of one application, in a registry of its own."""

    def __init__(self, store: Store) -> None:
        self.registry = CollectorRegistry()
        self.loaded = Loaded(store)
        common: dict[str, Any] = {"namespace": PREFIX, "registry": self.registry}
        model = ("model", "version")
        column = ("model", "column")
        self.requests = Counter(
            "requests", "Requests answered, by route template and class of status.",
            ("route", "status"), **common,
        )  # fmt: skip
        self.latency = BulkHistogram(
            "request_duration_seconds", "From the head of a request to the end of its answer.",
            ("route",), buckets=LATENCIES, **common,
        )  # fmt: skip
        self.in_flight = Gauge(
            "requests_in_flight", "Requests under way.", multiprocess_mode="livesum", **common
        )
        self.rejected = Counter(
            "rejected_requests", "Requests refused, by reason.", ("reason",), **common
        )
        self.scored = Counter("scored_records", "Records scored.", model, **common)
        self.flagged = Counter("flagged_records", "Records found anomalous.", model, **common)
        self.ignored = Counter(
            "ignored_keys", "Distinct unknown keys of each request, summed.", model, **common
        )
        self.p_values = BulkHistogram(
            "p_value", "p-values of the records scored.", model, buckets=P_VALUES, **common
        )
        self.sizes = BulkHistogram(
            "request_records", "Records in a request.", model, buckets=SIZES, **common
        )
        self.inference = BulkHistogram(
            "inference_seconds", "To encode, score and decide on one batch.", model,
            buckets=LATENCIES, **common,
        )  # fmt: skip
        self.batches = BulkHistogram(
            "batch_records", "Records scored in one pass of the graph.", model, buckets=SIZES,
            **common,
        )  # fmt: skip
        self.missing = Counter(
            "missing_values", "Values missing in scored records, by column.", column, **common
        )
        self.unseen = Counter(
            "unseen_categories", "Categories that training did not keep, by column.", column,
            **common,
        )  # fmt: skip
        self.queue = Gauge(
            "queue_depth", "Requests on worker threads or waiting for one.",
            multiprocess_mode="livesum", **common,
        )  # fmt: skip
        self.connections = Gauge(
            "connections", "Open connections.", multiprocess_mode="livesum", **common
        )
        self._ends = cache(self._end)

    def of(self, served: Served) -> ModelMetrics:
        """The counters of what is served."""
        encoding = served.detector.scorer.encoding
        return ModelMetrics(self, served.name, served.version or "", encoding)

    def _end(self, route: str, status: int) -> tuple[Counter, BulkHistogram]:
        return self.requests.labels(route, f"{status}xx"), self.latency.labels(route)

    def finished(self, route: str, status: int, seconds: float) -> None:
        """Count one answered request."""
        requests, latency = self._ends(route, status // 100)
        requests.inc()
        latency.observe(seconds)

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """The text of all metrics, and its media type."""
        encoder, media_type = choose_encoder(accept)
        registry = self._all()
        return encoder(registry), media_type

    def _all(self) -> CollectorRegistry:
        registry = CollectorRegistry()
        registry.register(self.loaded)
        if FILES in os.environ:
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # ships partial types
            return registry
        ProcessCollector(namespace=PREFIX, registry=registry)
        registry.register(_Whole(self.registry))
        return registry


class _Whole(Collector):
    """A registry as a collector of another."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry

    def collect(self) -> Iterator[Metric]:
        """All that it has."""
        yield from self.registry.collect()


def forget_dead_workers(folder: str | None) -> None:
    """Drop the live gauges of worker processes that are gone."""
    for path in Path(folder).glob("gauge_live*_*.db") if folder else ():
        pid = int(path.stem.rpartition("_")[2])
        if not _alive(pid):
            mark_process_dead(pid)  # type: ignore[no-untyped-call]  # ships partial types


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)  # asks, and sends nothing
    except OSError as error:
        return isinstance(error, PermissionError)
    return True

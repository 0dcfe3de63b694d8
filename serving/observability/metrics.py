"""What Prometheus reads: prefix `anomaly_vae_`, base units, labels that no client chooses.

With several worker processes, prometheus_client keeps the values in the files of
`PROMETHEUS_MULTIPROC_DIR`, and any worker answers for all. What is loaded is read from the store
when it is asked for, so a swap leaves nothing stale.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from anomaly_vae.data.encoding import Categorical, Matrix, TabularEncoding
from anomaly_vae.scoring.detector import Detections
from anomaly_vae.scoring.modality import Encoding
from serving.models.store import ServedModel, Store
from serving.observability.collectors import PREFIX, Loaded, Watched, family
from serving.observability.guarantee import Watch, Watches

MULTIPROCESS_DIR = "PROMETHEUS_MULTIPROC_DIR"
LATENCIES = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
P_VALUES = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, *(i / 10 for i in range(1, 11)))
P_DIFFERENCES = (-0.5, -0.2, -0.1, -0.05, -0.02, -0.01, 0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)
SCORE_DIFFERENCES = (-100, -30, -10, -3, -1, -0.3, 0, 0.3, 1, 3, 10, 30, 100)
PAIR = ("model", "version", "shadow_version")
SIZES = (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000)


Reason = Literal["registry", "missing", "bundle", "disk", "internal"]
"""Why a look at the registry fails."""


def role_of(shadow: bool) -> str:
    """What a model does, as a label."""
    return "shadow" if shadow else "champion"


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
        counts = np.bincount(self._bounds.searchsorted(values))
        for bucket, count in zip(self._buckets, counts.tolist(), strict=False):
            if count:
                bucket.inc(count)
        self._sum.inc(float(values.sum()))

    @cached_property
    def _bounds(self) -> NDArray[np.float64]:
        return np.array(self._upper_bounds)


class ModelMetrics:
    """The counters and the watch of one version of one model; ``encoding`` names its columns."""

    def __init__(
        self, metrics: Metrics, model: str, version: str, encoding: Encoding, watch: Watch
    ) -> None:
        self.watch = watch
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
        self.watch.observe(found, x)


class _Cells:
    """Counters of missing values and unseen categories, by column of one table."""

    def __init__(self, metrics: Metrics, model: str, encoding: TabularEncoding) -> None:
        at = encoding.first_positions
        self._missing = [metrics.missing.labels(model, name) for name in at]
        self._at = np.array(list(at.values()), np.intp)
        levels = {c.name: at[c.name] for c in encoding.columns if isinstance(c, Categorical)}
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


class PairMetrics:
    """The counters of a version of a model and one of its shadow."""

    def __init__(self, metrics: Metrics, pair: tuple[str, str, str]) -> None:
        self.decisions = {
            (ours, theirs): metrics.decisions.labels(*pair, str(ours).lower(), str(theirs).lower())
            for ours in (False, True)
            for theirs in (False, True)
        }
        self.p_values = metrics.p_differences.labels(*pair)
        self.scores = metrics.score_differences.labels(*pair)
        for counter in (metrics.shadow_dropped, metrics.shadow_failures):
            counter.labels(pair[0])  # from 0 on

    def observe(self, found: Detections, theirs: Detections) -> None:
        """Count the decisions on the same records."""
        for (ours, other), counter in self.decisions.items():
            both = (found.is_anomaly == ours) & (theirs.is_anomaly == other)
            counter.inc(int(both.sum()))
        self.p_values.observe_many(theirs.p_value - found.p_value)
        self.scores.observe_many(theirs.score - found.score)


@dataclass
class Tally:
    """Records that two models decided, and how many of them each flagged, and both."""

    records: float = 0
    flagged: float = 0
    shadow_flagged: float = 0
    both: float = 0

    @property
    def agreed(self) -> float:
        """Those with the same flag."""
        return self.records - self.flagged - self.shadow_flagged + 2 * self.both

    @property
    def difference(self) -> float:
        """Of the shares flagged."""
        return (self.shadow_flagged - self.flagged) / self.records

    def add(self, count: float, ours: bool, theirs: bool) -> None:
        """So many records that were decided like this."""
        self.records += count
        self.flagged += count * ours
        self.shadow_flagged += count * theirs
        self.both += count * (ours and theirs)


def tallies(samples: Iterable[Sample]) -> dict[tuple[str, ...], Tally]:
    """The decisions among these samples, by pair."""
    found: defaultdict[tuple[str, ...], Tally] = defaultdict(Tally)
    for sample in samples:
        if sample.name == f"{PREFIX}_shadow_decisions_total":
            flags = (sample.labels[name] == "true" for name in ("flagged", "shadow_flagged"))
            found[tuple(sample.labels[name] for name in PAIR)].add(sample.value, *flags)
    return found


class Metrics:
    """Every metric of one application, in a registry of its own."""

    def __init__(self, store: Store) -> None:
        self.registry = CollectorRegistry()
        self.loaded = Loaded(store)
        self.watches = Watches(os.environ.get(MULTIPROCESS_DIR))
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
        role = ("model", "role")
        self.reloads = Counter("reloads", "Versions swapped in.", role, **common)
        self.reload_failures = Counter(
            "reload_failures", "Looks at the registry that failed, by reason.",
            (*role, "reason"), **common,
        )  # fmt: skip
        self.reload_success = Gauge(
            "reload_last_success_timestamp_seconds",
            "When the registry was last looked at and what it has is served; 0 for never.",
            role, multiprocess_mode="max", **common,
        )  # fmt: skip
        self.decisions = Counter(
            "shadow_decisions", "Records decided by a model and its shadow: what either said.",
            (*PAIR, "flagged", "shadow_flagged"), **common,
        )  # fmt: skip
        self.p_differences = BulkHistogram(
            "shadow_p_value_difference", "p-value of the shadow less that of the model.",
            PAIR, buckets=P_DIFFERENCES, **common,
        )  # fmt: skip
        self.score_differences = BulkHistogram(
            "shadow_score_difference", "Score of the shadow less that of the model, in their unit.",
            PAIR, buckets=SCORE_DIFFERENCES, **common,
        )  # fmt: skip
        self.shadow_dropped = Counter(
            "shadow_dropped_requests", "Requests that found no room to wait for the shadow.",
            ("model",), **common,
        )  # fmt: skip
        self.shadow_failures = Counter(
            "shadow_failures", "Requests or records that the shadow could not score.",
            ("model",), **common,
        )  # fmt: skip
        self.compared, self._ends = cache(self._compared), cache(self._end)

    def of(self, served: ServedModel) -> ModelMetrics:
        """The counters of what is served."""
        encoding, watch = served.detector.scorer.encoding, self.watches.of(served)
        return ModelMetrics(self, served.name, served.version or "", encoding, watch)

    def _end(self, route: str, status: int) -> tuple[Counter, BulkHistogram]:
        return self.requests.labels(route, f"{status}xx"), self.latency.labels(route)

    def _compared(self, model: str, version: str | None, shadow: str | None) -> PairMetrics:
        return PairMetrics(self, (model, version or "", shadow or ""))

    def tally(self, model: str, version: str | None, shadow: str | None) -> Tally:
        """What a model and its shadow decided on the same records, by all processes."""
        samples = (s for family in self.counted().collect() for s in family.samples)
        return tallies(samples).get((model, version or "", shadow or ""), Tally())

    def finished(self, route: str, status: int, seconds: float) -> None:
        """Count one answered request."""
        requests, latency = self._ends(route, status // 100)
        requests.inc()
        latency.observe(seconds)

    def follow(self, model: str | None, shadow: bool, checked_at: float | None) -> None:
        """Begin to count the looks at the registry for a model, from 0."""
        for reason in get_args(Reason):
            self.reload_failures.labels(model, role_of(shadow), reason)
        self.reloads.labels(model, role_of(shadow))
        self.looked(model, shadow, checked_at)

    def looked(self, model: str | None, shadow: bool, at: float | None) -> None:
        """Keep when the registry was last looked at with success."""
        self.reload_success.labels(model, role_of(shadow)).set(at or 0.0)

    def swapped(self, model: str, shadow: bool) -> None:
        """Count a version swapped in."""
        self.reloads.labels(model, role_of(shadow)).inc()

    def failed(self, model: str | None, shadow: bool, reason: Reason) -> None:
        """Count a look at the registry that failed."""
        self.reload_failures.labels(model, role_of(shadow), reason).inc()

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """The text of all metrics, and its media type."""
        encoder, media_type = choose_encoder(accept)
        registry = self._all()
        return encoder(registry), media_type

    def _all(self) -> CollectorRegistry:
        registry = CollectorRegistry()
        registry.register(self.loaded)
        if MULTIPROCESS_DIR not in os.environ:
            ProcessCollector(namespace=PREFIX, registry=registry)
        registry.register(_Whole(self.counted()))
        registry.register(Compared(self))
        registry.register(Watched(self.loaded.store, self.watches))
        return registry

    def counted(self) -> CollectorRegistry:
        """What was counted, by all worker processes where there are several."""
        if MULTIPROCESS_DIR not in os.environ:
            return self.registry
        registry = CollectorRegistry()
        _OfWorkers(registry)  # type: ignore[no-untyped-call]  # ships partial types
        return registry


class Compared(Collector):
    """How a model and its shadow agree, of what was counted."""

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics

    def collect(self) -> Iterator[Metric]:
        """Two ratios for each pair."""
        store, tallies = self.metrics.loaded.store, []
        for name in store.current.keys() & store.shadows.keys():
            pair = name, store.current[name].version, store.shadows[name].version
            if (tally := self.metrics.tally(*pair)).records:
                tallies.append(([part or "" for part in pair], tally))
        yield family(
            "shadow_agreement_ratio", "Share of records with the same flag.", PAIR,
            ((labels, tally.agreed / tally.records) for labels, tally in tallies),
        )  # fmt: skip
        yield family(
            "shadow_flag_rate_difference_ratio",
            "Share flagged by the shadow less that flagged by the model.", PAIR,
            ((labels, tally.difference) for labels, tally in tallies),
        )  # fmt: skip


class _OfWorkers(MultiProcessCollector):
    """What worker processes count; one that begins, or was killed as it did, has an empty file."""

    def collect(self) -> Iterable[Metric]:
        """All that is in the others."""
        files = [str(file) for file in Path(self._path).glob("*.db") if file.stat().st_size]
        merged: Iterable[Metric] = self.merge(files)  # type: ignore[no-untyped-call]
        return merged


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

"""Define the metrics of the service: prefix `anomaly_vae_`, base units, bounded labels.

Counters whose labels are known exist at 0 before their first event, because Prometheus computes
increases from the second sample of a series on.

With several worker processes, prometheus_client keeps counts in files under
`PROMETHEUS_MULTIPROC_DIR`, and any worker reports the totals. Metrics about loaded models are read
from the store at collection time, so that the series of a replaced model disappear.
"""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

from anomaly_vae.data.encoding import Categorical, Matrix, TabularEncoding
from anomaly_vae.data.schema import RawBatch
from anomaly_vae.review.cases import KINDS as KINDS_OF_CASES
from anomaly_vae.review.labels import VERDICTS
from anomaly_vae.scoring.detector import Decision, Detections
from serving.models.store import ServedModel, Store
from serving.observability.collectors import PREFIX, GuaranteeCollector, ModelCollector, gauge
from serving.observability.guarantee import GuaranteeTracker, GuaranteeTrackers
from serving.observability.histograms import Histogram, Observations, with_histograms
from serving.problems import KINDS, REFUSED

MULTIPROCESS_DIR = "PROMETHEUS_MULTIPROC_DIR"
"""Environment variable with the folder in which worker processes share their counts."""
LATENCIES = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
"""Bucket bounds of durations, in seconds."""
P_VALUES = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, *(i / 10 for i in range(1, 11)))
"""Bucket bounds of p-values."""
P_DIFFERENCES = (-0.5, -0.2, -0.1, -0.05, -0.02, -0.01, 0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)
"""Bucket bounds of differences of p-values."""
SCORE_DIFFERENCES = (-100, -30, -10, -3, -1, -0.3, 0, 0.3, 1, 3, 10, 30, 100)
"""Bucket bounds of differences of scores, in the unit of the scores."""
SIZES = (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000)
"""Bucket bounds of numbers of records."""
MODEL = ("model", "version")
"""Labels of metrics by model."""
PAIR = (*MODEL, "shadow_version")
"""Labels of metrics by model and shadow."""
FLAGS = ("flagged", "shadow_flagged")
"""Labels of the decisions of a model and its shadow."""
ROLE = ("model", "role")
"""Labels of metrics about registry checks."""
STATUS_CLASSES = (2, 4, 5)
"""Leading digits of the statuses that the service answers with."""
DECISIONS = "shadow_decisions"
"""Name of the counter of records that a model and its shadow both decided."""

EVENT_OUTCOMES = ("recorded", "duplicate", "late", "dropped")
"""Values of the label that says what became of an event."""

CASE_LOSSES = ("queue", "spool", "failed")
"""Reasons why cases are lost: too many at once, too many while the store was down, and errors."""
WEBHOOK_OUTCOMES = ("delivered", "failed", "dropped")
"""Values of the label that says what became of a webhook."""
REVIEW_GAUGES = {
    "open_cases": "Cases without a verdict that are in the queue.",
    "oldest_unreviewed_flag_seconds": "Age of the oldest flag in the queue; 0 if there is none.",
    "reviewed_flags": "Cases of flagged records with a verdict.",
    "reviewed_precision_ratio": "Share of anomalies among the reviewed flags.",
    "reviewed_precision_lower_ratio": "Lower end of the 95% interval of that share.",
    "reviewed_precision_upper_ratio": "Upper end of the 95% interval of that share.",
}
"""Gauges of the state of the review, by name."""

Reason = Literal["registry", "missing", "bundle", "disk", "internal"]
"""Reason for a failed registry check."""


def role_of(shadow: bool) -> str:
    """Return the role of a model, as a label value."""
    return "shadow" if shadow else "champion"


class ModelMetrics:
    """The counters and the guarantee tracker of one version of one model."""

    def __init__(
        self,
        metrics: Metrics,
        model: str,
        version: str,
        encoding: TabularEncoding | None,
        guarantee: GuaranteeTracker,
    ) -> None:
        self.guarantee = guarantee
        self.scored = metrics.scored.labels(model, version)
        self.flagged = metrics.flagged.labels(model, version)
        self.unusual = metrics.unusual.labels(model, version)
        self.ignored = metrics.ignored.labels(model, version)
        self.failed = metrics.failed.labels(model, version)
        self.p_values = metrics.p_values.labels(model, version)
        self.sizes = metrics.sizes.labels(model, version)
        self.inference = metrics.inference.labels(model, version)
        self.batches = metrics.batches.labels(model, version)
        self._columns = ColumnMetrics(metrics, model, encoding) if encoding else None

    def observe(
        self, detections: Detections, x: Matrix | None = None, batch: RawBatch | None = None
    ) -> None:
        """Count N scored rows; ``x`` (N, F) and ``batch`` are the rows of a table."""
        self.scored.inc(len(detections.score))
        if flagged := int(np.count_nonzero(detections.is_anomaly)):
            self.flagged.inc(flagged)
        if unusual := detections.unusual:
            self.unusual.inc(unusual)
        self.p_values.observe_many(detections.p_value)
        if self._columns and x is not None:
            self._columns.observe(x)
        self.guarantee.observe(detections, x, batch)

    def observe_alone(
        self, decision: Decision, x: Matrix, is_complete: bool, times: RawBatch | None
    ) -> None:
        """Count a lone row of a table.

        Args:
            decision: the decision on it.
            x: the encoded row (1, F).
            is_complete: whether no value is missing.
            times: its times; None if it has none.
        """
        self.scored.inc()
        if decision.is_anomaly:
            self.flagged.inc()
        if decision.unusual_input is not None:
            self.unusual.inc()
        self.p_values.observe(decision.p_value)
        if self._columns:
            self._columns.observe_alone(x, is_complete)
        self.guarantee.observe_alone(decision, x, times)


class ColumnMetrics:
    """Counters of missing values and unseen categories of one model, by column."""

    def __init__(self, metrics: Metrics, model: str, encoding: TabularEncoding) -> None:
        first = encoding.first_positions
        self._missing = [metrics.missing.labels(model, name) for name in first]
        self._columns = np.array(list(first.values()), np.intp)
        levels = {c.name: first[c.name] for c in encoding.columns if isinstance(c, Categorical)}
        self._unseen = [metrics.unseen.labels(model, name) for name in levels]
        self._levels = np.array(list(levels.values()), np.intp)
        self._level_list = list(levels.values())

    def observe(self, x: Matrix) -> None:
        """Count missing values and unseen categories of encoded rows (N, F)."""
        for counters, mask in (
            (self._missing, np.isnan(x[:, self._columns])),
            (self._unseen, x[:, self._levels] == 0),
        ):
            if mask.any():
                for index, count in enumerate(mask.sum(axis=0).tolist()):
                    if count:
                        counters[index].inc(count)

    def observe_alone(self, x: Matrix, is_complete: bool) -> None:
        """Count the same of a lone row (1, F), which has nothing to count in most cases."""
        if not (is_complete and all(map(x.item, self._level_list))):
            self.observe(x)


class PairMetrics:
    """The counters that compare a version of a model with a version of its shadow."""

    def __init__(self, metrics: Metrics, pair: tuple[str, str, str]) -> None:
        self.decisions = {
            (flag, shadow_flag): metrics.decisions.labels(
                *pair, str(flag).lower(), str(shadow_flag).lower()
            )
            for flag in (False, True)
            for shadow_flag in (False, True)
        }
        self.p_values = metrics.p_differences.labels(*pair)
        self.scores = metrics.score_differences.labels(*pair)
        for counter in (metrics.shadow_dropped, metrics.shadow_failures):
            counter.labels(pair[0])  # exposed as 0 before the first event

    def observe(self, model: Detections, shadow: Detections) -> None:
        """Count the decisions of both models on the same records."""
        for (flag, shadow_flag), counter in self.decisions.items():
            both = (model.is_anomaly == flag) & (shadow.is_anomaly == shadow_flag)
            counter.inc(int(both.sum()))
        self.p_values.observe_many(shadow.p_value - model.p_value)
        self.scores.observe_many(shadow.score - model.score)


@dataclass
class Tally:
    """Numbers of records that a model and its shadow both scored, and that each of them flagged."""

    records: float = 0
    flagged: float = 0
    shadow_flagged: float = 0
    both: float = 0

    @property
    def agreed(self) -> float:
        """Number of records with the same decision."""
        return self.records - self.flagged - self.shadow_flagged + 2 * self.both

    @property
    def difference(self) -> float:
        """Share of records flagged by the shadow minus the share flagged by the model."""
        return (self.shadow_flagged - self.flagged) / self.records

    def add(self, count: float, flag: bool, shadow_flag: bool) -> None:
        """Add records with these two decisions."""
        self.records += count
        self.flagged += count * flag
        self.shadow_flagged += count * shadow_flag
        self.both += count * (flag and shadow_flag)


Pair = tuple[str, str, str]
Tallies = dict[Pair, Tally]
"""Tallies by the labels of `PAIR`; a missing version is an empty label."""


def tallies_of(families: Iterable[Metric]) -> Tallies:
    """Add up the decisions in these metric families, by model and shadow."""
    tallies: Tallies = defaultdict(Tally)
    for family in families:
        if family.name == f"{PREFIX}_{DECISIONS}":
            for sample in family.samples:
                if sample.name.endswith("_total"):
                    flags = (sample.labels[name] == "true" for name in FLAGS)
                    model, version, shadow_version = (sample.labels[name] for name in PAIR)
                    tallies[model, version, shadow_version].add(sample.value, *flags)
    return tallies


def pair_of(model: ServedModel, shadow: ServedModel) -> Pair:
    """Return the labels of a model and its shadow."""
    return model.name, model.version or "", shadow.version or ""


class Metrics(Collector):
    """All metrics of an application; `collect` includes those of the other worker processes."""

    def __init__(self, store: Store) -> None:
        self.registry, self._store = CollectorRegistry(), store
        self.count_entities: Callable[[], int | None] = lambda: 0
        self.guarantees = GuaranteeTrackers(os.environ.get(MULTIPROCESS_DIR))
        self._define_requests()
        self._define_records()
        self._define_reloads()
        self._define_shadows()
        self._define_windows()
        self._define_labels()
        self._define_cases()
        self.for_pair = cache(self._for_pair)
        self._response_metrics = cache(self._find_response_metrics)

    def _counter(self, name: str, documentation: str, labels: tuple[str, ...]) -> Counter:
        return Counter(name, documentation, labels, namespace=PREFIX, registry=self.registry)

    def _gauge(
        self, name: str, documentation: str, mode: Any = "livesum", labels: tuple[str, ...] = ()
    ) -> Gauge:
        return Gauge(
            name,
            documentation,
            labels,
            multiprocess_mode=mode,
            namespace=PREFIX,
            registry=self.registry,
        )

    def _histogram(
        self, name: str, documentation: str, labels: tuple[str, ...], buckets: tuple[float, ...]
    ) -> Histogram:
        return Histogram(
            name, documentation, labels, buckets=buckets, namespace=PREFIX, registry=self.registry
        )

    def _define_requests(self) -> None:
        self.requests = self._counter(
            "requests", "Requests answered, by route template and status class.",
            ("route", "status"),
        )  # fmt: skip
        self.latency = self._histogram(
            "request_duration_seconds",
            "Seconds from the head of a request to the end of its response.",
            ("route",), LATENCIES,
        )  # fmt: skip
        self.rejected = self._counter(
            "rejected_requests", "Requests refused, by reason.", ("reason",)
        )
        self.in_flight = self._gauge("requests_in_flight", "Requests in progress.")
        self.queue = self._gauge(
            "queue_depth", "Requests running on worker threads or waiting for one."
        )
        self.connections = self._gauge("connections", "Open connections.")

    def _define_records(self) -> None:
        column = ("model", "column")
        self.scored = self._counter("scored_records", "Records scored.", MODEL)
        self.flagged = self._counter("flagged_records", "Records flagged as anomalies.", MODEL)
        self.unusual = self._counter(
            "unusual_records", "Records and images reported as unlike the training data.", MODEL
        )
        self.failed = self._counter(
            "rejected_records", "Records and images answered with an error of their own.", MODEL
        )
        self.ignored = self._counter(
            "ignored_keys", "Distinct unknown keys per request, summed over requests.", MODEL
        )
        self.missing = self._counter(
            "missing_values", "Missing values in scored records, by column.", column
        )
        self.unseen = self._counter(
            "unseen_categories", "Categories that training did not keep, by column.", column
        )
        self.p_values = self._histogram("p_value", "p-values of scored records.", MODEL, P_VALUES)
        self.sizes = self._histogram("request_records", "Records per request.", MODEL, SIZES)
        self.inference = self._histogram(
            "inference_seconds", "Seconds to encode, score and decide on one batch.",
            MODEL, LATENCIES,
        )  # fmt: skip
        self.batches = self._histogram(
            "batch_records", "Records scored in one run of the ONNX graph.", MODEL, SIZES
        )

    def _define_reloads(self) -> None:
        self.reloads = self._counter("reloads", "Model versions swapped in.", ROLE)
        self.reload_failures = self._counter(
            "reload_failures", "Failed registry checks, by reason.", (*ROLE, "reason")
        )
        self.reload_success = self._gauge(
            "reload_last_success_timestamp_seconds",
            "Unix time of the last successful registry check; 0 if there was none.",
            "max", ROLE,
        )  # fmt: skip

    def _define_shadows(self) -> None:
        self.decisions = self._counter(
            DECISIONS, "Records scored by a model and its shadow, by both decisions.",
            (*PAIR, *FLAGS),
        )  # fmt: skip
        self.p_differences = self._histogram(
            "shadow_p_value_difference", "p-value of the shadow minus that of the model.",
            PAIR, P_DIFFERENCES,
        )  # fmt: skip
        self.score_differences = self._histogram(
            "shadow_score_difference",
            "Score of the shadow minus that of the model, in the unit of the scores.",
            PAIR, SCORE_DIFFERENCES,
        )  # fmt: skip
        self.shadow_dropped = self._counter(
            "shadow_dropped_requests", "Requests that the shadow skipped: its queue was full.",
            ("model",),
        )  # fmt: skip
        self.shadow_failures = self._counter(
            "shadow_failures", "Requests or records that the shadow could not score.", ("model",)
        )

    def _define_windows(self) -> None:
        seconds = self._histogram(
            "entity_windows_store_seconds", "Seconds to use the window store, by operation.",
            ("operation",), LATENCIES,
        )  # fmt: skip
        self.store_seconds = {name: seconds.labels(name) for name in ("read", "record")}
        events = self._counter(
            "entity_windows_events", "Events for the window store, by what became of them.",
            ("outcome",),
        )  # fmt: skip
        self.store_events = {name: events.labels(name) for name in EVENT_OUTCOMES}
        self.store_failures = self._counter(
            "entity_windows_store_failures", "Failed uses of the window store.", ()
        )
        self.short_history = self._counter(
            "entity_windows_short_history_records",
            "Records with windows that reach further back than the history in the store.", (),
        )  # fmt: skip

    def _define_labels(self) -> None:
        self.labels = self._counter("labels", "Labels stored, by verdict.", ("verdict",))
        self.label_store_errors = self._counter(
            "label_store_errors", "Failures of the label store, which no score depends on.", ()
        )
        for verdict in VERDICTS:
            self.labels.labels(verdict)

    def _define_cases(self) -> None:
        model = ("model",)
        self.cases = self._counter("cases", "Cases stored, by kind.", (*model, "kind"))
        self.suppressed = self._counter(
            "suppressed_cases", "Cases of flagged records that a snooze keeps out of the queue.",
            model,
        )  # fmt: skip
        dropped = self._counter("dropped_cases", "Cases that are lost, by reason.", ("reason",))
        self.dropped_cases = {reason: dropped.labels(reason) for reason in CASE_LOSSES}
        self.case_store_errors = self._counter(
            "case_store_errors", "Failures of the case store, which no score depends on.", ()
        )
        self.spooled = self._gauge(
            "spooled_cases_bytes", "Size of the cases that wait for the case store.", "mostrecent"
        )
        webhooks = self._counter("case_webhooks", "Webhooks about cases, by outcome.", ("outcome",))
        self.webhooks = {outcome: webhooks.labels(outcome) for outcome in WEBHOOK_OUTCOMES}
        self.review = {
            name: self._gauge(name, text, "mostrecent", model)
            for name, text in REVIEW_GAUGES.items()
        }

    def start_cases(self, models: Iterable[str]) -> None:
        """Expose the counters of cases, starting at 0, for these models."""
        for model in models:
            self.suppressed.labels(model)
            for kind in KINDS_OF_CASES:
                self.cases.labels(model, kind)

    def record_review(self, model: str, values: Mapping[str, float | None]) -> None:
        """Record the state of the review of a model; NaN where there is no value."""
        for name, value in values.items():
            self.review[name].labels(model).set(math.nan if value is None else value)

    def for_model(self, model: ServedModel) -> ModelMetrics:
        """Return the counters of a served model."""
        encoding, guarantee = model.table_encoding, self.guarantees.tracker(model)
        return ModelMetrics(self, model.name, model.version or "", encoding, guarantee)

    def _find_response_metrics(self, route: str, status_class: int) -> tuple[Counter, Observations]:
        return self.requests.labels(route, f"{status_class}xx"), self.latency.labels(route)

    def _for_pair(self, model: str, version: str | None, shadow: str | None) -> PairMetrics:
        return PairMetrics(self, (model, version or "", shadow or ""))

    def record_response(self, route: str, status: int, seconds: float) -> None:
        """Count one answered request and its duration."""
        requests, latency = self._response_metrics(route, status // 100)
        requests.inc()
        latency.observe(seconds)

    def start_routes(self, routes: Iterable[str]) -> None:
        """Expose the counters of requests, starting at 0, for these templates of routes."""
        for route in routes:
            for status_class in STATUS_CLASSES:
                self._response_metrics(route, status_class)
        for slug in {kind.slug for kind in KINDS} | {REFUSED}:
            self.rejected.labels(slug)

    def _start_models(self) -> None:
        """Expose the counters of the models and pairs of models that are served now."""
        for name, model in self._store.current.items():
            self.for_model(model)
            if name in self._store.shadows:
                self.for_pair(*pair_of(model, self._store.shadows[name]))

    def start_following(self, model: str | None, shadow: bool, checked_at: float | None) -> None:
        """Expose the counters of a model's registry checks, starting at 0."""
        for reason in get_args(Reason):
            self.reload_failures.labels(model, role_of(shadow), reason)
        self.reloads.labels(model, role_of(shadow))
        self.record_check(model, shadow, checked_at)

    def record_check(self, model: str | None, shadow: bool, at: float | None) -> None:
        """Record the time of a successful registry check, in seconds since 1970."""
        self.reload_success.labels(model, role_of(shadow)).set(at or 0.0)

    def record_swap(self, model: str, shadow: bool) -> None:
        """Count a swap to another version."""
        self.reloads.labels(model, role_of(shadow)).inc()

    def record_failed_check(self, model: str | None, shadow: bool, reason: Reason) -> None:
        """Count a failed registry check."""
        self.reload_failures.labels(model, role_of(shadow), reason).inc()

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """Return the text of all metrics in the accepted format, and its media type."""
        encoder, media_type = choose_encoder(accept)
        return encoder(self), media_type

    def collect(self) -> Iterator[Metric]:
        """Collect every metric; the files of worker processes are read once."""
        self._start_models()
        families = self.counted_families()
        yield from ModelCollector(self._store).collect()
        if MULTIPROCESS_DIR not in os.environ:
            yield from ProcessCollector(namespace=PREFIX, registry=None).collect()
        yield from with_histograms(families)
        yield from _agreement(self._store, tallies_of(families))
        yield from GuaranteeCollector(self._store, self.guarantees).collect()
        yield gauge(
            "entity_windows_entities", "Entities with events in the window store.", (),
            (((), float(count)) for count in [self.count_entities()] if count is not None),
        )  # fmt: skip

    def tallies(self) -> Tallies:
        """Count the decisions of models and shadows on the same records, over all processes."""
        return tallies_of(self.counted_families())

    def counted_families(self) -> list[Metric]:
        """Return the families of all counters, summed over the worker processes.

        The file of a worker that is starting, or was killed while starting, is empty and skipped.
        """
        folder = os.environ.get(MULTIPROCESS_DIR)
        if not folder:
            return list(self.registry.collect())
        files = [str(file) for file in Path(folder).glob("*.db") if file.stat().st_size]
        return list(MultiProcessCollector.merge(files))  # type: ignore[no-untyped-call]  # ships partial types


def _agreement(store: Store, tallies: Tallies) -> Iterator[Metric]:
    """Build two ratios for each model that has a shadow."""
    pairs = [
        pair_of(store.current[n], store.shadows[n])
        for n in store.current.keys() & store.shadows.keys()
    ]
    scored = [(pair, tallies[pair]) for pair in pairs if pair in tallies and tallies[pair].records]
    yield gauge(
        "shadow_agreement_ratio", "Share of records on which the model and its shadow agree.", PAIR,
        ((pair, tally.agreed / tally.records) for pair, tally in scored),
    )  # fmt: skip
    yield gauge(
        "shadow_flag_rate_difference_ratio",
        "Share of records flagged by the shadow minus the share flagged by the model.", PAIR,
        ((pair, tally.difference) for pair, tally in scored),
    )  # fmt: skip


def forget_dead_workers(folder: str | None) -> None:
    """Remove the live gauges of worker processes that have ended."""
    for path in Path(folder).glob("gauge_live*_*.db") if folder else ():
        pid = int(path.stem.rpartition("_")[2])
        if not _is_alive(pid):
            mark_process_dead(pid)  # type: ignore[no-untyped-call]  # ships partial types


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)  # signal 0 tests for existence
    except OSError as error:
        return isinstance(error, PermissionError)
    return True

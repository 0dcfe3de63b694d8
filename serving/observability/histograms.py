"""Record histograms that take many observations at once.

prometheus_client's own `Histogram` takes one observation at a time and searches its buckets in
Python. The histograms here keep a counter per bucket and a gauge of the sum, which
prometheus_client adds up over worker processes as it does for any counter and gauge;
`with_histograms` turns them into histogram families when metrics are collected.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import Metric
from prometheus_client.utils import floatToGoString

COUNTS, SUM = "_observations", "_observations_sum"
"""Name suffixes of the bucket counters and the sum, neither of which is exposed."""


class Histogram:
    """A histogram by labels; buckets are given by their upper bounds, without infinity."""

    def __init__(
        self,
        name: str,
        documentation: str,
        labels: Sequence[str] = (),
        *,
        buckets: Sequence[float],
        namespace: str = "",
        registry: CollectorRegistry,
    ) -> None:
        common: dict[str, Any] = {"namespace": namespace, "registry": registry}
        self._bounds = np.array(buckets, np.float64)
        self._les = tuple(map(floatToGoString, (*buckets, inf)))
        self._counts = Counter(name + COUNTS, documentation, (*labels, "le"), **common)
        self._sum = Gauge(name + SUM, documentation, labels, multiprocess_mode="sum", **common)

    def labels(self, *values: str) -> Observations:
        """Return the histogram of these label values."""
        counts = [self._counts.labels(*values, le) for le in self._les]
        return Observations(
            self._bounds, counts, self._sum.labels(*values) if values else self._sum
        )


class Observations:
    """The observations of one combination of label values."""

    def __init__(self, bounds: NDArray[np.float64], counts: list[Counter], total: Gauge) -> None:
        self._bounds, self._bound_list = bounds, bounds.tolist()
        self._counts, self._sum = counts, total

    def observe(self, value: float) -> None:
        """Record one observation."""
        self._sum.inc(value)
        self._counts[bisect_left(self._bound_list, value)].inc()

    def observe_many(self, sequence: Sequence[float] | NDArray[Any]) -> None:
        """Record each of N values."""
        if len(sequence) == 1:
            self.observe(float(sequence[0]))
            return
        values = np.asarray(sequence)
        counts = np.bincount(self._bounds.searchsorted(values))
        for counter, count in zip(self._counts, counts.tolist(), strict=False):
            if count:
                counter.inc(count)
        self._sum.inc(float(values.sum()))


def with_histograms(families: Iterable[Metric]) -> Iterator[Metric]:
    """Replace the counters and the sum of each histogram by one histogram family."""
    by_name = {family.name: family for family in families}
    for name, family in by_name.items():
        if name.endswith(COUNTS):
            stem = name.removesuffix(COUNTS)
            yield _histogram(stem, family, by_name[stem + SUM])
        elif not name.endswith(SUM):
            yield family


def _histogram(name: str, counts: Metric, sums: Metric) -> Metric:
    """Build a histogram family: cumulative buckets, count, sum and time of creation by labels."""
    family = Metric(name, counts.documentation, "histogram")
    buckets: dict[tuple[tuple[str, str], ...], dict[str, float]] = {}
    created: dict[tuple[tuple[str, str], ...], float] = {}
    for sample in counts.samples:
        labels = dict(sample.labels)
        le, key = labels.pop("le"), tuple(sorted(labels.items()))
        if sample.name.endswith("_total"):
            buckets.setdefault(key, {})[le] = sample.value
        else:
            created.setdefault(key, sample.value)
    for sample in sums.samples:
        key, count = tuple(sorted(sample.labels.items())), 0.0
        for le in sorted(buckets[key], key=float):
            count += buckets[key][le]
            family.add_sample(f"{name}_bucket", {**sample.labels, "le": le}, count)
        family.add_sample(f"{name}_count", sample.labels, count)
        family.add_sample(f"{name}_sum", sample.labels, sample.value)
        if key in created:
            family.add_sample(f"{name}_created", sample.labels, created[key])
    return family

"""Histograms count many observations at once as prometheus_client counts each."""

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Counter
from prometheus_client import Histogram as PlainHistogram

from serving.observability.histograms import Histogram, with_histograms


@pytest.mark.parametrize("n", [1, 2, 500])
def test_many_observations_are_as_one_by_one(n):
    buckets = (0.1, 0.25, 0.5, 1.0)
    values = np.round(np.random.default_rng(n).uniform(size=n), 2)
    values[0] = 0.25
    registry = CollectorRegistry()
    bulk = Histogram("x", "X.", buckets=buckets, registry=registry).labels()
    single = Histogram("y", "X.", buckets=buckets, registry=registry).labels()
    plain = PlainHistogram("z", "X.", registry=registry, buckets=buckets)
    bulk.observe_many(values)
    for one in values:
        single.observe(one)
        plain.observe(one)
    x, y, z = with_histograms(registry.collect())
    for found in (x, y):
        assert (found.type, found.documentation) == (z.type, z.documentation)
        assert [s.name[1:] for s in found.samples] == [s.name[1:] for s in z.samples]
        for ours, theirs in zip(found.samples[:-1], z.samples[:-1], strict=True):
            assert ours.labels == theirs.labels
            assert ours.value == pytest.approx(theirs.value)


def families(values, *labels):
    registry = CollectorRegistry()
    histogram = Histogram(
        "x", "X.", [f"l{i}" for i in range(len(labels))], buckets=(1.0,), registry=registry
    )
    histogram.labels(*labels).observe_many(np.array(values))
    return list(with_histograms(registry.collect()))


@pytest.mark.parametrize("labels", [(), ("a", "b")])
def test_a_bound_belongs_to_its_bucket(labels):
    (family,) = families([0.5, 1.0, 1.5], *labels)
    assert (family.name, family.type) == ("x", "histogram")
    common = {f"l{i}": label for i, label in enumerate(labels)}
    found = {(s.name, s.labels.get("le")): s.value for s in family.samples}
    assert found["x_bucket", "1.0"] == 2
    assert found["x_bucket", "+Inf"] == found["x_count", None] == 3
    assert found["x_sum", None] == 3.0
    assert all(common.items() <= sample.labels.items() for sample in family.samples)


def test_nothing_observed_is_nothing_counted():
    (family,) = families([])
    assert {sample.value for sample in family.samples if sample.name != "x_created"} == {0}


def test_other_families_stay_as_they_are():
    registry = CollectorRegistry()
    Counter("seen", "Seen.", registry=registry).inc(3)
    assert list(with_histograms(registry.collect())) == list(registry.collect())

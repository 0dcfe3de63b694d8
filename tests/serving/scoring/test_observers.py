"""Who is told of scored rows."""

import json

import pytest

from serving.models.store import Store
from serving.observability.metrics import Metrics
from serving.scoring.observers import Observers
from serving.scoring.shadow import Shadows
from serving.settings import Settings


class Sink:
    def __init__(self):
        self.seen = []

    def offer(self, model, detections, size, records):
        self.seen.append((model, len(detections.score), size, records([1])))


@pytest.fixture
def shadows(served):
    store = Store([served])
    return Shadows(store, Settings(), Metrics(store))


def test_without_shadow_and_cases_nobody_is_told(served, shadows):
    observers = Observers(shadows)
    assert not observers.watches(served)
    observers.offer(served, served.warm_up(), b"no body is read")


def test_cases_get_the_records_of_the_body(served, shadows, records):
    observers = Observers(shadows, sink := Sink())
    assert observers.watches(served)
    body = json.dumps({"id": 1, "records": records[:3]}).encode()
    observers.offer(served, served.warm_up(), body)
    assert sink.seen == [(served, 1, len(body), [records[1]])]


def test_cases_get_the_records_of_bodies_that_were_scored_together(served, shadows, records):
    observers = Observers(shadows, sink := Sink())
    bodies = [json.dumps({"records": records[i : i + 2]}).encode() for i in (0, 2, 4)]
    sink.offer = lambda *_: sink.seen.append(_[3]([1, 2, 5]))
    observers.offer_together(served, served.warm_up(), bodies, [2, 4, 6])
    assert sink.seen == [[records[1], records[2], records[5]]]

"""The console as a part of the service."""

from serving.console.app import COUNT_SECONDS


def test_the_number_of_open_cases_is_kept_for_a_moment(service, alice, monkeypatch):
    counts = service.app.state.console._gate._counts
    counts._read_at = -COUNT_SECONDS
    assert counts() == 3
    monkeypatch.setattr(type(service.cases), "count", None)
    assert counts() == 3


def test_pages_are_counted_by_their_route(service, alice):
    alice.get("/cases/2")
    families = service.app.state.metrics.counted_families()
    routes = {
        sample.labels["route"]
        for family in families
        for sample in family.samples
        if sample.labels.get("route", "").startswith("/console")
    }
    assert "/console/cases/{number:int}" in routes
    assert "/console/cases/2" not in routes

"""Routes are known by their templates, scopes and ports."""

import pytest
from starlette.routing import Match

from serving.paths import (
    PROBES,
    Template,
    check_port,
    is_console,
    required_scope,
    route_template,
)
from tests.support.http_requests import refusal


def test_administration_moves_to_the_other_port(client_of, served):
    client = client_of(served, admin_port=9000)
    for base, there, elsewhere in (
        ("http://testserver", "/models", "/metrics"),
        ("http://testserver:9000", "/metrics", "/models"),
        ("http://testserver:9000", "/docs", "/score"),
        ("http://testserver:9000", "/openapi.json", "/score"),
    ):
        assert client.get(base + there).status_code == 200
        assert client.get(base + elsewhere).status_code == 404
        assert client.get(base + "/health/live").status_code == 200


@pytest.mark.parametrize(
    ("path", "scope"),
    [
        ("/score", "score"),
        ("/models", "score"),
        ("/v2/models/fraud/infer", "score"),
        ("/metrics", "metrics"),
        ("/metrics/more", "score"),
        ("/-/reload", "admin"),
    ],
)
def test_the_scope_that_a_path_needs(path, scope):
    assert required_scope(path) == scope


def scope_of(path, port=8000, **more):
    return {"type": "http", "method": "POST", "path": path, "server": ("x", port), **more}


@pytest.mark.parametrize("path", ["/metrics", "/docs", "/openapi.json", "/-/reload"])
def test_administrative_routes_are_on_their_port_only(path):
    check_port(scope_of(path, 9000), 9000)
    problem = refusal(check_port, scope_of(path), 9000)
    assert (problem.kind.slug, "other port" in problem.detail) == ("not-found", True)


@pytest.mark.parametrize("path", ["/score", "/models", "/ping/more"])
def test_other_routes_are_not_on_the_administrative_port(path):
    check_port(scope_of(path), 9000)
    assert refusal(check_port, scope_of(path, 9000), 9000).kind.slug == "not-found"


@pytest.mark.parametrize("port", [8000, 9000])
@pytest.mark.parametrize("path", sorted(PROBES))
def test_health_checks_are_on_both_ports(path, port):
    check_port(scope_of(path, port), 9000)


def test_a_route_is_named_by_its_template():
    route = Template("/models/{name}/score", print, methods=["POST"])
    match, found = route.matches(scope_of("/models/mallory/score"))
    assert (match, found["route"], found["path_params"]) == (
        Match.FULL, route, {"name": "mallory"}
    )  # fmt: skip
    scope = scope_of("/models/mallory/score") | found
    assert route_template(scope) == "/models/{name}/score"


def test_a_route_that_does_not_match_leaves_no_trace():
    match, found = Template("/score", print).matches(scope_of("/mallory"))
    assert (match, found) == (Match.NONE, {})
    assert route_template(scope_of("/mallory")) == "unmatched"
    assert route_template(scope_of("/ping")) == "/ping"


@pytest.mark.parametrize(
    ("path", "expected"),
    [("/console", True), ("/console/", True), ("/console/cases/1", True), ("/consoles", False),
     ("/score/console", False)],
)  # fmt: skip
def test_the_pages_for_reviewers_have_one_prefix(path, expected):
    assert is_console(path) is expected

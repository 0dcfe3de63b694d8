"""The document describes what the service does."""

import jsonschema_rs
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode

from serving.app import create_app
from serving.errors import KINDS
from serving.openapi import SCORING
from serving.settings import Settings
from serving.store import Store


@pytest.fixture(scope="module")
def app(served):
    return create_app(Store([served]), Settings())


@pytest.fixture(scope="module")
def schema(app):
    return schemathesis.openapi.from_asgi("/openapi.json", app)


def test_every_route_is_in_it(client):
    assert set(client.get("/openapi.json").json()["paths"]) == {
        "/score", "/models/{name}/score", "/models", "/health/live", "/health/ready", "/metrics",
    }  # fmt: skip


@pytest.mark.parametrize("path", SCORING)
def test_its_examples_work(client, path):
    operation = client.get("/openapi.json").json()["paths"][path]["post"]
    request = operation["requestBody"]["content"]["application/json"]["examples"]
    answer = operation["responses"]["200"]["content"]["application/json"]["examples"]
    for name, example in request.items():
        response = client.post(path.format(name=name), json=example["value"])
        assert response.json() == answer[name]["value"]


def test_every_refusal_is_documented(client):
    operation = client.get("/openapi.json").json()["paths"]["/score"]["post"]
    assert set(operation["responses"]) == {"200", *(str(kind.status) for kind in KINDS)}


def test_records_that_fit_validate(client, records):
    document = client.get("/openapi.json").json()
    request = {"$ref": "#/components/schemas/ScoreRequest", "components": document["components"]}
    validator = jsonschema_rs.validator_for(request)
    validator.validate({"records": records, "explain": "all"})
    assert not validator.is_valid({"records": [{**records[0], "TX_AMOUNT": "12,50"}]})
    assert not validator.is_valid({"records": []})


def test_it_follows_a_swap(client, served):
    before = client.get("/openapi.json").json()
    client.app.state.store.swap([])
    after = client.get("/openapi.json").json()
    assert "Record.fraud" in before["components"]["schemas"]
    assert "Record.fraud" not in after["components"]["schemas"]


def test_the_page_is_there(client):
    page = client.get("/docs")
    assert page.status_code == 200
    assert "/openapi.json" in page.text


POSTS = [("POST", path, mode) for path in SCORING for mode in GenerationMode]
GETS = [
    ("GET", path, GenerationMode.POSITIVE)
    for path in ("/models", "/health/live", "/health/ready", "/metrics")
]


@pytest.mark.parametrize(("method", "path", "mode"), POSTS + GETS)
def test_whatever_is_sent_is_answered_as_documented(schema, method, path, mode):
    """What fits is accepted, what does not is refused.

    And there is no 500, no undocumented status and no answer of another shape.
    """
    operation = schema[path][method]

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=25 if method == "POST" else 2,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    def check(case):
        case.call_and_validate()

    check()

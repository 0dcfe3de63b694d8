"""The document describes what the service does."""

import base64
import sys

import jsonschema_rs
import pytest
import schemathesis
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode

from serving.app import create_app
from serving.errors import KINDS
from serving.openapi import SCORING
from serving.settings import Settings
from serving.store import Store
from serving.uploads import RAW


@pytest.fixture(scope="module")
def app(served):
    return create_app(Store([served]), Settings())


@pytest.fixture(scope="module")
def schema(app):
    return schemathesis.openapi.from_asgi("/openapi.json", app)


def test_every_route_is_in_it(client):
    assert set(client.get("/openapi.json").json()["paths"]) == {
        "/score", "/models/{name}/score", "/models", "/health/live", "/health/ready", "/metrics",
        "/-/reload",
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


@pytest.fixture
def both(client_of, served, scanner):
    return client_of(served, scanner)


def decoded(uri):
    """The media type and the content of a data URI."""
    media, _, content = uri.removeprefix("data:").partition(";base64,")
    return media, base64.b64decode(content, validate=True)


@pytest.mark.parametrize("clients", ["scan_client", "both"])
def test_the_examples_of_images_work(request, clients):
    client = request.getfixturevalue(clients)
    operation = client.get("/openapi.json").json()["paths"]["/models/{name}/score"]["post"]
    answers = operation["responses"]["200"]["content"]["application/json"]["examples"]
    ((name, example),) = operation["requestBody"]["content"]["image/png"]["examples"].items()
    media, content = decoded(example["externalValue"])
    headers = {"Content-Type": media}
    response = client.post(f"/models/{name}/score", content=content, headers=headers)
    assert response.json() == answers[name]["value"]


def test_each_kind_of_body_is_in_it_where_there_is_a_model_for_it(client, scan_client, both):
    def documented(one):
        operation = one.get("/openapi.json").json()["paths"]["/score"]["post"]
        options = [parameter["name"] for parameter in operation.get("parameters", ())]
        return set(operation["requestBody"]["content"]), options, operation["description"]

    table, scans, all_of_it = map(documented, (client, scan_client, both))
    assert table[:2] == ({"application/json"}, [])
    assert scans[:2] == ({"multipart/form-data", *RAW}, ["explain", "heatmap"])
    assert all_of_it[:2] == (table[0] | scans[0], scans[1])
    assert all_of_it[2] == f"{table[2]}\n\n{scans[2]}"


def test_answers_about_images_fit_their_schema(keen, pngs):
    document = keen.get("/openapi.json").json()
    answer = {"$ref": "#/components/schemas/ScoreResponse", "components": document["components"]}
    validator = jsonschema_rs.validator_for(answer)
    uploads = [("files", content) for content in pngs[-2:]]
    response = keen.post("/score?explain=2&heatmap=png", files=uploads).json()
    assert response["results"][-1]["regions"]
    validator.validate(response)
    del response["results"][0]["score"]
    assert not validator.is_valid(response)


def test_a_document_of_images_knows_no_records(scan_client):
    schemas = scan_client.get("/openapi.json").json()["components"]["schemas"]
    assert not [name for name in schemas if name.startswith(("Record", "ScoreRequest"))]


LARGEST = str(int(sys.float_info.max))[:17]
"""Integers that begin like this may exceed the largest double and yet be read as it."""
POSTS = [("POST", path, mode) for path in SCORING for mode in GenerationMode]
GETS = [
    ("GET", path, GenerationMode.POSITIVE)
    for path in ("/models", "/health/live", "/health/ready", "/metrics")
] + [("POST", "/-/reload", GenerationMode.POSITIVE)]


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
        assume(LARGEST not in str(case.body))
        case.call_and_validate()

    check()


@pytest.mark.parametrize("mode", GenerationMode)
def test_whatever_is_sent_as_an_image_is_answered_as_documented(scanner, pngs, mode):
    """The same of a model of images; what is to be accepted are images, as no schema can say."""
    images = st.sampled_from(pngs)
    schemathesis.openapi.format("binary", images)
    for media in RAW:
        schemathesis.openapi.media_type(media, images)
    app = create_app(Store([scanner]), Settings(max_records=20))
    operation = schemathesis.openapi.from_asgi("/openapi.json", app)["/score"]["POST"]

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    def check(case):
        response = case.call()
        if response.status_code != 413:  # which to Schemathesis is no refusal
            case.validate_response(response)

    check()

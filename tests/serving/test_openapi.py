"""The document describes what the service does."""

import base64
import json
import sys
from dataclasses import replace

import jsonschema_rs
import pytest
import schemathesis
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from serving.app import create_app
from serving.models.store import Store
from serving.paths import DOCS_ROUTES, PROBES, SCORING_ROUTES, is_console
from serving.problems import KINDS
from serving.scoring.images.uploads import RAW
from serving.settings import ApiKey, Settings

V2 = {"model": "/v2/models/{name}", "version": "/v2/models/{name}/versions/{version}"}


@pytest.fixture(scope="module")
def app(served):
    return create_app(Store([served]), Settings())


@pytest.fixture(scope="module")
def schema(app):
    return schemathesis.openapi.from_asgi("/openapi.json", app)


def test_every_route_is_in_it(client):
    assert set(client.get("/openapi.json").json()["paths"]) == {
        "/score", "/models/{name}/score", "/models", "/health/live", "/health/ready", "/metrics",
        "/v2", "/v2/health/live", "/v2/health/ready", *V2.values(), "/invocations",
        "/ping", "/health", "/version",
        *(f"{path}/{more}" for path in V2.values() for more in ("ready", "infer")),
        "/-/reload", "/feedback", "/events",
    }  # fmt: skip


def test_everything_that_is_routed_is_in_it(client):
    """Whatever is added later, too."""
    documented = set(client.get("/openapi.json").json()["paths"])
    routed = {route.path for route in client.app.routes if not is_console(route.path)}
    assert routed - documented == {"/openapi.json", *DOCS_ROUTES}


def test_only_probes_are_open(client_of, served):
    keys = (ApiKey("a", frozenset({"score"}), "0" * 64),)
    client = client_of(served, api_keys=keys)
    for path, operations in client.get("/openapi.json").json()["paths"].items():
        for method, operation in operations.items():
            place = path.format(name="fraud", version="1")
            status = client.request(method.upper(), place).status_code
            assert (status == 401) == (path not in PROBES) == ("security" in operation)
            assert status != 401 or {"401", "403"} <= operation["responses"].keys()


def bodies_of(document):
    """Each example of a body: its path, media type and name, and what is to be answered."""
    for path, operations in document["paths"].items():
        for operation in operations.values():
            answers = operation["responses"]["200"]["content"]
            (said,) = answers.get("application/json", {}).get("examples", {"": None}).values()
            for media, body in operation.get("requestBody", {}).get("content", {}).items():
                for example in body.get("examples", {}).values():
                    yield path, media, example, said and said["value"]


@pytest.mark.parametrize("kind", ["client", "scan_client"])
def test_every_example_works_when_pasted(request, kind):
    """As text, the way somebody copies it off the page; and it is answered as the page says."""
    client = request.getfixturevalue(kind)
    document = client.get("/openapi.json").json()
    name, version = client.get("/models").json()["models"][0]["name"], None
    seen = set()
    for path, media, example, said in bodies_of(document):
        if "{version}" in path:  # there is none of a model in a folder
            continue
        content = pasted(example)
        place = path.format(name=name, version=version)
        response = client.post(place, content=content, headers={"Content-Type": media})
        assert response.status_code == 200, (path, media, response.text)
        assert response.json() == said
        seen.add((path, media))
    tables = {(path, "application/json") for path in SCORING_ROUTES} if kind == "client" else set()
    scans = {(path, "image/png") for path in SCORING_ROUTES} if kind == "scan_client" else set()
    assert seen == tables | scans | {
        ("/invocations", "application/json"),
        ("/invocations", "text/csv"),
        ("/v2/models/{name}/infer", "application/json"),
    }


def pasted(example):
    if "externalValue" in example:
        return decoded(example["externalValue"])[1]
    value = example["value"]
    return (value if isinstance(value, str) else json.dumps(value)).encode()


def test_the_examples_of_a_version_work(client_of, served):
    client = client_of(replace(served, version="7"))
    operation = client.get("/openapi.json").json()["paths"][f"{V2['version']}/infer"]["post"]
    (example,) = operation["requestBody"]["content"]["application/json"]["examples"].values()
    (said,) = operation["responses"]["200"]["content"]["application/json"]["examples"].values()
    response = client.post("/v2/models/fraud/versions/7/infer", json=example["value"])
    assert response.json() == said["value"]


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


@pytest.mark.parametrize("text", ["", " ", "NA", "null"])
def test_a_text_that_is_no_time_is_refused_as_the_schema_says(client, text):
    response = client.post("/score", json={"records": [{"TX_AMOUNT": 5, "TX_DATETIME": text}]})
    assert response.status_code == 422
    assert response.json()["field"] == "TX_DATETIME"


def test_it_follows_a_swap(client, served):
    before = client.get("/openapi.json").json()
    client.app.state.store.swap([])
    after = client.get("/openapi.json").json()
    assert "Record.fraud" in before["components"]["schemas"]
    assert "Record.fraud" not in after["components"]["schemas"]


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
    response["results"][0]["score"] = None
    assert not validator.is_valid(response)


def test_a_document_of_images_knows_no_records(scan_client):
    schemas = scan_client.get("/openapi.json").json()["components"]["schemas"]
    assert not [
        name
        for name in schemas
        if name.startswith(("Record", "ScoreRequest")) and name != "RecordedEvents"
    ]


def test_an_absent_field_of_a_result_is_never_null(client):
    """But for the group, which is null where the threshold of all rows was applied.

    A record that is like the training data, or was not tested, has no reason to be unusual.

    Single windows of a record are null where they have no value.
    """
    result = client.get("/openapi.json").json()["components"]["schemas"]["Result"]
    assert not result.get("required")  # it has a decision or an error
    nullable = [name for name, one in result["properties"].items() if "null" in str(one)]
    assert nullable == ["group", "unusual_input", "windows"]
    assert not any("default" in one for one in result["properties"].values())


MAX_RECORDS = Settings().max_records
LARGEST = str(int(sys.float_info.max))[:17]
"""Integers that begin like this may exceed the largest double and yet be read as it."""
POSTS = [("POST", path, mode) for path in SCORING_ROUTES for mode in GenerationMode]
GETS = [
    ("GET", path, GenerationMode.POSITIVE)
    for path in (
        "/models", "/health/live", "/health/ready", "/metrics", "/ping", "/health", "/version",
        "/v2", "/v2/health/live",
        "/v2/health/ready", *V2.values(), *(f"{path}/ready" for path in V2.values()),
    )
] + [("POST", "/-/reload", GenerationMode.POSITIVE)]  # fmt: skip
FOREIGN = ["/invocations", *(f"{path}/infer" for path in V2.values())]


@pytest.mark.parametrize(("method", "path", "mode"), POSTS + GETS)
def test_whatever_is_sent_is_answered_as_documented(schema, method, path, mode):
    """What fits is accepted, what does not is refused, unless errors are asked for by record.

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
        body = case.body if isinstance(case.body, dict) else {}
        records = body.get("records")
        assume(not isinstance(records, list) or len(records) <= MAX_RECORDS)  # 413, as documented
        if mode == GenerationMode.POSITIVE:
            for record in body.get("records", ()):
                record.setdefault("TX_AMOUNT", None)  # no schema says that one is needed
        elif body.get("errors") == "per_record":
            del body["errors"]  # it accepts what does not fit
        case.call_and_validate()

    check()


@pytest.mark.parametrize("mode", GenerationMode)
def test_whatever_is_sent_as_a_label_is_answered_as_documented(client_of, served, tmp_path, mode):
    """No schema can say which texts are times, or which models are served."""
    app = client_of(served, labels=f"sqlite:///{tmp_path}/labels.db").app
    operation = schemathesis.openapi.from_asgi("/openapi.json", app)["/feedback"]["POST"]

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    def check(case):
        case.call_and_validate(excluded_checks=[positive_data_acceptance])

    check()


@pytest.mark.parametrize("path", FOREIGN)
@pytest.mark.parametrize("kind", ["served", "scanner"])
@pytest.mark.parametrize("mode", GenerationMode)
def test_whatever_is_sent_in_other_words_is_answered_as_documented(request, path, kind, mode):
    """No schema can say that a shape fits its data, so that what fits one may be refused."""
    model = replace(request.getfixturevalue(kind), version="1")
    app = create_app(Store([model]), Settings(max_records=20))
    operation = schemathesis.openapi.from_asgi("/openapi.json", app)[path]["POST"]

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    def check(case):
        case.call_and_validate(excluded_checks=[positive_data_acceptance])

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

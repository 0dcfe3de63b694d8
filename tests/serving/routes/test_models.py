"""The service tells what is loaded and whether it is ready."""

import dataclasses

from serving.models.store import Store
from serving.observability.metrics import Metrics
from serving.registry.board import FollowedModel
from serving.routes.models import describe
from tests.support.http_requests import post, refused
from tests.support.scans import SIZE


def test_what_is_loaded(client, served):
    (model,) = client.get("/models").json()["models"]
    assert model["digest"] == served.digest
    assert (model["name"], model["version"], model["alias"]) == ("fraud", None, None)
    columns = [(c["name"], c["type"]) for c in model["schema"]["columns"]]
    assert columns == [(c.name, str(c.type)) for c in served.detector.scorer.schema.columns]


def test_nothing_loaded(client_of):
    client = client_of()
    response = post(client, {"records": [{"TX_AMOUNT": 1}]})
    refused(response, 503, "not-ready")
    assert response.headers["retry-after"] == "1"
    refused(client.get("/health/ready"), 503, "not-ready")
    assert client.get("/health/live").status_code == 200
    assert client.get("/models").json() == {"models": []}
    assert client.get("/openapi.json").status_code == 200


def test_readiness_goes_when_draining(client):
    assert client.get("/health/ready").json() == {"status": "ready", "models": ["fraud"]}
    client.app.state.store.draining = True
    response = client.get("/health/ready")
    refused(response, 503, "not-ready")
    assert response.headers["connection"] == "close"
    assert post(client, {"records": [{"TX_AMOUNT": 1}]}).status_code == 200


def test_openmetrics_where_it_is_asked_for(client):
    response = client.get("/metrics", headers={"Accept": "application/openmetrics-text"})
    assert response.headers["content-type"].startswith("application/openmetrics-text")
    assert response.text.endswith("# EOF\n")


def test_what_is_loaded_of_tables_and_images(both, scanner):
    table, scans = both.get("/models").json()["models"]
    assert set(table["schema"]) == {"columns"}
    assert (scans["name"], scans["kind"], scans["digest"]) == ("scans", "image", scanner.digest)
    assert scans["schema"] == {
        "columns": [{"name": "image", "type": "image"}], "size": SIZE, "channels": 1
    }  # fmt: skip


URI = "models:/fraud@champion"


def test_a_followed_model_tells_how_the_last_check_went(served):
    store = Store([served])
    followed = [
        FollowedModel(URI, "other"),
        FollowedModel(URI, "fraud", shadow=True, reason="missing"),
        FollowedModel(URI, "fraud", reason="registry", checked_at=7.0),
    ]
    (model,) = describe(store, followed, Metrics(store)).models
    found = model.following
    assert (found.uri, found.checked_at, found.failing) == (URI, 7.0, "registry")
    assert model.shadow is None


def test_a_fixed_version_is_not_followed(served):
    store = Store([served])
    fixed = [FollowedModel("models:/fraud/3", "fraud", checked_at=7.0)]
    (model,) = describe(store, fixed, Metrics(store)).models
    assert model.following is None


def test_a_shadow_is_described_beside_its_model(served):
    shadow = dataclasses.replace(served, version="2", alias="challenger", digest="2" * 64)
    store = Store([served], [shadow])
    followed = [FollowedModel("models:/fraud@challenger", "fraud", shadow=True, reason="missing")]
    (model,) = describe(store, followed, Metrics(store)).models
    found = model.shadow
    assert (found.version, found.alias, found.digest) == ("2", "challenger", "2" * 64)
    assert (found.records, found.agreement, found.flagged, found.shadow_flagged) == (
        0, None, None, None
    )  # fmt: skip
    assert found.following.failing == "missing"
    assert model.following is None

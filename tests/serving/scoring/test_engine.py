"""What `POST /score` answers."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from tests.support.http_requests import score


def test_answers_are_what_the_detector_says(client, served, records):
    """The same kernel on the same batch, so equal to the last bit."""
    results = score(client, records)["results"]
    found = served.detector.detect(served.detector.scorer.schema.from_records(records))
    assert [r["score"] for r in results] == found.score.tolist()
    assert [r["p_value"] for r in results] == found.p_value.tolist()
    assert [r["is_anomaly"] for r in results] == found.is_anomaly.tolist()
    assert any(found.is_anomaly)


def test_alone_or_among_others(client, records):
    together = score(client, records[:50])["results"]
    alone = [score(client, [record])["results"][0] for record in records[:50]]
    ours, theirs = ([r["score"] for r in results] for results in (together, alone))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    assert [r["is_anomaly"] for r in together] == [r["is_anomaly"] for r in alone]


def test_by_name(client, records):
    body = {"records": records[:3]}
    named = client.post("/models/fraud/score", json=body)
    assert named.json() == client.post("/score", json=body).json()


def test_several_models_each_by_its_name(client_of, served, records):
    other = dataclasses.replace(served, name="other", version="7", alias="champion")
    client = client_of(served, other)
    response = client.post("/models/other/score", json={"records": records[:1]})
    assert response.json()["model"] == {"name": "other", "version": "7", "alias": "champion"}
    nameless = client.post("/score", json={"records": records[:1]})
    assert nameless.status_code == 404
    assert "/models/fraud/score, /models/other/score" in nameless.json()["detail"]


def test_many_clients_at_once(client, records):
    """Each gets the answer to its own question, whatever else is under way."""
    sizes = [1, 2, 300, 5, 260, 1, 40, 8] * 3
    with client, ThreadPoolExecutor(8) as pool:
        whole = [result["score"] for result in score(client, records)["results"]]
        answers = list(pool.map(lambda n: score(client, records[:n])["results"], sizes))
    for size, results in zip(sizes, answers, strict=True):
        np.testing.assert_allclose([r["score"] for r in results], whole[:size], rtol=1e-6)


def test_a_swap_is_seen_by_the_next_request(client_of, served, records):
    client = client_of(served)
    store = client.app.state.store
    store.swap([dataclasses.replace(served, version="2")])
    assert score(client, records[:1])["model"]["version"] == "2"

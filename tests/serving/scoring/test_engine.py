"""What `POST /score` answers."""

import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from anomaly_vae.data.encoding import TabularEncoding
from serving.scoring import handlers


def score(client, records, **more):
    response = client.post("/score", json={"records": records, **more})
    assert response.status_code == 200, response.text
    return response.json()


def test_the_answer_names_the_model_and_its_threshold(client, served, records):
    answer = score(client, records[:2])
    assert answer["model"] == {"name": "fraud", "version": None, "alias": None}
    assert answer["alpha"] == served.detector.calibration.alpha
    assert answer["threshold"] == served.detector.calibration.threshold
    assert [set(result) for result in answer["results"]] == [{"score", "p_value", "is_anomaly"}] * 2


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


@pytest.fixture
def on_threads(monkeypatch):
    """For each request scored since, whether a worker thread did it."""
    seen = []
    whole = TabularEncoding.encode

    def encode(*args):
        seen.append(threading.current_thread().name.startswith("score_"))
        return whole(*args)

    monkeypatch.setattr(TabularEncoding, "encode", encode)
    return seen


def test_no_thread_has_to_be_started_for_a_request():
    before = threading.active_count()
    with handlers.start_threads(3) as threads:
        assert threading.active_count() == before + 3
        assert list(threads.map(abs, range(-9, 0))) == list(range(9, 0, -1))
        assert threading.active_count() == before + 3


def test_on_a_thread_or_on_the_event_loop(client, records, on_threads, monkeypatch):
    """A large request takes the other path and gives the same answer."""
    monkeypatch.setattr(handlers, "INLINE_VALUES", 0)
    large = score(client, records[:100])["results"]
    monkeypatch.setattr(handlers, "INLINE_VALUES", 10**6)
    assert score(client, records[:100])["results"] == large
    assert on_threads == [True, False]


def test_a_wide_request_goes_to_a_thread_however_few_its_records(
    client, served, on_threads, monkeypatch
):
    """What holds up the event loop is records times columns, and more where they are explained."""
    columns, found = len(served.detector.scorer.encoding.columns), []
    monkeypatch.setattr(handlers, "INLINE_VALUES", 30 * columns)
    for records, explain in ((30, 0), (31, 0), (1, 3), (10, 3), (10, "all")):
        score(client, [{}] * records, explain=explain)
        found.append(on_threads[-1])
    assert found == [False, True, False, True, True]


@pytest.mark.parametrize("explain", [1, 3, 2.0, "all", 10**30])
def test_contributions_sum_to_the_score(client, records, explain):
    for result in score(client, records[:20], explain=explain)["results"]:
        parts = [part["nats"] for part in result["contributions"]]
        assert parts == sorted(parts, reverse=True)
        total = sum(parts) + result["rest"] + result["kl"]
        assert total == pytest.approx(result["score"], rel=1e-5)


def test_explain_lists_so_many(client, served, records):
    def listed(explain):
        (result,) = score(client, records[:1], explain=explain)["results"]
        return len(result.get("contributions", ()))

    features = len(served.detector.scorer.encoding.columns)
    assert [listed(k) for k in (0, 1, 3, "all")] == [0, 1, 3, features]


def test_explaining_changes_no_score(client, records):
    plain = score(client, records[:20])["results"]
    explained = score(client, records[:20], explain=2)["results"]
    pairs = zip(plain, explained, strict=True)
    assert all(a["p_value"] == b["p_value"] for a, b in pairs)


def test_absent_and_null_are_missing_alike(client, records):
    whole = {**records[0], "TX_AMOUNT": None}
    less = {key: value for key, value in whole.items() if key != "TX_AMOUNT"}
    assert score(client, [whole])["results"] == score(client, [less])["results"]


def test_a_record_of_nothing_is_scored(client):
    (result,) = score(client, [{}], explain="all")["results"]
    assert np.isfinite(result["score"])
    assert all(part["observed"] is None for part in result["contributions"])


def test_an_unseen_category_is_scored_as_unseen(client, records):
    one, other = ({**records[0], "TX_CHANNEL": name} for name in ("carrier pigeon", "téléx 📠"))
    first, second = score(client, [one, other], explain="all")["results"]
    assert first["score"] == pytest.approx(second["score"], rel=1e-6)
    observed = {part["feature"]: part["observed"] for part in second["contributions"]}
    assert observed["TX_CHANNEL"] == "téléx 📠"


def test_unknown_keys_change_nothing(client, records):
    more = {**records[0], "shoe_size": 43, "nested": {"a": [1]}}
    assert score(client, [more])["results"] == score(client, [records[0]])["results"]


@pytest.mark.parametrize("amount", [1e308, -1e308, 5e-324, 0, -0.0, 10**200])
def test_extremes_get_finite_scores(client, records, amount):
    (result,) = score(client, [{**records[0], "TX_AMOUNT": amount}], explain="all")["results"]
    assert np.isfinite(result["score"])
    assert 0 < result["p_value"] <= 1


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


def test_what_is_loaded(client, served):
    (model,) = client.get("/models").json()["models"]
    assert model["digest"] == served.digest
    assert (model["name"], model["version"], model["alias"]) == ("fraud", None, None)
    columns = [(c["name"], c["type"]) for c in model["schema"]["columns"]]
    assert columns == [(c.name, str(c.type)) for c in served.detector.scorer.schema.columns]

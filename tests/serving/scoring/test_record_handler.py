"""Records of a table: both decoders give the same answer, and explanations add up."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from serving.app import create_app
from serving.models.store import Store
from serving.settings import Settings
from tests.support.http_requests import post, refused, score


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


@pytest.mark.parametrize("explain", [1, "all"])
def test_too_much_to_explain_at_once(client_of, served, explain):
    """Whatever is listed, all contributions are worked out: records times columns."""
    columns = len(served.detector.scorer.encoding.columns)
    client = client_of(served, max_contributions=3 * columns)
    assert post(client, {"records": [{}] * 3, "explain": explain}).status_code == 200
    assert post(client, {"records": [{}] * 4}).status_code == 200
    body = {"records": [{}] * 4, "explain": explain}
    problem = refused(post(client, body), 413, "too-much-explained")
    assert f"{4 * columns} contributions" in problem["detail"]
    assert f"at most {3 * columns}" in problem["detail"]


@given(st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_answers_are_the_same_both_ways(served, records, data):
    """`"explain": 0.0` means 0 and is not usual."""
    chosen = data.draw(st.lists(st.sampled_from(records[:50]), min_size=1, max_size=9))
    cut = data.draw(st.sets(st.sampled_from(sorted(chosen[0]))))
    chosen[0] = {key: value for key, value in chosen[0].items() if key not in cut}
    client = TestClient(create_app(Store([served]), Settings()))
    quick = client.post("/score", json={"records": chosen})
    slow = client.post("/score", json={"records": chosen, "explain": 0.0})
    assert quick.status_code == slow.status_code == 200
    assert quick.content == slow.content


def mutated(content, rng):
    """A copy with bytes changed, left out, put in or repeated."""
    altered = bytearray(content)
    for _ in range(rng.integers(1, 6)):
        at = int(rng.integers(len(altered) + 1))
        match rng.integers(4):
            case 0:
                altered[at : at + 1] = rng.bytes(1)
            case 1:
                del altered[at : at + int(rng.integers(1, 9))]
            case 2:
                altered[at:at] = rng.choice([b'"', b"{", b"]", b"null", b"1e999", b",", b"\xff"])
            case 3:
                altered[at:at] = altered[at : at + 20]
    return bytes(altered)


def check_mutated(served, records, count):
    rng = np.random.default_rng(0)
    client = TestClient(create_app(Store([served]), Settings()), raise_server_exceptions=False)
    bodies = [json.dumps({"records": records[i : i + 2]}).encode() for i in range(20)]
    statuses = []
    with client:
        for number in range(count):
            body = mutated(bodies[number % len(bodies)], rng)
            headers = {"Content-Type": "application/json"}
            statuses.append(client.post("/score", content=body, headers=headers).status_code)
    assert set(statuses) == {200, 400, 422}


def test_mutated_bodies(served, records):
    check_mutated(served, records, 300)


@pytest.mark.slow
def test_ten_thousand_mutated_bodies(served, records):
    check_mutated(served, records, 10_000)

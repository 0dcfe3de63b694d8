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

    features = len(served.detector.scorer.encoding.labels)
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


def test_a_record_of_nulls_is_scored_with_a_warning(client, served):
    nulls = dict.fromkeys(served.schema.names)
    answer = score(client, [{"TX_AMOUNT": 5}, nulls, {"TX_AMOUNT": None}], explain="all")
    assert answer["warnings"] == ["record 1 and 1 more: no value in any of the model's columns"]
    one, other = answer["results"][1:]
    assert one == other
    assert np.isfinite(one["score"])
    assert all(part["observed"] is None for part in one["contributions"])


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
    columns = len(served.detector.scorer.encoding.labels)
    client = client_of(served, max_contributions=3 * columns)
    assert post(client, {"records": [{"TX_AMOUNT": 1}] * 3, "explain": explain}).status_code == 200
    assert post(client, {"records": [{"TX_AMOUNT": 1}] * 4}).status_code == 200
    body = {"records": [{"TX_AMOUNT": 1}] * 4, "explain": explain}
    problem = refused(post(client, body), 413, "too-much-explained")
    assert f"{4 * columns} contributions" in problem["detail"]
    assert f"at most {3 * columns}" in problem["detail"]


@given(st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_answers_are_the_same_both_ways(served, records, data):
    """`"explain": 0.0` means 0 and is not usual."""
    chosen = data.draw(st.lists(st.sampled_from(records[:50]), min_size=1, max_size=9))
    cut = data.draw(st.sets(st.sampled_from(sorted(chosen[0].keys() - {"TX_AMOUNT"}))))
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


# ---------------------------------------------------------------- what is named and repeated


@pytest.mark.parametrize("records", [[{}], [{"amount": 5}], [{"TRANSACTION_ID": 7}]])
def test_a_record_without_any_of_the_models_columns_is_refused(client, records):
    problem = refused(
        post(client, {"records": [{"TX_AMOUNT": 1}, *records]}), 422, "invalid-record"
    )
    assert problem["record"] == 1
    assert "none of the model's columns found; expected 'TX_DATETIME'" in problem["detail"]
    assert ("'amount' may mean 'TX_AMOUNT'" in problem["detail"]) == ("amount" in records[0])


def test_unknown_keys_are_named(client, records):
    assert score(client, records[:1])["ignored"] == []
    answer = score(client, [records[0], {**records[0], "hat": 1}, {**records[0], "Bag": None}])
    assert answer["ignored"] == ["Bag", "hat"]
    assert "warnings" not in answer


def test_the_names_of_unknown_keys_are_bounded(client, records):
    many = {f"{number:03d}{'x' * 1000}": 1 for number in range(500)}
    ignored = score(client, [{**records[0], **many}])["ignored"]
    assert len(ignored) == 100
    assert {len(name) for name in ignored} == {100}


def test_unknown_keys_are_refused_if_so_set(client_of, served, records):
    client = client_of(served, unknown_keys="refuse")
    assert score(client, records[:3])["ignored"] == []
    wrong = [records[0], {**records[1], "tx_amount": 1, "hat": 2}]
    problem = refused(post(client, {"records": wrong}), 422, "invalid-record")
    assert (problem["record"], problem["field"]) == (1, "hat")
    wrong = [records[0], {**records[1], "tx_amount": 1}]
    problem = refused(post(client, {"records": wrong}), 422, "invalid-record")
    assert "unknown key 'tx_amount'; did you mean 'TX_AMOUNT'?" in problem["detail"]
    good, bad = score(client, wrong, errors="per_record")["results"]
    assert "score" in good
    assert bad["error"]["field"] == "tx_amount"


def test_unknown_keys_of_the_request(client_of, served, records):
    body = {"records": records[:1], "explian": 3}
    (warning,) = score(client_of(served), records[:1], explian=3)["warnings"]
    assert warning == "of the request: unknown key 'explian'; did you mean 'explain'?"
    strict = client_of(served, unknown_keys="refuse")
    assert warning in refused(post(strict, body), 422, "invalid-request")["detail"]


@pytest.mark.parametrize("one", [2**63 + 1, 9007199254740993, "a7", 1.5, True, 10**30])
@pytest.mark.parametrize("explain", [0, 1])
def test_a_result_repeats_the_id_of_its_record(client, records, one, explain):
    other = {key: value for key, value in records[0].items() if key != "TRANSACTION_ID"}
    marked = [{**other, "TRANSACTION_ID": one}, other, {**other, "TRANSACTION_ID": None}]
    first, *others = score(client, marked, explain=explain)["results"]
    assert (first["id"], type(first["id"])) == (one, type(one))
    assert all("id" not in result for result in others)


def test_an_id_that_is_no_value_is_refused(client, records):
    wrong = [{**records[0], "TRANSACTION_ID": [1]}]
    problem = refused(post(client, {"records": wrong}), 422, "invalid-record")
    assert (problem["record"], problem["field"]) == (0, "TRANSACTION_ID")


@pytest.mark.parametrize("more", [{}, {"explain": 1}])
def test_the_id_of_a_request_is_repeated(client, records, more):
    for one in ("r-1", 2**60, 1.5, "ü" * 200):
        assert score(client, records[:1], id=one, **more)["id"] == one
    assert "id" not in score(client, records[:1], id=None, **more)
    for one in (True, [1], "ü" * 201):
        body = {"records": records[:1], "id": one, **more}
        assert "'id'" in refused(post(client, body), 422, "invalid-request")["detail"]


# ---------------------------------------------------------------- errors by record


def test_bad_records_get_an_error_in_their_place(client, records):
    wrong = [
        records[0], {"TX_AMOUNT": "12,50"}, records[1], {}, 7, {**records[2], "TX_DURING_NIGHT": 5}
    ]  # fmt: skip
    refused(post(client, {"records": wrong}), 422, "invalid-record")
    answer = score(client, wrong, errors="per_record", explain=1)
    plain = score(client, records[:2], explain=1)["results"]
    found = answer["results"]
    assert [found[0], found[2]] == plain
    errors = [found[row].get("error") for row in (1, 3, 4, 5)]
    fields = [error["field"] for error in errors]
    assert fields == ["TX_AMOUNT", None, None, "TX_DURING_NIGHT"]
    assert "expected a number" in errors[0]["detail"]
    assert set(found[5]) == {"id", "error"}
    assert found[5]["id"] == records[2]["TRANSACTION_ID"]


def test_numbers_out_of_range_are_errors_of_their_record(client):
    body = b'{"errors": "per_record", "records": [{"TX_AMOUNT": 1e400}, {"TX_AMOUNT": 2}], "x": 1}'
    answer = post(client, body).json()
    assert answer["results"][0]["error"] == {"field": "TX_AMOUNT", "detail": "Number out of range"}
    assert "score" in answer["results"][1]
    assert answer["warnings"]


@pytest.mark.parametrize("amount", ["1e400", "9" * 5000, '"much"', "[]"])
@pytest.mark.parametrize("more", ["", ', "hat": 1', ', "hat": -1e400'])
def test_the_error_of_any_bad_record_has_its_id(client, amount, more):
    bad = f'{{"TRANSACTION_ID": 7, "TX_AMOUNT": {amount}{more}}}'
    body = f'{{"errors": "per_record", "records": [{bad}, {{"TX_AMOUNT": 2}}]}}'
    found, _ = post(client, body.encode()).json()["results"]
    assert found["id"] == 7
    assert found["error"]["field"] in {"TX_AMOUNT", "hat"}


@pytest.mark.parametrize("wrong", [[1], {}, {"a": 1}])
@pytest.mark.parametrize("amount", [1, "much"])
def test_an_id_that_is_no_value_is_not_repeated(client, wrong, amount):
    records = [{"TRANSACTION_ID": wrong, "TX_AMOUNT": amount}, {"TX_AMOUNT": 1}]
    found = score(client, records, errors="per_record")["results"]
    assert set(found[0]) == {"error"}
    assert "score" in found[1]


def test_a_request_of_bad_records_only_has_errors_only(client):
    score(client, [{"TX_AMOUNT": 1}])
    before = client.get("/metrics").text
    results = score(client, [{}, {"TX_AMOUNT": "a"}], errors="per_record")["results"]
    assert [set(result) for result in results] == [{"error"}] * 2
    name = 'anomaly_vae_rejected_records_total{model="fraud",version=""}'
    counts = [text.split(name)[1].split()[0] for text in (before, client.get("/metrics").text)]
    assert float(counts[1]) - float(counts[0]) == 2


def test_good_records_are_answered_alike_in_both_modes(client, records):
    bodies = ({"records": records[:30]}, {"records": records[:30], "errors": "per_record"})
    refuse, per_record = (post(client, body).content for body in bodies)
    assert refuse == per_record


@pytest.mark.parametrize("errors", ["record", None, 1])
def test_other_modes_are_refused(client, records, errors):
    body = {"records": records[:1], "errors": errors}
    assert "'errors'" in refused(post(client, body), 422, "invalid-request")["detail"]


def test_the_number_of_records_is_limited_in_both_modes(client_of, served):
    client = client_of(served, max_records=3)
    for bad in ({}, 7):
        body = {"records": [bad] * 4, "errors": "per_record"}
        refused(post(client, body), 413, "too-many-records")

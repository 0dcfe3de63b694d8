"""Which rows of which requests become cases, and what a case says."""

import datetime as dt
import json

import numpy as np
import pytest

from anomaly_vae.review import CaseFilter, CaseStore, Snooze
from serving.review import case_recorder
from tests.support.http_requests import score
from tests.support.label_stores import *  # noqa: F403  # its fixtures
from tests.support.metrics import value
from tests.support.window_streams import stream
from tests.support.windowed import NAMES, record_of

SALT = "0123456789abcdef"


@pytest.fixture
def make(client_of, served, sqlite_store, tmp_path):
    """Return a function that makes a client whose service writes cases."""

    def make(*models, **settings):
        settings = {"cases": sqlite_store, "cases_spool": tmp_path / "spool", **settings}
        return client_of(*(models or (served,)), **settings)

    return make


def written(client, chosen=CaseFilter(), order="p_value"):  # noqa: B008  # it is frozen
    """Write what waits, and return the cases."""
    recorder = client.app.state.cases
    recorder.start()
    recorder.close()
    recorder._closed = False
    with CaseStore(client.app.state.settings.cases) as store:
        store.prepare()
        return [one.case for one in store.queue(chosen, order, limit=10_000)]


def flagged(answer):
    return sorted(str(one["id"]) for one in answer["results"] if one["is_anomaly"])


def test_flagged_records_become_cases_with_reasons(make, served, records):
    client = make()
    answer = score(client, records)
    cases = written(client)
    assert sorted(one.row_id for one in cases) == flagged(answer)
    assert 0 < len(cases) < len(records)
    by_id = {str(row["TRANSACTION_ID"]): row for row in records}
    results = {str(one["id"]): one for one in answer["results"]}
    for case in cases:
        row, result = by_id[case.row_id], results[case.row_id]
        assert (case.score, case.p_value) == (result["score"], result["p_value"])
        assert (case.model, case.threshold, case.kind) == (
            served.name,
            answer["threshold"],
            "flagged",
        )
        assert case.at == dt.datetime.fromisoformat(row["TX_DATETIME"] + "+00:00").timestamp()
        assert case.fields["TX_AMOUNT"] == row["TX_AMOUNT"]
        assert {*case.fields} == {*served.schema.names}
        assert case.reasons[0].text.startswith(case.reasons[0].feature)
        assert case.reasons[0].amount >= case.reasons[-1].amount > 0
    assert value(client, "cases_total", kind="flagged", model=served.name) == len(cases)


WAYS = {
    "several requests": lambda client, rows: [score(client, rows[:200]), score(client, rows[200:])],
    "explained": lambda client, rows: [score(client, rows, explain=2)],
    "unknown keys": lambda client, rows: [score(client, [{**row, "tip": 1} for row in rows])],
    "per record": lambda client, rows: [
        score(client, [{"TX_AMOUNT": "much"}, *rows, {}], errors="per_record")
    ],
}


@pytest.mark.parametrize("way", WAYS)
def test_all_ways_to_send_records_make_the_same_cases(make, records, way):
    client = make()
    answers = WAYS[way](client, records)
    expected = sorted(name for answer in answers for name in flagged(
        {"results": [one for one in answer["results"] if "error" not in one]}
    ))  # fmt: skip
    assert sorted(one.row_id for one in written(client)) == expected


def test_other_protocols_make_cases_too(make, records):
    client = make()
    rows = records[:200]
    expected = flagged(score(client, rows))
    other = make(cases=client.app.state.settings.cases.replace("labels", "other"))
    names = list(rows[0])
    split = {"columns": names, "data": [[row[name] for name in names] for row in rows]}
    assert other.post("/invocations", json={"dataframe_split": split}).status_code == 200
    lines = [
        ",".join(names),
        *(",".join("" if c is None else str(c) for c in r.values()) for r in rows),
    ]
    response = other.post(
        "/invocations", content="\n".join(lines), headers={"content-type": "text/csv"}
    )
    assert response.status_code == 200
    assert other.post("/invocations", json={"dataframe_records": rows}).status_code == 200
    assert sorted(one.row_id for one in written(other)) == expected, "each row is one case"


def test_a_request_that_is_sent_again_makes_no_new_cases(make, records):
    client = make()
    first, again = (score(client, records[:100]) for _ in range(2))
    assert flagged(first) == flagged(again)
    assert len(written(client)) == len(flagged(first))


def test_answers_are_the_same_with_cases_and_snoozes(make, client, records):
    watched = make(cases_entity="CUSTOMER_ID")
    plain = score(client, records)
    assert score(watched, records) == plain
    entities = {one.entity for one in written(watched)}
    with CaseStore(watched.app.state.settings.cases) as store:
        for entity in entities:
            store.snooze(Snooze.of("CUSTOMER_ID", entity, 4e9, "known", "alice"))
        assert store.queue() == []
    later = [{**row, "TRANSACTION_ID": 10_000 + row["TRANSACTION_ID"]} for row in records]
    again = score(watched, later)
    assert [one["is_anomaly"] for one in again["results"]] == [
        one["is_anomaly"] for one in plain["results"]
    ]
    snoozed = written(watched, CaseFilter(status="snoozed"))
    assert len(snoozed) == 2 * len(flagged(plain))
    (model,) = watched.app.state.store.current
    assert value(watched, "suppressed_cases_total", model=model) == len(flagged(plain))


def test_p_values_of_all_rows_are_counted(make, served, records):
    client = make()
    answer = score(client, records)
    score(client, records[:1], explain=1)
    written(client)
    with CaseStore(client.app.state.settings.cases) as store:
        (counts,) = store.p_values(served.name)
    assert counts.rows == len(records) + 1
    p_values = np.array([one["p_value"] for one in answer["results"] + answer["results"][:1]])
    for alpha in (0.01, 0.05, 0.1, 0.5):
        assert counts.at_most(alpha) == int((p_values <= alpha).sum())


def test_a_sample_of_the_other_rows_becomes_cases(make, records):
    client = make(cases_sample=1.0)
    answer = score(client, records[:50])
    cases = written(client)
    assert len(cases) == 50
    kinds = {one.row_id: one.kind for one in cases}
    assert sorted(name for name, kind in kinds.items() if kind == "flagged") == flagged(answer)
    assert written(make(cases_sample=0.0)) == cases


def test_fields_are_kept_masked_or_left_out(make, records):
    client = make(
        cases_fields="TX_AMOUNT,CUSTOMER_ID", cases_mask="CUSTOMER_ID", cases_salt=SALT,
        cases_entity="CUSTOMER_ID", cases_amount="TX_AMOUNT",
    )  # fmt: skip
    score(client, records)
    cases = written(client)
    text = json.dumps([dict(one.fields) for one in cases])
    assert {name for one in cases for name in one.fields} == {"TX_AMOUNT", "CUSTOMER_ID"}
    assert all(one.entity.startswith("masked-") for one in cases)
    assert all(one.fields["CUSTOMER_ID"] == one.entity for one in cases)
    assert all(one.amount == one.fields["TX_AMOUNT"] for one in cases)
    assert "masked-" in text
    others = [r for one in cases for r in one.reasons if r.feature != "TX_AMOUNT"]
    assert others
    assert {(one.observed, one.expected) for one in others} == {(None, None)}
    assert all("not kept" in one.text for one in others)


def test_a_flood_of_flags_is_bounded_and_counted(make, records, monkeypatch):
    monkeypatch.setattr(case_recorder, "MAX_WAITING_BYTES", 20_000)
    monkeypatch.setattr(case_recorder, "MAX_EXPLAINED", 3)
    client = make(cases_sample=1.0)
    for start in range(0, 40, 4):
        score(client, records[start : start + 4])
    cases = written(client)
    dropped = value(client, "dropped_cases_total", reason="queue")
    assert len(cases) + dropped == 40
    assert dropped > 0
    assert sum(bool(one.reasons) for one in cases) <= 3


def test_a_failed_explanation_leaves_a_case_without_reasons(make, served, records, monkeypatch):
    monkeypatch.setattr(type(served), "_case_reason", None)
    client = make()
    answer = score(client, records)
    cases = written(client)
    assert sorted(one.row_id for one in cases) == flagged(answer)
    assert {one.reasons for one in cases} == {()}


def test_shadows_make_no_cases(client_of, served, sqlite_store, records, make):
    client = make()
    client.app.state.store.put(served, shadow=True)
    answer = score(client, records[:50])
    assert len(written(client)) == len(flagged(answer))


def test_windows_are_part_of_a_case(make, windowed, store_url):
    client = make(windowed, windows=store_url, cases_sample=1.0)
    rows = list(map(record_of, stream(40, seed=3)))
    answer = score(client, rows, errors="per_record")
    results = {str(one["id"]): one for one in answer["results"] if "error" not in one}
    cases = written(client)
    assert {one.row_id for one in cases if one.row_id in results} == {*results} - {"None"}
    for case in cases:
        if case.row_id in results:
            windows = results[case.row_id]["windows"]
            assert {name: case.fields[name] for name in NAMES} == windows
            customer = case.fields["CUSTOMER_ID"]
            assert case.entity == (None if customer is None else str(customer))
            assert case.amount_column == "TX_AMOUNT"
    assert any(one.reasons for one in cases)


def test_verdicts_go_to_the_case_store_unless_another_is_set(make, records, tmp_path):
    client = make()
    answer = score(client, records)
    row = flagged(answer)[0]
    verdict = {"labels": [{"id": row, "label": "normal"}]}
    assert len(written(client, CaseFilter(status="open"))) == len(flagged(answer))
    assert client.post("/feedback", json=verdict).json()["stored"] == 1
    (decided,) = written(client, CaseFilter(status="decided"))
    assert decided.row_id == row
    other = make(labels=f"sqlite:///{tmp_path}/others.db")
    assert other.post("/feedback", json={"labels": [{"id": 1, "label": "normal"}]}).json()["stored"]
    with CaseStore(other.app.state.settings.cases) as store:
        assert store.labels.stats().labels == 1


# ---------------------------------------------------------------- images


def test_scans_become_cases_that_keep_them_only_in_a_folder(make, scanner, pngs, tmp_path):
    folder = tmp_path / "scans"
    client = make(scanner, cases_images=folder)
    files = [("files", content) for content in pngs[:10]]
    answer = client.post("/score", files=files).json()
    cases = written(client)
    assert len(cases) == sum(one["is_anomaly"] for one in answer["results"]) > 0
    for case in cases:
        kept = {path.name for path in (folder / case.image).iterdir()}
        assert kept == {"scan.png", "expected.png", "heatmap.png"}
        assert case.row_id == case.image
    assert client.post("/score", files=files).status_code == 200
    assert len(written(client)) == len(cases), "the same scans"


def test_scans_are_not_kept_without_a_folder(make, scanner, pngs):
    client = make(scanner)
    client.post("/score", content=pngs[0], headers={"content-type": "image/png"})
    client.post("/score", files=[("files", one) for one in pngs])
    cases = written(client)
    assert cases
    assert {one.image for one in cases} == {None}

"""The page of a case: verdicts, notes, undoing, snoozes, and two reviewers at once."""

import time

import pytest

from anomaly_vae.errors import StoreError
from anomaly_vae.review import Label, LabelStore
from tests.support.review_cases import case_of, fill

DAY = 86_400


def label_of(service, number=1):
    label = service.cases.case(number).label
    return label and (label.label, label.who, label.note)


def seen(service, number=1):
    label = service.cases.case(number).label
    return repr(label.at) if label else "0"


def labels_of(service, row="T00000"):
    return [(one.label, one.who, one.note) for one in service.cases.label_history("fraud", row)]


def test_a_case_is_shown_with_its_reasons_and_what_was_expected(alice):
    text = alice.text("/cases/1")
    for part in (
        "TX_AMOUNT 2000, usually 3.1 to 112",
        "observed <b>2000</b>, expected <b>38.2</b>",
        "31.4 nats",
        "about 1 normal row in 50\u202f000",
        "CUSTOMER_ID C000",
        "TX_COUNTRY",
    ):
        assert part in text, part


def test_the_score_is_shown_among_the_calibration_scores_of_its_version(service, alice):
    assert "this score" in alice.text("/cases/1")
    service.cases.add([case_of(9, version="7"), case_of(10, model="gone")])
    for number, who in ((4, "Version 7 of fraud"), (5, "The model gone")):
        text = alice.text(f"/cases/{number}")
        assert f"{who} that scored this row is not loaded now" in text
        assert "this score" not in text


def test_the_recent_cases_of_the_entity_are_shown(service, alice):
    fill(service.cases, 50, first=3)
    text = alice.text("/cases/1")
    assert text.count("/console/cases/24") == 1
    assert text.count("/console/cases/47") == 1
    assert "entity_column=CUSTOMER_ID&entity=C000" in text


def test_a_case_that_is_not_there_is_an_error_page(alice):
    for number in ("99", "0", str(1 << 70)):
        answer = alice.get(f"/cases/{number}")
        assert (answer.status_code, "no case" in answer.text) == (404, True)
    assert alice.get("/cases/one").status_code == 404
    assert alice.decide(99, "normal").status_code == 404


# ---------------------------------------------------------------- verdicts


@pytest.mark.parametrize("verdict", ["anomaly", "normal", "unsure"])
def test_a_verdict_is_stored_under_the_name_of_the_key_and_the_next_case_follows(
    service, alice, verdict
):
    answer = alice.decide(1, verdict, note=" stolen ", seen="0")
    assert answer.status_code == 303
    assert answer.headers["location"] == "/console/cases/2?done=1"
    assert label_of(service) == (verdict, "alice", "stolen")
    text = alice.text("/cases/2?done=1")
    assert f'<a href="/console/cases/1">Case 1</a> is <span class="verdict {verdict}">' in text


def test_after_the_last_case_the_queue_follows(alice):
    for number in (3, 2):
        alice.decide(number, "normal")
    assert alice.decide(1, "normal").headers["location"] == "/console?done=1"


def test_the_filter_of_the_queue_is_kept(alice):
    answer = alice.decide(2, "normal", query="order=amount&status=all")
    assert answer.headers["location"] == "/console/cases/3?order=amount&status=all&done=2"
    assert alice.decide(2, "normal", query="order=magic").status_code == 422


@pytest.mark.parametrize("verdict", ["", "fraud", "Anomaly"])
def test_another_word_is_no_verdict(service, alice, verdict):
    answer = alice.decide(1, verdict)
    assert answer.status_code == 422
    assert "expected anomaly, normal or unsure" in answer.text
    assert label_of(service) is None


def test_a_note_that_is_too_long_is_refused(service, alice):
    answer = alice.decide(1, "normal", note="x" * 2001)
    assert (answer.status_code, "at most 2000" in answer.text) == (422, True)
    assert label_of(service) is None


def test_in_the_queue_a_verdict_returns_the_row(service, alice):
    answer = alice.decide(1, "normal", fragment=True, seen="0")
    assert answer.status_code == 200
    assert answer.text.lstrip().startswith('<tr id="case-1"')
    assert "alice" in answer.text
    assert "<html" not in answer.text


def test_verdicts_are_counted(service, alice):
    before = alice.client.get("/metrics", headers={"X-API-Key": "x"})
    assert before.status_code == 401
    alice.decide(1, "anomaly")
    counted = service.app.state.metrics.labels.labels("anomaly")._value.get()
    assert counted >= 1


def test_a_label_store_that_is_down_is_an_error_and_nothing_is_half_done(
    service, alice, monkeypatch
):
    def fail(*_):
        raise StoreError("label store: locked")

    monkeypatch.setattr(LabelStore, "add", fail)
    answer = alice.decide(1, "anomaly")
    assert answer.status_code == 503
    assert label_of(service) is None
    service.app.state.label_writer._failed_at = -float("inf")


# ---------------------------------------------------------------- notes


def test_a_note_is_added_to_the_own_verdict(service, alice):
    alice.decide(1, "anomaly")
    answer = alice.post("/cases/1/note", note="by phone")
    assert answer.headers["location"] == "/console/cases/1"
    assert label_of(service) == ("anomaly", "alice", "by phone")
    assert len(labels_of(service)) == 2


def test_a_note_without_a_verdict_leaves_the_case_open(service, alice, bob):
    bob.post("/cases/1/note", note="ask the bank")
    assert label_of(service) == ("unsure", "bob", "ask the bank")
    assert service.cases.case(1).status == "open"
    assert "ask the bank" in alice.text("/cases/1")
    assert alice.post("/cases/1/note", note="  ").status_code == 422


# ---------------------------------------------------------------- undoing


def test_undoing_a_first_verdict_opens_the_case_again_and_forgets_nothing(service, alice):
    alice.decide(1, "anomaly")
    assert alice.post("/cases/1/undo").headers["location"] == "/console/cases/1"
    assert service.cases.case(1).status == "open"
    assert labels_of(service) == [("anomaly", "alice", ""), ("unsure", "alice", "undone")]
    again = alice.post("/cases/1/undo")
    assert (again.status_code, "no verdict" in again.text) == (422, True)


def test_undoing_returns_to_the_verdict_before(service, alice):
    alice.decide(1, "anomaly", note="stolen")
    alice.decide(1, "normal")
    alice.post("/cases/1/undo")
    assert label_of(service) == ("anomaly", "alice", "stolen")
    assert len(labels_of(service)) == 3


def test_after_undoing_a_new_verdict_can_be_undone_too(service, alice):
    for verdict in ("anomaly", "normal"):
        alice.decide(1, verdict)
        alice.post("/cases/1/undo")
        alice.post("/cases/1/undo")
    assert label_of(service)[0] in ("anomaly", "unsure", "normal")
    alice.decide(2, "anomaly")
    alice.post("/cases/2/undo")
    alice.decide(2, "normal")
    alice.post("/cases/2/undo")
    assert label_of(service, 2) == ("unsure", "alice", "undone")


def test_nobody_undoes_the_verdict_of_another(service, alice, bob):
    bob.decide(1, "anomaly")
    assert alice.post("/cases/1/undo").status_code == 422
    assert label_of(service) == ("anomaly", "bob", "")


# ---------------------------------------------------------------- two at once


def test_both_verdicts_are_kept_and_the_second_reviewer_sees_the_first(service, alice, bob):
    opened = seen(service)
    bob.decide(1, "normal", note="known customer", seen=opened)
    answer = alice.decide(1, "anomaly", seen=opened)
    assert answer.headers["location"] == f"/console/cases/1?seen={opened}"
    text = alice.text(f"/cases/1?seen={opened}")
    assert "<strong>bob</strong> decided" in text
    assert "Both verdicts are kept" in text
    assert labels_of(service) == [("normal", "bob", "known customer"), ("anomaly", "alice", "")]
    assert service.cases.case(1).label.conflicts == {"bob": "normal"}
    for visitor in (alice, bob):
        assert "bob: normal" in visitor.text("?status=all")


def test_the_same_verdict_is_no_conflict(service, alice, bob):
    bob.decide(1, "normal", seen="0")
    assert alice.decide(1, "normal", seen="0").headers["location"].startswith("/console/cases/2")


def test_a_verdict_on_what_was_seen_is_no_conflict(service, alice, bob):
    bob.decide(1, "normal")
    answer = alice.decide(1, "anomaly", seen=seen(service))
    assert answer.headers["location"].startswith("/console/cases/2")


def test_in_the_queue_the_row_tells_of_the_conflict(service, alice, bob):
    bob.decide(1, "normal", seen="0")
    text = alice.decide(1, "anomaly", seen="0", fragment=True).text
    assert "bob decided “normal” meanwhile; both are kept" in text


@pytest.mark.parametrize("value", ["", "nan", "x", "1e999", "-1"])
def test_a_time_that_is_none_changes_nothing(service, alice, value):
    assert alice.decide(1, "anomaly", seen=value).status_code == 303
    assert alice.get(f"/cases/1?seen={value}&done={value}").status_code == 200


# ---------------------------------------------------------------- snoozes


def day(days):
    return time.strftime("%Y-%m-%d", time.gmtime(time.time() + days * DAY))


def test_a_snooze_takes_the_entity_out_of_the_queue_until_it_ends(service, alice, bob):
    answer = alice.post("/cases/1/snooze", until=day(7), reason="new card")
    assert answer.headers["location"] == "/console/cases/2?done=1"
    assert service.cases.case(1).status == "snoozed"
    (snooze,) = service.cases.active_snoozes()
    assert (snooze.entity, snooze.who, snooze.reason) == ("C000", "alice", "new card")
    assert 7 * DAY < snooze.until - time.time() <= 8 * DAY
    assert "1 snoozed entity" in bob.text("")
    assert "new card" in bob.text("/snoozes")
    bob.post(f"/snoozes/{snooze.number}/end", reason="stolen again")
    assert service.cases.case(1).status == "open"
    assert "stolen again" in alice.text("/snoozes")
    assert bob.post(f"/snoozes/{snooze.number}/end").status_code == 404


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"until": "", "reason": "x"}, "choose a day"),
        ({"until": "soon", "reason": "x"}, "choose a day"),
        ({"until": "2001-01-01", "reason": "x"}, "future"),
        ({"until": "2999-01-01", "reason": "x"}, "within a year"),
        ({"until": day(3), "reason": " "}, "give a reason"),
    ],
)
def test_a_snooze_needs_a_day_and_a_reason(service, alice, fields, said):
    answer = alice.post("/cases/1/snooze", **fields)
    assert (answer.status_code, said in answer.text.lower()) == (422, True)
    assert not service.cases.snoozes()


def test_a_case_without_an_entity_cannot_be_snoozed(service, alice):
    service.cases.add([case_of(9, entity=None)])
    assert "Snooze" not in alice.text("/cases/4")
    assert alice.post("/cases/4/snooze", until=day(3), reason="x").status_code == 422


def test_labels_of_other_ways_are_shown_too(service, alice):
    service.cases.labels.add([Label.of("fraud", "T00000", "normal", "batch", note="chargeback")])
    text = alice.text("/cases/1")
    assert "chargeback" in text
    assert "batch" in text

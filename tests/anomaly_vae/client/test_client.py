"""The client, against the real service and against one that is having a bad day."""

import asyncio
import datetime as dt
import email.utils
import json
import math
import socket
import threading
from contextlib import contextmanager
from decimal import Decimal
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from random import Random

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from anomaly_vae.client import (
    AsyncClient,
    BusyError,
    Client,
    DeniedError,
    EventCounts,
    FailedError,
    LabelCounts,
    RefusedError,
    UnreachableError,
)
from anomaly_vae.client import client as module
from anomaly_vae.errors import ConfigError, DataError, RecordError
from serving.settings import ApiKey
from tests.support.ports import free_port

CALLS = (Client, AsyncClient)


def call(kind, address, ask, **options):
    """Ask a client of either kind; `ask` makes a call of it."""
    if kind is Client:
        with Client(address, **options) as client:
            return ask(client)

    async def scenario():
        async with AsyncClient(address, **options) as client:
            return await ask(client)

    return asyncio.run(scenario())


def shown(scores):
    return [(one.score, one.p_value, one.is_anomaly) for one in scores]


@pytest.fixture
def expected(client, records):
    """What the service says of the records."""
    results = client.post("/score", json={"records": records}).json()["results"]
    return [(one["score"], one["p_value"], one["is_anomaly"]) for one in results]


# ---------------------------------------------------------------- the real service


@pytest.mark.parametrize("kind", CALLS)
def test_records(kind, address_of, served, records, expected):
    scores = call(kind, address_of(served), lambda c: c.score(records))
    assert shown(scores) == expected
    assert len(scores) == len(records)
    assert shown(scores[3:5]) == expected[3:5]
    assert (scores.model.name, scores.model.version) == ("fraud", None)
    assert scores.threshold == served.detector.calibration.threshold


@pytest.mark.parametrize("kind", CALLS)
@pytest.mark.parametrize("limit", [{"max_records": 7}, {"max_body_bytes": 5_000}])
def test_many_records_go_in_several_requests(
    kind, address_of, served, records, expected, limit, client
):
    """Which is no more than the service takes at a time."""
    address = address_of(served, **limit)
    scores = call(kind, address, lambda c: c.score(iter(records)), **limit)
    np.testing.assert_allclose(shown(scores), expected, rtol=1e-6)
    with pytest.raises(RefusedError, match=r"Too many records|too large"):
        call(kind, address, lambda c: c.score(records))


def test_explained(address_of, served, records):
    scores = call(Client, address_of(served), lambda c: c.score(records[:2], explain="all"))
    for one in scores:
        total = sum(part.nats for part in one.contributions) + one.rest + one.kl
        assert total == pytest.approx(one.score)
        assert {part.feature for part in one.contributions} == set(
            served.detector.scorer.encoding.labels
        )


@pytest.mark.parametrize("make", [lambda t: t, pa.Table.to_pandas], ids=["pyarrow", "pandas"])
def test_data_frames(address_of, served, transactions, expected, make):
    table = pq.read_table(transactions).slice(0, len(expected))
    scores = call(Client, address_of(served), lambda c: c.score(make(table)))
    assert shown(scores) == expected


def test_a_frame_with_an_index_of_its_own(address_of, served):
    frame = pd.DataFrame({"TX_AMOUNT": [1.5, None]}, index=["a", "b"])
    records = [{"TX_AMOUNT": 1.5}, {"TX_AMOUNT": None}]
    address = address_of(served)
    one, other = (call(Client, address, lambda c, r=rows: c.score(r)) for rows in (frame, records))
    assert one == other


def test_values_as_python_has_them(address_of, served):
    moment = dt.datetime.fromisoformat("2024-05-01T12:30:00")
    said = [
        {"TX_AMOUNT": np.float32(12.5), "TX_DATETIME": moment, "TX_DURING_NIGHT": np.bool_(True)},
        {"TX_AMOUNT": Decimal("12.5"), "TX_DATETIME": np.datetime64(moment), "TX_DURING_NIGHT": 1},
        {"TX_AMOUNT": math.nan, "TX_DATETIME": pd.NaT, "TX_CHANNEL": None},
    ]
    plain = {"TX_AMOUNT": 12.5, "TX_DATETIME": "2024-05-01T12:30:00", "TX_DURING_NIGHT": 1}
    address = address_of(served)
    one, other = (
        call(Client, address, lambda c, r=rows: c.score(r))
        for rows in (said, [plain, plain, {"TX_AMOUNT": None}])
    )
    assert shown(one) == shown(other)


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"a": math.inf}, "record 1, field 'a': infinity"),
        ({"a": np.float64(-math.inf)}, "record 1, field 'a': infinity"),
        ({"a": Decimal("Infinity")}, "record 1, field 'a': infinity"),
        ({"a": object()}, "record 1, field 'a': cannot be sent"),
        ({"a": b"x"}, "record 1, field 'a': cannot be sent: bytes; decode them to text first"),
        ({"a": np.zeros(3)}, "record 1, field 'a': cannot be sent"),
        (5, "record 1: expected a mapping, got int"),
    ],
)
def test_values_that_cannot_be_sent(record, said):
    """Nothing is sent, nothing is lost in silence: JSON has no infinity."""
    with Client("http://localhost:1") as client, pytest.raises(RecordError, match=said):
        client.score([{}, record])


@pytest.mark.parametrize("kind", CALLS)
def test_nothing_to_score(kind):
    with pytest.raises(DataError, match="nothing to send"):
        call(kind, "http://localhost:1", lambda c: c.score([]))


@pytest.mark.parametrize("kind", CALLS)
@pytest.mark.parametrize("limit", [{"max_records": 2}, {"max_body_bytes": 4_000}, {}])
def test_images(kind, address_of, keen_scanner, pngs, tmp_path, limit):
    path = tmp_path / "one.png"
    path.write_bytes(pngs[0])
    files = [path, str(path), *pngs[1:5]]
    address = address_of(keen_scanner, **limit)
    ask = lambda c: c.score_images(files, explain=2, heatmap=True)  # noqa: E731
    scores = call(kind, address, ask, **limit)
    assert [one.file for one in scores] == list(range(6))
    assert all(one.heatmap.startswith(b"\x89PNG") for one in scores)
    assert all(one.regions for one in scores)
    assert all(1 <= len(one.regions) <= 2 for one in scores)
    assert scores[0].score == scores[1].score


def test_a_file_that_is_not_there(tmp_path):
    with Client("http://localhost:1") as client, pytest.raises(DataError, match="cannot be read"):
        client.score_images([tmp_path / "none.png"])


@pytest.mark.parametrize("kind", CALLS)
def test_what_is_loaded(kind, address_of, served, scanner):
    table, scans = call(kind, address_of(served, scanner), lambda c: c.models())
    assert (table.name, table.digest, table.kind) == ("fraud", served.digest, "tabular")
    assert [column.name for column in table.schema.columns] == list(
        served.detector.scorer.schema.names
    )
    assert (scans.schema.size, scans.schema.channels) == (24, 1)


def test_by_name(address_of, served, scanner, records):
    address = address_of(served, scanner)
    assert (
        call(Client, address, lambda c: c.score(records[:1], model="fraud")).model.name == "fraud"
    )
    with pytest.raises(RefusedError, match="2 models are loaded") as caught:
        call(Client, address, lambda c: c.score(records[:1]))
    assert caught.value.problem.status == 404
    with pytest.raises(RefusedError, match="status 404"):
        call(Client, address, lambda c: c.score(records[:1], model="a/b"))


@pytest.mark.parametrize("kind", CALLS)
def test_readiness(kind, address_of, served, free_address):
    assert call(kind, address_of(served), lambda c: c.ready())
    assert not call(kind, address_of(), lambda c: c.ready())
    assert not call(kind, free_address, lambda c: c.ready())


@pytest.mark.parametrize("kind", CALLS)
def test_metrics(kind, address_of, served):
    assert "anomaly_vae_ready 1.0" in call(kind, address_of(served), lambda c: c.metrics())


@pytest.mark.parametrize("kind", CALLS)
def test_keys(kind, address_of, served, records, monkeypatch):
    """From the argument or the environment; what is lacking has a name."""
    keys = tuple(
        ApiKey(scope, frozenset({scope}), sha256(scope.encode()).hexdigest())
        for scope in ("score", "metrics")
    )
    address = address_of(served, api_keys=keys)
    ask = lambda c: c.score(records[:1])  # noqa: E731
    assert len(call(kind, address, ask, api_key="score")) == 1
    monkeypatch.setenv("ANOMALY_VAE_API_KEY", "score")
    assert len(call(kind, address, ask)) == 1
    for key, status in (("nobody", 401), ("metrics", 403), ("", 401)):
        with pytest.raises(DeniedError) as caught:
            call(kind, address, ask, api_key=key)
        assert caught.value.problem.status == status


@pytest.mark.parametrize("kind", CALLS)
def test_a_bad_record_is_counted_from_the_first_of_the_call(kind, address_of, served):
    good = {"TX_AMOUNT": 1}
    wrong = [good] * 8 + [{"TX_AMOUNT": "?"}] + [good] * 3
    with pytest.raises(RefusedError, match="counted from 5") as caught:
        call(kind, address_of(served), lambda c: c.score(wrong), max_records=5)
    (bad,) = caught.value.problem.errors
    assert (bad.record, bad.field) == (8, "TX_AMOUNT")
    with pytest.raises(RefusedError, match="record 8, field 'TX_AMOUNT'"):
        call(kind, address_of(served), lambda c: c.score(wrong))


# ---------------------------------------------------------------- a bad day

ANSWER = {
    "model": {"name": "m", "version": "1", "alias": None}, "alpha": 0.01, "threshold": 1.0,
    "results": [{"score": 2.0, "p_value": 0.01, "is_anomaly": True}], "new": "some day",
}  # fmt: skip
GOOD = (200, {}, ANSWER)
BUSY = (429, {"Retry-After": "3"}, {"type": "t", "title": "Busy", "status": 429, "detail": "full"})
DROP = None


@contextmanager
def troubled(*script):
    """A service that answers so, request by request (`DROP`: not at all), and what it was sent."""
    steps, seen = iter(script), []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            seen.append(self.rfile.read(int(self.headers["content-length"])))
            step = next(steps)
            if step is DROP:
                self.close_connection = True
                return
            status, headers, body = step
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", seen
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def pauses(monkeypatch):
    """How long a client wanted to wait, without the waiting."""
    asked, real = [], asyncio.sleep

    async def asleep(seconds):
        asked.append(seconds)
        await real(0)

    monkeypatch.setattr(module.time, "sleep", asked.append)
    monkeypatch.setattr(module.asyncio, "sleep", asleep)
    return asked


@pytest.fixture
def free_address():
    """Where nobody listens."""
    return f"http://127.0.0.1:{free_port()}"


def ask_once(client):
    return client.score([{"x": 1}])


@pytest.mark.parametrize("kind", CALLS)
@pytest.mark.parametrize(
    "trouble", [BUSY, DROP, (503, {}, b"proxy"), (502, {}, b""), (504, {}, b"")]
)
def test_what_may_pass_is_tried_again(kind, trouble, pauses):
    """The same bytes are sent again; what a later version adds to an answer is no matter."""
    with troubled(trouble, trouble, GOOD) as (address, seen):
        assert shown(call(kind, address, ask_once)) == [(2.0, 0.01, True)]
    assert len(set(seen)) == 1
    assert len(seen) == 3
    assert len(pauses) == 2


@pytest.mark.parametrize("kind", CALLS)
def test_not_before_it_may(kind, pauses):
    """As long as asked for, in seconds or until a date, and a little longer, not all at once."""
    date = email.utils.format_datetime(dt.datetime.now(dt.UTC) + dt.timedelta(seconds=20), True)
    on_date = (503, {"Retry-After": date}, b"")
    past = (503, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, b"")
    with troubled(BUSY, BUSY, on_date, past, GOOD) as (address, _):
        call(kind, address, ask_once, random=Random(1))
    assert all(3 <= pause < 4 for pause in pauses[:2])
    assert pauses[0] != pauses[1]
    assert 15 < pauses[2] < 22
    assert 0 <= pauses[3] < 1


@pytest.mark.parametrize("kind", CALLS)
def test_attempts_end(kind, pauses):
    with troubled(*[BUSY] * 3) as (address, seen), pytest.raises(BusyError, match="full") as caught:
        call(kind, address, ask_once, attempts=3)
    assert caught.value.problem.status == 429
    assert (len(seen), len(pauses)) == (3, 2)


@pytest.mark.parametrize("kind", CALLS)
def test_nobody_waits_beyond_the_deadline(kind, pauses):
    """What could only be tried again too late is not waited for."""
    later = (503, {"Retry-After": "3600"}, b"")
    with troubled(later) as (address, seen), pytest.raises(BusyError):
        call(kind, address, ask_once)
    assert (len(seen), pauses) == (1, [])


@pytest.mark.parametrize("kind", CALLS)
@pytest.mark.parametrize(
    ("status", "error"),
    [(400, RefusedError), (401, DeniedError), (403, DeniedError), (413, RefusedError),
     (422, RefusedError), (500, FailedError), (307, RefusedError)],
)  # fmt: skip
def test_what_will_not_pass_is_not_tried_again(kind, status, error, pauses):
    with (
        troubled((status, {"Location": "/"}, b"<html>")) as (address, seen),
        pytest.raises(error, match=f"status {status}") as caught,
    ):
        call(kind, address, ask_once)
    assert type(caught.value) is error
    assert caught.value.problem.status == status
    assert (len(seen), pauses) == (1, [])


@pytest.mark.parametrize("kind", CALLS)
def test_nobody_there(kind, free_address, pauses):
    with pytest.raises(UnreachableError, match="no answer from http://"):
        call(kind, free_address, ask_once)
    assert len(pauses) == 4


@pytest.mark.parametrize("kind", CALLS)
def test_nobody_answers(kind, pauses):
    """A connection is taken, and then nothing comes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(UnreachableError):
            call(kind, address, ask_once, timeout=0.05, attempts=2)
    assert len(pauses) == 1


@pytest.mark.parametrize("kind", CALLS)
@pytest.mark.parametrize("body", [b"<html>hello</html>", b"{}", b""])
def test_somebody_else_answers(kind, body):
    with (
        troubled((200, {}, body)) as (address, _),
        pytest.raises(FailedError, match="answers something else"),
    ):
        call(kind, address, ask_once)


@pytest.mark.parametrize("kind", CALLS)
def test_another_model_takes_over_in_the_middle(kind):
    """Scores of two models are not mixed."""
    other = {**ANSWER, "model": {**ANSWER["model"], "version": "2"}}
    with (
        troubled(GOOD, (200, {}, other)) as (address, _),
        pytest.raises(FailedError, match="another model took over"),
    ):
        call(kind, address, lambda c: c.score([{}, {}]), max_records=1)


def test_an_address_that_is_none():
    with pytest.raises(ConfigError, match="expected http"):
        Client("localhost:8000")


def test_the_key_is_not_shown(monkeypatch, free_address, pauses):
    client = Client(free_address, api_key="secret-key")
    assert "secret-key" not in repr(client)
    with client, pytest.raises(UnreachableError) as caught:
        ask_once(client)
    assert "secret-key" not in str(caught.value)


# ---------------------------------------------------------------- errors by record


@pytest.mark.parametrize("kind", CALLS)
@pytest.mark.parametrize("limit", [{}, {"max_records": 2}])
def test_bad_records_have_an_error_in_their_place(kind, address_of, served, records, limit):
    bad = {"TX_AMOUNT": "much"}, {"TX_AMOUNT": b"5"}, 7, {}
    mixed = [records[0], *bad, records[1]]
    ask = lambda c: c.score(mixed, errors="per_record")  # noqa: E731
    scores = call(kind, address_of(served), ask, **limit)
    plain = call(Client, address_of(served), lambda c: c.score(records[:2]))
    np.testing.assert_allclose(shown([scores[0], scores[5]]), shown(plain), rtol=1e-6)
    assert [one.id for one in (scores[0], scores[5])] == [one.id for one in plain]
    assert [one.error and one.error.field for one in scores] == [
        None, "TX_AMOUNT", "TX_AMOUNT", None, None, None
    ]  # fmt: skip
    assert "expected a number" in scores[1].error.detail
    assert "decode them to text" in scores[2].error.detail
    assert "expected a mapping" in scores[3].error.detail
    assert shown(scores[1:2]) == [(None, None, None)]


def test_a_table_of_the_results_has_a_column_of_errors(address_of, served, transactions):
    frame = pq.read_table(transactions).slice(0, 3).to_pandas()
    frame = frame.assign(TX_AMOUNT=frame["TX_AMOUNT"].astype(object))
    frame.loc[1, "TX_AMOUNT"] = "much"
    scores = call(Client, address_of(served), lambda c: c.score(frame, errors="per_record"))
    table = scores.to_table().to_pandas()
    assert list(table) == ["id", "score", "p_value", "is_anomaly", "error"]
    assert table["id"].tolist() == frame["TRANSACTION_ID"].tolist()
    assert table["score"].isna().tolist() == [False, True, False]
    assert table["error"][1] == "TX_AMOUNT: expected a number, got 'much'"
    assert table["error"].isna().tolist() == [True, False, True]


def test_ignored_keys_and_warnings_of_all_requests(address_of, served):
    records = [{"TX_AMOUNT": 1, "b": 1}, {"TX_AMOUNT": 1}, {"TX_AMOUNT": None, "a": 1}]
    scores = call(Client, address_of(served), lambda c: c.score(records), max_records=1)
    assert scores.ignored == ("a", "b")
    (warning,) = scores.warnings
    assert warning.startswith("counted from 2: record 0: no value")


def test_events_and_labels_are_recorded(address_of, windowed, store_url):
    record = {"CUSTOMER_ID": 1, "TX_DATETIME": "2018-08-01", "TERMINAL_ID": "a"}
    events = [record | {"TRANSACTION_ID": number} for number in (1, 2, 1)]
    labels = [{"id": 1, "label": "anomaly", "at": dt.datetime(2018, 8, 2, tzinfo=dt.UTC)}]
    with Client(address_of(windowed, windows=store_url), max_records=2) as client:
        answer = client.record_events(events, labels, model="cards")
    assert answer.events == EventCounts(recorded=2, duplicate=1)
    assert answer.labels == LabelCounts(known=1)


# ---------------------------------------------------------------- labels


@pytest.fixture
def labelled(address_of, served, tmp_path):
    return address_of(served, labels=f"sqlite:///{tmp_path}/labels.db")


@pytest.mark.parametrize("kind", CALLS)
def test_labels_are_sent_in_several_requests(kind, labelled):
    moment = dt.datetime(2024, 1, 31, 12, tzinfo=dt.UTC)
    labels = [{"id": i, "label": "normal", "at": moment, "note": math.nan} for i in range(5)]
    answers = [
        call(kind, labelled, lambda client: client.feedback(labels, model="fraud"), max_records=2)
        for _ in range(2)
    ]
    assert [(one.stored, one.unchanged) for one in answers] == [(5, 0), (0, 5)]
    assert [one.id for one in answers[0].results] == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize("kind", CALLS)
def test_a_bad_label_is_named_by_its_position(kind, labelled):
    labels = [{"id": 1, "label": "normal"}, {"id": 2, "label": "normal"}, {"id": 3, "label": "x"}]
    with pytest.raises(RefusedError) as caught:
        call(kind, labelled, lambda client: client.feedback(labels), max_records=2)
    assert [(one.record, one.field) for one in caught.value.problem.errors] == [(2, "label")]


def test_labels_may_be_rows_of_a_frame(labelled):
    frame = pd.DataFrame({"id": ["7", "8"], "label": ["anomaly", "unsure"], "model": ["fraud"] * 2})
    answer = call(Client, labelled, lambda client: client.feedback(frame, model="other"))
    assert [(one.model, one.label) for one in answer.results] == [
        ("fraud", "anomaly"), ("fraud", "unsure"),
    ]  # fmt: skip


@pytest.mark.parametrize(("labels", "error"), [([], DataError), ([7], RecordError)])
def test_what_is_no_label_is_refused_before_it_is_sent(labelled, labels, error):
    with pytest.raises(error):
        call(Client, labelled, lambda client: client.feedback(labels, model="fraud"))


def test_labels_without_a_store(address_of, served):
    labels = [{"id": 1, "label": "normal"}]
    with pytest.raises(RefusedError, match="ANOMALY_VAE_LABELS"):
        call(Client, address_of(served), lambda client: client.feedback(labels))

"""`/invocations` and `/ping` answer as `mlflow models serve` does: its server is asked the same."""

import base64
import csv
import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import mlflow.pyfunc
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow.pyfunc.scoring_server import init
from mlflow.pyfunc.scoring_server.client import ScoringServerClient
from mlflow.utils.proto_json_utils import dump_input_data
from starlette.testclient import TestClient

from anomaly_vae.data.dataframes import record_to_frame
from anomaly_vae.lifecycle.registry import signature
from tests.support.http_requests import refused
from tests.support.image_uploads import tiff_file
from tests.support.paths import ROOT
from tests.support.ports import free_port
from tests.support.scans import blobs

CSV = {"Content-Type": "text/csv"}
FORMS = ("dataframe_split", "dataframe_records", "instances", "inputs")


def invoke(client, form, rows, **more):
    return client.post("/invocations", json={form: rows}, **more)


def predictions(response):
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].partition(";")[0] == "application/json"
    return response.json()


def logged(folder, served, place):
    """The bundle as MLflow keeps it."""
    mlflow.pyfunc.save_model(
        place,
        loader_module="anomaly_vae.pyfunc",
        data_path=str(folder),
        signature=signature(served.detector.scorer.schema),
        input_example=record_to_frame(served.example, served.detector.scorer.schema),
        pip_requirements=["pandas"],
    )
    return str(place)


@pytest.fixture(scope="module")
def models(folder, served, scan_folder, scanner, plain, tmp_path_factory):
    """MLflow's model of each bundle."""
    place = tmp_path_factory.mktemp("mlflow")
    return {
        "fraud": logged(folder, served, place / "fraud"),
        "scans": logged(scan_folder, scanner, place / "scans"),
    }


@pytest.fixture(scope="module")
def theirs(models):
    """Clients of MLflow's own scoring server of each model."""
    clients = {
        name: TestClient(init(mlflow.pyfunc.load_model(uri)), raise_server_exceptions=False)
        for name, uri in models.items()
    }
    yield clients
    for one in clients.values():
        one.close()


@pytest.fixture(scope="module")
def rows(served, records):
    """Records of what the model reads alone, of floats where it reads numbers."""
    columns = served.detector.scorer.schema.columns

    def value(record, column):
        cell = record[column.name]
        number = column.type in {"numeric", "binary"} and cell is not None
        return float(cell) if number else cell

    return [{column.name: value(record, column) for column in columns} for record in records]


def split_of(rows):
    return {"columns": list(rows[0]), "data": [list(row.values()) for row in rows]}


def columns_of(rows):
    return {name: [row[name] for row in rows] for name in rows[0]}


def csv_of(rows):
    text = io.StringIO(newline="")
    lines = csv.DictWriter(text, rows[0], lineterminator="\n")
    lines.writeheader()
    lines.writerows(rows)
    return text.getvalue().encode()


def whole(rows):
    """Those without a gap, which some of MLflow's forms cannot express."""
    return [row for row in rows if None not in row.values()]


BODIES = {
    "split": lambda rows: {"dataframe_split": split_of(rows)},
    "split with an index": lambda rows: {
        "dataframe_split": {**split_of(rows), "index": list(range(len(rows)))}
    },
    "records": lambda rows: {"dataframe_records": rows},
    "records and params": lambda rows: {"dataframe_records": rows, "params": {"any": 1}},
    "instances of records": lambda rows: {"instances": whole(rows)},
    "instances of columns": lambda rows: {"instances": columns_of(whole(rows))},
    "inputs of columns": lambda rows: {"inputs": columns_of(whole(rows))},
    "inputs of records": lambda rows: {"inputs": whole(rows)},
    "one record": lambda rows: {"inputs": whole(rows)[0]},
}


@pytest.mark.parametrize("form", BODIES)
def test_the_answer_is_what_mlflow_answers(client, theirs, rows, form):
    """To the last digit, missing values among them."""
    body = BODIES[form](rows)
    ours = client.post("/invocations", json=body)
    assert predictions(ours) == predictions(theirs["fraud"].post("/invocations", json=body))
    assert any(one["is_anomaly"] for one in ours.json()["predictions"]) or form == "one record"


def test_csv_is_answered_as_mlflow_answers_it(client, theirs, rows):
    """Without the column of times, which MLflow cannot read from CSV."""
    timeless = [{k: v for k, v in row.items() if k != "TX_DATETIME"} for row in rows]
    ask = {"content": csv_of(timeless), "headers": CSV}
    ours, other = (c.post("/invocations", **ask) for c in (client, theirs["fraud"]))
    assert predictions(ours) == predictions(other)


def test_csv_with_times(client, rows):
    ours = client.post("/invocations", content=csv_of(rows), headers=CSV)
    assert predictions(ours) == predictions(invoke(client, "dataframe_records", rows))


def test_unknown_columns_are_ignored_by_both(client, theirs, records):
    """A label, an id: what the model does not read."""
    body = {"dataframe_records": records}
    ours, other = (c.post("/invocations", json=body) for c in (client, theirs["fraud"]))
    assert predictions(ours) == predictions(other)


@pytest.mark.parametrize("encode", [base64.b64encode, base64.encodebytes])
@pytest.mark.parametrize("form", FORMS)
def test_images_are_answered_as_mlflow_answers_them(scan_client, theirs, pngs, form, encode):
    """In base64, with or without the line breaks of MLflow's own encoder."""
    cells = [{"image": encode(content).decode()} for content in pngs[:4]]
    rows = {"dataframe_split": split_of(cells), "inputs": cells}.get(form, cells)
    ours = predictions(invoke(scan_client, form, rows))
    uploads = [("files", content) for content in pngs[:4]]
    results = scan_client.post("/score", files=uploads).json()["results"]
    keys = ("score", "p_value", "is_anomaly", "unusual_input")
    assert ours["predictions"] == [{key: result[key] for key in keys} for result in results]
    if form.startswith("dataframe"):  # MLflow decodes no base64 elsewhere
        assert ours == predictions(invoke(theirs["scans"], form, rows))


def test_images_alone_are_one_column(scan_client, pngs):
    cells = [base64.b64encode(content).decode() for content in pngs[:3]]
    plain, named = ({"instances": cells}, {"inputs": {"image": cells}})
    answers = [scan_client.post("/invocations", json=body) for body in (plain, named)]
    assert predictions(answers[0]) == predictions(answers[1])
    listed = csv_of([{"image": cell} for cell in cells])
    by_csv = scan_client.post("/invocations", content=listed, headers=CSV)
    assert predictions(by_csv) == predictions(answers[0])


@pytest.mark.parametrize("form", ["instances", "inputs"])
def test_rows_without_names_come_in_the_order_of_the_model(client_of, plain, form):
    client = client_of(plain)
    names = plain.detector.scorer.schema.names
    arrays = [[12.5, 0], [None, 1], [9999.0, None]]
    records = [dict(zip(names, row, strict=True)) for row in arrays]
    expected = predictions(invoke(client, "dataframe_records", records))
    assert predictions(invoke(client, form, arrays)) == expected


@pytest.mark.parametrize("path", ["/ping", "/health"])
def test_ping_and_health(client, client_of, served, theirs, path):
    ours, other = client.get(path), theirs["fraud"].get(path)
    assert (ours.status_code, ours.text) == (other.status_code, other.text) == (200, "\n")
    refused(client_of().get(path), 503, "not-ready")
    draining = client_of(served)
    draining.app.state.store.draining = True
    refused(draining.get(path), 503, "not-ready")


def test_version_is_that_of_mlflow(client, theirs):
    ours, other = client.get("/version"), theirs["fraud"].get("/version")
    assert (ours.status_code, ours.text) == (other.status_code, other.text)


# ---------------------------------------------------------------- gaps of MLflow's client


@pytest.fixture
def gaps(rows):
    """Frame with a missing value in every column."""
    frame = record_frame(rows[:30])
    for row, name in enumerate(frame.columns):
        frame.loc[row, name] = None
    return frame


def record_frame(rows):
    frame = pd.DataFrame(rows)
    return frame.assign(TX_DATETIME=pd.to_datetime(frame["TX_DATETIME"]))


def test_mlflows_client_is_answered_as_by_mlflow(address_of, served, theirs, gaps):
    """A frame with gaps and an index of its own, over a socket."""
    frame = gaps.set_index(pd.RangeIndex(100, 130))
    body = dump_input_data(frame)
    assert "NaN" in body
    assert "NaT" in body
    client = ScoringServerClient(*address_of(served).removeprefix("http://").split(":"))
    client.wait_server_ready()
    ours = client.invoke(frame).get_predictions()
    headers = {"Content-Type": "application/json"}
    other = theirs["fraud"].post("/invocations", content=body, headers=headers)
    pd.testing.assert_frame_equal(ours, pd.DataFrame(predictions(other)["predictions"]))
    assert client.get_version() == mlflow.__version__


@pytest.mark.parametrize(
    "body",
    [
        b'{"dataframe_records": [{"TX_AMOUNT": NaN, "TX_CHANNEL": "NaN \\" NaN, Infinity"}]}',
        b'{"dataframe_split": {"columns": ["TX_AMOUNT", "TX_CHANNEL"],'
        b' "data": [[NaN, "NaN \\" NaN, Infinity"]]}}',
        b'{"instances": [{"TX_AMOUNT":NaN,"TX_CHANNEL":"NaN \\" NaN, Infinity"}]}',
        b'{"inputs": {"TX_AMOUNT": [NaN], "TX_CHANNEL": ["NaN \\" NaN, Infinity"]}}',
    ],
)
def test_nan_is_missing_in_every_form(client, body):
    strict = [{"TX_AMOUNT": None, "TX_CHANNEL": 'NaN " NaN, Infinity'}]
    headers = {"Content-Type": "application/json"}
    ours = client.post("/invocations", content=body, headers=headers)
    assert predictions(ours) == predictions(invoke(client, "dataframe_records", strict))


def test_empty_cells_and_nan_are_missing_in_csv(client):
    strict = [{"TX_AMOUNT": None, "TX_CHANNEL": "chip"}] * 2 + [{"TX_AMOUNT": 1.5}]
    body = b"TX_AMOUNT,TX_CHANNEL\n,chip\nNaN,chip\n1.5,\n"
    ours = client.post("/invocations", content=body, headers=CSV)
    assert predictions(ours) == predictions(invoke(client, "dataframe_records", strict))


@pytest.mark.parametrize("value", [b"Infinity", b"-Infinity"])
def test_infinity_is_refused(client, value):
    body = b'{"dataframe_records": [{"TX_AMOUNT": NaN}, {"TX_AMOUNT": %b}]}' % value
    headers = {"Content-Type": "application/json"}
    problem = refused(client.post("/invocations", content=body, headers=headers), 400, "malformed")
    assert "Infinity is not a value" in problem["detail"]


@pytest.mark.parametrize(
    "body",
    [b'{"inputs": [{"TX_AMOUNT": NaNa}]}', b'{"inputs": [{"a": "NaN', b"NaN", b'"' + b'\\"' * 9],
)
def test_what_is_no_json_even_with_nan(client, body):
    headers = {"Content-Type": "application/json"}
    response = client.post("/invocations", content=body, headers=headers)
    assert response.status_code in {400, 422}


@pytest.mark.parametrize(
    ("form", "rows"),
    [
        ("dataframe_records", '[{"TX_AMOUNT": 1}, {"TX_AMOUNT": %s}]'),
        ("dataframe_split", '{"columns": ["TX_AMOUNT"], "data": [[1], [%s]]}'),
        ("instances", '[{"TX_AMOUNT": 1}, {"TX_AMOUNT": %s}]'),
        ("inputs", '[{"TX_AMOUNT": 1}, {"TX_AMOUNT": %s}]'),
    ],
)
@pytest.mark.parametrize("cell", ["1e400", '"much"', "true"])
def test_a_wrong_value_names_its_record(client, form, rows, cell):
    body = f'{{"{form}": {rows % cell}}}'.encode()
    response = client.post(
        "/invocations", content=body, headers={"Content-Type": "application/json"}
    )
    assert refused(response, 422, "invalid-record")["record"] == 1


def test_unknown_columns_beside_images_are_named(scan_client, client_of, scanner, pngs):
    rows = [{"image": base64.b64encode(pngs[0]).decode(), "hat": [1]}]
    split = {"columns": list(rows[0]), "data": [list(rows[0].values())]}
    for form, body in (("dataframe_records", rows), ("dataframe_split", split), ("inputs", rows)):
        assert predictions(invoke(scan_client, form, body))["ignored"] == ["hat"]
    strict = client_of(scanner, unknown_keys="refuse")
    problem = refused(invoke(strict, "dataframe_records", rows), 422, "invalid-request")
    assert "unknown key 'hat'" in problem["detail"]


def test_unknown_columns_are_named(client, client_of, served):
    rows = [{"TX_AMOUNT": 1, "hat": 2}]
    assert predictions(invoke(client, "dataframe_records", rows))["ignored"] == ["hat"]
    body = b"TX_AMOUNT,hat\n1,2\n"
    by_csv = client.post("/invocations", content=body, headers=CSV)
    assert predictions(by_csv)["ignored"] == ["hat"]
    strict = client_of(served, unknown_keys="refuse")
    problem = refused(invoke(strict, "dataframe_records", rows), 422, "invalid-request")
    assert "unknown key 'hat'" in problem["detail"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "none of them"),
        ({"inputs": [{}], "instances": [{}]}, "instances and inputs"),
        ({"columns": [], "data": []}, "exactly one of"),
        ([], "object"),
        ({"dataframe_records": []}, "at least one row"),
        ({"dataframe_records": {}}, "dataframe_records"),
        ({"dataframe_split": {"columns": ["TX_AMOUNT"], "data": []}}, "no rows"),
        ({"dataframe_split": {"columns": ["shoe_size"], "data": [[43]]}}, "none of the model's"),
        ({"dataframe_split": {"data": [[43]]}}, "columns"),
        (
            {"dataframe_split": {"columns": ["TX_AMOUNT", "TX_AMOUNT"], "data": [[1, 2]]}},
            "one name",
        ),
        ({"inputs": {"TX_AMOUNT": [1], "TX_CHANNEL": ["a", "b"]}}, "different lengths"),
        ({"inputs": []}, "at least one row"),
        ({"inputs": {}}, "at least one row"),
        ({"inputs": 5}, "expected a list"),
        ({"inputs": ["a"]}, "expected a list"),
        ({"inputs": None}, "expected a list"),
    ],
)
def test_requests_that_do_not_fit(client, body, said):
    problem = refused(client.post("/invocations", json=body), 422, "invalid-request")
    assert said in problem["detail"]
    assert "error" not in problem


@pytest.mark.parametrize(
    ("form", "rows"),
    [
        ("dataframe_records", [{"TX_AMOUNT": 1}, {"TX_AMOUNT": "12,50"}]),
        ("dataframe_split", {"columns": ["TX_AMOUNT"], "data": [[1], ["?"]]}),
        ("instances", [{"TX_AMOUNT": 1}, {"TX_AMOUNT": True}]),
        ("inputs", {"TX_AMOUNT": [1, "?"]}),
    ],
)
def test_a_wrong_value_names_its_record_and_field(client, form, rows):
    problem = refused(invoke(client, form, rows), 422, "invalid-record")
    assert (problem["record"], problem["field"]) == (1, "TX_AMOUNT")


@pytest.mark.parametrize(
    "rows", [[{}, 5], [[1] * 3], [{}, None]], ids=["number", "short row", "null"]
)
def test_rows_that_are_none(client, rows):
    refused(invoke(client, "instances", rows), 422, "invalid-record")


def test_a_wrong_cell_of_csv_names_its_record_and_field(client):
    body = b"TX_AMOUNT,TX_CHANNEL\n1,chip\nmuch,chip\n"
    response = client.post("/invocations", content=body, headers=CSV)
    problem = refused(response, 422, "invalid-record")
    assert (problem["record"], problem["field"]) == (1, "TX_AMOUNT")


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        (b"", 422, "invalid-request"),
        (b"TX_AMOUNT\n", 422, "invalid-request"),
        (b"shoe_size\n43\n", 422, "invalid-request"),
        (b"TX_AMOUNT,TX_AMOUNT\n1,2\n", 422, "invalid-request"),
        (b"TX_AMOUNT,TX_CHANNEL\n1\n", 422, "invalid-record"),
        (b'TX_AMOUNT\n"1\n', 400, "malformed"),
        (b"TX_CHANNEL\n\xff\n", 400, "malformed"),
    ],
)
def test_csv_that_does_not_fit(client, body, status, kind):
    refused(client.post("/invocations", content=body, headers=CSV), status, kind)


def test_a_cell_that_is_too_large_for_csv(client):
    body = b"TX_CHANNEL\n" + b"x" * (csv.field_size_limit() + 1)
    problem = refused(client.post("/invocations", content=body, headers=CSV), 400, "malformed")
    assert problem["detail"].endswith("(131072); send larger cells as JSON")


@pytest.mark.parametrize(
    "cell", [None, 5, "no base64!", base64.b64encode(b"no image").decode(), "/etc/hostname"]
)
def test_images_that_are_none(scan_client, cell):
    """A path is no image: no client has files of this machine read."""
    problem = refused(invoke(scan_client, "instances", [{"image": cell}]), 422, "invalid-record")
    assert (problem["record"], problem["field"]) == (0, "image")


def test_an_image_to_each_file(scan_client):
    several = base64.b64encode(tiff_file(blobs(2, seed=0, size=40))).decode()
    problem = refused(invoke(scan_client, "inputs", [several]), 422, "invalid-record")
    assert "several images" in problem["detail"]


@pytest.mark.parametrize(
    "media", ["text/plain", "application/json; charset=latin-1", "text/csv; charset=utf-16", ""]
)
def test_other_media_types(client, media):
    response = client.post("/invocations", content=b"{}", headers={"Content-Type": media})
    refused(response, 415, "unsupported-media-type")


def test_the_same_limits(client_of, served):
    client = client_of(served, max_records=2, max_body_bytes=2048)
    many = [{"TX_AMOUNT": 1}] * 3
    refused(invoke(client, "dataframe_records", many), 413, "too-many-records")
    refused(invoke(client, "inputs", {"TX_AMOUNT": [1] * 3}), 413, "too-many-records")
    body = b"TX_AMOUNT\n" + b"1\n" * 3
    refused(client.post("/invocations", content=body, headers=CSV), 413, "too-many-records")
    refused(invoke(client, "inputs", {"TX_AMOUNT": [1] * 2000}), 413, "too-large")
    refused(invoke(client_of(), "inputs", [{}]), 503, "not-ready")


def test_it_is_for_one_model(client_of, served, scanner):
    refused(invoke(client_of(served, scanner), "inputs", [{}]), 404, "unknown-model")


def test_it_needs_a_key_and_ping_none(client_of, served):
    from serving.settings import ApiKey

    client = client_of(served, api_keys=(ApiKey("a", frozenset({"score"}), "0" * 64),))
    refused(invoke(client, "inputs", [{}]), 401, "unauthenticated")
    assert client.get("/ping").status_code == 200


JSONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["TX_AMOUNT", "TX_CHANNEL", "online"]),
    lambda below: st.lists(below, max_size=3)
    | st.dictionaries(st.sampled_from(["TX_AMOUNT", "columns", "data", "index"]), below),
    max_leaves=8,
)  # fmt: skip


@given(st.dictionaries(st.sampled_from([*FORMS, "params"]), JSONS, min_size=1, max_size=2))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_json_is_sent(client, body):
    response = client.post("/invocations", json=body)
    assert response.status_code in {200, 400, 413, 422}, response.text


@given(st.text(alphabet='TX_AMOUNT,"\n\r1.5;\x00é', max_size=60))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_csv_is_sent(client, text):
    body = ("TX_AMOUNT,TX_CHANNEL\n" + text).encode()
    response = client.post("/invocations", content=body, headers=CSV)
    assert response.status_code in {200, 400, 413, 422}, response.text


@pytest.mark.slow
def test_a_real_server_of_mlflow_answers_the_same(client, models, rows):
    """`mlflow models serve` in a process of its own, over a socket."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", models["fraud"]]
    command += ["--env-manager", "local", "-p", str(port), "-h", "127.0.0.1"]
    here = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # it calls uvicorn
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": here}
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        wait_for(f"http://127.0.0.1:{port}/ping", process)
        for make in BODIES.values():
            body = make(rows)
            asked = Request(
                f"http://127.0.0.1:{port}/invocations",
                json.dumps(body).encode(),
                {"Content-Type": "application/json"},
            )
            with urlopen(asked, timeout=60) as answer:
                assert json.loads(answer.read()) == predictions(
                    client.post("/invocations", json=body)
                )
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def wait_for(address, process, seconds=120):
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urlopen(address, timeout=5):
                return
        except (URLError, ConnectionError, TimeoutError):
            time.sleep(0.2)
    raise AssertionError("the server did not come up")


def test_what_is_scored_is_counted(client, rows):
    invoke(client, "dataframe_records", rows[:3])
    text = client.get("/metrics").text
    assert 'anomaly_vae_scored_records_total{model="fraud",version=""} 3.0' in text
    assert 'route="/invocations"' in text
    assert all(math.isfinite(one["score"]) for one in predictions(
        invoke(client, "dataframe_records", rows[:3])
    )["predictions"])  # fmt: skip


@pytest.mark.parametrize("text", ["", "NaT", "nan"])
def test_a_time_that_pandas_reads_as_missing_is_missing(client, text):
    records = [{"TX_AMOUNT": 5, "TX_DATETIME": cell} for cell in (text, None)]
    columns = {name: [one[name] for one in records] for name in records[0]}
    for body in ({"dataframe_records": records}, {"inputs": columns}):
        found = client.post("/invocations", json=body).json()["predictions"]
        assert found[0] == found[1]

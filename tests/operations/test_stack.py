"""The system that docker-compose.yml describes, run without Docker: see `tests.support.compose`."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, suppress
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import pyarrow.parquet as pq
import pytest

from anomaly_vae.artifacts import bundle
from tests.support.compose import Stack, stack
from tests.support.defective import defective
from tools.dashboard import TARGET

KEY = "a key of the tests"
DIGEST = hashlib.sha256(KEY.encode()).hexdigest()
VARIABLES = {
    "POSTGRES_PASSWORD": "p@ss/w%rd: not a good one",
    "MLFLOW_ADMIN_PASSWORD": "an administrator's",
    "MLFLOW_SCORING_PASSWORD": "a reader's password",
    "MLFLOW_SECRET_KEY": "what forms are signed with",
    "API_KEYS": f"tests:score+admin:{DIGEST}",
    "PROMETHEUS_KEY": "what Prometheus says",
    "GRAFANA_PASSWORD": "nobody asks for it here",
    "TRANSACTIONS": "2500",
    "SCANS": "150",
    "TRAIN_OPTIONS": "--set training.epochs=1",
    "RELOAD_SECONDS": "1",
}
FASTER = {
    r"(interval|timeout): \d+s": r"\1: 1s",
    r"for: (\d+)[mh]": r"for: \1s",
    r"age_seconds > 300": "age_seconds > 5",
}
"""A second of the test is a quarter of a minute to Prometheus, a minute or an hour to alerts."""
NOT_SHOWN = {"Shadow agreement A"}
"""What the dashboard has nothing to show of: there is no shadow."""

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        not shutil.which("prometheus"),
        reason="needs prometheus and promtool (Debian: apt-get install prometheus)",
    ),
]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Everything but Grafana, started in the order of `depends_on`."""
    with stack(tmp_path_factory.mktemp("stack"), VARIABLES, faster=FASTER) as one:
        one.start("mlflow")
        done = one.run("train")
        assert done.returncode == 0, done.stderr.decode()
        one.start("scoring")
        one.start("prometheus")
        yield one


def ask(address: str, body: Any = None, **headers: str) -> Any:
    """A request of one who has the key; its answer."""
    data = None if body is None else json.dumps(body).encode()
    known = {"X-API-Key": KEY, "content-type": "application/json", **headers}
    with urlopen(Request(f"http://{address}", data, known), timeout=30) as answer:
        content = answer.read()
    return json.loads(content) if content.startswith(b"{") else content


def refusal(address: str, body: Any = None, **headers: str) -> int:
    """The status of a request that is refused."""
    with pytest.raises(HTTPError) as refused:
        ask(address, body, **headers)
    refused.value.close()
    return refused.value.code


def score(one: Stack, records: list[dict[str, Any]]) -> Any:
    """Have records scored."""
    place = one.address("scoring", 8000)
    return ask(f"{place}/models/fraud/score", {"records": records})


def query(one: Stack, expression: str) -> list[dict[str, Any]]:
    """What Prometheus finds."""
    place = one.address("prometheus", 9090)
    found = ask(f"{place}/api/v1/query?{urlencode({'query': expression})}")
    result: list[dict[str, Any]] = found["data"]["result"]
    return result


def firing(one: Stack) -> set[str]:
    """The alerts that fire."""
    return {found["metric"]["alertname"] for found in query(one, 'ALERTS{alertstate="firing"}')}


def config(one: Stack) -> str:
    """The configuration of the transactions, where the job has it."""
    return str(dict(one.places("train"))["/etc/anomaly-vae"]) + "/fraud.yaml"


def anomaly_vae(one: Stack, *arguments: str) -> bytes:
    """A command of the administrator, in the folder of the job; what it prints."""
    return subprocess.run(
        ["anomaly-vae", *arguments],
        env=one.environment("train"), cwd=one.cwd("train"), check=True, capture_output=True,
    ).stdout  # fmt: skip


def as_sent(one: Stack, rows: int) -> list[dict[str, Any]]:
    """Rows that the job simulated."""
    table = pq.read_table(one.cwd("train") / "data" / "transactions.parquet").slice(0, rows)
    return [{**row, "TX_DATETIME": row["TX_DATETIME"].isoformat()} for row in table.to_pylist()]


def test_a_score_reaches_prometheus(running: Stack) -> None:
    records = as_sent(running, 300)
    answer = score(running, records[:1])
    assert (answer["model"]["version"], answer["model"]["alias"]) == ("1", "champion")
    running.wait(lambda: query(running, 'anomaly_vae_scored_records_total{model="fraud"}'))
    score(running, records)
    wanted = 'anomaly_vae_scored_records_total{model="fraud"} == 301'
    running.wait(lambda: query(running, wanted))
    running.wait(lambda: query(running, "model_version:anomaly_vae_flagged:ratio1h"))
    running.wait(lambda: query(running, "route:anomaly_vae_request_duration_seconds:p99_5m"))
    (age,) = query(running, 'model_version:anomaly_vae_model:age_seconds{model="fraud"}')
    assert 0 < float(age["value"][1]) < 900
    assert not firing(running)


def test_both_models_are_served(running: Stack) -> None:
    found = ask(f"{running.address('scoring', 8000)}/models")
    assert {one["name"] for one in found["models"]} == {"fraud", "scans"}


def test_the_service_may_read_mlflow_and_change_nothing(running: Stack) -> None:
    place = f"{running.address('mlflow', 5000)}/api/2.0/mlflow/registered-models/alias"
    account = f"scoring:{VARIABLES['MLFLOW_SCORING_PASSWORD']}"
    basic = f"Basic {base64.b64encode(account.encode()).decode()}"
    found = ask(f"{place}?name=fraud&alias=champion", Authorization=basic)
    assert found["model_version"]["version"] == "1"
    alias = {"name": "fraud", "alias": "champion", "version": "1"}
    assert refusal(place, alias, Authorization=basic) == 403
    assert refusal(place, alias) == 401


def test_mlflow_knows_the_name_it_has_for_others_and_no_strange_one(running: Stack) -> None:
    place = running.address("mlflow", 5000)
    assert ask(f"{place}/health", Host="mlflow:5000") == b"OK"
    route = f"{place}/api/2.0/mlflow/registered-models/alias?name=fraud&alias=champion"
    assert refusal(route, Host="mlflow:5000") == 401
    assert refusal(route, Host="strange.example") == 403


def test_keys_are_asked_for_on_both_ports(running: Stack) -> None:
    public, internal = (running.address("scoring", port) for port in (8000, 8001))
    assert refusal(f"{public}/models", **{"X-API-Key": "another"}) == 401
    assert refusal(f"{internal}/metrics", **{"X-API-Key": "another"}) == 401
    assert refusal(f"{internal}/metrics") == 403
    assert refusal(f"{public}/metrics") == 404


def test_a_promotion_reaches_the_service(running: Stack) -> None:
    alpha = "calibration.alpha=0.02"
    anomaly_vae(running, "calibrate", config(running), "--model", "models:/fraud/1", "--set", alpha)
    anomaly_vae(running, "promote", "fraud", "--force", "--reason", "a test of the stack")
    running.wait(lambda: score(running, as_sent(running, 1))["model"]["version"] == "2")
    served = 'anomaly_vae_model_alpha_ratio{model="fraud",version="2"} == 0.02'
    running.wait(lambda: query(running, served))


def test_starting_again_changes_nothing(running: Stack) -> None:
    """Neither what was promoted since, nor the versions that there are."""
    done = running.run("train")
    assert done.returncode == 0, done.stderr.decode()
    listed = json.loads(anomaly_vae(running, "models"))["models"]
    assert [(one["name"], one["versions"], one["aliases"]["champion"]) for one in listed] == [
        ("fraud", ["1", "2"], "2"),
        ("scans", ["1"], "1"),
    ]


def test_one_record_again_and_again_raises_a_doubt(running: Stack) -> None:
    """None is flagged, and yet they are not like the calibration rows."""
    rows = as_sent(running, 50)
    found = score(running, rows)["results"]
    usual = min(zip(rows, found, strict=True), key=lambda pair: abs(pair[1]["p_value"] - 0.5))[0]
    score(running, [usual] * 900)
    running.wait(lambda: "AnomalyVAEGuaranteeDoubtful" in firing(running))
    assert score(running, [usual])["guarantee_status"] == "doubtful"


def strange(one: Stack, rows: int) -> list[dict[str, Any]]:
    """The same rows, but for two columns."""
    return [{**row, "TX_AMOUNT": 1e6, "TX_CHANNEL": None} for row in as_sent(one, rows)]


def test_strange_traffic_raises_alerts(running: Stack) -> None:
    for _ in range(5):
        score(running, strange(running, 200))
        time.sleep(1.1)  # between two scrapes
    raised = {"TooManyFlags", "GuaranteeBroken", "MissingValues", "Drift"}
    running.wait(lambda: {f"AnomalyVAE{name}" for name in raised} <= firing(running))


def promote_a_defect(one: Stack) -> None:
    """A model that breaks on no row that promotion tries."""
    (made,) = (one.cwd("train") / "bundles").glob("fraud-*")
    sound = bundle.load_bundle(made)
    place = one.folder / "defective"
    dataclasses.replace(sound, graph=defective(sound.graph)).save(place)
    anomaly_vae(one, "calibrate", config(one), "--model", str(place))
    anomaly_vae(one, "promote", "fraud")


def failure(one: Stack, records: list[dict[str, Any]]) -> str | None:
    """The id of a request that ends in a 500; None where it is answered."""
    try:
        score(one, records)
    except HTTPError as error:
        if error.code != 500:
            raise
        with error:
            return str(error.headers["x-request-id"])
    return None


def test_a_promoted_model_that_fails_is_noticed_and_rolled_back(running: Stack) -> None:
    """As the runbook has it: the route, the reason, the traceback, and what ends it."""
    promote_a_defect(running)
    usual, unusual = as_sent(running, 1), strange(running, 1)
    ids: list[str] = []

    def fires() -> bool:
        time.sleep(0.5)
        ids.extend(filter(None, [failure(running, unusual)]))
        return "AnomalyVAEErrors" in firing(running)

    running.wait(fires)
    route = '{route="/models/{name}/score", status="5xx"} > 0'
    assert query(running, f"route_status:anomaly_vae_requests:rate5m{route}")
    assert query(running, 'reason:anomaly_vae_rejected_requests:rate5m{reason="internal"} > 0')
    log = (running.folder / "scoring.log").read_text().splitlines()
    trace, request = (json.loads(line) for line in log if f'"request_id":"{ids[0]}"' in line)
    assert trace["error"] == "InvalidArgument"
    assert "/onnxruntime/" in trace["trace"][-1]
    assert (request["status"], request["client"], request["model"]) == (500, "tests", "fraud")

    anomaly_vae(running, "rollback", "fraud")
    running.wait(lambda: score(running, usual)["model"]["version"] == "2")
    running.wait(lambda: failure(running, unusual) is None)
    running.wait(lambda: is_quiet(running, usual, "AnomalyVAEErrors"))


def is_quiet(one: Stack, records: list[dict[str, Any]], alert: str) -> bool:
    """Whether an alert no longer fires, after some more requests that end well."""
    for _ in range(100):
        score(one, records)
    return alert not in firing(one)


def test_a_registry_that_is_gone_stops_no_score(running: Stack) -> None:
    running.stop("mlflow")
    running.wait(lambda: "AnomalyVAEReloadFailing" in firing(running))
    assert score(running, as_sent(running, 1))["model"]["version"] == "2"
    running.start("mlflow")
    running.wait(lambda: "AnomalyVAEReloadFailing" not in firing(running))


def test_a_full_service_refuses_and_says_so(running: Stack) -> None:
    for _ in range(3):
        crowd(running, 400)
        time.sleep(1.1)  # between two scrapes
    running.wait(lambda: "AnomalyVAEFull" in firing(running))
    running.wait(lambda: "AnomalyVAESlow" in firing(running))
    assert score(running, as_sent(running, 1))["results"]


def crowd(one: Stack, size: int) -> None:
    """So many clients at once that are slow to send what they have to say."""
    host, _, port = one.address("scoring", 8000).partition(":")
    body = b'{"records": [{"TX_AMOUNT": 1}]}'
    head = "POST /models/fraud/score HTTP/1.1\r\nhost: localhost\r\n"
    head += f"x-api-key: {KEY}\r\ncontent-type: application/json\r\n"
    head += f"content-length: {len(body)}\r\n\r\n"
    with ExitStack() as held:
        clients = [
            held.enter_context(socket.create_connection((host, int(port)), 30)) for _ in range(size)
        ]
        for client in clients:
            client.sendall(head.encode())
        time.sleep(1.5)
        for client in clients:
            with suppress(OSError):  # it was refused, and closed
                client.sendall(body)
                client.recv(65536)


def shown(one: Stack, target: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What Grafana gets of a target of the dashboard, with all models chosen."""
    place = f"{one.address('prometheus', 9090)}/api/v1/query"
    asked = {"query": target["expr"].replace("$model", "(fraud|scans)")}
    if target["range"]:
        place, now = f"{place}_range", time.time()
        asked |= {"start": str(now - 60), "end": str(now), "step": "1"}
    found: list[dict[str, Any]] = ask(f"{place}?{urlencode(asked)}")["data"]["result"]
    return found


def test_every_panel_of_the_dashboard_has_something_to_show(running: Stack) -> None:
    dashboard = json.loads(TARGET.read_text(encoding="utf-8"))
    series = f"{running.address('prometheus', 9090)}/api/v1/label/model/values"
    asked = urlencode({"match[]": "anomaly_vae_model_info"})
    assert ask(f"{series}?{asked}")["data"] == ["fraud", "scans"]
    empty = set()
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            found = shown(running, target)
            if not found:
                empty.add(f"{panel['title']} {target['refId']}")
            wanted = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            wanted.update(
                *(t["options"]["include"]["names"] for t in panel.get("transformations", ()))
            )
            assert all(wanted <= one["metric"].keys() for one in found), panel["title"]
    assert empty == NOT_SHOWN


def test_a_service_that_stops_is_noticed(running: Stack) -> None:
    assert running.stop("scoring") == 0
    running.wait(lambda: "AnomalyVAEDown" in firing(running))
    running.start("scoring")
    running.wait(lambda: "AnomalyVAEDown" not in firing(running))


def grow_old(one: Stack, name: str, days: int) -> None:
    """Have the registry say that every version of a model was made so much earlier."""
    psycopg2 = pytest.importorskip("psycopg2", reason="needs the extra 'server'")
    host, _, port = one.address("postgres", 5432).partition(":")
    given = one.services["postgres"]["environment"]
    account = {key: given[f"POSTGRES_{key.upper()}"] for key in ("user", "password")}
    database = psycopg2.connect(host=host, port=port, dbname=given["POSTGRES_DB"], **account)
    with closing(database), database, database.cursor() as cursor:
        change = "UPDATE model_versions SET creation_time = creation_time - %s WHERE name = %s"
        cursor.execute(change, (days * 86_400_000, name))


def test_a_model_is_old_until_one_of_newer_data_is_promoted(running: Stack) -> None:
    grow_old(running, "fraud", 91)
    running.stop("scoring")
    running.start("scoring")
    running.wait(lambda: "AnomalyVAEModelOld" in firing(running))
    old = query(running, 'ALERTS{alertname="AnomalyVAEModelOld"}')
    assert [(one["metric"]["model"], one["metric"]["version"]) for one in old] == [("fraud", "2")]
    data = running.cwd("train") / "data" / "transactions.parquet"
    pq.write_table(pq.read_table(data).slice(100), data)  # without the oldest
    anomaly_vae(running, "run", config(running), "--set", "training.epochs=1")
    running.wait(lambda: "AnomalyVAEModelOld" not in firing(running))
    assert score(running, as_sent(running, 1))["model"]["version"] == "4"

"""Clients that others' generators make of the document score with the service."""

import json
import os
import shutil
import subprocess
import sys
import urllib.request
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient

from anomaly_vae.artifacts.registry_names import BundleRef
from anomaly_vae.calibration.conformal import calibrate
from anomaly_vae.config import validate_config
from anomaly_vae.data.splitting import CALIBRATION, TRAIN, VALIDATION
from anomaly_vae.training.fit import fit_bundle, prepare
from pipelines.datasets.loading import load_dataset
from serving.app import create_app
from serving.models.store import Store
from serving.protocols.mlflow_scoring import CSV
from serving.scoring.images.uploads import RAW
from serving.scoring.loading import load_model
from serving.settings import Settings
from tests.support.service_process import running

BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """The folder of a model whose name and columns are no names of Python."""
    folder, random, size = tmp_path_factory.mktemp("odd"), np.random.default_rng(0), 400
    seconds = np.sort(random.integers(0, 5_000_000, size))
    times = np.datetime64("2026-01-01", "us") + seconds.astype("timedelta64[s]")
    columns = {
        "amount in €": random.lognormal(size=size),
        "class": random.choice(["a", "b", "ü x"], size),
        "is-new": random.random(size) < 0.3,
        "1st.seen": times,
        "self": random.normal(size=size),
        "model_config": random.choice(["x", "y"], size),
        "records": random.integers(0, 2, size),
    }
    pq.write_table(pa.table(columns), folder / "table.parquet")
    config = validate_config(
        {
            "name": "fraud-2.x",
            "data": {"path": str(folder / "table.parquet")},
            "training": {"epochs": 2},
        }
    )
    rows = load_dataset(config.data)
    parts = rows.part(TRAIN), rows.part(VALIDATION)
    bundle = fit_bundle(config, prepare(config, rows.schema, *parts), rows.summary()).bundle
    scores = bundle.scorer.score(rows.part(CALIBRATION))
    return bundle.calibrated(calibrate(scores, alpha=0.05), None).save(folder / "bundle")


def document(*models):
    return TestClient(create_app(Store(models), Settings())).get("/openapi.json").json()


def everywhere(part):
    """All objects of a document."""
    if isinstance(part, dict):
        yield part
        part = list(part.values())
    for inner in part if isinstance(part, list) else ():
        yield from everywhere(inner)


def test_every_list_says_what_it_holds_and_no_enum_mixes_types(odd, scanner):
    for part in everywhere(document(load_model(BundleRef(str(odd))), scanner)):
        assert part.get("type") != "array" or "items" in part
        kinds = {type(value) for value in part.get("enum", ()) if isinstance(part["enum"], list)}
        assert len(kinds) < 2


def lists_in(part):
    """Yield each description of a list in a part of a document."""
    if isinstance(part, dict):
        yield from [part] * (part.get("type") == "array")
        part = list(part.values())
    for one in part if isinstance(part, list) else ():
        yield from lists_in(one)


def test_each_list_has_one_description_of_its_items(served, scanner):
    lists = list(lists_in(document(served, scanner)["components"]))
    assert lists
    assert all(isinstance(one["items"], dict) and "prefixItems" not in one for one in lists)


def test_operations_have_short_names(odd, scanner):
    paths = document(load_model(BundleRef(str(odd))), scanner)["paths"].values()
    names = [operation["operationId"] for path in paths for operation in path.values()]
    assert len(names) == len(set(names))
    assert {"score", "score_model", "list_models", "check_ready", "infer"} <= set(names)
    assert all(name.isidentifier() and "__" not in name for name in names)


def test_models_of_similar_names_have_their_own_records(served):
    names = ["a b", "a-b", "a.b", "A_B", "é", "ü"]
    schemas = document(*(replace(served, name=name) for name in names))["components"]["schemas"]
    records = [name for name in schemas if name.startswith("Record.")]
    assert len({"".join(filter(str.isalnum, name.lower())) for name in records}) == len(names)
    assert len(schemas["ScoreRequest"]["properties"]["records"]["items"]["anyOf"]) == len(names)


OPENAPI_PYTHON_CLIENT = """
import datetime, io, sys
from client import Client
from client.api.default import check_ready, list_models, read_metrics, score_model
from client.models import ProblemDetails, RecordFraud2X, ScoreModelFilesBody, ScoreRequest
from client.types import File

client = Client(base_url=sys.argv[1], raise_on_unexpected_status=True)
seen = datetime.datetime(2026, 1, 5, 12, tzinfo=datetime.UTC)
record = RecordFraud2X(amount_in=1.5, class_="a", field_1st_seen=seen, is_new=True, self_=None)
asked = ScoreRequest(records=[record, RecordFraud2X(is_new=0, records=1)], explain=2)
answer = score_model.sync("fraud-2.x", client=client, body=asked)
assert len(answer.results[0].contributions) == 2
print(*(result.score for result in answer.results))
image = open(sys.argv[2], "rb").read()
form = ScoreModelFilesBody(files=[File(io.BytesIO(image), "a.png", "image/png")])
print(score_model.sync("scans", client=client, body=form).results[0].score)
print(score_model.sync("scans", client=client, body=File(io.BytesIO(image))).results[0].score)
problem = score_model.sync("nobody", client=client, body=asked)
assert isinstance(problem, ProblemDetails) and problem.status == 404
assert check_ready.sync(client=client).status == "ready"
assert [model.name for model in list_models.sync(client=client).models] == ["fraud-2.x", "scans"]
assert "anomaly_vae_scored_records" in read_metrics.sync(client=client)
"""
OPENAPI_GENERATOR = """
import base64, sys
from client import ApiClient, ApiException, Configuration, DefaultApi
from client import InferenceRequest, ProblemDetails, RecordFraud2X, ScoreRequest, Tensor

api = DefaultApi(ApiClient(Configuration(host=sys.argv[1])))
sent = {"amount in €": 1.5, "class": "a", "1st.seen": "2026-01-05T12:00:00Z", "is-new": True}
records = [RecordFraud2X.from_dict(sent), RecordFraud2X.from_dict({"is-new": 0, "records": 1})]
asked = ScoreRequest(records=records, explain=2)
answer = api.score_model("fraud-2.x", asked)
assert len(answer.results[0].contributions) == 2
print(*(result.score for result in answer.results))
image = base64.b64encode(open(sys.argv[2], "rb").read()).decode()
tensor = Tensor(name="image", shape=[1], datatype="BYTES", data=[image])
outputs = api.infer("scans", InferenceRequest(inputs=[tensor])).outputs
print(*(output.data[0] for output in outputs if output.name == "score"))
try:
    api.score_model("nobody", asked)
except ApiException as error:
    assert isinstance(error.data, ProblemDetails) and error.data.status == 404
else:
    sys.exit("no model 'nobody' is there")
assert api.check_ready().status == "ready"
assert [model.name for model in api.list_models().models] == ["fraud-2.x", "scans"]
assert "anomaly_vae_scored_records" in api.read_metrics()
"""
RECORDS = [
    {"amount in €": 1.5, "class": "a", "1st.seen": "2026-01-05T12:00:00+00:00", "is-new": True},
    {"is-new": 0, "records": 1},
]


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("java"), reason="needs java, which one generator is made in")
def test_generated_clients_score_records_and_images(tmp_path, odd, scan_folder, pngs):
    """Nothing is left out by either generator, and errors are typed too."""
    (tmp_path / "image.png").write_bytes(pngs[-1])
    with running(tmp_path, [str(odd), str(scan_folder)]) as service:
        with urllib.request.urlopen(f"{service.url}/openapi.json") as answer:
            (tmp_path / "openapi.json").write_bytes(answer.read())
        said = generate(tmp_path / "a", OF_PYTHON)
        assert "Unable" not in said
        assert {line for line in said.splitlines() if "nsupported" in line} <= UNSUPPORTED
        generate(tmp_path / "b", OF_JAVA)
        first = use(tmp_path / "a", OPENAPI_PYTHON_CLIENT, service.url)
        second = use(tmp_path / "b", OPENAPI_GENERATOR, service.url)
        scored = service.ask("/models/fraud-2.x/score", {"records": RECORDS})
    for score in map(str, scores(scored)):
        assert score in first
        assert score in second
    assert len(first) == 4
    assert first[2] == first[3] == second[2]


OF_PYTHON = [
    "openapi-python-client", "generate", "--meta", "none", "--path", "../openapi.json",
    "--output-path", "client",
]  # fmt: skip
OF_JAVA = [
    "openapi-generator-cli", "generate", "--generator-name", "python",
    "--input-spec", "../openapi.json", "--output", ".", "--package-name", "client",
]  # fmt: skip
UNSUPPORTED = {
    f"Unsupported content type {media}" for media in {*RAW, CSV} - {"application/octet-stream"}
}
"""Media types that openapi-python-client has no body for, beside one that it has."""


def scores(answer):
    return [result["score"] for result in json.loads(answer)["results"]]


def generate(folder, command):
    folder.mkdir()
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        [BIN / command[0], *command[1:]],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def use(folder, script, address):
    """Run a script with the client in a folder; returns the scores that it prints."""
    done = subprocess.run(
        [sys.executable, "-c", script, address, str(folder.parent / "image.png")],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.split()

"""Shadows are compared with those that answer, and nobody who asks can tell."""

import asyncio
import base64
import copy
import dataclasses
import json
import time

import numpy as np
import pytest

from anomaly_vae.artifacts.registry_names import BundleRef
from anomaly_vae.calibration.conformal import calibrate
from anomaly_vae.data.schema import TabularSchema
from anomaly_vae.errors import BundleError, ConfigError
from anomaly_vae.types import ColumnType
from serving.models.store import Store
from serving.observability.metrics import Metrics
from serving.scoring.batcher import ModelBatcher
from serving.scoring.loading import load_model
from serving.scoring.observers import Observers
from serving.scoring.row_decoder import RowDecoder
from serving.scoring.shadow import Shadows
from serving.server import serve
from serving.settings import Settings
from tests.support.image_uploads import uploads
from tests.support.mlflow_registry import metric, rival
from tests.support.service_process import running
from tests.support.shadows import client_beside, counted, wait_for

__all__ = ["client_beside", "rival"]

PAIR = {"model": "fraud", "version": "1", "shadow_version": "2"}


@pytest.fixture(scope="module")
def pair(served, rival, tmp_path_factory):
    """A model and its shadow."""
    folder = rival.save(tmp_path_factory.mktemp("shadow") / "rival")
    shadow = load_model(BundleRef(str(folder), name="fraud", version="2", alias="challenger"))
    return dataclasses.replace(served, version="1"), shadow


def test_what_both_decided_is_counted(client_beside, pair, records):
    """One by one, in the sizes that clients send, against both detectors asked directly."""
    client = client_beside(*pair)
    for start, end in ((0, 1), (1, 3), (3, 203), (203, 400)):
        answer = client.post("/score", json={"records": records[start:end]}).json()
        assert answer["model"]["version"] == "1"
    assert wait_for(client, "shadow_decisions_total", len(records)) == len(records)
    batch = pair[0].detector.scorer.schema.from_records(records)
    ours, theirs = (one.detector.detect(batch) for one in pair)
    for said in (False, True):
        for other in (False, True):
            labels = {"flagged": str(said).lower(), "shadow_flagged": str(other).lower()}
            both = (ours.is_anomaly == said) & (theirs.is_anomaly == other)
            assert counted(client, "shadow_decisions_total", **PAIR, **labels) == both.sum()
    agreement = float((ours.is_anomaly == theirs.is_anomaly).mean())
    difference = float(theirs.is_anomaly.mean() - ours.is_anomaly.mean())
    assert 0 < agreement < 1
    assert counted(client, "shadow_agreement_ratio", **PAIR) == pytest.approx(agreement)
    assert counted(client, "shadow_flag_rate_difference_ratio", **PAIR) == pytest.approx(difference)
    for bound, name, values in (
        ("0.05", "p_value", theirs.p_value - ours.p_value),
        ("3.0", "score", theirs.score - ours.score),
    ):
        expected = (values <= float(bound)).sum()
        found = counted(client, f"shadow_{name}_difference_bucket", **PAIR, le=bound)
        assert abs(found - expected) <= 1  # the last bit of a score decides
        assert counted(client, f"shadow_{name}_difference_count", **PAIR) == len(records)
    (model,) = client.get("/models").json()["models"]
    shadow = model["shadow"]
    assert (shadow["version"], shadow["alias"], shadow["records"]) == ("2", "challenger", 400)
    assert shadow["agreement"] == pytest.approx(agreement)
    assert shadow["shadow_flagged"] == pytest.approx(theirs.is_anomaly.mean())
    assert shadow["flagged"] == pytest.approx(ours.is_anomaly.mean())
    assert counted(client, "scored_records_total") == len(records), "a shadow is not counted there"


def test_answers_are_the_same_to_the_byte(client_of, client_beside, pair, records):
    alone, beside = client_of(pair[0]), client_beside(*pair)
    for body in (
        {"records": records[:40], "explain": 2},
        {"records": [{}]},
        {"records": [{"a": 1}]},
        {"records": [*records[:3], {"a": 1}, *records[3:9]], "errors": "per_record"},
    ):
        assert alone.post("/score", json=body).content == beside.post("/score", json=body).content


def tensors(rows):
    columns = [("FP64", "TX_AMOUNT"), ("BYTES", "TX_CHANNEL")]
    shape = [len(rows)]
    return [
        {"name": name, "shape": shape, "datatype": kind, "data": [row[name] for row in rows]}
        for kind, name in columns
    ]


def csv_of(rows):
    return "TX_AMOUNT,TX_CHANNEL\n" + "".join(
        f"{'' if row['TX_AMOUNT'] is None else row['TX_AMOUNT']},{row['TX_CHANNEL'] or ''}\n"
        for row in rows
    )


SMALL = [{"TX_AMOUNT": 10.0 * i, "TX_CHANNEL": "chip" if i % 3 else None} for i in range(1, 40)]
WAYS = {
    "alone": ("/score", {"json": {"records": SMALL[:1]}}, 1),
    "unknown keys": ("/score", {"json": {"records": [{**SMALL[0], "hat": 1}]}}, 1),
    "explained": ("/score", {"json": {"records": SMALL[:3], "explain": 2}}, 3),
    "large": ("/score", {"json": {"records": SMALL * 100}}, 3900),
    "large, unknown keys": (
        "/score", {"json": {"records": [*SMALL, {**SMALL[0], "hat": 1}] * 100}}, 4000
    ),
    "errors by record": (
        "/score",
        {"json": {"records": [*SMALL, {"TX_AMOUNT": "x"}, {}, *SMALL], "errors": "per_record"}},
        78,
    ),
    "tensors": ("/v2/models/fraud/infer", {"json": {"inputs": tensors(SMALL)}}, 39),
    "records": ("/invocations", {"json": {"dataframe_records": SMALL}}, 39),
    "split": (
        "/invocations",
        {"json": {"dataframe_split": {
            "columns": list(SMALL[0]), "data": [list(row.values()) for row in SMALL]
        }}},
        39,
    ),
    "csv": (
        "/invocations", {"content": csv_of(SMALL), "headers": {"Content-Type": "text/csv"}}, 39
    ),
}  # fmt: skip


def apart(metrics, *pair):
    """The p-values of the shadow less those of the model, summed, which Prometheus is not told."""
    return metrics.p_differences.labels(*(pair or PAIR.values()))._sum._value.get()


@pytest.mark.parametrize("way", WAYS)
def test_whatever_way_it_comes_it_is_compared(client_beside, pair, way):
    path, sent, count = WAYS[way]
    records = sent["json"]["records"] if "records" in sent.get("json", {}) else SMALL
    client = client_beside(*pair)
    assert client.post(path, **sent).status_code == 200
    assert wait_for(client, "shadow_decisions_total", count) == count
    until_empty(client)
    batch = pair[0].detector.scorer.schema.from_records(records)
    batch = batch.take(batch.usable)
    ours, theirs = (one.detector.detect(batch) for one in pair)
    assert counted(client, "shadow_decisions_total", flagged="true") == ours.is_anomaly.sum()
    found = counted(client, "shadow_decisions_total", shadow_flagged="true")
    assert found == theirs.is_anomaly.sum()
    assert apart(client.app.state.metrics) == pytest.approx(
        (theirs.p_value - ours.p_value).sum(), abs=1e-3
    )
    assert counted(client, "shadow_failures_total") == 0


def test_what_arrives_together_is_compared_one_by_one(pair, records):
    """Each request is paired with what was found for it, not with what its neighbours got."""
    store = Store([pair[0]], [pair[0]])
    twin = dataclasses.replace(pair[0], digest="another", version="2")
    store.put(twin, shadow=True)
    metrics = Metrics(store)
    shadows = Shadows(store, Settings(), metrics)
    decoder = RowDecoder(pair[0].schema)
    batcher = ModelBatcher(pair[0], decoder, metrics.for_model(pair[0]), Observers(shadows))
    bodies = [json.dumps({"records": records[i : i + 3]}).encode() for i in range(0, 90, 3)]

    async def together():
        await asyncio.gather(*(batcher.submit(decoder.decode(body), body) for body in bodies))
        await asyncio.sleep(0)

    asyncio.run(together())
    deadline = time.monotonic() + 20
    while shadows._queued_bytes:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    shadows.close()
    tally = metrics.tallies()["fraud", "1", "2"]
    assert (tally.records, tally.agreed) == (90, 90)
    assert apart(metrics) == pytest.approx(0, abs=1e-6)


def test_rows_without_names_mean_the_columns_of_the_model(client_beside, plain):
    """The shadow has the same columns in another order."""
    scorer = copy.copy(plain.detector.scorer)
    scorer.schema = TabularSchema(scorer.schema.columns[::-1], scorer.schema.known)
    detector = dataclasses.replace(plain.detector, scorer=scorer)
    shadow = dataclasses.replace(plain, detector=detector, digest="another")
    client = client_beside(plain, shadow)
    rows = [[float(amount), amount % 2] for amount in range(1, 400, 9)]
    matrix = {"name": "all", "shape": [len(rows), 2], "datatype": "FP64", "data": rows}
    for path, body in (
        ("/invocations", {"instances": rows}),
        ("/v2/models/plain/infer", {"inputs": [matrix]}),
    ):
        assert client.post(path, json=body).status_code == 200
    assert wait_for(client, "shadow_decisions_total", 2 * len(rows)) == 2 * len(rows)
    until_empty(client)
    assert apart(client.app.state.metrics, "plain", "", "") == pytest.approx(0, abs=1e-6)
    assert counted(client, "shadow_failures_total") == 0


def test_what_is_refused_is_not_compared(client_beside, pair, records):
    client = client_beside(*pair)
    assert client.post("/score", json={"records": [{"TX_AMOUNT": "x"}]}).status_code == 422
    client.post("/score", json={"records": records[:1]})
    wait_for(client, "shadow_decisions_total", 1)
    assert counted(client, "shadow_decisions_total") == 1
    assert counted(client, "shadow_failures_total") == 0


def test_what_finds_no_room_is_dropped_and_counted(client_beside, pair, records):
    client = client_beside(*pair, shadow_bytes=5_000)
    many, one = {"records": records[:50]}, {"records": records[:1]}
    assert client.post("/score", json=many).status_code == 200
    assert client.post("/score", json=one).status_code == 200
    assert wait_for(client, "shadow_decisions_total", 1) == 1
    assert counted(client, "shadow_dropped_requests_total", model="fraud") == 1


def test_room_is_given_back(client_beside, pair, records):
    """Whether scoring went well or not."""
    client = client_beside(*pair, shadow_bytes=6_000)
    for number in range(1, 6):
        client.post("/score", json={"records": records[:1]})
        wait_for(client, "shadow_decisions_total", number)
        until_empty(client)
    assert counted(client, "shadow_dropped_requests_total") == 0


def until_empty(client):
    deadline = time.monotonic() + 10
    while client.app.state.shadows._queued_bytes:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_shadow_that_fails_fails_alone(client_beside, pair, records, caplog):
    """It is said once, without a word of a record."""
    broken = dataclasses.replace(pair[1], detector=None)
    client = client_beside(pair[0], broken, shadow_bytes=6_000)
    for number in range(1, 4):
        body = {"records": [{**records[0], "TX_CHANNEL": "mallory"}]}
        assert client.post("/score", json=body).status_code == 200
        wait_for(client, "shadow_failures_total", number)
        until_empty(client)
    lines = [record for record in caplog.records if record.name == "serving.scoring.shadow"]
    assert [line.getMessage() for line in lines] == ["shadow failed"]
    assert "mallory" not in json.dumps([line.facts for line in lines])


def test_records_that_a_shadow_cannot_read_are_counted(client_beside, pair, records):
    """Its schema may differ: the others of the same request are compared."""
    served, shadow = pair
    scorer = shadow.detector.scorer
    columns = tuple(
        dataclasses.replace(column, type=ColumnType.BINARY)
        if column.name == "TX_AMOUNT"
        else column
        for column in scorer.schema.columns
    )
    reader = copy.copy(scorer)
    reader.schema = TabularSchema(columns, scorer.schema.known)
    detector = dataclasses.replace(shadow.detector, scorer=reader)
    client = client_beside(served, dataclasses.replace(shadow, detector=detector))
    body = {"records": [records[0], {**records[1], "TX_AMOUNT": None}]}
    assert client.post("/score", json=body).status_code == 200
    wait_for(client, "shadow_failures_total", 1)
    assert wait_for(client, "shadow_decisions_total", 1) == 1


def test_the_same_bundle_is_no_shadow(client_beside, pair, records):
    """After a promotion the challenger is the champion: there is nothing to compare."""
    client = client_beside(pair[0], dataclasses.replace(pair[0], version="7"))
    client.post("/score", json={"records": records[:5]})
    time.sleep(0.1)
    assert counted(client, "shadow_decisions_total") == 0


def test_images_are_compared_too(client_beside, scanner, scan_bundle, pngs, tmp_path):
    batch = scan_bundle.scorer.schema.from_records([{"image": content} for content in pngs])
    scores = scan_bundle.scorer.score(batch)
    shy = scan_bundle.calibrated(calibrate(np.sort(scores), alpha=0.2), None)
    shadow = load_model(BundleRef(str(shy.save(tmp_path / "shy"))))
    client = client_beside(scanner, shadow)
    client.post("/score", files=uploads(pngs[:30]))
    client.post("/score", content=pngs[30], headers={"Content-Type": "image/png"})
    scan = base64.b64encode(pngs[31]).decode()
    assert client.post("/invocations", json={"instances": [{"image": scan}]}).status_code == 200
    assert wait_for(client, "shadow_decisions_total", 32, model="scans") == 32
    client.post("/score", files=uploads([pngs[30], b"x", pngs[31]]))
    assert wait_for(client, "shadow_decisions_total", 34, model="scans") == 34
    assert counted(client, "shadow_failures_total") == 0
    until_empty(client)
    assert counted(client, "shadow_score_difference_bucket", le="0.0") >= 31


def test_many_threads_may_offer(pair, records):
    """Held bytes add up to nothing in the end."""
    from concurrent.futures import ThreadPoolExecutor

    store = Store([pair[0]], [pair[1]])
    metrics = Metrics(store)
    shadows = Shadows(store, Settings(), metrics)
    found = pair[0].detector.detect(pair[0].detector.scorer.schema.from_records(records[:1]))
    body = json.dumps({"records": records[:1]}).encode()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: shadows.offer(pair[0], found, body), range(800)))
    deadline = time.monotonic() + 20
    while shadows._queued_bytes:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert metrics.tallies()["fraud", "1", "2"].records == 800
    shadows.close()


@pytest.mark.parametrize("shadow", ["scan=models:/x@y", "models:/other@challenger", "elsewhere"])
def test_a_shadow_of_nothing_is_refused(folder, scan_folder, shadow):
    with pytest.raises(
        ConfigError, match=r"which model is it for\? give NAME=URI, of fraud, scans"
    ):
        serve([str(folder), str(scan_folder)], port=0, shadows=[shadow])


def test_a_shadow_folder_that_is_not_there_is_refused(folder):
    with pytest.raises(BundleError, match="not a bundle"):
        serve([str(folder)], port=0, shadows=["nowhere"])


@pytest.mark.e2e
def test_a_shadow_of_all_workers(tmp_path, folder, rival, records):
    """They count together, and the log knows nothing of records."""
    shadow = rival.save(tmp_path / "rival")
    with running(tmp_path, [str(folder)], workers=2, shadows=[f"fraud={shadow}"]) as service:
        for record in records[:30]:
            service.ask("/score", {"records": [record]})
        deadline = time.monotonic() + 20
        while True:
            (model,) = json.loads(service.ask("/models"))["models"]
            if model["shadow"]["records"] == 30:
                break
            assert time.monotonic() < deadline
            time.sleep(0.05)
        text = service.ask("/metrics").decode()
        assert metric(text, "shadow_decisions_total", model="fraud") == 30
        assert service.stop() == 0

"""The service follows the registry, with real processes and MLflow on SQLite."""

import json
import os
import resource
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from anomaly_vae.artifacts.bundle import GRAPH, WEIGHTS
from benchmarks.reload import Workload, measure
from serving.registry.cache import MIN_PRUNE_AGE_SECONDS
from tests.support.mlflow_registry import (
    SHADOW,
    URI,
    artifact,
    logged,
    metric,
    mlflow_server,
    move,
    registered,
    rival,
    versions,
    world,
)
from tests.support.registries import DATABASE, migrated
from tests.support.service_process import HEAVY, running

__all__ = ["migrated", "registered", "rival", "versions", "world"]

pytestmark = pytest.mark.e2e
QUIET = {"ANOMALY_VAE_RELOAD_SECONDS": "0"}


def served_version(service):
    return json.loads(service.ask("/models"))["models"][0]["version"]


def reload(service):
    """Return the response of `POST /-/reload`: the outcome for the model, or the problem."""
    response = httpx2.post(f"{service.url}/-/reload", timeout=60)
    if response.status_code == 200:
        return response.json()["models"]
    assert response.headers["content-type"] == "application/problem+json"
    return response.json()


def until(what, seconds=30):
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def fails(service, reason):
    text = service.ask("/metrics").decode()
    return metric(text, "reload_failures_total", model="fraud", role="champion", reason=reason)


def agrees(answer, records, versions):
    """Return whether a response holds the scores of the version it names."""
    detector = versions[answer["model"]["version"]].detector
    found = detector.detect(detector.scorer.schema.from_records(records))
    results = answer["results"]
    assert [r["score"] for r in results] == pytest.approx(found.score.tolist(), rel=1e-6)
    assert [r["p_value"] for r in results] == found.p_value.tolist()
    assert answer["threshold"] == detector.calibration.threshold


def test_it_follows_an_alias(world, records, versions):
    """Each response holds the scores of the version it names; no heavy package is loaded."""
    environment = {"ANOMALY_VAE_RELOAD_SECONDS": "0.5"}
    with running(world, [URI], environment=environment) as service:
        for version in ("1", "2"):
            if version != served_version(service):
                move(version)
            until(lambda v=version: served_version(service) == v)
            answer = json.loads(service.ask("/score", {"records": records[:9]}))
            assert answer["model"] == {"name": "fraud", "version": version, "alias": "champion"}
            agrees(answer, records[:9], versions)
        text = service.ask("/metrics").decode()
        assert service.stop() == 0
    assert metric(text, "reloads_total", model="fraud", role="champion") == 1
    assert metric(text, "reload_failures_total") == 0
    assert time.time() - 60 < metric(text, "reload_last_success_timestamp_seconds") < time.time()
    assert metric(text, "model_info", version="2", alias="champion") == 1
    assert [line["previous"] for line in logged(service.lines, "swapped")] == ["1"]
    assert not HEAVY & set(service.lines[-1].split())


def test_a_folder_is_not_followed(tmp_path, folder):
    with running(tmp_path, [str(folder)]) as service:
        assert [one["outcome"] for one in reload(service)] == ["fixed"]
        assert json.loads(service.ask("/models"))["models"][0]["following"] is None


@pytest.mark.slow
def test_a_registry_that_is_gone(world, records):
    """A failure is logged once, counted each time, and cleared when the registry is back."""
    with running(world, [URI], environment=QUIET) as service:
        (world / DATABASE).rename(world / "away.db")
        for attempt in (1, 2):
            problem = reload(service)
            assert (problem["status"], problem["type"]) == (503, "urn:anomaly-vae:reload-failed")
            assert "there is no database" in problem["detail"]
            assert "version 1 keeps serving" in problem["detail"]
            assert fails(service, "registry") == attempt
        assert not (world / DATABASE).exists(), "nobody makes an empty one"
        (model,) = json.loads(service.ask("/models"))["models"]
        assert model["following"]["failing"] == "registry"
        assert service.status("/health/ready") == 200
        assert (
            json.loads(service.ask("/score", {"records": records[:1]}))["model"]["version"] == "1"
        )
        (world / "away.db").rename(world / DATABASE)
        move("2")
        assert [one["outcome"] for one in reload(service)] == ["swapped"]
        (model,) = json.loads(service.ask("/models"))["models"]
        assert (model["version"], model["following"]["failing"]) == ("2", None)
        assert service.stop() == 0
    assert len(logged(service.lines, "reload failed")) == 1


def altered(place):
    content = (place / WEIGHTS).read_bytes()
    (place / WEIGHTS).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def shortened(place):
    (place / GRAPH).unlink()


def emptied(place):
    shutil.rmtree(place)


@pytest.mark.parametrize(
    "damage",
    [altered, *(pytest.param(one, marks=pytest.mark.slow) for one in (shortened, emptied))],
)
def test_a_damaged_bundle_never_serves(world, versions, damage):
    """It looks when it is asked to; the old version serves until the registry is repaired."""
    place = artifact(world, versions["2"].digest)
    shutil.copytree(place, world / "sound")
    same = {"name": "fraud", "shadow": False, "detail": None}
    with running(world, [URI], environment=QUIET) as service:
        assert reload(service) == [
            {**same, "outcome": "unchanged", "version": "1", "previous": "1"}
        ]
        damage(place)
        move("2")
        assert served_version(service) == "1"
        problem = reload(service)
        assert problem["status"] == 503
        assert "fetch the bundle again" in problem["detail"] or "not a bundle" in problem["detail"]
        assert fails(service, "bundle") == 1
        assert served_version(service) == "1"
        shutil.copytree(world / "sound", place, dirs_exist_ok=True)
        assert reload(service) == [{**same, "outcome": "swapped", "version": "2", "previous": "1"}]
        assert served_version(service) == "2"
        (model,) = json.loads(service.ask("/models"))["models"]
        assert model["following"]["uri"] == URI
        assert model["following"]["failing"] is None


@pytest.mark.slow
def test_a_bundle_that_cannot_score_never_serves(world, calibrated):
    """Its digests are valid and MLflow accepted it; it is tested before it serves."""
    from dataclasses import replace

    from anomaly_vae.lifecycle.registry import Registry

    registry = Registry()
    broken = replace(calibrated, graph=b"\x00" * 64)
    broken.__dict__["scorer"] = calibrated.scorer  # for the signature, when it is registered
    with registry.run("fraud", "calibrate", {}) as run:
        registry.register(run, broken, "fraud", {})
    with running(world, [URI], environment=QUIET) as service:
        move("3")
        for attempt in (1, 2):
            assert "cannot be scored with" in reload(service)["detail"]
            assert fails(service, "bundle") == attempt
            assert served_version(service) == "1"
        move("2")
        assert [one["outcome"] for one in reload(service)] == ["swapped"]


@pytest.mark.slow
def test_no_room_for_a_bundle(world):
    """The old version keeps serving; the new one serves once there is space again."""
    with running(world, [URI], environment=QUIET) as service:
        move("2")
        unlimited = resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE, (4096, -1))
        assert reload(service)["status"] == 503
        assert fails(service, "disk") == 1
        assert served_version(service) == "1"
        assert len(list((world / "cache").glob("[!l]*"))) == 1, "nothing half-made stays"
        resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE, unlimited)
        assert [one["outcome"] for one in reload(service)] == ["swapped"]


def test_it_starts_from_the_cache_when_the_registry_is_gone(world, records, versions):
    move("2")
    with running(world, [URI], environment=QUIET):
        pass
    (world / DATABASE).rename(world / "away.db")
    with running(world, [f"cards={URI}"], environment=QUIET) as service:
        answer = json.loads(service.ask("/score", {"records": records[:3]}))
        assert answer["model"] == {"name": "cards", "version": "2", "alias": "champion"}
        agrees(answer, records[:3], versions)

        def following():
            (model,) = json.loads(service.ask("/models"))["models"]
            return model["following"]

        until(lambda: following() == {"uri": URI, "checked_at": None, "failing": "registry"})
        text = service.ask("/metrics").decode()
        assert metric(text, "reload_last_success_timestamp_seconds") == 0
        assert service.stop() == 0
    (line,) = logged(service.lines, "served from the cache until the registry answers")
    assert (line["level"], line["version"]) == ("info", "2")
    (line,) = logged(service.lines, "reload failed")
    assert (line["level"], line["reason"], line["version"]) == ("warning", "registry", "2")


@pytest.mark.slow
def test_it_leaves_the_cache_when_the_registry_is_back(world):
    with running(world, [URI], environment=QUIET) as service:
        move("2")
        reload(service)
    move("1")
    with running(world, [URI], environment=QUIET) as service:
        until(lambda: served_version(service) == "1")
    shutil.rmtree(world / "cache")
    (world / DATABASE).rename(world / "away.db")
    with pytest.raises(AssertionError, match="there is no database"), running(world, [URI]):
        pass


@pytest.mark.slow
def test_a_damaged_cache_is_mended(world, versions):
    """The damage is found by the next check, before the bundle is served."""
    with running(world, [URI], environment=QUIET):
        pass
    altered(world / "cache" / versions["1"].digest)
    with running(world, [URI], environment=QUIET) as service:
        assert served_version(service) == "1"


@pytest.mark.slow
def test_the_cache_keeps_what_serves_and_what_served_before(world, versions):
    cache = world / "cache"
    old = cache / ("0" * 64)
    with running(world, [URI], environment=QUIET) as service:
        for name in ("0" * 64, "1" * 64, f".{'2' * 64}.half", "somebody-else's"):
            (cache / name).mkdir()
        for name in ("0" * 64, f".{'2' * 64}.half", "somebody-else's", versions["1"].digest):
            long_ago = time.time() - 2 * MIN_PRUNE_AGE_SECONDS
            os.utime(cache / name, (long_ago, long_ago))
        move("2")
        reload(service)
    assert not old.exists()
    digests = {one.digest for one in versions.values()}
    found = {path.name for path in cache.iterdir()}
    assert found == {*digests, "1" * 64, "somebody-else's", "last"}


@pytest.mark.slow
def test_a_storm_of_reloads(world, records, versions):
    """All are answered after a few checks, while scoring requests are answered too."""
    with running(world, [URI], environment=QUIET) as service:
        with ThreadPoolExecutor(24) as pool:
            for version in ("2", "1"):
                move(version)
                storm = [pool.submit(reload, service) for _ in range(40)]
                answers = [
                    json.loads(service.ask("/score", {"records": records[:1]})) for _ in range(20)
                ]
                found = [one.result()[0] for one in storm]
                assert {one["version"] for one in found} == {version}
                assert served_version(service) == version
                for answer in answers:
                    agrees(answer, records[:1], versions)
        text = service.ask("/metrics").decode()
        assert metric(text, "reloads_total") == 2
        assert service.stop() == 0


@pytest.mark.slow
def test_all_workers_follow(world, records, versions):
    """One worker checks; the others, and a new one, load what it found."""
    with running(world, [URI], environment=QUIET, workers=2) as service:

        def serving():
            asked = (service.ask("/score", {"records": records[:1]}) for _ in range(30))
            answers = [json.loads(answer) for answer in asked]
            for answer in answers:
                agrees(answer, records[:1], versions)
            return {answer["model"]["version"] for answer in answers}

        assert serving() == {"1"}
        move("2")
        assert [one["outcome"] for one in reload(service)] == ["swapped"]
        until(lambda: serving() == {"2"})
        one, other = children(service.process.pid, "spawn_main")
        os.kill(one, signal.SIGKILL)
        until(lambda: set(children(service.process.pid, "spawn_main")) - {one, other})
        service.wait_for("/health/ready", 200)
        for _ in range(3):
            assert serving() == {"2"}
        assert service.stop() == 0


def children(pid, part):
    """Return the child processes with this in their command line."""
    text = "".join(p.read_text() for p in Path(f"/proc/{pid}/task").glob("*/children"))
    lines = {child: Path(f"/proc/{child}/cmdline") for child in map(int, text.split())}
    return [child for child, line in lines.items() if line.exists() and part in line.read_text()]


@pytest.mark.slow
def test_it_ends_while_it_looks(world):
    """A check in progress ends with the service, and so does its child process."""
    environment = {**QUIET, "ANOMALY_VAE_DRAIN_SECONDS": "0", "ANOMALY_VAE_GRACE_SECONDS": "1"}
    with running(world, [URI], environment=environment) as service, ThreadPoolExecutor(1) as pool:
        move("2")
        pool.submit(reload, service)
        until(lambda: children(service.process.pid, "anomaly_vae.lifecycle.registry"))
        (child,) = children(service.process.pid, "anomaly_vae.lifecycle.registry")
        assert service.stop() == 0
        assert not Path(f"/proc/{child}").exists()


@pytest.mark.slow
def test_mlflow_calls_when_an_alias_moves(world, records, versions, monkeypatch):
    """MLflow's server signs the webhook, and a child process fetches through that server."""
    from cryptography.fernet import Fernet
    from mlflow import MlflowClient

    allowed = {
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": Fernet.generate_key().decode(),
    }
    secret = "only the two of us know it"
    with mlflow_server(world, **allowed) as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        environment = {**QUIET, "ANOMALY_VAE_WEBHOOK_SECRET": secret}
        with running(world, [URI], environment=environment) as service:
            client = MlflowClient(uri, uri)
            hook, moved = f"{service.url}/-/webhook", ["model_version_alias.created"]
            client.create_webhook("follow", hook, moved, secret=secret)
            assert served_version(service) == "1"
            client.set_registered_model_alias("fraud", "champion", "2")
            until(lambda: served_version(service) == "2")
            answer = json.loads(service.ask("/score", {"records": records[:9]}))
            agrees(answer, records[:9], versions)
            assert service.stop() == 0


@pytest.mark.slow
def test_a_challenger_that_is_not_there_is_no_failure(world):
    from anomaly_vae.lifecycle.registry import Registry

    Registry()._client.delete_registered_model_alias("fraud", "challenger")
    with running(world, [URI], environment=QUIET, shadows=[SHADOW]) as service:
        for _ in range(2):
            outcomes = {one["shadow"]: one["outcome"] for one in reload(service)}
            assert outcomes == {False: "unchanged", True: "missing"}
        move("2", "challenger")
        assert {one["outcome"] for one in reload(service)} == {"unchanged", "swapped"}
        assert service.stop() == 0
    (line,) = logged(service.lines, "not loaded")
    assert line["reason"] == "missing"
    assert not logged(service.lines, "reload failed")


@pytest.mark.slow
@pytest.mark.parametrize("server", [False, True], ids=["sqlite", "server"])
def test_no_request_fails_while_versions_change(server):
    """A small form of `python -m benchmarks reload`."""
    tally = measure(Workload(requests=4_000, reloads=3), server)
    assert not tally.failed
    assert not tally.mismatched
    assert tally.versions.total() >= 4_000
    assert set(tally.versions) == {"1", "2"}
    assert tally.reloads == 3

"""The manifests for Kubernetes: valid there, and nothing in them that the product does not know."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import urlsplit

import click
import httpx2
import kubernetes_validate
import mlflow.environment_variables
import pytest
import typer
import yaml

from anomaly_vae import __version__
from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.client import Client
from anomaly_vae.config import load_config
from pipelines.cli import REFUSED, USAGE, app
from serving.models.store import Store
from serving.observability.metrics import Metrics
from serving.settings import PREFIX, ApiKey, Settings, describe_settings, find_key, read_settings
from tests.support.kustomize import Manifest, pods, render
from tests.support.paths import ROOT
from tests.support.ports import free_ports

DEPLOY = ROOT / "deploy"
README = (DEPLOY / "README.md").read_text(encoding="utf-8")
OVERLAYS = ("small", "production")
OLDEST, NEWEST = "1.31", "1.37"
OPERATOR = {"ServiceMonitor"}  # its schema comes with Prometheus Operator
COMMANDS: click.Group = typer.main.get_command(app)  # type: ignore[assignment]
HASH = re.compile(r"-[0-9a-z]{10}$")

RENDERED = {name: render(DEPLOY / "overlays" / name) for name in OVERLAYS}
OF_KUBERNETES = [
    pytest.param(one, id=f"{overlay} {one['kind']} {one['metadata']['name']}")
    for overlay, manifests in RENDERED.items()
    for one in manifests
    if one["kind"] not in OPERATOR
]
PODS = [
    pytest.param(pod, id=f"{overlay} {one['kind']}")
    for overlay, manifests in RENDERED.items()
    for one in manifests
    for pod in pods(one)
]


def the(kind: str, overlay: str, name: str = "anomaly-vae") -> Manifest:
    """The manifest of this kind and name."""
    (found,) = [
        one for one in RENDERED[overlay] if (one["kind"], one["metadata"]["name"]) == (kind, name)
    ]
    return found


def service(overlay: str) -> Manifest:
    """The container that serves."""
    return pods(the("Deployment", overlay))[0]["containers"][0]  # type: ignore[no-any-return]


def settings_of(overlay: str) -> dict[str, str]:
    """The environment that its ConfigMap gives it."""
    return dict(the("ConfigMap", overlay, "anomaly-vae-settings")["data"])


def option(container: Manifest, name: str) -> str:
    """The value of an option in its arguments."""
    arguments = container["args"]
    return str(arguments[arguments.index(name) + 1])


def selects(labels: dict[str, str], manifest: Manifest) -> bool:
    """Whether a selector picks the pods of a manifest."""
    job = manifest["spec"].get("jobTemplate", manifest)
    return labels.items() <= job["spec"]["template"]["metadata"]["labels"].items()


# ---------------------------------------------------------------- what Kubernetes says


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("manifest", OF_KUBERNETES)
def test_they_fit_the_schemas_of_kubernetes(manifest: Manifest, version: str) -> None:
    assert kubernetes_validate.validate(manifest, version, strict=True) == version


def test_the_schemas_would_find_a_slip() -> None:
    slipped = json.loads(json.dumps(the("Deployment", "small")))
    slipped["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="readynessProbe"):
        kubernetes_validate.validate(slipped, NEWEST, strict=True)


@pytest.mark.skipif(not shutil.which("kubectl"), reason="there is no kubectl to compare with")
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kubectl_renders_the_same(overlay: str) -> None:
    command = ["kubectl", "kustomize", str(DEPLOY / "overlays" / overlay)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    hashed = {
        one["metadata"]["name"] for one in yaml.safe_load_all(text) if one["kind"] == "ConfigMap"
    }
    for name in hashed:
        text = text.replace(name, HASH.sub("", name))
    assert sorted(yaml.safe_load_all(text), key=str_of) == sorted(RENDERED[overlay], key=str_of)


def str_of(manifest: Manifest) -> str:
    return f"{manifest['kind']} {manifest['metadata']['name']}"


def test_what_the_reader_does_not_understand_it_refuses(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text("{resources: [], namePrefix: x-}")
    with pytest.raises(ValueError, match="namePrefix is not understood"):
        render(tmp_path)


# ---------------------------------------------------------------- least privilege


@pytest.mark.parametrize("pod", PODS)
def test_pods_may_do_nothing_they_need_not(pod: Manifest) -> None:
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 10001
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    assert not [volume for volume in pod["volumes"] if "hostPath" in volume]
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "memory" in container["resources"]["limits"]


@pytest.mark.parametrize("pod", PODS)
def test_no_variable_of_a_service_link_becomes_a_setting(pod: Manifest) -> None:
    """The Service anomaly-vae-admin would be announced as ANOMALY_VAE_ADMIN_PORT=tcp://…."""
    assert pod["enableServiceLinks"] is False


def test_there_is_no_secret_among_them() -> None:
    texts = [path.read_text(encoding="utf-8") for path in DEPLOY.rglob("*.yaml")]
    assert len(texts) > 10
    assert not [text for text in texts if re.search(r"^ *kind: Secret$", text, re.MULTILINE)]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_whatever_is_referred_to_is_there_or_explained(overlay: str) -> None:
    made = {one["metadata"]["name"] for one in RENDERED[overlay]}
    text = json.dumps(RENDERED[overlay])
    claims = set(re.findall(r'"claimName": "([^"]+)"', text))
    kinds = "secretKeyRef|configMapKeyRef|configMapRef|configMap|credentials"
    named = claims | set(re.findall(rf'"(?:{kinds})": {{"name": "([^"]+)"', text))
    assert {"anomaly-vae-settings", "anomaly-vae-keys", "anomaly-vae-data"} <= named
    assert not [name for name in named - made if f"`{name}`" not in README]


def test_the_keys_made_as_the_readme_says_open_the_service() -> None:
    (script,) = re.findall(r"^```\n(key\(\).*?)^```", README, re.DOTALL | re.MULTILINE)
    shown = 'kubectl() { printf "%s\\n" "$@"; }\n' + script
    out = subprocess.run(["bash", "-euc", shown], check=True, capture_output=True, text=True).stdout
    made = dict(re.findall(r"^--from-literal=(\w+)=(.+)$", out, re.MULTILINE))
    keys = [ApiKey.parse(text) for text in made["ANOMALY_VAE_API_KEYS"].split(",")]
    assert [(key.name, *key.scopes) for key in keys] == [
        ("shop", "score"),
        ("prometheus", "metrics"),
    ]
    assert find_key(keys, made["token"].encode()) == keys[1]


# ---------------------------------------------------------------- what the product knows


@pytest.mark.parametrize("pod", PODS)
def test_images_are_of_this_version(pod: Manifest) -> None:
    images = {f"anomaly-vae/{target}:{__version__}" for target in ("serve", "train")}
    assert {container["image"] for container in pod["containers"]} <= images


@pytest.mark.parametrize("pod", PODS)
def test_arguments_are_a_command_that_parses(pod: Manifest) -> None:
    name, *arguments = pod["containers"][0]["args"]
    COMMANDS.commands[name].make_context(name, arguments)


def variables(overlay: str) -> Iterator[str]:
    yield from settings_of(overlay)
    for one in RENDERED[overlay]:
        for pod in pods(one):
            yield from (entry["name"] for entry in pod["containers"][0].get("env", ()))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_variable_is_one_that_is_read(overlay: str) -> None:
    ours = {setting.name for setting in describe_settings()}
    unknown = set(variables(overlay)) - ours - {"OMP_NUM_THREADS"}  # torch's
    assert not [name for name in unknown if not hasattr(mlflow.environment_variables, name)]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_settings_are_valid(overlay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)
    for name, value in settings_of(overlay).items():
        monkeypatch.setenv(name, value)
    settings = read_settings()
    container = service(overlay)
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": int(option(container, "--port")), "admin": settings.admin_port}
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert {str(settings.cache_dir), "/tmp"} <= mounts


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_times_fit_each_other(overlay: str) -> None:
    """It drains longer than a probe takes to notice, ends before it is killed, and is given the
    time that fetching a model may take."""
    given = settings_of(overlay).items()
    settings = Settings(**{name.removeprefix(PREFIX).lower(): text for name, text in given})
    container, pod = service(overlay), pods(the("Deployment", overlay))[0]
    ready, start = container["readinessProbe"], container["startupProbe"]
    assert settings.drain_seconds >= ready["periodSeconds"] + ready["timeoutSeconds"]
    assert pod["terminationGracePeriodSeconds"] > settings.drain_seconds + settings.grace_seconds
    startup = start["periodSeconds"] * start["failureThreshold"]
    assert startup > settings.fetch_seconds
    assert the("Deployment", overlay)["spec"]["progressDeadlineSeconds"] > startup


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_rollout_takes_no_pod_away_before_the_next_is_ready(overlay: str) -> None:
    spec = the("Deployment", overlay)["spec"]
    assert spec["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}


# ---------------------------------------------------------------- who reaches what


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize(
    ("name", "port"), [("anomaly-vae", "http"), ("anomaly-vae-admin", "admin")]
)
def test_a_service_leads_to_one_port_of_the_service_alone(
    overlay: str, name: str, port: str
) -> None:
    spec = the("Service", overlay, name)["spec"]
    assert [one["targetPort"] for one in spec["ports"]] == [port]
    assert spec.get("type", "ClusterIP") == "ClusterIP"
    assert selects(spec["selector"], the("Deployment", overlay))
    assert not selects(spec["selector"], the("CronJob", overlay, "anomaly-vae-training"))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_network_policy_is_for_both_and_lets_out_to_names_and_the_registry_only(
    overlay: str,
) -> None:
    spec = the("NetworkPolicy", overlay)["spec"]
    for one in (the("Deployment", overlay), the("CronJob", overlay, "anomaly-vae-training")):
        assert selects(spec["podSelector"]["matchLabels"], one)
    assert set(spec["policyTypes"]) == {"Ingress", "Egress"}
    assert [[port["port"] for port in rule["ports"]] for rule in spec["ingress"]] == [
        ["http"], ["admin"],
    ]  # fmt: skip
    names, registry, windows = spec["egress"]
    assert [port["port"] for port in windows["ports"]] == [6379]
    assert {port["port"] for port in names["ports"]} == {53}
    place = urlsplit(settings_of(overlay)["MLFLOW_TRACKING_URI"])
    assert [port["port"] for port in registry["ports"]] == [place.port]
    (peer,) = registry["to"]
    assert peer == {"podSelector": {"matchLabels": {"app.kubernetes.io/name": place.hostname}}}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_budget_lets_one_pod_go_at_a_time(overlay: str) -> None:
    spec = the("PodDisruptionBudget", overlay)["spec"]
    assert spec["maxUnavailable"] == 1
    assert selects(spec["selector"]["matchLabels"], the("Deployment", overlay))


# ---------------------------------------------------------------- growing and watching


def test_the_autoscaler_asks_for_a_gauge_of_ours_that_the_adapter_gives_it() -> None:
    scaler = the("HorizontalPodAutoscaler", "production")["spec"]
    (asked,) = (metric["pods"] for metric in scaler["metrics"])
    name, target = asked["metric"]["name"], int(asked["target"]["averageValue"])
    kinds = {family.name: family.type for family in Metrics(Store([])).registry.collect()}
    assert kinds[name] == "gauge"
    (rule,) = yaml.safe_load((DEPLOY / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
    assert rule["seriesQuery"].startswith(f"{name}{{")
    assert 8 * target == Settings().max_concurrency  # it grows before it refuses
    assert scaler["scaleTargetRef"]["name"] == the("Deployment", "production")["metadata"]["name"]
    assert "replicas" not in the("Deployment", "production")["spec"]
    assert the("Deployment", "small")["spec"]["replicas"] == 1


def test_prometheus_is_led_to_the_port_of_administration() -> None:
    spec = the("ServiceMonitor", "production")["spec"]
    labels = spec["selector"]["matchLabels"]
    chosen = [
        one for one in RENDERED["production"]
        if one["kind"] == "Service" and labels.items() <= one["metadata"]["labels"].items()
    ]  # fmt: skip
    assert [one["metadata"]["name"] for one in chosen] == ["anomaly-vae-admin"]
    job = chosen[0]["metadata"]["labels"][spec["jobLabel"]]
    alerts = (DEPLOY.parent / "configs/prometheus/alerts.yml").read_text(encoding="utf-8")
    assert set(re.findall(r'job="([^"]*)"', alerts)) == {job}
    (endpoint,) = spec["endpoints"]
    assert endpoint["port"] in {port["name"] for port in chosen[0]["spec"]["ports"]}
    secret = {"name": "anomaly-vae-metrics", "key": "token"}
    assert endpoint["authorization"] == {"type": "Bearer", "credentials": secret}


# ---------------------------------------------------------------- training


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_no_second_try_can_change_is_not_tried_again(overlay: str) -> None:
    job = the("CronJob", overlay, "anomaly-vae-training")["spec"]["jobTemplate"]["spec"]
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # or there could be no policy
    disrupted, refused = job["podFailurePolicy"]["rules"]
    assert disrupted["action"] == "Ignore"
    assert refused["action"] == "FailJob"
    assert refused["onExitCodes"] == {
        "containerName": pod["containers"][0]["name"],
        "operator": "In",
        "values": sorted((USAGE, REFUSED)),
    }


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_is_trained_is_what_is_served(overlay: str, tmp_path: Path) -> None:
    text = the("ConfigMap", overlay, "anomaly-vae-training")["data"]["config.yaml"]
    (tmp_path / "config.yaml").write_text(text)
    config = load_config(tmp_path / "config.yaml", [])
    assert option(service(overlay), "--model") == f"models:/{config.name}@champion"
    assert config == load_config(ROOT / "configs/fraud.yaml", [f"data.path={config.data.path}"])
    container = pods(the("CronJob", overlay, "anomaly-vae-training"))[0]["containers"][0]
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert mounts["/data"]["readOnly"] is True
    assert all(fnmatchcase(place, "/data/*") for place in config.data.paths)
    assert container["args"][1] == "/etc/anomaly-vae/config.yaml"
    assert container["workingDir"] in mounts


# ---------------------------------------------------------------- the container as a process


@pytest.mark.e2e
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_container_answers_its_probes_and_prometheus_and_goes_when_told(
    overlay: str, calibrated: Bundle, tmp_path: Path
) -> None:
    """Its arguments and environment, with a bundle, ports and folders of this test."""
    calibrated.save(tmp_path / "fraud")
    port, admin = free_ports(2)
    container = service(overlay)
    ours = {
        option(container, "--model"): str(tmp_path / "fraud"),
        option(container, "--port"): str(port),
    }
    keys = ("shop:score", "prometheus:metrics")
    digests = [f"{one}:{hashlib.sha256(one.encode()).hexdigest()}" for one in keys]
    environment = {
        **os.environ,
        **settings_of(overlay),
        "PYTHONPATH": str(ROOT),
        "ANOMALY_VAE_ADMIN_PORT": str(admin),
        "ANOMALY_VAE_CACHE_DIR": str(tmp_path / "cache"),
        "ANOMALY_VAE_DRAIN_SECONDS": "0",
        "ANOMALY_VAE_API_KEYS": ",".join(digests),
    }
    command = [sys.executable, "-m", "pipelines.cli", *(ours.get(a, a) for a in container["args"])]
    with (
        subprocess.Popen(command, cwd=tmp_path, env=environment) as process,
        Client(f"http://127.0.0.1:{port}", api_key=keys[0], attempts=100) as client,
        httpx2.Client(headers={"Authorization": f"Bearer {keys[1]}"}, trust_env=False) as http,
    ):
        try:
            assert len(client.score([{"TX_AMOUNT": 12.5}])) == 1
            probes = ("startupProbe", "readinessProbe", "livenessProbe")
            for path in {container[probe]["httpGet"]["path"] for probe in probes}:
                assert http.get(f"http://127.0.0.1:{port}{path}").status_code == 200
            metrics = http.get(f"http://127.0.0.1:{admin}/metrics")
            assert "anomaly_vae_requests_in_flight 1.0" in metrics.text
            assert http.get(f"http://127.0.0.1:{port}/metrics").status_code == 404
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=40) == 0
        finally:
            process.kill()

"""docker-compose.yml, .env.example and the Dockerfile: whole, pinned, careful, without secrets."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from anomaly_vae import __version__
from tests.support.compose import FILE, ROOT, RefusedError, read

RAW = read()
SERVICES: dict[str, Any] = RAW["services"]
TEXT = FILE.read_text(encoding="utf-8")
EXAMPLE = (ROOT / ".env.example").read_text(encoding="utf-8")
OPERATIONS = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
NEEDED = set(re.findall(r"\$\{(\w+):\?", TEXT))
FILLED = {name: f"a secret of {name}" for name in NEEDED}
CHECKED = sorted(SERVICES.keys() - {"train"})
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def test_it_is_what_the_schema_of_compose_files_allows() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*command, str(FILE)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def example() -> dict[str, str]:
    lines = [line for line in EXAMPLE.splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)  # type: ignore[misc]  # two parts each


def test_the_example_names_every_secret_and_knows_none() -> None:
    assert set(example()) == NEEDED
    assert not any(example().values())


@pytest.mark.parametrize("name", sorted(NEEDED))
def test_nothing_starts_without_a_secret_and_the_refusal_names_it(name: str) -> None:
    with pytest.raises(RefusedError, match=rf"^{name}: .*\.env\.example"):
        read({**FILLED, name: ""})


def test_everything_starts_with_them() -> None:
    environment = read(FILLED)["services"]["scoring"]["environment"]
    assert environment["ANOMALY_VAE_API_KEYS"] == FILLED["API_KEYS"]


def test_every_other_variable_and_every_volume_is_documented() -> None:
    for name in {*re.findall(r"\$\{(\w+)", TEXT)} - NEEDED | RAW["volumes"].keys():
        assert f"`{name}`" in OPERATIONS or f"`{name}=" in OPERATIONS, name


def secrets() -> Iterator[tuple[str, str]]:
    for service in SERVICES.values():
        for key, value in service.get("environment", {}).items():
            if re.search(r"PASSWORD|SECRET|KEY", key):
                yield key, value


def test_secrets_come_from_the_environment() -> None:
    assert all(re.fullmatch(r"\$\{\w+:\?.+\}", value) for _, value in secrets())
    assert len(list(secrets())) >= len(NEEDED)


def test_the_service_has_no_password_but_its_own() -> None:
    given = SERVICES["scoring"]["environment"]
    assert not [name for name, value in given.items() if "ADMIN_PASSWORD" in str(value)]
    assert given["MLFLOW_TRACKING_USERNAME"] == "scoring"


@pytest.mark.parametrize("name", sorted(SERVICES))
class TestService:
    def test_its_image_has_a_version(self, name: str) -> None:
        _, _, tag = SERVICES[name]["image"].partition(":")
        assert re.match(r"v?\d+\.\d+", tag)
        if "build" in SERVICES[name]:
            assert tag == __version__
            assert f" AS {SERVICES[name]['build']['target']}\n" in DOCKERFILE

    def test_it_may_do_little(self, name: str) -> None:
        service = SERVICES[name]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service.get("privileged") is None

    def test_it_has_limits(self, name: str) -> None:
        assert set(SERVICES[name]["deploy"]["resources"]["limits"]) == {"cpus", "memory", "pids"}

    def test_its_files_are_mounted_to_be_read_and_its_volumes_are_named(self, name: str) -> None:
        for volume in SERVICES[name].get("volumes", ()):
            source, _, *mode = volume.split(":")
            if source.startswith("."):
                assert (ROOT / source).is_dir()
                assert mode == ["ro"]
            else:
                assert source in RAW["volumes"]

    def test_only_this_machine_reaches_it_unless_somebody_says_otherwise(self, name: str) -> None:
        for port in SERVICES[name].get("ports", ()):
            assert port.startswith(("127.0.0.1:", "${SCORING_ADDRESS:-127.0.0.1}:"))

    def test_it_waits_for_health(self, name: str) -> None:
        for other, how in SERVICES[name].get("depends_on", {}).items():
            job = other not in CHECKED
            wanted = "service_completed_successfully" if job else "service_healthy"
            assert how == {"condition": wanted}


@pytest.mark.parametrize("name", CHECKED)
def test_a_health_check_runs_what_the_image_has(name: str) -> None:
    programs = {
        "postgres": "pg_isready", "prometheus": "promtool", "grafana": "wget",
        "windows": "valkey-cli",
    }  # fmt: skip
    assert SERVICES[name]["healthcheck"]["test"][1] == programs.get(name, "python")


def test_mlflow_answers_to_the_name_that_others_call_it_by() -> None:
    (allowed,) = (a for a in SERVICES["mlflow"]["command"] if a.startswith("--allowed-hosts="))
    for name in ("train", "scoring"):
        place = SERVICES[name]["environment"]["MLFLOW_TRACKING_URI"].removeprefix("http://")
        assert place in allowed.partition("=")[2].split(",")


def test_what_prometheus_scrapes_is_a_port_of_the_service() -> None:
    text = (ROOT / "configs/prometheus/prometheus.yml").read_text(encoding="utf-8")
    assert f"scoring:{SERVICES['scoring']['environment']['ANOMALY_VAE_ADMIN_PORT']}" in text


def provisioned(name: str) -> Any:
    """What a file of Grafana's provisioning says."""
    place = ROOT / "configs/grafana/provisioning" / name
    return yaml.safe_load(place.read_text(encoding="utf-8"))


def test_grafana_asks_prometheus_and_shows_what_is_mounted() -> None:
    (source,) = provisioned("datasources/prometheus.yml")["datasources"]
    (port,) = SERVICES["prometheus"]["ports"]
    assert source["url"] == f"http://prometheus:{port.rpartition(':')[2]}"
    (provider,) = provisioned("dashboards/anomaly-vae.yml")["providers"]
    place, grafana = provider["options"]["path"], SERVICES["grafana"]
    mounts = dict(volume.split(":")[:2] for volume in grafana["volumes"])
    assert mounts["./configs/grafana/dashboards"] == place
    home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (ROOT / "configs/grafana/dashboards" / home.removeprefix(f"{place}/")).is_file()


# ---------------------------------------------------------------- the images


def stages() -> dict[str, str]:
    parts = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:]
    return {re.match(r"\S+ AS (\S+)", part)[1]: part for part in parts}  # type: ignore[index]


def lineage(name: str) -> str:
    """All that is said of a stage, by itself and by what it is made from; not what it copies."""
    found = stages().get(name)
    return lineage(found.split()[0]) + found if found else ""


RUNS = ("serve", "train", "mlflow")


@pytest.mark.parametrize("name", RUNS)
def test_an_image_runs_as_nobody_in_particular_and_cannot_build(name: str) -> None:
    said = lineage(name)
    assert re.findall(r"^USER (.*)$", said, re.MULTILINE) == ["10001:10001"]
    assert "pip uninstall --yes pip setuptools wheel" in said
    assert not re.search(r"apt-get|pip install|curl", said)
    assert "OMP_NUM_THREADS=1" in said


def test_base_images_have_a_version() -> None:
    (version,) = re.findall(r"^ARG PYTHON=(.*)$", DOCKERFILE, re.MULTILINE)
    assert re.fullmatch(r"3\.\d+\.\d+-slim-\w+", version)
    origins = {part.split()[0] for part in stages().values()}
    assert origins - stages().keys() == {"python:${PYTHON}"}


def test_installs_are_constrained_and_of_extras_that_there_are() -> None:
    commands = re.findall(r"^RUN .* install .*$", DOCKERFILE.replace("\\\n", " "), re.MULTILINE)
    for command in (one for one in commands if " -m pip " in one and "uninstall" not in one):
        assert "--constraint constraints.txt" in command
    for extras in re.findall(r"\.whl\)\[([\w,]+)\]", DOCKERFILE):
        assert set(extras.split(",")) <= EXTRAS.keys()
    assert "://" not in re.sub(r"http://127\.0\.0\.1\S*", "", DOCKERFILE)


def test_the_service_is_installed_without_torch() -> None:
    (extras,) = re.findall(r"\.whl\)\[([\w,]+)\]", stages()["build-serve"])
    wanted = [one for extra in extras.split(",") for one in EXTRAS[extra]]
    assert not [one for one in wanted if re.match(r"torch|mlflow\b(?!-)|scikit-learn|scipy", one)]


def test_what_an_image_copies_is_not_ignored() -> None:
    kept = (ROOT / ".dockerignore").read_text(encoding="utf-8")
    for names in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE):
        for name in names.split():
            assert f"!{name}\n" in kept
            assert (ROOT / name).exists()

"""Run the services of docker-compose.yml on this machine, without Docker.

This module emulates Compose and the images. Variables are interpolated, volumes are folders,
service names and ports are mapped to loopback ports, and the programs are those installed on this
machine. If the user may create mount namespaces (root may), services see a file system that
is read-only except for volumes and temporary folders.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.support.paths import ROOT
from tests.support.ports import free_ports
from tests.support.postgres import DEBIAN, postgres

FILE = ROOT / "docker-compose.yml"
VARIABLE = re.compile(r"\$(?:\$|\{(?P<name>\w+)(?:(?P<how>:-|:\?)(?P<more>[^}]*))?\})")
VERBATIM = "--allowed-hosts="
"""Prefix of an argument that lists service names and is not translated."""


SEAL = ("unshare", "--mount", "sh", "-euc")
"""Command prefix that runs a shell in a new mount namespace."""


@cache
def can_seal() -> bool:
    """Return whether this user may remount the file system read-only in a mount namespace."""
    tried = [*SEAL, "mount -o remount,ro,bind /"]
    return subprocess.run(tried, capture_output=True, check=False).returncode == 0


class RefusedError(Exception):
    """A required variable is not set."""


class Strict(yaml.SafeLoader):
    """YAML loader that rejects duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Construct a mapping and reject duplicate keys."""
        keys = [key.value for key, _ in node.value if key.value != "<<"]
        assert len(keys) == len(set(keys)), f"line {node.start_mark.line}: {keys}"
        return super().construct_mapping(node, deep)


def interpolated(text: str, variables: Mapping[str, str]) -> str:
    """Interpolate variables into a value, as Compose does."""

    def value(found: re.Match[str]) -> str:
        if found[0] == "$$":
            return "$"
        given = variables.get(found["name"], "")
        if not given and found["how"] == ":?":
            raise RefusedError(f"{found['name']}: {found['more']}")
        return given or (found["more"] if found["how"] else "") or ""

    return VARIABLE.sub(value, text)


def read(variables: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Read docker-compose.yml and interpolate variables if they are given."""

    def within(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: within(one) for key, one in value.items()}
        if isinstance(value, list):
            return [within(one) for one in value]
        return interpolated(value, variables or {}) if isinstance(value, str) else value

    content = yaml.load(FILE.read_text(encoding="utf-8"), Strict)
    return dict(content if variables is None else within(content))


class Stack:
    """The services of docker-compose.yml as processes on this machine."""

    def __init__(
        self, folder: Path, variables: Mapping[str, str], faster: Mapping[str, str] | None = None
    ) -> None:
        """Prepare the services without starting any.

        Args:
            folder: folder that contains the volumes.
            variables: variables of the file `.env`.
            faster: patterns and their replacements in mounted files, to shorten waiting times.
        """
        self.folder, self._faster = folder, faster or {}
        self.services = read(variables)["services"]
        named = [(name, port) for name, one in self.services.items() for port in _ports(one)]
        self.ports: dict[tuple[str, int], int] = dict(
            zip(named, free_ports(len(named)), strict=True)
        )
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def address(self, name: str, port: int) -> str:
        """Return the local address of a service's port."""
        return f"127.0.0.1:{self.ports[name, port]}"

    # ------------------------------------------------------------ translation of settings

    def translate(self, name: str, text: str) -> str:
        """Replace the names, ports and paths of a container with those of this machine."""
        if text.startswith(VERBATIM):
            return text
        here: dict[str, str] = dict(self.places(name))
        for (service, port), ours in self.ports.items():
            here[f"{service}:{port}"] = f"127.0.0.1:{ours}"
            if service == name:
                here |= {f"localhost:{port}": f"127.0.0.1:{ours}", str(port): str(ours)}
        here["0.0.0.0"] = "127.0.0.1"
        longest = sorted(here, key=len, reverse=True)
        known = re.compile(rf"(?<![\w.])({'|'.join(map(re.escape, longest))})(?![\w.])")
        return known.sub(lambda found: here[found[1]], text)

    def places(self, name: str) -> Iterator[tuple[str, str]]:
        """Yield each mount point of a container and its local path: a copied file or a folder."""
        service = self.services[name]
        for volume in service.get("volumes", ()):
            source, target, *_ = volume.split(":")
            owner = name if source.startswith(".") else "volumes"
            yield target, str(self.folder / owner / source.strip("./"))
        for target in service.get("tmpfs", ()):
            yield target, str(self.folder / name / "tmpfs" / target.strip("/"))

    def _mount(self, name: str) -> None:
        for target, place in self.places(name):
            source = next(
                (ROOT / v.split(":")[0] for v in self.services[name].get("volumes", ())
                 if v.split(":")[1] == target and v.startswith(".")), None,
            )  # fmt: skip
            if source is None:
                Path(place).mkdir(parents=True, exist_ok=True)
                continue
            for file in filter(Path.is_file, source.rglob("*")):
                copy = Path(place) / file.relative_to(source)
                copy.parent.mkdir(parents=True, exist_ok=True)
                text = self.translate(name, file.read_text(encoding="utf-8"))
                for slow, fast in self._faster.items():
                    text = re.sub(slow, fast, text)
                copy.write_text(text, encoding="utf-8")

    def environment(self, name: str) -> dict[str, str]:
        """Return the environment of a container, with what local programs need."""
        given = self.services[name].get("environment", {})
        programs = [Path(sys.executable).parent, *sorted(DEBIAN.glob("*/bin"))]
        temporary = dict(self.places(name)).get("/tmp", str(self.folder / "home"))
        return {
            "PATH": os.pathsep.join([*map(str, programs), os.environ["PATH"]]),
            "HOME": temporary,
            "TMPDIR": temporary,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            **{key: self.translate(name, str(value)) for key, value in given.items()},
        }

    def cwd(self, name: str) -> Path:
        """Return the local working directory of a service."""
        place = self.services[name].get("working_dir")
        return Path(dict(self.places(name))[place]) if place else self.folder / "home"

    # ------------------------------------------------------------ processes

    @contextmanager
    def database(self) -> Iterator[None]:
        """Run the service `postgres`, initialised as in its image."""
        service = self.services["postgres"]
        given = service["environment"]
        program, *options = service["command"]
        assert program == "postgres"
        with postgres(
            given["POSTGRES_USER"],
            given["POSTGRES_PASSWORD"],
            given["POSTGRES_DB"],
            options,
            given["POSTGRES_INITDB_ARGS"].split(),
            self.ports["postgres", 5432],
        ):
            assert self.healthy("postgres")
            yield

    def run(self, name: str) -> subprocess.CompletedProcess[bytes]:
        """Run a job until it ends."""
        self._prepare(name)
        return subprocess.run(
            self._command(name), env=self.environment(name), cwd=self.cwd(name),
            capture_output=True, timeout=500, check=False,
        )  # fmt: skip

    def start(self, name: str) -> None:
        """Start a service and wait until it is healthy."""
        self._prepare(name)
        log = self.folder / f"{name}.log"
        with log.open("a") as output:
            process = self.running[name] = subprocess.Popen(
                self._command(name), env=self.environment(name), cwd=self.cwd(name),
                stdout=output, stderr=output,
            )  # fmt: skip
        self.wait(lambda: process.poll() is not None or self.healthy(name), log)
        assert process.poll() is None, log.read_text()

    def _prepare(self, name: str) -> None:
        (self.folder / "home").mkdir(exist_ok=True)
        self._mount(name)

    def _command(self, name: str) -> Sequence[str]:
        service = self.services[name]
        whole = [*service.get("entrypoint", ()), *service["command"]]
        known = [self.translate(name, argument) for argument in whole]
        return [*self._sealed(name), *known] if can_seal() else known

    def _sealed(self, name: str) -> Sequence[str]:
        """Return a command prefix that restricts writing to volumes and temporary folders."""
        places = {place for target, place in self.places(name) if not self._is_fixed(name, target)}
        binds = [f"mount --bind {place} {place}" for place in sorted(places)]
        steps = [*binds, "mount -o remount,ro,bind /", 'cd "$PWD"', 'exec "$@"']
        return [*SEAL, "; ".join(steps), "sh"]

    def _is_fixed(self, name: str, target: str) -> bool:
        """Return whether a mount point is read-only."""
        return any(f":{target}:ro" in volume for volume in self.services[name].get("volumes", ()))

    def healthy(self, name: str) -> bool:
        """Return whether the health check of a service succeeds."""
        kind, *command = self.services[name]["healthcheck"]["test"]
        assert kind == "CMD"
        done = subprocess.run(
            [self.translate(name, argument) for argument in command],
            env=self.environment(name), cwd=self.folder, capture_output=True, timeout=60,
            check=False,
        )  # fmt: skip
        return done.returncode == 0

    def wait(self, until: Any, log: Path | None = None, seconds: float = 180) -> None:
        """Wait until a condition is true."""
        deadline = time.monotonic() + seconds
        while not until():
            assert time.monotonic() < deadline, log.read_text() if log else "it never came true"
            time.sleep(0.2)

    def stop(self, name: str) -> int:
        """Stop a service as Compose does, and return its exit code."""
        process = self.running.pop(name)
        process.terminate()
        return process.wait(60)


@contextmanager
def stack(folder: Path, variables: Mapping[str, str], **options: Any) -> Iterator[Stack]:
    """Yield a stack with a running database; stop all services at the end."""
    one = Stack(folder, variables, **options)
    with ExitStack() as undo:
        undo.enter_context(one.database())
        undo.callback(lambda: [one.stop(name) for name in list(one.running)])
        yield one


def _ports(service: Mapping[str, Any]) -> Iterator[int]:
    """Yield the ports on which a container listens."""
    for port in (*service.get("ports", ()), *service.get("expose", ())):
        yield int(port.rpartition(":")[2])

"""Run a temporary PostgreSQL server on the loopback interface."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.support.ports import free_port

DEBIAN = Path("/usr/lib/postgresql")
"""Folder in which Debian's packages install the programs of each version, outside PATH."""
READY_SECONDS = 60
"""Maximum time for the server to start or stop, in seconds."""


@contextmanager
def postgres(
    user: str = "mlflow",
    password: str = "not-secret",
    database: str = "mlflow",
    options: Sequence[str] = (),
    cluster_options: Sequence[str] = ("--auth=scram-sha-256",),
    port: int | None = None,
) -> Iterator[str]:
    """Yield the SQLAlchemy URL of an empty database; skip the test without PostgreSQL's programs.

    Args:
        user: owner of the database.
        password: password of the owner.
        database: name of the database.
        options: additional arguments of the server.
        cluster_options: additional arguments of initdb.
        port: port of the server; None means any free port.
    """
    programs = _programs()
    with tempfile.TemporaryDirectory(prefix="anomaly-vae-postgres-") as place:
        folder, port = Path(place), port or free_port()
        caller = _caller(folder)
        secret = folder / "password"
        secret.write_text(password)
        secret.chmod(0o644)
        cluster = folder / "cluster"
        subprocess.run(
            [programs / "initdb", "--no-sync", "--username", user, "--pwfile", secret,
             "--encoding", "UTF8", "--locale", "C", "--pgdata", cluster, *cluster_options],
            check=True, capture_output=True, cwd=folder, **caller,
        )  # fmt: skip
        command = [programs / "postgres", "-D", cluster, "-p", str(port), "-k", "", "-F"]
        command += ["-h", "127.0.0.1", *options]
        log = folder / "log"
        with log.open("w") as output:
            server = subprocess.Popen(command, stdout=output, stderr=output, cwd=folder, **caller)
            try:
                address = f"{user}:{quote(password, safe='')}@127.0.0.1:{port}"
                _create(f"postgresql://{address}/postgres", database, server, log)
                yield f"postgresql+psycopg2://{address}/{database}"
            finally:
                server.send_signal(signal.SIGINT)  # SIGTERM would wait for every client
                server.wait(READY_SECONDS)


def _programs() -> Path:
    """Return the folder of initdb and postgres in their newest version."""
    found = sorted(DEBIAN.glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    known = found[-1] if found else shutil.which("initdb")
    if not known:
        pytest.skip("needs PostgreSQL's initdb and postgres (Debian: apt-get install postgresql)")
    return Path(known).resolve().parent


def _caller(folder: Path) -> dict[str, Any]:
    """Return subprocess arguments that run PostgreSQL as its own user if the caller is root."""
    if os.geteuid():
        return {}
    try:
        owner = pwd.getpwnam("postgres")
    except KeyError:
        pytest.skip("PostgreSQL refuses root, and there is no user 'postgres'")
    os.chown(folder, owner.pw_uid, owner.pw_gid)
    return {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}


def _create(address: str, database: str, server: subprocess.Popen[bytes], log: Path) -> None:
    """Create the database as soon as the server accepts connections."""
    psycopg2 = pytest.importorskip("psycopg2", reason="needs the extra 'server'")
    deadline = time.monotonic() + READY_SECONDS
    while True:
        try:
            connection = psycopg2.connect(address)
            break
        except psycopg2.OperationalError:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
    connection.autocommit = True
    connection.cursor().execute(f'CREATE DATABASE "{database}"')
    connection.close()

"""Score on a Ray cluster, or on a local one that lasts as long as the run.

Ray Data hands the units of the plan to actors, each of which loads the model once. An actor reads,
scores and writes a unit as the local engine does, so that both engines write the same parts. The
records in the output folder alone tell what is finished: if an actor or its node dies, Ray starts
the unit again elsewhere, and the parts that it finished are kept.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from anomaly_vae._version import __version__
from anomaly_vae.errors import AnomalyVAEError, ConfigError, DataError
from pipelines.batch.engines.local import cores
from pipelines.batch.result.folder import PLAN, is_sound, records_of
from pipelines.batch.result.plan import Plan
from pipelines.batch.units import MAX_WAITING, Report, Work, in_place, score_unit, total
from pipelines.datasets.reading.objects import ahead

OBJECT_STORE_BYTES = 1 << 28
"""Size of a local Ray's object store; only the model and the numbers of units are in it."""
LOG_LEVEL = "RAY_BACKEND_LOG_LEVEL"
"""Environment variable with the level from which on Ray's core prints what happens."""
CONNECT_SECONDS, ANSWER_SECONDS = 5.0, 20.0
"""Time in which the address must accept a connection, and in which Ray must answer there."""


def run_on_ray(work: Work, workers: int | None, report: Report, address: str | None = None) -> None:
    """Score all unfinished units.

    Args:
        work: the run.
        workers: maximum number of actors, each with a core; None for one per core of the cluster.
        report: is told what was written.
        address: HOST:PORT of a cluster; None for a local Ray, or the cluster of ``RAY_ADDRESS``.

    Raises:
        ConfigError: Ray is not installed, or there is no cluster at the address.
        DataError: a pipe is to be read, or a node does not see the files that this one sees.
        OSError: a file cannot be written; what is finished stays.
    """
    if work.plan.pipe:
        raise DataError(
            f"'{work.plan.pipe}' is a pipe, which only this process can read; give a file, or "
            "choose --engine local"
        )
    if not work.units:
        return
    with _connected(address or os.environ.get("RAY_ADDRESS"), workers) as ray:
        try:
            with work.job.shared(work.folder) as job:
                for unit in _finished_units(ray, replace(work, job=job), workers):
                    report(total(_new_records(work, unit)))
        except ray.exceptions.RayError as error:
            raise DataError(
                f"Ray failed: {_first_line(error)}; what is finished is kept, and the same command "
                "continues"
            ) from None
        finally:
            work.folder.tidy()


def _new_records(work: Work, unit: int) -> list[Any]:
    """Return the records of the parts of a unit that were finished in this run."""
    known = work.finished.get(unit, ())
    return [r for r in records_of(work.folder, work.plan, unit) if r.number not in known]


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


# ---------------------------------------------------------------- the driver


def _finished_units(ray: Any, work: Work, workers: int | None) -> Iterator[int]:
    """Have all units scored; yield each once it is finished."""
    units = work.units
    cores = int(ray.cluster_resources().get("CPU", 1))
    actors = max(1, min(workers or cores, len(units)))
    data = ray.data.from_items([{"unit": unit} for unit in units], override_num_blocks=len(units))
    scored = data.map_batches(
        UnitScorer,
        fn_constructor_args=(replace(work, finished={}), str(Path.cwd()), __version__),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(
            min_size=1, max_size=actors, max_tasks_in_flight_per_actor=1
        ),
        num_cpus=1,
    )
    for row in scored.iter_rows():
        if row["failure"]:
            _raise(json.loads(row["failure"]))
        yield int(row["unit"])


def _raise(failure: dict[str, Any]) -> None:
    """Raise the error of an actor."""
    if failure["errno"] is None:
        raise DataError(failure["reason"])
    raise OSError(failure["errno"], failure["reason"])


@contextmanager
def _connected(address: str | None, workers: int | None) -> Iterator[Any]:
    """Connect to a cluster, or start a local Ray, until the block ends; yield the library."""
    ray = _library()
    if ray.is_initialized():  # the caller's own connection, which stays
        yield ray
        return
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address in (None, "local"):
        own = {"num_cpus": workers or cores(), "object_store_memory": OBJECT_STORE_BYTES}
        try:
            with _without_log_level():
                ray.init(address="local", include_dashboard=False, **own, **quiet)
        except Exception as error:  # noqa: BLE001  # Ray raises it bare if a process does not start
            raise _not_started(_first_line(error)) from None
    else:
        check_address(address)
        try:
            with _without_log_level():
                ray.init(address=address, **quiet)
        except Exception as error:  # noqa: BLE001  # Ray raises it bare if a process does not start
            raise _unreachable(address, _first_line(error)) from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _library() -> Any:
    """Import Ray so that it prints and reports nothing.

    Raises:
        ConfigError: it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault(LOG_LEVEL, "fatal")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ConfigError(f"{error}; --engine ray needs: pip install 'anomaly-vae[ray]'") from None
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    return ray


@contextmanager
def _without_log_level() -> Iterator[None]:
    """Hold back what is printed during the block; leave out the line in which Ray names its level.

    Ray's core prints it past `sys.stderr` whenever the level is set, at any level.
    """
    if sys.__stderr__ is None:  # the process was started without one
        yield
        return
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as printed:
        os.dup2(printed.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            printed.seek(0)
            os.write(2, b"".join(line for line in printed if LOG_LEVEL.encode() not in line))


def check_address(address: str) -> None:
    """Check that a Ray cluster answers; Ray itself would wait for minutes and then end the process.

    Raises:
        ConfigError: none does.
    """
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdigit():
        raise ConfigError(f"--ray-address '{address}' is not HOST:PORT; give the head node's, "
                          "such as 10.0.0.1:6379")  # fmt: skip
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise _unreachable(address, getattr(error, "strerror", None) or str(error)) from None
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=ANSWER_SECONDS)  # noqa: S603
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        raise _unreachable(address, "what answers there is no Ray of this version") from None


def _not_started(reason: str) -> ConfigError:
    return ConfigError(
        f"--engine ray: no Ray can be started on this machine: {reason}; make room in "
        f"{tempfile.gettempdir()} and in memory, or choose --engine local"
    )


def _unreachable(address: str, reason: str) -> ConfigError:
    return ConfigError(
        f"--ray-address '{address}': no Ray cluster can be reached: {reason}; give HOST:PORT of "
        "the head node, and start the command on a node of the cluster"
    )


# ---------------------------------------------------------------- the actors


class UnitScorer:
    """An actor that scores units.

    Args:
        work: the run; the model is loaded as it arrives.
        folder: working directory of the command, from which paths are relative.
        version: version of this package that the command runs.
    """

    def __init__(self, work: Work, folder: str, version: str) -> None:
        self._work, self._version = work, version
        with suppress(OSError):  # missing files are found by `_check`
            os.chdir(folder)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Score the unit of a batch; return its index, and the error that it raised."""
        unit, failure = int(batch["unit"][0]), ""
        try:
            self._score(unit)
        except AnomalyVAEError as error:
            failure = json.dumps({"errno": None, "reason": str(error)})
        except OSError as error:
            reason = error.strerror or str(error)
            failure = json.dumps({"errno": error.errno or 0, "reason": reason})
        return {"unit": np.array([unit]), "failure": np.array([failure], object)}

    def _score(self, unit: int) -> None:
        """Score the parts of a unit that no earlier attempt finished."""
        self._check(unit)
        folder, plan = self._work.folder, self._work.plan
        work = self._work.after(r for r in records_of(folder, plan, unit) if is_sound(folder, r))
        if unit not in work.complete:
            score_unit(work, unit, in_place, lambda _: None, MAX_WAITING)

    def _check(self, unit: int) -> None:
        """Check that this node sees the files and the folder that the command sees."""
        node, folder, plan = socket.gethostname(), self._work.folder, self._work.plan
        if self._version != __version__:
            raise DataError(
                f"node '{node}' has version {__version__} of anomaly-vae, and the command has "
                f"{self._version}; install the same version on all nodes"
            )
        stored = Plan.from_bytes(folder.read(PLAN) or b"")
        if stored is None or stored.digest != plan.digest:
            raise DataError(
                f"--output '{folder.path}' is another folder on node '{node}'; give a folder that "
                "all nodes share, or an object store"
            )
        files = [file for file, _ in plan.units[unit].files]
        for file, size in zip(files, ahead(self._work.job.size, files), strict=True):
            if size != plan.inputs[file].bytes:
                raise DataError(
                    f"'{plan.inputs[file].name}' is not on node '{node}' as the command sees it; "
                    "give files that all nodes share, or an object store whose credentials all "
                    "nodes have"
                )

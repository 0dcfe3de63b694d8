"""Run the service: load the models, listen, print the address, and drain on SIGTERM.

On SIGTERM readiness fails first, so that a load balancer stops sending requests while they are
still accepted; then the socket closes, requests in progress finish, and the process exits with 0.
"""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from types import FrameType

import uvicorn
from starlette.applications import Starlette
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from anomaly_vae.errors import AnomalyVAEError, ConfigError
from anomaly_vae.masking import masked
from serving.app import create_app
from serving.http.http11 import SECURE_HEADERS, LimitedProtocol
from serving.models.store import Store
from serving.observability import logs
from serving.observability.metrics import MULTIPROCESS_DIR, forget_dead_workers
from serving.registry.board import Board, FollowState
from serving.registry.follower import (
    Follower,
    load_initial_models,
    log_initial_state,
    restore_store,
)
from serving.registry.sources import Sources
from serving.review.case_recorder import CaseRecorder
from serving.review.case_writer import check_case_settings
from serving.review.label_writer import LabelWriter, check_address
from serving.scoring.windows import WindowStores
from serving.settings import Settings, is_loopback, read_settings

SWITCH_SECONDS = 0.001
"""Maximum time that a worker thread keeps the event loop waiting, in seconds."""
WORKER_TIMEOUT_SECONDS = 30
"""Time after which a worker process that does not start or respond is replaced, in seconds."""
OTHER_OPEN_FILES = 256
"""Number of files that a process keeps open in addition to its connections."""
EXPIRY_SECONDS = 1.0
"""Time between two deletions of expired events, in seconds."""
BOARD_VARIABLE = "ANOMALY_VAE_BOARD"
"""Environment variable with the path of the `Board` that lists the models to serve."""


def serve(
    models: Sequence[str],
    host: str = "127.0.0.1",
    port: int = 8000,
    workers: int = 1,
    no_auth: bool = False,
    shadows: Sequence[str] = (),
) -> int:
    """Serve until SIGTERM and return the exit code, which is 0 after an orderly end.

    Args:
        models: ``[NAME=]URI`` of each model.
        host: the address to listen on; one other than loopback needs API keys or ``no_auth``.
        port: the port to listen on; 0 chooses a free one.
        workers: number of processes that share the port.
        no_auth: allow access without keys on any address.
        shadows: ``[NAME=]URI`` of models that score the same requests but never answer them.

    Raises:
        AnomalyVAEError: a setting, a model or an address cannot be used.
    """
    settings = read_settings()
    _check_exposure(host, settings, no_auth)
    check_address(settings.labels)
    check_case_settings(settings)
    with ExitStack() as stack:
        ports = [port, settings.admin_port] if settings.admin_port else [port]
        listeners = [stack.enter_context(_bind(host, p)) for p in ports]
        sources = Sources(settings)
        store, state = asyncio.run(load_initial_models(sources, models, shadows))
        logs.configure(settings.log_level)
        log_initial_state(state)
        _print_address(store, listeners[0], settings, no_auth)
        if workers == 1:
            return _run(store, Board(state), settings, listeners)
        return _run_workers(state, settings, listeners, workers)


def app_factory() -> Starlette:
    """Create the application of a worker process; if its models fail to load, all workers stop."""
    settings = read_settings()
    logs.configure(settings.log_level)
    forget_dead_workers(os.environ.get(MULTIPROCESS_DIR))
    board = Board(path=Path(os.environ[BOARD_VARIABLE]))
    try:
        store = restore_store(board.read())
    except (AnomalyVAEError, OSError) as error:
        sys.stderr.write(f"{masked(str(error))}\n")
        sys.exit(STARTUP_FAILURE)
    return _application(store, board, settings)


def _application(store: Store, board: Board, settings: Settings) -> Starlette:
    _tune_process(settings)
    return create_app(store, settings, partial(_lifespan, store, settings.drain_seconds), board)


def _tune_process(settings: Settings) -> None:
    """Prepare the process for many small requests and a few large ones."""
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.collect()
    gc.freeze()  # objects loaded so far are permanent, so exclude them from collections
    gc.set_threshold(20_000, 20, 50)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = settings.max_connections + OTHER_OPEN_FILES
    if soft < needed and hard != resource.RLIM_INFINITY:
        needed = min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))


def _run(store: Store, board: Board, settings: Settings, listeners: list[socket.socket]) -> int:
    server = uvicorn.Server(_config(_application(store, board, settings), settings))
    signal.signal(signal.SIGTERM, _ignore)  # uvicorn raises it again after draining
    server.run(listeners)
    return 0


def _run_workers(
    state: FollowState, settings: Settings, listeners: list[socket.socket], workers: int
) -> int:
    config = _config("serving.server:app_factory", settings, workers)
    with tempfile.TemporaryDirectory(prefix="anomaly-vae-workers-") as folder:
        os.environ[MULTIPROCESS_DIR], os.environ[BOARD_VARIABLE] = folder, f"{folder}/board.json"
        Board.shared(Path(os.environ[BOARD_VARIABLE]), state)
        supervisor = Multiprocess(config, sockets=listeners)
        supervisor.run()
    return int(any(process.exitcode == STARTUP_FAILURE for process in supervisor.processes))


def _config(app: Starlette | str, settings: Settings, workers: int = 1) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        factory=isinstance(app, str),
        workers=workers,
        http=LimitedProtocol,
        ws="none",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        headers=[one for one in SECURE_HEADERS if one[0] != "cache-control"],  # see RequestChannel
        timeout_keep_alive=settings.keep_alive_seconds,
        timeout_graceful_shutdown=settings.grace_seconds,
        timeout_worker_healthcheck=WORKER_TIMEOUT_SECONDS,
    )


@asynccontextmanager
async def _lifespan(store: Store, drain_seconds: float, app: Starlette) -> AsyncIterator[None]:
    """Follow the registry and the guarantees while the service runs, and drain at its end."""
    follower: Follower = app.state.follower
    writer: LabelWriter | None = app.state.label_writer
    cases: CaseRecorder | None = app.state.cases
    async with _draining(store, drain_seconds):
        following = asyncio.create_task(follower.run())
        tracking = asyncio.create_task(app.state.metrics.guarantees.run())
        expiring = asyncio.create_task(_expire_events(app.state.windows))
        if writer:
            writer.start()
        if cases:
            cases.start()
        yield
        following.cancel()
        tracking.cancel()
        expiring.cancel()
        await follower.close()
        app.state.shadows.close()
        if app.state.console:
            app.state.console.close()
        if writer:
            writer.close()
        if cases:
            await asyncio.to_thread(cases.close)


async def _expire_events(windows: WindowStores) -> None:
    """Delete expired events of the window store, a few at a time."""
    while True:
        await asyncio.sleep(EXPIRY_SECONDS)
        if windows.layouts():
            await asyncio.to_thread(windows.expire)


@asynccontextmanager
async def _draining(store: Store, seconds: float) -> AsyncIterator[None]:
    """On SIGTERM, fail readiness at once and stop the server after ``seconds``."""
    loop = asyncio.get_running_loop()
    stop = signal.getsignal(signal.SIGTERM)
    assert callable(stop), "uvicorn sets its handler before it starts the application"

    def drain(number: int, frame: FrameType | None) -> None:
        delay, store.draining = (0.0 if store.draining else seconds), True
        loop.call_soon_threadsafe(loop.call_later, delay, stop, number, frame)

    signal.signal(signal.SIGTERM, drain)
    yield


def _ignore(number: int, frame: FrameType | None) -> None:
    """Do nothing, deliberately."""


def _check_exposure(host: str, settings: Settings, no_auth: bool) -> None:
    if no_auth and settings.requires_auth:
        variable = "ANOMALY_VAE_API_KEYS" if settings.api_keys else "ANOMALY_VAE_OIDC_ISSUER"
        raise ConfigError(f"--no-auth contradicts {variable}; drop one", key="no_auth")
    if not (settings.requires_auth or no_auth or is_loopback(host)):
        raise ConfigError(
            f"host {host} can be reached from outside and there are no API keys; "
            "set ANOMALY_VAE_API_KEYS, or pass --no-auth if something else guards it",
            key="host",
        )


def _bind(host: str, port: int) -> socket.socket:
    """Bind the address without accepting connections, so that it fails before models are loaded."""
    try:
        info = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = info[0]
        with ExitStack() as undo:
            listener = undo.enter_context(socket.socket(family, kind, protocol))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((address[0], port, *address[2:]))  # getaddrinfo wraps ports at 65536
            undo.pop_all()
    except (OSError, OverflowError) as error:
        message = f"cannot listen on {host} port {port}: {error}; choose another --host or --port"
        raise ConfigError(message, key="port") from None
    return listener


def _print_address(
    store: Store, listener: socket.socket, settings: Settings, no_auth: bool
) -> None:
    host, port = listener.getsockname()[:2]
    url_host = f"[{host}]" if ":" in host else host
    address, docs = (
        f"http://{url_host}:{port}",
        f"http://{url_host}:{settings.admin_port or port}/docs",
    )
    access = "with API keys" if settings.api_keys else "without API keys"
    access += " and with tokens" if settings.oidc_issuer else ""
    if not settings.requires_auth and not no_auth:
        access += ", so on loopback only; set ANOMALY_VAE_API_KEYS to open it"
    sys.stderr.write(f"serving {_list_models(store)} on {address} ({access}); try {docs}\n")


def _list_models(store: Store) -> str:
    def described(name: str, version: str | None) -> str:
        return f"{name} version {version}" if version else name

    names: Iterable[str] = (described(m.name, m.version) for m in store.current.values())
    return ", ".join(names)

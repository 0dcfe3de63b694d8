"""Call the service: one client that waits for each answer, and one for asyncio.

    with Client("http://localhost:8000") as client:
        for result in client.score(records, explain=3):
            print(result.score, result.is_anomaly)

Scoring has no side effects, so a request is repeated when the connection fails and when the
service is busy (429) or not ready (503), not before its ``Retry-After``. `errors` lists what is
raised otherwise.

Needs ``pip install 'anomaly-vae[client]'`` and none of the libraries that train or score.
"""

from __future__ import annotations

import asyncio
import dataclasses
import email.utils
import os
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from math import isinf
from pathlib import Path
from random import Random
from typing import Any, Literal, Self, TypeVar
from urllib.parse import quote

import httpx2
import msgspec

from anomaly_vae._version import __version__
from anomaly_vae.client.errors import (
    AGAIN,
    FailedError,
    ServiceError,
    UnreachableError,
    error_of,
    problem_of,
)
from anomaly_vae.client.types import ModelInfo, Models, Scores
from anomaly_vae.errors import ConfigError, DataError, RecordError

KEY_VARIABLE = "ANOMALY_VAE_API_KEY"
MAX_RECORDS = 10_000
MAX_BODY_BYTES = 16 * 1024**2
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 8.0
"""Seconds to wait where the service does not say how long."""
PART_BYTES = 256
"""What a file in a form costs beside its content, at the most."""
HEAD, JSON = b'{"records":[', {"Content-Type": "application/json"}

T = TypeVar("T")
Record = Mapping[str, Any]
File = str | Path | bytes
Explain = int | Literal["all"]


# ---------------------------------------------------------------- answers


# ---------------------------------------------------------------- errors


# ---------------------------------------------------------------- requests


def _split(
    parts: Iterable[bytes], most: int, limit: int, around: int
) -> Iterator[tuple[int, list[bytes]]]:
    """Runs of at most ``most`` parts and ``limit`` bytes, and where each begins.

    A part costs its own bytes and those ``around`` it; one that is too large goes alone.
    """
    start, size, run = 0, 0, list[bytes]()
    for number, part in enumerate(parts):
        if run and (len(run) == most or size + len(part) + around > limit):
            yield start, run
            start, size, run = number, 0, []
        run.append(part)
        size += len(part) + around
    if not run and not start:
        raise DataError("there is nothing to score; give at least one record or file")
    yield start, run


def _rows(records: Iterable[Record]) -> Iterator[Record]:
    """Records, or the rows of any data frame that speaks Arrow's protocol."""
    if not hasattr(records, "__arrow_c_stream__"):
        return iter(records)
    import pyarrow as pa

    table = pa.table(records)
    named = [name for name in table.schema.names if not name.startswith("__index_level_")]
    batches = table.select(named).to_batches()
    return (row for batch in batches for row in batch.to_pylist())


def _json_of(number: int, record: Record) -> bytes:
    if not isinstance(record, Mapping):
        raise RecordError(number, None, f"expected a mapping, got {type(record).__name__}")
    cells = {str(name): _cell(number, str(name), value) for name, value in record.items()}
    try:
        return _encode(cells)
    except (TypeError, ValueError) as error:
        raise RecordError(number, None, f"cannot be sent: {error}") from None


def _cell(record: int, field: str, value: Any) -> Any:
    """A value as JSON has it: NaN is missing, infinity an error."""
    try:
        value = value.item() if hasattr(value, "item") else value  # numpy's
        value = float(value) if isinstance(value, Decimal) else value
        missing = bool(value != value)  # noqa: PLR0124  # NaN and NaT
    except (TypeError, ValueError) as error:
        raise RecordError(record, field, f"cannot be sent: {error}") from None
    if isinstance(value, float) and isinf(value):
        raise RecordError(record, field, "infinity is not a value; leave it out if it is missing")
    return None if missing else value


_encode = msgspec.json.Encoder().encode


def _content(file: File) -> bytes:
    if isinstance(file, bytes):
        return file
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise DataError(f"'{file}' cannot be read: {error.strerror}", path=str(file)) from None


# ---------------------------------------------------------------- patience


@dataclass(frozen=True, slots=True)
class _Ask:
    """A request to send, and the seconds that each of its steps may take."""

    method: str
    path: str
    options: Mapping[str, Any]
    timeout: float


Answer = httpx2.Response | httpx2.TransportError | None
Plan = Generator[_Ask | float, Answer, T]
"""What a call does: requests to send and seconds to wait; then its result."""


def _pause_of(response: httpx2.Response) -> float | None:
    """The seconds that ``Retry-After`` asks for, as a number or as a date (RFC 9110, 10.2.3)."""
    text = response.headers.get("retry-after", "")
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        moment = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max((moment - datetime.now(UTC)).total_seconds(), 0.0)


class _Calls:
    """What both clients have in common: everything but how they send and how they wait.

    Args:
        base_url: where the service is.
        api_key: absent: the environment variable ``ANOMALY_VAE_API_KEY``, if it is set.
        timeout: seconds to wait for a connection, or for the next bytes.
        deadline: seconds in which a request may be begun again; a call of more records or files
            than fit into one makes several requests.
        attempts: how often a request is sent at the most.
        max_records: records or files in one request.
        max_body_bytes: bytes in one request.
        random: what pauses are varied with, so that clients do not come back all at once.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        timeout: float = 10.0,
        deadline: float = 60.0,
        attempts: int = 5,
        max_records: int = MAX_RECORDS,
        max_body_bytes: int = MAX_BODY_BYTES,
        random: Random | None = None,
    ) -> None:
        if not base_url.startswith(("http://", "https://")):
            raise ConfigError(f"'{base_url}': expected http://… or https://…", key="base_url")
        key = os.environ.get(KEY_VARIABLE) if api_key is None else api_key
        headers = {"User-Agent": f"anomaly-vae/{__version__}", "Accept": "application/json"}
        self._settings: dict[str, Any] = {
            "base_url": base_url,
            "headers": {**headers, **({"Authorization": f"Bearer {key}"} if key else {})},
        }
        self._timeout, self._deadline, self._attempts = timeout, deadline, attempts
        self._max_records, self._max_body_bytes = max_records, max_body_bytes
        self._random = random or Random()  # noqa: S311  # no secret hangs on it
        self._connect()

    def _connect(self) -> None:
        raise NotImplementedError

    # ------------------------------------------------------------ calls

    def _score(
        self, records: Iterable[Record], model: str | None, explain: Explain
    ) -> Plan[Scores]:
        tail = b'],"explain":%b}' % _encode(explain)
        parts = (_json_of(number, record) for number, record in enumerate(_rows(records)))
        limit = self._max_body_bytes - len(HEAD + tail)
        bodies = (
            (offset, {"content": HEAD + b",".join(run) + tail, "headers": JSON})
            for offset, run in _split(parts, self._max_records, limit, 1)
        )
        return self._collect(_path(model), bodies)

    def _score_images(
        self, files: Iterable[File], model: str | None, explain: Explain, heatmap: bool
    ) -> Plan[Scores]:
        query = {"explain": explain, **({"heatmap": "png"} if heatmap else {})}
        contents = map(_content, files)
        limit = self._max_body_bytes - PART_BYTES  # what ends a form
        bodies = (
            (offset, {"files": [("files", ("image", one)) for one in run], "params": query})
            for offset, run in _split(contents, self._max_records, limit, PART_BYTES)
        )
        return self._collect(_path(model), bodies)

    def _collect(self, path: str, bodies: Iterable[tuple[int, Mapping[str, Any]]]) -> Plan[Scores]:
        """The scores of several requests as those of one."""
        whole: Scores | None = None
        for offset, body in bodies:
            response = yield from self._request("POST", path, body, offset)
            whole = _joined(whole, _decoded(response, Scores), offset)
        assert whole is not None, "nothing to score is an error"
        return whole

    def _models(self) -> Plan[tuple[ModelInfo, ...]]:
        response = yield from self._request("GET", "/models", {})
        return _decoded(response, Models).models

    def _metrics(self) -> Plan[str]:
        plain = {"headers": {"Accept": "text/plain"}}
        response = yield from self._request("GET", "/metrics", plain)
        return response.text

    def _ready(self) -> Plan[bool]:
        answer = yield _Ask("GET", "/health/ready", {}, self._timeout)
        return isinstance(answer, httpx2.Response) and answer.status_code == 200

    # ------------------------------------------------------------ one request

    def _request(
        self, method: str, path: str, options: Mapping[str, Any], offset: int = 0
    ) -> Plan[httpx2.Response]:
        """Send until there is an answer for good, or patience runs out."""
        end = time.monotonic() + self._deadline
        for attempt in range(1, self._attempts + 1):
            left = end - time.monotonic()
            answer = yield _Ask(method, path, options, min(self._timeout, max(left, 0.001)))
            if isinstance(answer, httpx2.Response) and answer.is_success:
                return answer
            error, pause = self._judged(answer, attempt, offset)
            if pause is None or attempt == self._attempts or time.monotonic() + pause > end:
                raise error
            yield pause
        raise AssertionError("the last attempt returns or raises")

    def _judged(
        self, answer: Answer, attempt: int, offset: int
    ) -> tuple[ServiceError, float | None]:
        """What went wrong, and the seconds after which to try again, if at all."""
        longest = min(FIRST_PAUSE * 2 ** (attempt - 1), LONGEST_PAUSE)
        spread = self._random.uniform(0.0, longest)
        if not isinstance(answer, httpx2.Response):
            said = str(answer) or type(answer).__name__
            return UnreachableError(f"no answer from {self._settings['base_url']}: {said}"), spread
        error = error_of(problem_of(answer, offset))
        if answer.status_code not in AGAIN:
            return error, None
        return error, (_pause_of(answer) or 0.0) + spread


def _path(model: str | None) -> str:
    return "/score" if model is None else f"/models/{quote(model, safe='')}/score"


def _joined(whole: Scores | None, scores: Scores, offset: int) -> Scores:
    """Scores and those of the next request, whose files are counted on."""
    if whole is None:
        return scores
    if (whole.model, whole.threshold) != (scores.model, scores.threshold):
        raise FailedError("another model took over between two requests; score them again")
    moved = (
        one if one.file is None else dataclasses.replace(one, file=one.file + offset)
        for one in scores.results
    )
    return dataclasses.replace(scores, results=(*whole.results, *moved))


def _decoded(response: httpx2.Response, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(response.content, type=kind)
    except msgspec.MsgspecError as error:
        raise FailedError(f"{response.url} answers something else: {error}") from None


# ---------------------------------------------------------------- clients


class Client(_Calls):
    """The service as functions that wait for its answer; threads may share one.

    Its arguments are those of `_Calls`: ``base_url`` and, by keyword, ``api_key``, ``timeout``,
    ``deadline``, ``attempts``, ``max_records``, ``max_body_bytes``, ``random``.
    """

    def score(
        self, records: Iterable[Record], *, model: str | None = None, explain: Explain = 0
    ) -> Scores:
        """Score records or the rows of a data frame (pandas, polars, pyarrow).

        Args:
            records: None and NaN are missing; as many as you like.
            model: its name, where several are served.
            explain: how many contributions to list of each, or ``"all"``.

        Raises:
            RecordError: a value that cannot be sent; nothing was scored then.
            ServiceError: there are no scores, and why.
        """
        return self._run(self._score(records, model, explain))

    def score_images(
        self,
        files: Iterable[File],
        *,
        model: str | None = None,
        explain: Explain = 0,
        heatmap: bool = False,
    ) -> Scores:
        """Score images, given as paths or as the content of files; one result for each frame.

        Args:
            files: PNG, JPEG, TIFF, DICOM or NIfTI.
            model: its name, where several are served.
            explain: how many pixels to list of each, or ``"all"``.
            heatmap: whether to draw each, and find its regions.

        Raises:
            DataError: a file that cannot be read.
            ServiceError: there are no scores, and why.
        """
        return self._run(self._score_images(files, model, explain, heatmap))

    def models(self) -> tuple[ModelInfo, ...]:
        """What is loaded."""
        return self._run(self._models())

    def ready(self) -> bool:
        """Whether the service takes requests now; asked once."""
        return self._run(self._ready())

    def metrics(self) -> str:
        """The metrics, as Prometheus reads them."""
        return self._run(self._metrics())

    def close(self) -> None:
        """Let go of the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _connect(self) -> None:
        self._http = httpx2.Client(**self._settings)

    def _run(self, plan: Plan[T]) -> T:
        answer: Answer = None
        while True:
            try:
                answer = self._do(plan.send(answer))
            except StopIteration as end:
                done: T = end.value
                return done

    def _do(self, step: _Ask | float) -> Answer:
        if not isinstance(step, _Ask):
            time.sleep(step)
            return None
        try:
            return self._http.request(step.method, step.path, timeout=step.timeout, **step.options)
        except httpx2.TransportError as error:
            return error


class AsyncClient(_Calls):
    """The service as coroutines; the same arguments and calls as `Client`."""

    async def score(
        self, records: Iterable[Record], *, model: str | None = None, explain: Explain = 0
    ) -> Scores:
        """As `Client.score`."""
        return await self._run(self._score(records, model, explain))

    async def score_images(
        self,
        files: Iterable[File],
        *,
        model: str | None = None,
        explain: Explain = 0,
        heatmap: bool = False,
    ) -> Scores:
        """As `Client.score_images`."""
        return await self._run(self._score_images(files, model, explain, heatmap))

    async def models(self) -> tuple[ModelInfo, ...]:
        """What is loaded."""
        return await self._run(self._models())

    async def ready(self) -> bool:
        """Whether the service takes requests now; asked once."""
        return await self._run(self._ready())

    async def metrics(self) -> str:
        """The metrics, as Prometheus reads them."""
        return await self._run(self._metrics())

    async def close(self) -> None:
        """Let go of the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _connect(self) -> None:
        self._http = httpx2.AsyncClient(**self._settings)

    async def _run(self, plan: Plan[T]) -> T:
        answer: Answer = None
        while True:
            try:
                answer = await self._do(plan.send(answer))
            except StopIteration as end:
                done: T = end.value
                return done

    async def _do(self, step: _Ask | float) -> Answer:
        if not isinstance(step, _Ask):
            await asyncio.sleep(step)
            return None
        try:
            return await self._http.request(
                step.method, step.path, timeout=step.timeout, **step.options
            )
        except httpx2.TransportError as error:
            return error

"""Call the service: one client blocks until each answer arrives, the other is for asyncio.

A request that arrives twice changes nothing more. It is therefore sent again if the connection
fails or the service is busy (429) or not ready (503), no earlier than its ``Retry-After`` allows.

Needs ``pip install 'anomaly-vae[client]'`` and none of the libraries that train or score.
"""

from __future__ import annotations

import asyncio
import dataclasses
import email.utils
import os
import time
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any, Literal, Self, TypeVar
from urllib.parse import quote

import httpx2
import msgspec

from anomaly_vae._version import __version__
from anomaly_vae.client.errors import (
    RETRY_STATUSES,
    FailedError,
    ServiceError,
    UnreachableError,
    error_of,
    problem_of,
)
from anomaly_vae.client.records import Record, encode_record, rows_of
from anomaly_vae.client.types import (
    Fault,
    Feedback,
    ModelInfo,
    Models,
    RecordedEvents,
    Result,
    Scores,
)
from anomaly_vae.errors import ConfigError, DataError, RecordError

__all__ = ["AsyncClient", "Client"]

KEY_VARIABLE = "ANOMALY_VAE_API_KEY"
MAX_RECORDS = 10_000
MAX_BODY_BYTES = 16 * 1024**2
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 8.0
"""Upper bounds of the random pause after the first and after any attempt, in seconds.

The random pause is added to ``Retry-After``."""
SPLIT_GROUPS = "the images took several requests, so that groups are not decided; send fewer"
"""Warning about images of groups that are in different requests."""
PART_BYTES = 256
"""Upper bound of the bytes that a file adds to a form besides its content."""
LABELS_HEAD, LABELS_TAIL = b'{"labels":[', b"]}"
HEAD, JSON = b'{"records":[', {"Content-Type": "application/json"}
UNSENT = b"null"
"""Record that is sent in place of one that cannot be sent."""

T = TypeVar("T")
File = str | Path | bytes
Explain = int | Literal["all"]
Errors = Literal["refuse", "per_record"]
Faults = dict[int, Fault]
"""Faults of records that cannot be sent, by their position."""

_encode = msgspec.json.Encoder().encode


# ---------------------------------------------------------------- request bodies


def _batches(
    parts: Iterable[bytes], max_parts: int, max_bytes: int, overhead: int
) -> Iterator[tuple[int, list[bytes]]]:
    """Group parts into batches, each with the number of its first part.

    Each part counts its own bytes and ``overhead``. A part that exceeds ``max_bytes`` is sent in a
    batch of its own.
    """
    start, size, batch = 0, 0, list[bytes]()
    for number, part in enumerate(parts):
        if batch and (len(batch) == max_parts or size + len(part) + overhead > max_bytes):
            yield start, batch
            start, size, batch = number, 0, []
        batch.append(part)
        size += len(part) + overhead
    if not batch and not start:
        raise DataError("there is nothing to send; give at least one record, file or label")
    yield start, batch


def _read_file(file: File) -> bytes:
    if isinstance(file, bytes):
        return file
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise DataError(f"'{file}' cannot be read: {error.strerror}", path=str(file)) from None


# ---------------------------------------------------------------- requests and retries


@dataclass(frozen=True, slots=True)
class _Request:
    """A request to send; ``timeout`` is in seconds and applies to each of its steps."""

    method: str
    path: str
    options: Mapping[str, Any]
    timeout: float


Answer = httpx2.Response | httpx2.TransportError | None
Plan = Generator[_Request | float, Answer, T]
"""The steps of a call: requests to send and pauses in seconds; it returns the call's result."""


def _retry_after(response: httpx2.Response) -> float | None:
    """Return the seconds that ``Retry-After`` asks for, as a number or date (RFC 9110, 10.2.3)."""
    text = response.headers.get("retry-after", "")
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        moment = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max((moment - datetime.now(UTC)).total_seconds(), 0.0)


class _BaseClient:
    """Everything that both clients share; they differ in how they send and wait.

    Args:
        base_url: address of the service, such as ``http://localhost:8000``.
        api_key: default: the environment variable ``ANOMALY_VAE_API_KEY``, if it is set.
        timeout: seconds to wait for a connection, or for the next bytes.
        deadline: seconds after its first attempt in which a request may be sent again. A call
            whose records or files exceed one request sends several requests.
        attempts: maximum number of times that a request is sent.
        max_records: maximum number of records or files in one request.
        max_body_bytes: maximum number of bytes in one request.
        random: source of the random part of pauses, which spreads the retries of many clients.

    Raises:
        ConfigError: ``base_url`` is not an HTTP address.
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
        self._random = random or Random()  # noqa: S311  # not used for secrets
        self._connect()

    def _connect(self) -> None:
        raise NotImplementedError

    # ------------------------------------------------------------ calls

    def _score(
        self, records: Iterable[Record], model: str | None, explain: Explain, errors: Errors
    ) -> Plan[Scores]:
        tail = b'],"explain":%b}' % _encode(explain)
        faults: Faults | None = None
        if errors != "refuse":
            tail, faults = b'%b,"errors":%b}' % (tail.removesuffix(b"}"), _encode(errors)), {}
        parts = (_part(number, record, faults) for number, record in enumerate(rows_of(records)))
        max_bytes = self._max_body_bytes - len(HEAD + tail)
        bodies = (
            (offset, {"content": HEAD + b",".join(batch) + tail, "headers": JSON})
            for offset, batch in _batches(parts, self._max_records, max_bytes, overhead=1)
        )
        scores = yield from self._collect(_path(model), bodies)
        return _with_faults(scores, faults) if faults else scores

    def _score_images(
        self,
        files: Iterable[File],
        model: str | None,
        explain: Explain,
        heatmap: bool,
        group: str | None,
    ) -> Plan[Scores]:
        query = {"explain": explain, **({"heatmap": "png"} if heatmap else {})}
        query |= {"group": group} if group else {}
        contents = map(_read_file, files)
        max_bytes = self._max_body_bytes - PART_BYTES  # room for the end of the form
        bodies = (
            (offset, {"files": [("files", ("image", one)) for one in batch], "params": query})
            for offset, batch in _batches(contents, self._max_records, max_bytes, PART_BYTES)
        )
        return self._collect(_path(model), bodies)

    def _collect(self, path: str, bodies: Iterable[tuple[int, Mapping[str, Any]]]) -> Plan[Scores]:
        """Join the scores of several requests as if one request had returned them."""
        whole: Scores | None = None
        for offset, body in bodies:
            response = yield from self._request("POST", path, body, offset)
            whole = _append(whole, _decode(response, Scores), offset)
        assert whole is not None, "an empty call has been refused"
        return whole

    def _record_events(
        self, events: Iterable[Record], labels: Iterable[Record], model: str | None
    ) -> Plan[RecordedEvents]:
        counts = Counter[str]()
        warnings: list[str] = []
        tail = b'],"model":%b}' % _encode(model)
        for head, records in ((b'{"events":[', events), (b'{"labels":[', labels)):
            rows = list(rows_of(records))
            parts = (encode_record(number, row) for number, row in enumerate(rows))
            max_bytes = self._max_body_bytes - len(head + tail)
            batches = _batches(parts, self._max_records, max_bytes, overhead=1) if rows else ()
            for offset, batch in batches:
                body = {"content": head + b",".join(batch) + tail, "headers": JSON}
                response = yield from self._request("POST", "/events", body, offset)
                answer = _decode(response, RecordedEvents)
                counts.update(msgspec.structs.asdict(answer.events))
                counts.update(msgspec.structs.asdict(answer.labels))
                warnings += answer.warnings
        return msgspec.convert(
            {"events": counts, "labels": counts, "warnings": warnings}, RecordedEvents
        )

    def _feedback(self, labels: Iterable[Record], model: str | None) -> Plan[Feedback]:
        named = (_with_model(label, model) for label in rows_of(labels))
        parts = (encode_record(number, label) for number, label in enumerate(named))
        max_bytes = self._max_body_bytes - len(LABELS_HEAD + LABELS_TAIL)
        whole = Feedback(0, 0, ())
        for offset, batch in _batches(parts, self._max_records, max_bytes, overhead=1):
            body = {"content": LABELS_HEAD + b",".join(batch) + LABELS_TAIL, "headers": JSON}
            response = yield from self._request("POST", "/feedback", body, offset)
            whole = _join(whole, _decode(response, Feedback))
        return whole

    def _models(self) -> Plan[tuple[ModelInfo, ...]]:
        response = yield from self._request("GET", "/models", {})
        return _decode(response, Models).models

    def _metrics(self) -> Plan[str]:
        plain = {"headers": {"Accept": "text/plain"}}
        response = yield from self._request("GET", "/metrics", plain)
        return response.text

    def _ready(self) -> Plan[bool]:
        answer = yield _Request("GET", "/health/ready", {}, self._timeout)
        return isinstance(answer, httpx2.Response) and answer.status_code == 200

    # ------------------------------------------------------------ one request

    def _request(
        self, method: str, path: str, options: Mapping[str, Any], offset: int = 0
    ) -> Plan[httpx2.Response]:
        """Send a request, again if that may help, until it succeeds or the limits are reached."""
        end = time.monotonic() + self._deadline
        for attempt in range(1, self._attempts + 1):
            left = end - time.monotonic()
            answer = yield _Request(method, path, options, min(self._timeout, max(left, 0.001)))
            if isinstance(answer, httpx2.Response) and answer.is_success:
                return answer
            error, pause = self._failure(answer, attempt, offset)
            if pause is None or attempt == self._attempts or time.monotonic() + pause > end:
                raise error
            yield pause
        raise AssertionError("the last attempt returns or raises")

    def _failure(
        self, answer: Answer, attempt: int, offset: int
    ) -> tuple[ServiceError, float | None]:
        """Return the error, and the pause in seconds before the next attempt; None: give up."""
        longest = min(FIRST_PAUSE * 2 ** (attempt - 1), LONGEST_PAUSE)
        jitter = self._random.uniform(0.0, longest)
        if not isinstance(answer, httpx2.Response):
            reason = str(answer) or type(answer).__name__
            message = f"no answer from {self._settings['base_url']}: {reason}"
            return UnreachableError(message), jitter
        status = answer.status_code
        error = error_of(problem_of(answer.content, status, answer.reason_phrase, offset))
        if status not in RETRY_STATUSES:
            return error, None
        return error, (_retry_after(answer) or 0.0) + jitter


def _path(model: str | None) -> str:
    return "/score" if model is None else f"/models/{quote(model, safe='')}/score"


def _part(number: int, record: Record, faults: Faults | None) -> bytes:
    """Encode a record; add the fault of one that cannot be sent to ``faults``, if it is a dict."""
    try:
        return encode_record(number, record)
    except RecordError as error:
        if faults is None:
            raise
        faults[number] = Fault(error.field, error.reason)
        return UNSENT


def _with_model(label: Record, model: str | None) -> Record:
    """Add the name of the model to a label that names none."""
    if model is None or not hasattr(label, "keys") or label.get("model") is not None:
        return label  # `encode_record` refuses what is no mapping
    return {**label, "model": model}


def _with_faults(scores: Scores, faults: Faults) -> Scores:
    """Put the faults of records that were not sent in the places of their results."""
    results = (
        Result(error=faults[number]) if number in faults else result
        for number, result in enumerate(scores.results)
    )
    return dataclasses.replace(scores, results=tuple(results))


def _append(whole: Scores | None, scores: Scores, offset: int) -> Scores:
    """Append the scores of the next request, whose files are numbered from ``offset``."""
    if whole is None:
        return scores
    if (whole.model, whole.threshold) != (scores.model, scores.threshold):
        raise FailedError("another model took over between two requests; score them again")
    moved = (
        one if one.file is None else msgspec.structs.replace(one, file=one.file + offset)
        for one in scores.results
    )
    warnings = [f"counted from {offset}: {warning}" for warning in scores.warnings]
    if whole.groups or scores.groups:
        warnings.append(SPLIT_GROUPS)
    return dataclasses.replace(
        scores,
        groups=(),
        results=(*whole.results, *moved),
        ignored=tuple(sorted({*whole.ignored, *scores.ignored})),
        warnings=(*whole.warnings, *warnings),
    )


def _join(whole: Feedback, more: Feedback) -> Feedback:
    ignored = tuple(sorted({*whole.ignored, *more.ignored}))
    results = (*whole.results, *more.results)
    return Feedback(whole.stored + more.stored, whole.unchanged + more.unchanged, results, ignored)


def _decode(response: httpx2.Response, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(response.content, type=kind)
    except msgspec.MsgspecError as error:
        raise FailedError(f"{response.url} answers something else: {error}") from None


# ---------------------------------------------------------------- clients


class Client(_BaseClient):
    """A client whose calls block until the answer arrives; threads may share one.

    Args:
        base_url: address of the service, such as ``http://localhost:8000``.
        api_key: default: the environment variable ``ANOMALY_VAE_API_KEY``, if it is set.
        timeout: seconds to wait for a connection, or for the next bytes.
        deadline: seconds after its first attempt in which a request may be sent again.
        attempts: maximum number of times that a request is sent.
        max_records: maximum number of records or files in one request.
        max_body_bytes: maximum number of bytes in one request.
        random: source of the random part of pauses between attempts.

    Raises:
        ConfigError: ``base_url`` is not an HTTP address.

    >>> with Client("http://localhost:8000") as client:  # doctest: +SKIP
    ...     for result in client.score([{"amount": 900, "channel": "online"}], explain=3):
    ...         print(result.score, result.is_anomaly, result.contributions[0].feature)
    96.21 True amount
    """

    def score(
        self,
        records: Iterable[Record],
        *,
        model: str | None = None,
        explain: Explain = 0,
        errors: Errors = "refuse",
    ) -> Scores:
        """Score N records or the rows of a data frame (pandas, polars, pyarrow).

        Args:
            records: any number; None, NaN, NaT and NA mean missing. More than ``max_records`` or
                ``max_body_bytes`` are sent in several requests.
            model: name of the model; needed if the service has several.
            explain: number of contributions to list for each record, or ``"all"``.
            errors: ``"refuse"`` to raise an error if any record cannot be scored,
                ``"per_record"`` to give each such record a result with an ``error``.

        Returns:
            N results in the order of the records; `Scores.to_table` makes a table of them.

        Raises:
            DataError: there are no records.
            RecordError: a value cannot be sent; earlier requests of the call may have been scored.
            RefusedError: the service refused a record; ``problem.errors`` names it.
            ServiceError: the service returned no scores for another reason.

        >>> records = [{"amount": 900, "channel": "online"}, {"amount": None}]
        >>> with Client("http://localhost:8000") as client:  # doctest: +SKIP
        ...     scores = client.score(records)
        >>> [result.is_anomaly for result in scores]  # doctest: +SKIP
        [True, False]
        """
        return self._run(self._score(records, model, explain, errors))

    def score_images(
        self,
        files: Iterable[File],
        *,
        model: str | None = None,
        explain: Explain = 0,
        heatmap: bool = False,
        group: str | None = None,
    ) -> Scores:
        """Score images, given as paths or as the content of files.

        Args:
            files: Image files (PNG, JPEG, TIFF, DICOM, NIfTI, …), each with one or more frames.
            model: name of the model; needed if the service has several.
            explain: number of regions to list for each image, or ``"all"``.
            heatmap: whether to return a heatmap (PNG) and the regions found in each image.
            group: kind of group, such as ``"patient"``, that all these images are of, if the model
                has a threshold for such groups.

        Returns:
            One result for each frame, with the numbers of its ``file`` and ``frame``, and the
            ``groups`` that the model has thresholds for.

        Raises:
            DataError: a file cannot be read, or there are none.
            RefusedError: the service cannot read an image; ``problem.errors`` names the file.
            ServiceError: the service returned no scores for another reason.

        >>> with Client("http://localhost:8000") as client:  # doctest: +SKIP
        ...     (result,) = client.score_images(["scan.dcm"], heatmap=True)
        >>> Path("heatmap.png").write_bytes(result.heatmap)  # doctest: +SKIP
        """
        return self._run(self._score_images(files, model, explain, heatmap, group))

    def record_events(
        self,
        events: Iterable[Record] = (),
        labels: Iterable[Record] = (),
        *,
        model: str | None = None,
    ) -> RecordedEvents:
        """Record events that are not scored, and labels, so that entity windows know them.

        An event with an id counts once, however often it is sent.

        Args:
            events: records as for `score`, or a data frame.
            labels: mappings with ``id``, ``label`` (anomaly, normal or unsure, or a value of the
                label column) and ``at``, the time from which the label is known; default: now.
            model: name of the model; None for all that have windows.

        Returns:
            What became of the events and labels.

        Raises:
            RecordError: a value cannot be sent.
            RefusedError: the service refused a record, or has no such model.
            ServiceError: the service recorded nothing for another reason.

        >>> with Client("http://localhost:8000") as client:  # doctest: +SKIP
        ...     client.record_events(labels=[{"id": 7, "label": "anomaly"}]).labels.known
        1
        """
        return self._run(self._record_events(events, labels, model))

    def feedback(self, labels: Iterable[Record], *, model: str | None = None) -> Feedback:
        """Return verdicts of reviewers on N rows to the service.

        A label that the service has already is unchanged, so the same labels may be sent again.

        Args:
            labels: mappings with ``id``, ``label`` (anomaly, normal or unsure) and, if known,
                ``at`` (time of the verdict), ``note`` and ``model``; or the rows of a data frame.
            model: name of the model of the labels that name none; needed if the service has
                several.

        Returns:
            The numbers of labels stored and unchanged, and N results in the order of the labels.

        Raises:
            DataError: there are no labels.
            RecordError: a value cannot be sent.
            RefusedError: the service refused a label; ``problem.errors`` names it. Labels of
                earlier requests of the call are stored.
            ServiceError: the service stored no labels for another reason.

        >>> with Client("http://localhost:8000") as client:  # doctest: +SKIP
        ...     client.feedback([{"id": 7, "label": "anomaly", "note": "card stolen"}]).stored
        1
        """
        return self._run(self._feedback(labels, model))

    def models(self) -> tuple[ModelInfo, ...]:
        """Return the loaded models.

        Raises:
            ServiceError: the service did not answer, or refused.

        >>> with Client("http://localhost:8000") as client:  # doctest: +SKIP
        ...     [(model.name, model.version) for model in client.models()]
        [('fraud', '3')]
        """
        return self._run(self._models())

    def ready(self) -> bool:
        """Return whether the service takes requests now; the request is not repeated.

        >>> with Client("http://localhost:8000") as client:  # doctest: +SKIP
        ...     client.ready()
        True
        """
        return self._run(self._ready())

    def metrics(self) -> str:
        """Return the metrics in Prometheus's text format.

        Raises:
            ServiceError: the service did not answer, or refused.

        >>> with Client("http://localhost:8000") as client:  # doctest: +SKIP
        ...     "anomaly_vae_scored_records_total" in client.metrics()
        True
        """
        return self._run(self._metrics())

    def close(self) -> None:
        """Close the connections."""
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
                answer = self._perform(plan.send(answer))
            except StopIteration as end:
                result: T = end.value
                return result

    def _perform(self, step: _Request | float) -> Answer:
        if not isinstance(step, _Request):
            time.sleep(step)
            return None
        try:
            return self._http.request(step.method, step.path, timeout=step.timeout, **step.options)
        except httpx2.TransportError as error:
            return error


class AsyncClient(_BaseClient):
    """A client whose calls are coroutines; arguments, calls and errors are those of `Client`.

    >>> async def score(records):
    ...     async with AsyncClient("http://localhost:8000") as client:
    ...         return await client.score(records)
    >>> asyncio.run(score([{"amount": 900}]))[0].is_anomaly  # doctest: +SKIP
    True
    """

    async def score(
        self,
        records: Iterable[Record],
        *,
        model: str | None = None,
        explain: Explain = 0,
        errors: Errors = "refuse",
    ) -> Scores:
        """Score records; see `Client.score`."""
        return await self._run(self._score(records, model, explain, errors))

    async def score_images(
        self,
        files: Iterable[File],
        *,
        model: str | None = None,
        explain: Explain = 0,
        heatmap: bool = False,
        group: str | None = None,
    ) -> Scores:
        """Score images; see `Client.score_images`."""
        return await self._run(self._score_images(files, model, explain, heatmap, group))

    async def record_events(
        self,
        events: Iterable[Record] = (),
        labels: Iterable[Record] = (),
        *,
        model: str | None = None,
    ) -> RecordedEvents:
        """Record events and labels; see `Client.record_events`."""
        return await self._run(self._record_events(events, labels, model))

    async def feedback(self, labels: Iterable[Record], *, model: str | None = None) -> Feedback:
        """Return verdicts of reviewers; see `Client.feedback`."""
        return await self._run(self._feedback(labels, model))

    async def models(self) -> tuple[ModelInfo, ...]:
        """Return the loaded models; see `Client.models`."""
        return await self._run(self._models())

    async def ready(self) -> bool:
        """Return whether the service takes requests now; see `Client.ready`."""
        return await self._run(self._ready())

    async def metrics(self) -> str:
        """Return the metrics in Prometheus's text format; see `Client.metrics`."""
        return await self._run(self._metrics())

    async def close(self) -> None:
        """Close the connections."""
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
                answer = await self._perform(plan.send(answer))
            except StopIteration as end:
                result: T = end.value
                return result

    async def _perform(self, step: _Request | float) -> Answer:
        if not isinstance(step, _Request):
            await asyncio.sleep(step)
            return None
        try:
            return await self._http.request(
                step.method, step.path, timeout=step.timeout, **step.options
            )
        except httpx2.TransportError as error:
            return error

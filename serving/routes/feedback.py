"""Define the route by which reviewers return their verdicts on rows."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from typing import Annotated, NamedTuple

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from anomaly_vae.client.types import BadRecord, Feedback, FeedbackResult
from anomaly_vae.data.times import parse_time
from anomaly_vae.errors import DataError, WindowStoreError
from anomaly_vae.features.definition import MICROSECONDS
from anomaly_vae.features.store.store import Label as EventLabel
from anomaly_vae.features.store.store import now_in_microseconds
from anomaly_vae.review.labels import MAX_NAME, MAX_NOTE, Label, Verdict
from serving.models.store import Store
from serving.observability import logs
from serving.openapi import DocumentedRoute, json_route
from serving.paths import FEEDBACK, HEADERS
from serving.problems import (
    INVALID_LABEL,
    INVALID_REQUEST,
    MALFORMED,
    NO_LABEL_STORE,
    NOT_READY,
    STORE_DOWN,
    TOO_LARGE,
    TOO_MANY_RECORDS,
    UNSUPPORTED,
    WINDOWS_DOWN,
    ProblemError,
)
from serving.review.label_writer import LabelWriter
from serving.scoring import requests, responses
from serving.scoring.handlers import Resources
from serving.scoring.windows import WindowStores
from serving.settings import Settings

ANONYMOUS = "anonymous"
"""Name of the reviewer if the service needs no key."""
SUMMARY = "Return verdicts of reviewers on scored rows."
MISSING = re.compile(r"missing required field '(\w+)'")
"""Pattern of msgspec's reason for a missing key."""
ERRORS = (
    MALFORMED, NO_LABEL_STORE, TOO_LARGE, TOO_MANY_RECORDS, UNSUPPORTED, INVALID_REQUEST,
    INVALID_LABEL, STORE_DOWN, WINDOWS_DOWN, NOT_READY,
)  # fmt: skip
"""Errors of the route, besides those of every route."""


Name = Annotated[str, msgspec.Meta(extra_json_schema={"maxLength": MAX_NAME})]
Note = Annotated[str, msgspec.Meta(extra_json_schema={"maxLength": MAX_NOTE})]
"""Texts of limited lengths, which `Label.of` checks with messages of its own."""


class FeedbackLabel(msgspec.Struct, frozen=True, kw_only=True):
    """A verdict on the row with this id; ``model`` may be left out if one model is served.

    ``at`` is the time of the verdict (ISO 8601), by default now; ``note`` is its reason.
    """

    id: Name | int | float | bool
    label: Verdict
    model: Name | None = None
    at: str | None = None
    note: Note | None = None


class FeedbackRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Verdicts, all of which are stored, or none if one of them is refused."""

    labels: list[FeedbackLabel]


class _RawRequest(msgspec.Struct, frozen=True):
    labels: list[msgspec.Raw]


_request_decoder = msgspec.json.Decoder(_RawRequest)
_label_decoder = msgspec.json.Decoder(FeedbackLabel)


class Decoded(NamedTuple):
    """The labels of a body, and the keys that are unknown."""

    labels: list[Label]
    ignored: list[str]


def routes(
    store: Store, resources: Resources, writer: LabelWriter | None, windows: WindowStores
) -> list[DocumentedRoute]:
    """Create `POST /feedback`, which only names the remedy if there is no label store."""

    async def feedback(request: Request) -> Response:
        if writer is None:
            detail = "this service keeps no labels; set ANOMALY_VAE_LABELS to a label store"
            raise ProblemError(NO_LABEL_STORE, detail)
        return await _answer(request, store, resources, writer, windows)

    example = {"labels": [{"id": 7, "label": "anomaly", "note": "card stolen"}]}
    return [
        json_route(
            "POST", FEEDBACK, feedback, SUMMARY, Feedback, *ERRORS,
            body=FeedbackRequest, example=example,
        )
    ]  # fmt: skip


async def _answer(
    request: Request,
    store: Store,
    resources: Resources,
    writer: LabelWriter,
    windows: WindowStores,
) -> Response:
    """Read, decode and store labels; all but the reading happens on the thread of the store."""
    headers, log_fields = request.scope[HEADERS], request.scope[logs.LOG_FIELDS]
    settings = resources.settings
    requests.check_media_type(headers, "")
    size = requests.declared_size(headers, settings.max_body_bytes)
    writer.admission.admit(size)
    try:
        body = await resources.read_body(request.receive)
        who, models = log_fields.get("client", ANONYMOUS), list(store.current)
        answer = await writer.run(_store, body, models, who, settings, writer, windows)
    finally:
        writer.admission.release(size)
    log_fields["labels"] = len(answer.results)
    return responses.response(answer)


def _store(
    body: bytes,
    models: Sequence[str],
    who: str,
    settings: Settings,
    writer: LabelWriter,
    windows: WindowStores,
) -> Feedback:
    labels, ignored = decode(body, models, who, settings)
    _tell_windows(labels, windows)  # first, so that nothing is stored if the request is refused
    added = writer.add(labels)
    results = tuple(
        FeedbackResult(label.id, label.model, label.label, "stored" if is_new else "unchanged")
        for label, is_new in zip(labels, added, strict=True)
    )
    return Feedback(sum(added), len(added) - sum(added), results, tuple(ignored))


def _tell_windows(labels: Sequence[Label], windows: WindowStores) -> None:
    """Label the events of the models with entity windows, whose risks the labels change.

    Raises:
        ProblemError: the window store cannot be used, and the settings refuse such requests.
    """
    for model in {label.model for label in labels}:
        known = [_known(label) for label in labels if label.model == model]
        try:
            for served in windows.layouts(model):
                assert served.windows
                windows.label(served.windows, known)
        except WindowStoreError:
            windows.refuse_if_down()


def _known(label: Label) -> EventLabel:
    at = now_in_microseconds() if label.at is None else round(label.at * MICROSECONDS)
    return EventLabel(label.id, label.label == "anomaly", at)


def decode(body: bytes, models: Sequence[str], who: str, settings: Settings) -> Decoded:
    """Decode and check the labels in a body.

    Args:
        body: the body.
        models: names of the models that are served.
        who: name of the reviewer.
        settings: limits, and what happens to unknown keys.

    Raises:
        ProblemError: the body is no such request, or a label is bad; every bad one is named.
    """
    raw = requests.parse(_request_decoder, body).labels
    if not raw:
        raise ProblemError(INVALID_REQUEST, "'labels' is empty; send at least one label")
    requests.check_count(len(raw), settings.max_records, "labels")
    if not models:
        raise ProblemError(NOT_READY, "no model is loaded", headers=settings.retry_headers)
    labels, bad = list[Label](), list[BadRecord]()
    for number, one in enumerate(raw):
        try:
            labels.append(_label(one, models, who))
        except DataError as error:
            bad.append(BadRecord(number, error.column, str(error)))
    if bad:
        raise requests.unfit_records(bad, INVALID_LABEL, "label")
    return Decoded(labels, _unknown_keys(body, raw, settings))


def _label(raw: msgspec.Raw, models: Sequence[str], who: str) -> Label:
    try:
        given = _label_decoder.decode(raw)
    except msgspec.ValidationError as error:
        raise _fault(error) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProblemError(MALFORMED, f"not JSON: {error}") from None
    model = _model(given.model, models)
    return Label.of(model, given.id, given.label, who, _time(given.at), given.note)


def _fault(error: msgspec.ValidationError) -> DataError:
    """Convert an error of msgspec (``reason - at `$.id` ``), naming the key."""
    reason, path = requests.split_reason(error)
    missing = MISSING.search(reason)
    field = missing[1] if missing else path.removeprefix("$").removeprefix(".")
    if field == "label" and not missing:
        reason = "expected anomaly, normal or unsure"
    return DataError(reason, column=field or None)


def _model(given: str | None, models: Sequence[str]) -> str:
    if given is None and len(models) == 1:
        return models[0]
    if given is not None and given in models:
        return given
    known = ", ".join(f"'{name}'" for name in models)
    problem = f"{len(models)} models are served" if given is None else "no such model is served"
    raise DataError(f"{problem}; name one of {known}", column="model")


def _time(given: str | None) -> float | None:
    if given is None:
        return None
    try:
        return parse_time(given)
    except ValueError as error:
        raise DataError(str(error), column="at") from None


def _unknown_keys(body: bytes, raw: Iterable[msgspec.Raw], settings: Settings) -> list[str]:
    """Return the unknown keys as an answer names them.

    Raises:
        ProblemError: there are some, and the settings refuse them.
    """
    outer = requests.parse(requests.keys_decoder, body).keys() - {"labels"}
    inner = {key for one in raw for key in requests.keys_decoder.decode(one)}
    known: Collection[str] = FeedbackLabel.__struct_fields__
    unknown = sorted(outer | (inner - {*known}))
    if unknown and settings.unknown_keys == "refuse":
        raise ProblemError(INVALID_REQUEST, requests.explain_unknown_key(unknown[0], known))
    return requests.quoted_keys(unknown)

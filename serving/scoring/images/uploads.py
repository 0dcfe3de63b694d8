"""Answer `POST /score` for images: split uploads into files, and read the options in the query.

A body is one file, or multipart/form-data (RFC 7578) with files in the field ``files``. It is split
in memory, and nothing is written to disk. The format of a file is detected from its content; its
name and media type are ignored.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.types import Receive, Scope

from anomaly_vae.client.types import BadRecord, Fault, GroupResult, Result
from anomaly_vae.scoring.detector import Detections
from serving.models.store import BodyDescription, Json, ServedModel
from serving.observability import logs
from serving.paths import HEADERS
from serving.problems import INVALID_REQUEST, MALFORMED, TOO_MANY_RECORDS, UNSUPPORTED, ProblemError
from serving.scoring.handlers import RequestHandler, Resources
from serving.scoring.images.groups import GROUP
from serving.scoring.requests import Headers, check_encoding, unfit_records
from serving.settings import Settings

MULTIPART = "multipart/form-data"
RAW = (
    "image/png",
    "image/apng",
    "image/jpeg",
    "image/jpg",
    "image/jls",
    "image/tiff",
    "image/gif",
    "image/bmp",
    "image/x-ms-bmp",
    "image/webp",
    "image/jp2",
    "image/j2c",
    "image/jph",
    "image/jxl",
    "image/x-portable-anymap",
    "image/x-portable-bitmap",
    "image/x-portable-graymap",
    "image/x-portable-pixmap",
    "application/dicom",
    "application/gzip",
    "application/x-gzip",
    "application/octet-stream",
)
"""Media types of a body that is one file."""
FORM_FIELD = "files"
"""Name of the form field with files in a multipart body."""
EXPLAIN, HEATMAP, PNG = "explain", "heatmap", "png"
MAX_BOUNDARY = 70
"""Maximum length of a boundary, in characters (RFC 2046, section 5.1.1)."""
BINARY: Json = {"type": "string", "format": "binary"}
TEXT = f"""Images: PNG, JPEG, TIFF, DICOM, NIfTI and the other formats of docs/scans.md, detected by
their content, each with one or more frames. Send several files as `{FORM_FIELD}` in a form, or one
file as the body:
`curl -F files=@one.dcm -F files=@two.png '…/score?heatmap=png'` or
`curl --data-binary @one.png -H 'Content-Type: image/png' …/score`.
Files are numbered from 0 in the order of the form; their names are not read. An image of a form
that cannot be read or is blank gets an `error` in place of its result; in a body that is one file,
it refuses the request."""

EXPLAIN_SCHEMA: Json = {
    "description": "Number of contributions (for images: regions) to list, or `all`; 0 if absent.",
    "anyOf": [{"type": "integer", "minimum": 0}, {"const": "all"}],
}
QUERY: list[Json] = [
    {
        "name": EXPLAIN,
        "in": "query",
        "schema": EXPLAIN_SCHEMA,
        "description": "For images only.",
    },
    {
        "name": HEATMAP,
        "in": "query",
        "schema": {"type": "string", "enum": [PNG]},
        "description": "For images only: adds a heatmap and its regions to each result.",
    },
]
"""Query parameters in the OpenAPI document."""


@dataclass(frozen=True, slots=True)
class ImageOptions:
    """The requested parts of a result in addition to the decision.

    ``max_contributions`` is the maximum number of contributions to list, None for all; ``heatmap``
    is whether to add a heatmap and regions. ``group`` is the kind of group that all images are of.
    """

    max_contributions: int | None = 0
    heatmap: bool = False
    group: str | None = None

    @property
    def adds_parts(self) -> bool:
        """Whether results have parts besides the decision."""
        return self.heatmap or self.max_contributions != 0


def image_options(query: bytes) -> ImageOptions:
    """Read ``explain=K|all``, ``heatmap=png`` and ``group=KIND`` from a query; refuse others."""
    pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
    values = dict(pairs)
    for name in sorted(values.keys() - {EXPLAIN, HEATMAP, GROUP}):
        there = f"there are '{EXPLAIN}', '{HEATMAP}' and '{GROUP}'"
        detail = f"query: no parameter '{name[:100]}'; {there}"
        raise ProblemError(INVALID_REQUEST, detail)
    if len(values) < len(pairs):
        raise ProblemError(INVALID_REQUEST, "query: give each parameter once")
    explain, heatmap = _read_explain(values.get(EXPLAIN, "0")), _read_heatmap(values.get(HEATMAP))
    return ImageOptions(explain, heatmap, values.get(GROUP))


def _read_explain(text: str) -> int | None:
    if text == "all":
        return None
    number = re.fullmatch(r"([0-9]{1,18})(\.0*)?", text)  # as in JSON, 3.0 is 3
    if not number:
        detail = f"query: '{EXPLAIN}': expected a whole number from 0 up, or 'all'"
        raise ProblemError(INVALID_REQUEST, detail)
    return int(number[1])


def _read_heatmap(text: str | None) -> bool:
    if text not in {None, PNG}:
        raise ProblemError(INVALID_REQUEST, f"query: '{HEATMAP}': expected '{PNG}'")
    return text == PNG


def boundary_of(headers: Headers) -> bytes | None:
    """Return the boundary between the parts of a form; None if the body is a single file.

    Raises:
        ProblemError: the media type is not supported, or the boundary is missing or too long.
    """
    media, parameters = parse_options_header(headers.get(b"content-type"))
    if media.decode("latin-1") not in {MULTIPART, *RAW}:
        detail = f"this model scores images: send files as '{FORM_FIELD}' in {MULTIPART}, "
        detail += f"or one file as the body, as {', '.join(RAW[:-1])} or {RAW[-1]}"
        accepted = {"Accept": ", ".join([MULTIPART, *RAW])}
        raise ProblemError(UNSUPPORTED, detail, headers=accepted)
    check_encoding(headers)
    if media.decode("latin-1") in RAW:
        return None
    boundary = parameters.get(b"boundary", b"")
    if not 1 <= len(boundary) <= MAX_BOUNDARY:
        detail = f"'Content-Type: {MULTIPART}' needs a boundary of 1 to {MAX_BOUNDARY} characters"
        raise ProblemError(MALFORMED, detail)
    return boundary


def split_files(body: bytes, boundary: bytes | None, max_files: int) -> list[bytes]:
    """Return the content of each file in a body.

    Raises:
        ProblemError: the form is malformed or empty, or has more than ``max_files`` files.
    """
    if boundary is None:
        return [body]
    form = _Form(boundary, max_files)
    try:
        form.parser.write(body)
    except FormParserError as error:
        raise ProblemError(MALFORMED, f"not {MULTIPART}: {error}") from None
    if not form.complete:
        raise ProblemError(MALFORMED, f"not {MULTIPART}: the body ends before its last boundary")
    if not form.files:
        raise ProblemError(INVALID_REQUEST, f"'{FORM_FIELD}' is empty; send at least one image")
    return form.files


class _Form:
    """A form from which a multipart parser collects the files; other fields are refused."""

    def __init__(self, boundary: bytes, max_files: int) -> None:
        self.files: list[bytes] = []
        self.complete = False
        self._max_files = max_files
        self.parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_begin": self._begin_header,
                "on_header_field": self._extend_field,
                "on_header_value": self._extend_value,
                "on_header_end": self._end_header,
                "on_headers_finished": self._check_name,
                "on_part_data": self._extend,
                "on_part_end": self._end,
                "on_end": self._finish,
            },
        )

    def _begin(self) -> None:
        if len(self.files) == self._max_files:
            detail = f"more than {self._max_files} files; send fewer in one request"
            raise ProblemError(TOO_MANY_RECORDS, detail)
        self._name = b""
        self._content: list[bytes] = []

    def _begin_header(self) -> None:
        self._field = self._value = b""

    def _extend_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _extend_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._field.lower() == b"content-disposition":
            self._name = parse_options_header(self._value)[1].get(b"name", b"")

    def _check_name(self) -> None:
        if self._name != FORM_FIELD.encode():
            detail = (
                f"part {len(self.files)} of the form is not called '{FORM_FIELD}'; send every image"
            )
            raise ProblemError(INVALID_REQUEST, detail + " under that name, options in the query")

    def _extend(self, data: bytes, start: int, end: int) -> None:
        self._content.append(data[start:end])

    def _end(self) -> None:
        self.files.append(b"".join(self._content))

    def _finish(self) -> None:
        self.complete = True


def check_all_usable(results: Sequence[Result]) -> None:
    """Refuse a request if one of its images cannot be used; the error names file and frame."""
    bad = [
        BadRecord(result.file or 0, result.error.field, _with_frame(result.error, result.frame))
        for result in results
        if result.error is not None
    ]
    if bad:
        raise unfit_records(bad)


def _with_frame(error: Fault, frame: int | None) -> str:
    return error.detail if frame is None else f"frame {frame}: {error.detail}"


def describe_group(kinds: Iterable[str]) -> list[Json]:
    """Describe the query parameter that names a kind of groups; empty if there are no kinds."""
    names = sorted(set(kinds))
    described = {
        "name": GROUP,
        "in": "query",
        "schema": {"type": "string", "enum": names},
        "description": "For images only: all images are of one such group, on which the model "
        "decides by its highest image.",
    }
    return [described] if names else []


def describe_bodies(examples: Json, max_files: int, kinds: Iterable[str] = ()) -> BodyDescription:
    """Describe uploads for the OpenAPI document, with these examples of PNG images.

    ``kinds`` are the kinds of groups of images that models decide on.
    """
    files = {"type": "array", "items": BINARY, "minItems": 1, "maxItems": max_files}
    form = {
        "type": "object",
        "required": [FORM_FIELD],
        "properties": {FORM_FIELD: files},
        "additionalProperties": False,
    }
    content: Json = {MULTIPART: {"schema": form}}
    content |= {media: {"schema": BINARY} for media in RAW}
    content["image/png"] = {"schema": BINARY, "examples": examples}
    return BodyDescription(TEXT, content, [*QUERY, *describe_group(kinds)], {})


# ---------------------------------------------------------------- the handler

Score = Callable[
    [Sequence[bytes], ImageOptions, Settings],
    tuple[list[Result], Detections | None, tuple[GroupResult, ...]],
]
"""Function that scores the images in files, and decides on those that can be used."""
Head = tuple[bytes | None, ImageOptions]
"""Boundary of the form (None if the body is a single file), and the options in the query."""


class UploadHandler(RequestHandler):
    """A handler of the scoring requests to an image model, always on a worker thread."""

    needs_thread = True

    def __init__(self, model: ServedModel, score: Score, resources: Resources) -> None:
        super().__init__(model, resources)
        self._score = score

    def read_head(self, scope: Scope) -> Head:
        """Read the boundary of the form and the options in the query."""
        boundary = boundary_of(scope[HEADERS])
        return boundary, image_options(scope["query_string"])

    async def answer(
        self, body: bytes, options: Head, receive: Receive, log_fields: logs.LogFields
    ) -> bytes:
        """Answer on a worker thread."""
        task = self._answer_files, body, *options
        content, log_fields["records"] = await self.resources.run_on_thread(receive, *task)
        return content

    def _answer_files(
        self, body: bytes, boundary: bytes | None, options: ImageOptions
    ) -> tuple[bytes, int]:
        """Return the answer to uploaded files, and the number of their images."""
        start, settings = time.perf_counter(), self.resources.settings
        split = partial(split_files, boundary=boundary, max_files=settings.max_records)
        results, detections, groups = self._score(split(body), options, settings)
        if boundary is None:
            check_all_usable(results)
        self.metrics.sizes.observe(len(results))
        self.metrics.failed.inc(sum(result.error is not None for result in results))
        if detections is not None:
            self._count(detections, start)
            self._offer(results, detections, body, split)
        return self.encode(results, groups=groups), len(results)

    def _offer(
        self,
        results: Sequence[Result],
        detections: Detections,
        body: bytes,
        split: Callable[[bytes], list[bytes]],
    ) -> None:
        """Tell the observers of the images; a shadow gets the files that were scored wholly."""
        bad = {result.file for result in results if result.error is not None}
        kept = np.array([result.file not in bad for result in results if result.error is None])

        def read(bodies: Sequence[bytes], _: ServedModel) -> list[bytes]:
            return [one for number, one in enumerate(split(*bodies)) if number not in bad]

        observers, good = self.resources.observers, [one for one in results if one.error is None]
        if kept.any():
            observers.shadows.offer(self.model, detections.part(kept), body, read)

        def records(positions: Sequence[int]) -> list[dict[str, Any]]:
            files, found = split(body), [good[position] for position in positions]
            return [{"content": files[one.file or 0], "frame": one.frame} for one in found]

        observers.offer_cases(self.model, detections, len(body), records)

    def decide(self, content: Sequence[bytes]) -> Detections:
        """Decide on files with one image each, and count them."""
        start = time.perf_counter()
        detections = self.model.detect(content, self.resources.settings)
        self._count(detections, start)
        return detections

    def _count(self, detections: Detections, start: float) -> None:
        self.metrics.inference.observe(time.perf_counter() - start)
        self.metrics.observe(detections)

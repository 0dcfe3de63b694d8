"""Uploads → the content of files: what a request to a model of images looks like.

A body is one file, or multipart/form-data (RFC 7578) with files under the name ``files``. It is in
memory, and bounded, before it is split; nothing is written to disk. What a file holds is told by
its content: neither its name nor its media type is looked at.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from serving.problems import INVALID_REQUEST, MALFORMED, TOO_MANY_RECORDS, UNSUPPORTED, ProblemError
from serving.scoring.requests import Headers, check_encoding

MULTIPART = "multipart/form-data"
RAW = (
    "image/png",
    "image/jpeg",
    "image/tiff",
    "application/dicom",
    "application/gzip",
    "application/x-gzip",
    "application/octet-stream",
)
"""Media types of a body that is one file."""
FORM_FIELD = "files"
"""What files are called in a multipart body."""
EXPLAIN, HEATMAP, PNG = "explain", "heatmap", "png"
MAX_BOUNDARY = 70
"""Characters (RFC 2046, section 5.1.1)."""


@dataclass(frozen=True, slots=True)
class ImageOptions:
    """What answers are to hold beside the decisions.

    ``most`` is how many contributions to list, None for all; ``heatmap`` whether to draw.
    """

    most: int | None = 0
    heatmap: bool = False


def image_options(query: bytes) -> ImageOptions:
    """Read ``explain=K``, ``explain=all`` and ``heatmap=png``; anything else is refused."""
    pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
    values = dict(pairs)
    for name in sorted(values.keys() - {EXPLAIN, HEATMAP}):
        detail = f"query: no parameter '{name[:100]}'; there are '{EXPLAIN}' and '{HEATMAP}'"
        raise ProblemError(INVALID_REQUEST, detail)
    if len(values) < len(pairs):
        raise ProblemError(INVALID_REQUEST, "query: give each parameter once")
    return ImageOptions(_most(values.get(EXPLAIN, "0")), _drawn(values.get(HEATMAP)))


def _most(text: str) -> int | None:
    if text == "all":
        return None
    number = re.fullmatch(r"([0-9]{1,18})(\.0*)?", text)  # as in JSON, 3.0 is 3
    if not number:
        detail = f"query: '{EXPLAIN}': expected a whole number from 0 up, or 'all'"
        raise ProblemError(INVALID_REQUEST, detail)
    return int(number[1])


def _drawn(text: str | None) -> bool:
    if text not in {None, PNG}:
        raise ProblemError(INVALID_REQUEST, f"query: '{HEATMAP}': expected '{PNG}'")
    return text == PNG


def boundary_of(headers: Headers) -> bytes | None:
    """What parts the files of the body; None where it is one file.

    A body of any other type is refused.
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


def files_of(body: bytes, boundary: bytes | None, most: int) -> list[bytes]:
    """The content of each file in a body, ``most`` at the most."""
    if boundary is None:
        return [body]
    form = _Form(boundary, most)
    try:
        form.parser.write(body)
    except FormParserError as error:
        raise ProblemError(MALFORMED, f"not {MULTIPART}: {error}") from None
    if not form.whole:
        raise ProblemError(MALFORMED, f"not {MULTIPART}: the body ends before its last boundary")
    if not form.files:
        raise ProblemError(INVALID_REQUEST, f"'{FORM_FIELD}' is empty; send at least one image")
    return form.files


class _Form:
    """Collects the files that a parser comes across; any other field is refused."""

    def __init__(self, boundary: bytes, most: int) -> None:
        self.files: list[bytes] = []
        self.whole = False
        self._most = most
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
        if len(self.files) == self._most:
            detail = f"more than {self._most} files; at most so many fit into one request"
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
        self.whole = True

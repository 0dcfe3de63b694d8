"""Read the forms of the console, within limits and without writing to the disk."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from urllib.parse import parse_qsl

from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from serving.problems import MALFORMED, ProblemError
from serving.scoring.images.uploads import MULTIPART

MAX_FIELDS = 2_000
"""Maximum number of fields of a form."""
MAX_FILES = 20
"""Maximum number of files of a form."""
TOKEN = "form_token"  # noqa: S105  # the name of a field
"""Name of the field with the token of the form."""


@dataclass(frozen=True)
class Form:
    """The fields of a form by name, of which the last counts, and the contents of its files."""

    fields: dict[str, str] = field(default_factory=dict)
    files: list[tuple[str, bytes]] = field(default_factory=list)
    """Name and content of each file."""

    def __getitem__(self, name: str) -> str:
        return self.fields.get(name, "")


async def read_form(request: Request, body: bytes) -> Form:
    """Return the form in a body.

    Raises:
        ProblemError: it is no form, or has too many fields or files.
    """
    if request.headers.get("content-type", "").startswith(MULTIPART):
        return await _read_multipart(request.headers, body)
    try:
        pairs = parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=MAX_FIELDS)
    except ValueError:
        raise ProblemError(MALFORMED, "the form cannot be read, or is too long") from None
    return Form(dict(pairs))


async def _read_multipart(headers: Headers, body: bytes) -> Form:
    async def stream() -> AsyncGenerator[bytes]:
        yield body
        yield b""

    parser = MultiPartParser(
        headers, stream(), max_files=MAX_FILES, max_fields=MAX_FIELDS, max_part_size=len(body)
    )
    parser.spool_max_size = len(body) + 1  # keeps scans in memory
    try:
        return await _form(await parser.parse())
    except (MultiPartException, KeyError) as error:
        raise ProblemError(MALFORMED, f"the form cannot be read: {error}") from None


async def _form(data: FormData) -> Form:
    form = Form()
    for name, given in data.multi_items():
        if isinstance(given, UploadFile):
            if content := await given.read():  # an empty one means that no file was chosen
                form.files.append((given.filename or "", content))
            await given.close()
        else:
            form.fields[name] = given
    return form

"""Forms are read within limits."""

import asyncio

import pytest
from starlette.requests import Request

from serving.console.forms import MAX_FIELDS, read_form
from serving.problems import ProblemError


def form_of(body, media="application/x-www-form-urlencoded"):
    headers = [(b"content-type", media.encode())]
    return asyncio.run(read_form(Request({"type": "http", "headers": headers}), body))


MULTIPART = "multipart/form-data; boundary=x"


def part(name, content, file=None):
    disposition = f'form-data; name="{name}"' + (f'; filename="{file}"' if file else "")
    return f"--x\r\nContent-Disposition: {disposition}\r\n\r\n".encode() + content + b"\r\n"


def test_fields_are_read_and_absent_ones_are_empty():
    form = form_of(b"a=1&a=2&note=%C3%A9+x&empty=")
    assert form.fields == {"a": "2", "note": "é x", "empty": ""}
    assert form["nothing"] == ""


def test_files_are_read_into_memory():
    large = b"\0" * (2 << 20)
    body = part("model", b"scans") + part("files", large, "a.dcm") + part("files", b"", "x")
    form = form_of(body + b"--x--\r\n", MULTIPART)
    assert form.fields == {"model": "scans"}
    assert form.files == [("a.dcm", large)]


@pytest.mark.parametrize(
    ("body", "media"),
    [
        (b"\xff=1", "application/x-www-form-urlencoded"),
        (b"&".join([b"a=1"] * (MAX_FIELDS + 1)), "application/x-www-form-urlencoded"),
        (b"--x\r\nbad", "multipart/form-data"),
        (b"".join(part("files", b"1", "f") for _ in range(21)) + b"--x--", MULTIPART),
        (b"--x\r\nContent-Disposition: form-data\r\n\r\n1\r\n--x--", MULTIPART),
    ],
)
def test_what_is_no_form_is_refused(body, media):
    with pytest.raises(ProblemError, match="form cannot be read"):
        form_of(body, media)

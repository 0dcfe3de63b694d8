"""The examples in docs/serving.md work when pasted."""

import contextlib
import io
import json
import re

import httpx2
import pytest

from anomaly_vae.client import AsyncClient, Client
from tests.support.paths import ROOT

TEXT = (ROOT / "docs/serving.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"^```python\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
CURLS = re.findall(
    r"curl -s localhost:8000(\S+) -H '([^']+)' \\\n +-d '([^']+)'\n((?:.+\n)+?)```", TEXT
)
CALLS = re.findall(r"^\| `(\w+)\(", TEXT.partition("## Client")[2], re.MULTILINE)


@pytest.mark.parametrize("code", PYTHON, ids=lambda code: code.partition("\n")[0])
def test_python(address_of, served, code):
    address = address_of(served)
    code = code.replace("https://scores.example", address)
    code = code.replace("localhost:8000", address.removeprefix("http://"))
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile(code, "docs/serving.md", "exec"), {})


@pytest.mark.parametrize(("path", "header", "body", "shown"), CURLS)
def test_curl(address_of, served, path, header, body, shown):
    """The response has the documented shape; its figures come from another model."""
    name, _, value = header.partition(": ")
    answer = httpx2.post(address_of(served) + path, content=body, headers={name: value}).json()
    (result,), (expected,) = answer.pop("predictions"), json.loads(shown)["predictions"]
    assert answer == {}
    assert result.keys() == expected.keys()


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_every_call_of_the_client_is_listed(kind):
    public = {name for name in vars(kind) if not name.startswith("_")}
    assert set(CALLS) == public - {"close"}


def test_there_is_something_to_run():
    assert len(PYTHON) >= 2
    assert CURLS

"""Check docs/reference.md and the examples of public names."""

import inspect
import re

import pytest

from tools.reference import TARGET, members, public_names, reference

PUBLIC = public_names()
EXAMPLES = {
    name: value
    for name, value in PUBLIC.items()
    if (inspect.isclass(value) or inspect.isfunction(value))
    and not (inspect.isclass(value) and issubclass(value, BaseException))
}


def test_the_page_is_what_the_docstrings_say():
    assert TARGET.read_text(encoding="utf-8") == reference(), "run: make reference"


def test_every_public_name_has_an_entry():
    page = reference()
    sections = re.split(r"^## ", page, flags=re.MULTILINE)[1:]
    found = {
        f"{section.splitlines()[0]}.{name}"
        for section in sections
        for name in re.findall(r"^### `(\w+)", section, re.MULTILINE)
    }
    assert found == {name for name, value in PUBLIC.items() if callable(value)}


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_public_class_and_function_has_an_example(name):
    value = EXAMPLES[name]
    texts = [inspect.getdoc(value) or ""]
    texts += [
        inspect.getdoc(inner) or ""
        for _, inner in (members(value) if inspect.isclass(value) else ())
    ]
    assert any(">>> " in text for text in texts), f"{name} needs a runnable example"

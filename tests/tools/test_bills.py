"""Each image has a bill of materials of exactly the extras it installs."""

from __future__ import annotations

import re

import pytest

from tests.support.paths import ROOT

DOCKERFILE = ROOT / "Dockerfile"


@pytest.mark.skipif(not DOCKERFILE.exists(), reason="there are no images here")
def test_there_is_a_bill_of_each_image() -> None:
    stages = re.split(r"^FROM ", DOCKERFILE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    installed = {
        found[1]: extras[1]
        for stage in stages
        if (found := re.search(r" AS build-(\w+)$", stage, re.MULTILINE))
        and (extras := re.search(r"\.whl\)\[([\w,]+)\]", stage))
    }
    made = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert dict(re.findall(r"^BILL_(\w+) := (\S+)$", made, re.MULTILINE)) == installed
    assert set(re.findall(r"dist/(\w+)\.cdx\.json", made)) == installed.keys()

"""Say what holds in every test, and load the fixtures that most of them share."""

from __future__ import annotations

import gc
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import settings

from anomaly_vae import masking

# Examples are the same in every run and have no deadline. Use --hypothesis-profile exploring for
# new examples.
settings.register_profile("repeatable", deadline=None, max_examples=60, derandomize=True)
settings.register_profile("exploring", deadline=None, max_examples=300)
settings.load_profile("repeatable")


def pytest_configure(config: pytest.Config) -> None:
    """Import models and their packages, but not where other processes run the tests."""
    if not config.getoption("numprocesses", None):
        config.pluginmanager.import_plugin("tests.support.fitted")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Look for garbage neither while tests are collected nor, later, among what they consist of."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests of the whole system first: one of them last would keep a single worker busy."""
    items.sort(key=lambda item: item.path.parent != Path(__file__).parent)


@pytest.fixture(autouse=True)
def no_known_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the passwords of other tests, which would be masked in any text."""
    monkeypatch.setattr(masking, "_addresses", set())


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """Return the folder of files that older versions wrote."""
    return Path(__file__).parent / "fixtures"

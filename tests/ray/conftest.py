"""Provide the model with windows that the tests of Ray share."""

from tests.support.windowed import windowed_folder  # noqa: F401  # a fixture

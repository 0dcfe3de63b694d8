"""Provide the scoring service that the client is tested against."""

from tests.support.scoring_service import *  # noqa: F403  # its fixtures

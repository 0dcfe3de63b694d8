"""Provide the scoring service that the client is tested against."""

from tests.support.scoring_service import *  # noqa: F403  # its fixtures
from tests.support.windowed import store_url, windowed, windowed_folder  # noqa: F401  # fixtures

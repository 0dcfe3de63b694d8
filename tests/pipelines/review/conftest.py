from tests.support.label_stores import *  # noqa: F403  # its fixtures

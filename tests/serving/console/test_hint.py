"""What is said while the console is off."""

from serving.console.hint import hint_routes
from serving.paths import is_console


def test_the_hint_covers_every_path():
    paths = [route.path for route in hint_routes()]
    assert paths == ["/console", "/console/{path:path}"]
    assert is_console("/console/x")
    assert not is_console("/consoles")

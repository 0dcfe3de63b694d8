"""The style sheet, the script and the icon."""

import re

from serving.console import assets


def test_files_are_kept_by_browsers_for_ever_and_need_no_session(service):
    visitor = service.visitor()
    for name, media_type in assets.MEDIA_TYPES.items():
        answer = visitor.client.get(assets.address(name))
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith(media_type)
        assert answer.headers["cache-control"] == assets.FOREVER
        assert answer.content == assets.content(name)
        assert visitor.client.head(assets.address(name)).status_code == 200


def test_other_paths_are_no_files(service):
    visitor = service.visitor()
    digest = assets.address("console.css").split("/")[3]
    for path in (
        f"{digest}/console.js", f"{digest}/app.py", "0/console.css",
        f"{digest}/..%2Fapp.py", f"{digest}/%2e%2e%2fapp.py",
    ):  # fmt: skip
        answer = visitor.client.get(f"/console/static/{path}")
        assert answer.status_code in (303, 404), path
        assert "class Console" not in answer.text


def test_nothing_is_fetched_from_elsewhere():
    for name in ("console.css", "console.js"):
        assert not re.search(rb"https?:|//\w+\.|@import|url\(", assets.content(name)), name


def test_pages_name_the_files_by_their_digest(alice):
    text = alice.text("")
    for name in assets.MEDIA_TYPES:
        assert assets.address(name) in text

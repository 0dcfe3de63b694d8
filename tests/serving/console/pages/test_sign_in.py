"""Signing in and out."""

import pytest

from serving.console.pages.sign_in import own_path
from tests.support.console import SECRETS


def test_a_wrong_key_gets_no_session(service):
    visitor = service.visitor()
    answer = visitor.post("/sign-in", key="guess", next="/console/models")
    assert answer.status_code == 401
    assert "unknown" in answer.text
    assert 'value="/console/models"' in answer.text
    assert "guess" not in answer.text
    assert visitor.get("").status_code == 303


@pytest.mark.parametrize(
    "path", ["//evil.example", "https://evil.example", "/console\\evil", "/consolex", "/", ""]
)
def test_after_signing_in_no_other_site_follows(service, path):
    answer = service.visitor().post("/sign-in", key=SECRETS["alice"], next=path)
    assert answer.headers["location"] == "/console"


def test_after_signing_in_the_page_follows(service):
    page = "/console/cases/2?order=amount"
    visitor = service.visitor()
    address = visitor.get("/cases/2?order=amount").headers["location"]
    assert visitor.client.get(address).text.count(page) == 1
    answer = visitor.post("/sign-in", key=SECRETS["alice"], next=page)
    assert answer.headers["location"] == page


def test_the_path_that_follows_belongs_to_the_console():
    assert own_path("/console?order=day") == "/console?order=day"
    assert own_path("/console/\nx") == "/console"


def test_a_key_that_may_not_review_is_told_so(service):
    visitor = service.visitor()
    answer = visitor.post("/sign-in", key=SECRETS["shop"], next="/console/models")
    assert answer.status_code == 401
    assert "lacks the scope" in answer.text
    assert 'value="/console/models"' in answer.text
    assert visitor.get("").status_code == 303
    assert visitor.post("/sign-in", key=SECRETS["alice"]).status_code == 303

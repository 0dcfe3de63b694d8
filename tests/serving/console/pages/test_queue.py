"""The queue: orders, filters and pages."""

import re

import pytest

from anomaly_vae.review import Label
from serving.console.queries import PAGE_CASES
from tests.support.review_cases import case_of, fill


def numbers(visitor, query=""):
    return [int(n) for n in re.findall(r'<tr id="case-(\d+)"', visitor.text(query))]


@pytest.fixture
def mixed(service):
    """Cases 4 to 7 differ in what can be filtered and ordered by."""
    service.cases.add(
        [
            case_of(50, amount=9e6, entity="aaa", p_value=0.04),
            case_of(51, kind="sample", p_value=0.9, entity=None, amount=None),
            case_of(52, model="other", p_value=0.03),
            case_of(53, at=1.7e9, p_value=0.02),
        ]
    )
    service.cases.labels.add([Label.of("fraud", "T00001", "normal", "bob")])
    return service


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", [1, 3, 7, 6, 4, 5]),
        ("?order=amount", [4, 1, 3, 6, 7, 5]),
        ("?order=day&status=open", [1, 3, 4, 5, 6, 7]),
        ("?order=entity", [1, 3, 6, 7, 4, 5]),
        ("?status=decided", [2]),
        ("?status=all", [1, 2, 3, 7, 6, 4, 5]),
        ("?status=snoozed", []),
        ("?kind=sample", [5]),
        ("?kind=flagged&model=other", [6]),
        ("?entity=aaa", [4]),
        ("?entity=aaa&entity_column=TERMINAL_ID", []),
        ("?row_id=T00000", [1]),
        ("?first_day=2023-11-14&last_day=2023-11-14", [7]),
        ("?last_day=2023-11-13", []),
        ("?model=nothing", []),
    ],
)
def test_orders_and_filters(mixed, query, expected):
    alice = mixed.visitor("alice")
    found = numbers(alice, query)
    assert found == expected
    assert ("Nothing matches" in alice.text(query)) == (not expected and query != "")


@pytest.mark.parametrize(
    "query",
    ["order=magic", "status=new", "kind=x", "first_day=31.1.2024", "page=0", "page=x", "page=²"],
)
def test_a_query_that_means_nothing_is_refused_with_what_is_possible(alice, query):
    answer = alice.get(f"?{query}")
    assert answer.status_code == 422
    assert f"{query.partition('=')[0]}: expected" in answer.text.lower()


def test_the_queue_shows_who_decided(mixed):
    text = mixed.visitor("alice").text("?status=decided")
    assert re.search(r'verdict normal">normal</span>\s*<span class="by">bob', text)


def test_a_page_has_a_hundred_cases(service, alice):
    fill(service.cases, 2 * PAGE_CASES, first=3)
    assert numbers(alice) == list(range(1, 101))
    assert numbers(alice, "?page=3") == [201, 202, 203]
    text = alice.text("?page=2&order=p_value")
    assert "Page 2 of 3" in text
    assert 'rel="next" href="/console?page=3"' in text
    assert numbers(alice, "?page=4") == []


def test_an_empty_queue_says_so(service_of, served):
    alice = service_of(served, count=0).visitor("alice")
    assert "The queue is empty" in alice.text("")

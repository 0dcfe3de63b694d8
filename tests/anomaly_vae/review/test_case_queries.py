"""Orders of the queue: which case comes before and after another one."""

import pytest

from anomaly_vae.review import Case, CaseFilter, CaseStore, Label


@pytest.fixture
def store(store_address):
    with CaseStore(store_address) as store:
        yield store


def case(number):
    return Case.of(
        model="fraud", row=number, score=9.5, p_value=0.001 * (number % 3 + 1), threshold=5.0,
        alpha=0.01, at=100.0 + number % 4, amount_column="eur", amount=[None, 5, 5, 7][number % 4],
        entity_column="card", entity=[None, "a", "b"][number % 3],
    )  # fmt: skip


@pytest.mark.parametrize("order", ["p_value", "amount", "entity", "day"])
def test_neighbours_follow_the_order(store, order):
    store.add([case(number) for number in range(12)])
    open_cases = CaseFilter(status="open")
    numbers = [one.number for one in store.queue(order=order)]
    pairs = zip([None, *numbers[:-1]], [*numbers[1:], None], strict=True)
    assert [store.neighbours(n, open_cases, order) for n in numbers] == list(pairs)
    decided = store.case(numbers[5]).case.row_id
    store.labels.add([Label.of("fraud", decided, "normal", "alice")])
    assert store.neighbours(numbers[5], open_cases, order) == (numbers[4], numbers[6])
    assert store.neighbours(numbers[4], open_cases, order) == (numbers[3], numbers[6])
    assert store.neighbours(999, open_cases, order) == (None, None)

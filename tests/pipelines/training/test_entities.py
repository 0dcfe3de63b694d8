"""Which columns name entities, and what is said about them."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest

from anomaly_vae.config import validate_config
from anomaly_vae.monitoring.cycles import Timeline
from anomaly_vae.monitoring.martingale import rows_until_noticed
from pipelines.datasets.tables import load_table
from pipelines.training.entities import (
    describe_entities,
    describe_missing_entities,
    entities_of,
)

ROWS = 2_000


@pytest.fixture
def table(tmp_path):
    """Return a folder of payments of 200 customers at 100 shops, with other columns."""
    rng = np.random.default_rng(0)
    at = pd.Timestamp("2024-01-01") + pd.to_timedelta(np.sort(rng.uniform(0, 20, ROWS)), unit="D")
    columns = {
        "at": at,
        "amount": rng.normal(size=ROWS),
        "payment": np.arange(ROWS),
        "customer": rng.integers(0, 200, ROWS),
        "shop": [f"shop {number}" for number in rng.integers(0, 100, ROWS)],
        "card_id": np.where(rng.random(ROWS) < 0.1, np.nan, rng.integers(0, 300, ROWS)),
        "kind": rng.integers(0, 3, ROWS),
        "count": rng.integers(0, 50, ROWS),
        "depot": rng.integers(0, 90, ROWS),
        "depot_payments": rng.integers(0, 90, ROWS),
        "fraud": rng.integers(0, 100, ROWS) == 0,
    }
    pd.DataFrame(columns).to_parquet(tmp_path / "payments.parquet")
    return tmp_path / "payments.parquet"


def found(path, rows=None, **settings):
    """Return the entities of rows, given settings by section."""
    data = {"path": [str(path)], "time": "at", "label": "fraud", "features": ["amount", "count"]}
    data["splits"] = {"train": "8d", "calibration": "6d", "test": "6d"}
    sections = {name: content for name, content in settings.items() if name != "data"}
    content = {"name": "pay", "data": data | settings.get("data", {}), **sections}
    config = validate_config(content)
    return entities_of(load_table(config.data), config, np.arange(ROWS) if rows is None else rows)


def test_columns_of_which_many_rows_share_each_value_name_entities(table):
    assert list(found(table)) == ["depot", "shop", "customer", "card_id"]


def test_columns_that_the_model_reads_as_numbers_name_entities_only_by_their_names(table):
    features = ["amount", "count", "card_id", "customer", "shop"]
    types = {name: {"type": "numeric"} for name in ("card_id", "customer")}
    read = found(table, data={"features": features, "types": types})
    assert list(read) == ["depot", "shop", "customer", "card_id"]
    assert "depot" not in found(table, data={"features": ["amount", "depot"]})


def test_columns_that_the_configuration_names_come_first_however_few_entities_they_have(table):
    budget = {"method": "budget", "per_day": 3, "entity": "card_id"}
    kinds = found(table, evaluation={"entity": "kind"}, calibration=budget)
    assert list(kinds) == ["kind", "card_id", "depot", "shop", "customer"]
    windows = {"customer": {"over": ["1d"], "count": True}}
    columns = {"features": None, "windows": windows}
    assert next(iter(found(table, data=columns))) == "customer"


def test_rows_have_the_number_of_their_entity(table):
    rows = np.arange(500, 900)
    numbers = found(table, rows)["customer"]
    customers = pd.read_parquet(table)["customer"].to_numpy()[rows]
    same = numbers[:, None] == numbers
    np.testing.assert_array_equal(same, customers[:, None] == customers)


def test_rows_without_an_entity_are_alone(table):
    cards, numbers = pd.read_parquet(table)["card_id"], found(table)["card_id"]
    alone = numbers[cards.isna().to_numpy()]
    assert len(np.unique(alone)) == len(alone) > 100


@dataclass
class Noticed:
    """The part of a monitor that says after how many rows a change is noticed."""

    noticed_after: dict[str, int | None]
    window_rows: int = 4_000


def monitor_of(*concentrations):
    """Return a monitor of columns of these concentrations, and times of 1,000 rows a day."""
    noticed = dict(zip("abc", map(rows_until_noticed, concentrations), strict=False))
    entities = {"customer": np.zeros(5_000, np.int64)}
    return Noticed(noticed), Timeline("at", 86.4 * np.arange(5_000), True, entities)


def test_it_says_after_how_many_rows_and_days_a_change_is_noticed():
    text = describe_entities(*monitor_of(1e6, 5_000.0, 1_300.0))
    assert "rows of one 'customer' resemble each other" in text
    assert "after 1,001 to 1,250 rows, 1 to 1.2 days of such rows; in 'c' only larger" in text
    assert "only larger" not in describe_entities(*monitor_of(1e6, 5_000.0))


def test_it_says_nothing_without_entities_or_tests_of_columns():
    monitor, timeline = monitor_of(1e6)
    assert describe_entities(monitor, Timeline("at", timeline.seconds, True)) is None
    assert describe_entities(*monitor_of()) is None


def test_it_says_that_only_larger_changes_are_noticed_in_any_column():
    text = describe_entities(*monitor_of(700.0))
    assert "not noticed in any column within 4,000 rows; larger ones are" in text


def test_it_is_said_if_nothing_names_entities():
    _, timeline = monitor_of()
    bare = replace(timeline, entities={})
    assert "and name it as evaluation.entity" in describe_missing_entities(bare)
    assert describe_missing_entities(timeline) is None
    assert describe_missing_entities(replace(bare, seconds=bare.seconds[:1])) is None

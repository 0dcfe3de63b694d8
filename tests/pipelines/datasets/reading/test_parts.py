"""Decisions about files are noted once, and settings follow the configuration and the model."""

from pathlib import Path

import pytest

from anomaly_vae.config.data import Feature, TabularData
from anomaly_vae.errors import ConfigError
from anomaly_vae.types import ColumnType
from pipelines.datasets.reading.parts import Reading, first_line
from tests.support.flows import World


def test_the_same_decision_for_several_files_is_one_note() -> None:
    reading = Reading()
    for name in ("a.csv", "b.csv", "a.csv"):
        reading.say(Path(name), "read as latin-1")
    reading.say(Path("b.csv"), "fields are separated by tabs")
    assert reading.notes == (
        "a.csv and 1 more: read as latin-1",
        "b.csv: fields are separated by tabs",
    )


def test_missing_cells_are_counted_by_column_and_marker() -> None:
    reading = Reading()
    for marker, count in (("NA", 2), ("null", 1), ("NA", 1_000)):
        reading.count_missing("city", marker, count)
    note = "column 'city': 1,003 cells read as missing: 'NA' (1,002), 'null' (1)"
    assert reading.notes == (note,)


def test_in_training_all_but_declared_columns_and_roles_may_be_numbers() -> None:
    data = TabularData(
        path="x",
        label="y",
        id="i",
        time="t",
        types={"c": Feature(type=ColumnType.CATEGORICAL), "n": Feature(type=ColumnType.NUMERIC)},
    )
    reading = Reading.of_training(data)
    assert [name for name in "yitcnz" if reading.may_be_number(name)] == ["n", "z"]


def test_for_scoring_only_the_numbers_of_the_model_are(world: World) -> None:
    reading = Reading.of_model(world.source.bundle, {}, score=True)
    assert reading.may_be_number("TX_AMOUNT")
    assert not any(map(reading.may_be_number, ("TX_DATETIME", "TX_FRAUD", "unknown")))
    assert Reading.of_model(world.source.bundle, {}).may_be_number("unknown")


def test_options_are_checked_like_the_configuration(world: World) -> None:
    form = Reading.of_model(world.source.bundle, {"separator": ";", "decimal": ","}).csv
    assert (form.separator, form.decimal) == (";", ",")
    with pytest.raises(ConfigError, match=r"unknown key --csv seperator, did you mean separator"):
        Reading.of_model(world.source.bundle, {"seperator": ";"})


@pytest.mark.parametrize(
    ("key", "value"), [("separator", "ab"), ("decimal", "x"), ("encoding", "nope"), ("hat", "1")]
)
def test_a_fault_of_an_option_names_the_option(world: World, key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"--csv {key}") as caught:
        Reading.of_model(world.source.bundle, {key: value})
    assert "data.csv" not in str(caught.value)


def test_reasons_are_one_short_line() -> None:
    assert first_line(ValueError("a\nb")) == "a"
    assert first_line(ValueError()) == "ValueError"
    assert first_line(ValueError("x" * 1_000)) == "x" * 199 + "…"
    assert first_line(FileNotFoundError(2, "No such file", "x")) == "No such file"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("AWS Error NO_SUCH_BUCKET during CreateMultipartUpload operation: The specified bucket "
         "does not exist", "there is no such bucket"),
        ("AWS Error ACCESS_DENIED during HeadObject operation: No response body.",
         "the store denies access"),
        ("AWS Error NETWORK_CONNECTION during HeadBucket operation: curlCode: 6, Could not resolve "
         "hostname", "the store cannot be reached"),
        ("google::cloud::Status(UNAVAILABLE: Retry policy exhausted, with a last message of Could "
         "not create a OAuth2 access token to authenticate the request",
         "there are no credentials for the store"),
    ],
)  # fmt: skip
def test_errors_of_object_stores_are_plain(text: str, reason: str) -> None:
    assert (
        first_line(OSError(f"When reading information for key 'a' in bucket 'b': {text}")) == reason
    )

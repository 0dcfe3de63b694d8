"""Results of batch scoring in a case store: each flagged row once, and all p-values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.calibration.conformal import calibrate
from anomaly_vae.errors import ConfigError, DataError, StoreError
from anomaly_vae.review import CaseFields, CaseFilter, CaseRecord, CaseStore, Label
from pipelines.batch import Format
from pipelines.batch.case_import import (
    CaseOptions,
    carried_columns,
    import_result,
    import_when_finished,
    recorded_model,
)
from pipelines.batch.images import score_images
from pipelines.batch.options import OutputOptions
from pipelines.batch.tables import score_files
from pipelines.datasets.windows import expected_columns
from pipelines.registry.model_uri import LoadedModel
from tests.support.flows import Command, World
from tests.support.label_stores import *  # noqa: F403  # its fixtures
from tests.support.scans import blobs

ID = "TRANSACTION_ID"


@pytest.fixture
def source(world: World) -> LoadedModel:
    return world.source


@pytest.fixture
def options(sqlite_store: str) -> CaseOptions:
    return CaseOptions(sqlite_store, entity="CUSTOMER_ID", amount="TX_AMOUNT")


def scored(
    source: LoadedModel, path: Path, output: Path, options: CaseOptions, **more: Any
) -> dict[str, Any]:
    carried = carried_columns(options, source)
    return score_files(source, [str(path)], output, **{"explain": 5, **carried, **more})


def cases(options: CaseOptions, **chosen: Any) -> list[CaseRecord]:
    with CaseStore(options.address) as store:
        return store.queue(CaseFilter(**chosen), limit=10_000)


def test_flagged_rows_become_cases_once(
    source: LoadedModel, transactions: Path, tmp_path: Path, options: CaseOptions
) -> None:
    summary = scored(source, transactions, tmp_path / "out", options)
    first = import_result(tmp_path / "out", options, source)
    assert first["stored"] == first["flagged"] == summary["flagged"] > 0
    assert first["counted"] == summary["scored"]
    again = import_result(tmp_path / "out", options, source)
    assert (again["stored"], again["unchanged"], again["counted"]) == (0, summary["flagged"], 0)
    rows = {row[ID]: row for row in pq.read_table(transactions).to_pylist()}
    found = cases(options)
    assert len(found) == summary["flagged"]
    for one in (record.case for record in found):
        row = rows[int(one.row_id)]
        assert one.at == pytest.approx(row["TX_DATETIME"].timestamp(), abs=86_400)
        assert (one.entity, one.amount) == (str(row["CUSTOMER_ID"]), row["TX_AMOUNT"])
        assert (one.threshold, one.alpha) == (summary["threshold"], summary["alpha"])
        assert one.reasons[0].text.startswith(one.reasons[0].feature)
        assert one.reasons[0].amount > 0
    with CaseStore(options.address) as store:
        (model,) = {name for name, _ in store.models()}
        days = store.p_values(model)
    assert len(days) > 5, "the days of the events"
    assert sum(day.at_most(summary["alpha"]) for day in days) == summary["flagged"]


def test_a_case_has_the_columns_that_its_model_reads(
    source: LoadedModel, transactions: Path, tmp_path: Path, options: CaseOptions
) -> None:
    outputs = OutputOptions(columns=("TX_FRAUD",))
    scored(source, transactions, tmp_path / "out", options, outputs=outputs)
    import_result(tmp_path / "out", options, source)
    rows = {row[ID]: row for row in pq.read_table(transactions).to_pylist()}
    found = [record.case for record in cases(options)]
    assert found
    for one in found:
        row = rows[int(one.row_id)]
        row["TX_DATETIME"] = str(row["TX_DATETIME"])
        names = [name for name in expected_columns(source.bundle) if name in row]
        assert one.fields == {name: row[name] for name in (*names, "TX_FRAUD")}


def test_a_choice_of_columns_holds_for_imports(
    source: LoadedModel, transactions: Path, tmp_path: Path, sqlite_store: str
) -> None:
    fields = CaseFields(frozenset({"TX_AMOUNT"}), frozenset({"TERMINAL_ID"}), "s" * 16)
    options = CaseOptions(sqlite_store, fields)
    scored(source, transactions, tmp_path / "out", options)
    names = pq.read_schema(tmp_path / "out/part-00000.parquet").names
    assert not {"TX_CHANNEL", "TX_DURING_NIGHT"} & {*names}
    import_result(tmp_path / "out", options, source)
    found = [record.case for record in cases(options)]
    assert {tuple(one.fields) for one in found} == {("TX_AMOUNT", "TERMINAL_ID")}
    assert all(one.fields["TERMINAL_ID"].startswith("masked-") for one in found)


@pytest.mark.parametrize("way", ["csv", "folders", "flagged only", "without ids"])
def test_every_form_of_result_is_imported(
    source: LoadedModel, transactions: Path, tmp_path: Path, options: CaseOptions, way: str
) -> None:
    path, forms = transactions, {
        "csv": OutputOptions(Format.CSV),
        "folders": OutputOptions(partition_by="CUSTOMER_ID"),
        "flagged only": OutputOptions(only_flagged=True),
        "without ids": OutputOptions(),
    }  # fmt: skip
    if way == "without ids":
        path = tmp_path / "rows.parquet"
        pq.write_table(pq.read_table(transactions).drop_columns([ID]), path)
    summary = scored(source, path, tmp_path / "out", options, outputs=forms[way])
    result = import_result(tmp_path / "out", options, source)
    assert result["stored"] == summary["flagged"]
    assert result["counted"] == summary["scored"]
    assert import_result(tmp_path / "out", options, source)["stored"] == 0
    found = [record.case for record in cases(options)]
    assert all(one.entity and one.amount and one.reasons for one in found)
    assert len({one.row_id for one in found}) == summary["flagged"]
    if way != "without ids":
        known = {str(value) for value in pq.read_table(transactions)[ID].to_pylist()}
        assert {one.row_id for one in found} <= known


def test_a_sample_is_the_same_each_time(
    source: LoadedModel, transactions: Path, tmp_path: Path, options: CaseOptions
) -> None:
    summary = scored(source, transactions, tmp_path / "out", options)
    some = CaseOptions(options.address, sample=0.2)
    first = import_result(tmp_path / "out", some, source)
    normal = summary["scored"] - summary["flagged"]
    assert 0.1 * normal < first["sample"] < 0.3 * normal
    again = import_result(tmp_path / "out", some, source)
    assert (again["sample"], again["stored"]) == (first["sample"], 0)
    assert len(cases(options, kind="sample")) == first["sample"]


def test_only_a_finished_result_of_the_model_is_imported(
    source: LoadedModel, transactions: Path, tmp_path: Path, options: CaseOptions, world: World
) -> None:
    with pytest.raises(DataError, match="no result"):
        import_result(tmp_path, options, source)
    scored(source, transactions, tmp_path / "out", options)
    with pytest.raises(DataError, match="is not the model of"):
        recorded_model(tmp_path / "out", str(world.folder / world.trained.folder))
    (tmp_path / "out/summary.json").unlink()
    with pytest.raises(DataError, match="unfinished"):
        import_result(tmp_path / "out", options, source)


def test_a_result_is_kept_if_the_store_is_down(
    source: LoadedModel, transactions: Path, tmp_path: Path, down_store: str
) -> None:
    options = CaseOptions(down_store)
    scored(source, transactions, tmp_path / "out", options)
    with pytest.raises(StoreError, match=r"finished result: import it with .*cases import"):
        import_when_finished(tmp_path / "out", options, source)


@pytest.mark.parametrize(("name", "value"), [("SAMPLE", "2"), ("SAMPLE", "much"), ("MASK", "card")])
def test_wrong_variables_are_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"ANOMALY_VAE_CASES_{name}", value)
    with pytest.raises(ConfigError, match="ANOMALY_VAE_CASES_S"):
        CaseOptions.from_environment("sqlite:///cases.db")


@pytest.mark.parametrize("form", [Format.PARQUET, Format.CSV])
def test_images_become_cases_with_their_regions(
    image_calibrated: Bundle, tmp_path: Path, options: CaseOptions, form: Format
) -> None:
    calibration = calibrate(np.full(20, -1e6), alpha=0.1)  # flags every image
    source = LoadedModel(image_calibrated.calibrated(calibration, None))
    (tmp_path / "scans").mkdir()
    for number, image in enumerate(blobs(3)):
        Image.fromarray(image).save(tmp_path / f"scans/{number}.png")
    assert carried_columns(options, source) == {}
    paths, outputs = [str(tmp_path / "scans")], OutputOptions(form)
    summary = score_images(source, paths, tmp_path / "out", 3, outputs=outputs)
    result = import_result(tmp_path / "out", options, source)
    assert result["stored"] == result["counted"] == summary["scored"] == 3
    found = [record.case for record in cases(options)]
    assert {Path(one.row_id).name for one in found} == {"0.png", "1.png", "2.png"}
    reasons = [reason for one in found for reason in one.reasons]
    assert all(reason.text.startswith("the area from x") for reason in reasons)


@pytest.mark.e2e
def test_the_command_line(
    command: Command, world: World, transactions: Path, tmp_path: Path, sqlite_store: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("ANOMALY_VAE_CASES", sqlite_store)
    out = tmp_path / "out"
    model = world.source.bundle.save(tmp_path / "model")
    line = ["score", "--model", model, "--input", transactions, "--output", out]

    def run(*arguments: object) -> dict[str, Any]:
        answer = command(*arguments)
        assert answer.code == 0, answer.err
        return answer.json

    scored = run(*line, "--cases", sqlite_store)
    assert scored["cases"]["stored"] == scored["flagged"] > 0
    assert run(*line, "--cases", sqlite_store)["cases"]["stored"] == 0
    imported = run("cases", "import", out, "--model", model)["results"][str(out)]
    assert (imported["stored"], imported["unchanged"]) == (0, scored["flagged"])
    with CaseStore(sqlite_store) as store:
        first = store.queue()[0].case
        store.labels.add([Label.of(first.model, first.row_id, "anomaly", "alice", note="<b>=1+1")])
    stats = run("cases", "stats")
    assert (stats["decided"], stats["precision"]["share"]) == (1, 1.0)
    assert stats["scored_rows"] == {first.model: scored["scored"]}
    for name in ("cases.parquet", "cases.csv"):
        assert run("cases", "export", "--out", tmp_path / name)["cases"] == scored["flagged"]
    notes = {
        row["id"]: row["note"] for row in pq.read_table(tmp_path / "cases.parquet").to_pylist()
    }
    assert notes[first.row_id] == "<b>=1+1"
    still_open = run("cases", "export", "--out", tmp_path / "open.csv", "--status", "open")
    assert still_open["cases"] == scored["flagged"] - 1
    assert run("cases", "prune", "--days", "1")["deleted"] == 0
    assert run("labels", "stats")["labels"] == 1

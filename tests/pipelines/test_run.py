"""The whole path in one command: once, and not again for the same inputs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml
from mlflow import MlflowClient

from anomaly_vae.config import Config
from anomaly_vae.data.splitting import CALIBRATION, TRAIN, VALIDATION
from anomaly_vae.errors import DataError
from anomaly_vae.lifecycle.registry import CHAMPION, Registry
from anomaly_vae.simulation.transactions import simulate_transactions
from pipelines.run import run
from pipelines.training.train import read_data
from tests.support.flows import Command, World
from tests.support.registries import changed, copy_registry

pytestmark = pytest.mark.usefixtures("blank_figures")


def counts() -> tuple[int, int]:
    """Runs and versions there are."""
    uri = os.environ["MLFLOW_TRACKING_URI"]
    client = MlflowClient(uri, uri)
    experiment = client.get_experiment_by_name("fraud")
    runs = client.search_runs([experiment.experiment_id]) if experiment else []
    return len(runs), sum(len(model["versions"]) for model in Registry().models())


@pytest.fixture
def known(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """Be where the model is champion already."""
    copy_registry(world.folder, tmp_path, monkeypatch)
    return world


@pytest.fixture
def shifted(transactions: Path, tmp_path: Path, flow: Config) -> Config:
    """The same payments, but those of the last fifth of the time cost three times as much."""
    table = pq.read_table(transactions)
    late = np.arange(len(table)) >= 0.8 * len(table)
    late &= table["TX_FRAUD"].to_numpy() == 0
    for name in table.column_names:
        if "AMOUNT" in name:
            values = table[name].to_numpy()
            index = table.column_names.index(name)
            table = table.set_column(index, name, pa.array(np.where(late, 3 * values, values)))
    path = tmp_path / "shifted.parquet"
    pq.write_table(table, path)
    return changed(flow, data__path=str(path))


def write_config(config: Config) -> Path:
    path = Path("config.yaml")
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return path


def test_one_command_leads_from_the_configuration_to_the_champion(
    place: Path, flow: Config, world: World, command: Command
) -> None:
    answer = command("run", write_config(flow))
    assert answer.code == 0
    assert answer.json["promoted"] is True
    assert (answer.json["version"], answer.json["alias"]) == ("1", CHAMPION)
    assert answer.json["digest"] == world.calibrated.bundle.digest
    assert answer.json["metrics"] == world.calibrated.evaluation.to_json()
    assert answer.json["drifted"] == []
    assert counts() == (3, 1), "train, calibrate, promotions"


def test_a_second_time_it_makes_no_run_and_no_version(known: World, command: Command) -> None:
    before = counts()
    answers = [command("run", write_config(known.config)) for _ in range(2)]
    assert [answer.code for answer in answers] == [0, 0]
    assert answers[0].json == answers[1].json
    assert answers[0].json["version"] == "1"
    assert "was made from the same inputs" in answers[0].err
    assert counts() == before


def test_other_rows_settings_or_alpha_are_other_inputs(known: World, dataset: Any) -> None:
    registry = Registry()
    from pipelines.training.train import inputs_digest

    same = inputs_digest(known.config, dataset)
    assert registry.find("fraud", same) is not None
    for change in ({"calibration__alpha": 0.1}, {"training__seed": 3}, {"score__draws": 2}):
        assert inputs_digest(changed(known.config, **change), dataset) != same
    for same_again in ({"data__path": "elsewhere.parquet"}, {"mlflow__experiment": "other"}):
        assert inputs_digest(changed(known.config, **same_again), dataset) == same


def test_a_refused_run_exits_3_leaves_a_challenger_and_names_the_days_that_drifted(
    place: Path, shifted: Config, command: Command
) -> None:
    path = write_config(shifted)
    answer = command("run", path)
    assert answer.code == 3
    assert answer.json["promoted"] is False
    reasons = [reason["why"] for reason in answer.json["reasons"]]
    assert reasons == ["fpr_above_alpha", "not_exchangeable", "auroc_below_chance"]
    model = Registry().models()[0]
    assert model["aliases"] == {"challenger": "1"}
    times = pq.read_table(shifted.data.paths[0])["TX_DATETIME"].to_numpy()
    days = {str(day) for day in times[int(0.8 * len(times)) :].astype("datetime64[D]")}
    drifted = answer.json["drifted"]
    assert drifted
    assert {one["slice"] for one in drifted} <= days
    assert all(one["fpr"] > 0.05 and one["slice"] in answer.err for one in drifted)
    before = counts()
    again = command("run", path)
    assert (again.code, again.json) == (3, answer.json)
    assert counts() == before


def test_a_successor_is_judged_on_the_frozen_split_and_not_on_its_own(
    known: World, shifted: Config
) -> None:
    """Its own test split is shifted, the frozen one is not: what counts is decided there."""
    answer, promoted = run(shifted)
    frozen_rows = len(known.trained.data.test_table)
    assert answer["evaluations"]["challenger"]["rows"] == frozen_rows
    assert answer["evaluations"]["champion"]["rows"] == frozen_rows
    assert answer["judged_on"]["version"] == "1"
    champion = Registry().champion("fraud")
    assert champion is not None
    assert champion.version == ("2" if promoted else "1")


def test_days_that_drifted_are_those_of_the_split_that_refused(
    known: World, shifted: Config
) -> None:
    """The model's own test split is shifted; the frozen one, which judges it, is not."""
    answer, _ = run(shifted)
    assert "fpr_above_alpha" not in {reason["why"] for reason in answer["reasons"]}
    assert answer["drifted"] == []


def test_no_row_of_the_frozen_test_split_trains_a_later_model(
    known: World, flow: Config, tmp_path: Path
) -> None:
    """Data grow: what tested the first model has become old enough to train the next."""
    later = simulate_transactions(3_000, seed=0)
    days = pa.scalar(400 * 86_400 * 10**6, pa.duration("us"))
    grown = later.set_column(
        later.column_names.index("TX_DATETIME"), "TX_DATETIME",
        pc.add(later["TX_DATETIME"].cast(pa.timestamp("us")), days),
    )  # fmt: skip
    ids = pa.array([10**9 + i for i in range(len(grown))])
    grown = grown.set_column(grown.column_names.index("TRANSACTION_ID"), "TRANSACTION_ID", ids)
    first = pq.read_table(known.config.data.path)
    pq.write_table(pa.concat_tables([first, grown.cast(first.schema)]), tmp_path / "grown.parquet")
    data = read_data(changed(flow, data__path=str(tmp_path / "grown.parquet")))
    frozen = set(known.trained.data.test_table["TRANSACTION_ID"].to_pylist())
    for split in (TRAIN, VALIDATION, CALIBRATION):
        rows = data.table.take(data.assignment.rows(split))
        assert not frozen & set(rows["TRANSACTION_ID"].to_pylist())
    assert data.assignment.unused["in the frozen test split"] > 100


def test_one_file_is_repeated_as_the_data_grow(
    place: Path, flow: Config, transactions: Path, command: Command
) -> None:
    """Spans follow the newest row, and keep clear of the frozen test split."""
    everything, path = pq.read_table(transactions), place / "now.parquet"
    days = everything["TX_DATETIME"].to_numpy().astype("datetime64[D]")
    spans = {"train": "21d", "calibration": "14d", "test": "last 2w"}
    grown = changed(flow, data__path=str(path), data__splits=spans, data__label_delay="7d")
    manifests, answers = [], []
    for missing in (10, 0):
        pq.write_table(everything.filter(days <= days.max() - missing), path)
        answers.append(command("run", write_config(grown)))
        uri = answers[-1].json["model_uri"]
        manifests.append(Registry().fetch(uri).load().manifest)
    assert [answer.json["version"] for answer in answers] == ["1", "2"]
    first, last = manifests[0]["data"]["intervals"], manifests[1]["data"]["intervals"]
    assert [end[:10] for end in last["test"]] == [str(days.max() - 13), str(days.max() + 1)]
    assert last["calibration"] == first["calibration"], "the frozen days are no calibration rows"
    assert "the frozen test split, neither train nor calibrate" in answers[1].err
    assert last["test"][0][:10] in answers[1].err
    labels = answers[0].json["labels"]
    assert labels.items() >= manifests[0]["evaluation"]["labels"].items()
    assert labels["changed"] == 0, "what changed in the frozen labels is not lost beside the delay"
    assert labels["young"] == labels["rows"] - answers[0].json["metrics"]["rows"] > 0
    assert labels["youngest_mature_day"] == str(days.max() - 10 - 7)
    assert f"up to {labels['youngest_mature_day']}; {labels['young']}" in answers[0].err
    period = manifests[0]["evaluation"]["period"]
    assert period[1][:10] == labels["youngest_mature_day"], "younger days do not count"
    frozen = answers[1].json["evaluations"]["challenger"]["rows"]
    assert frozen == labels["rows"], "newer data make young labels final"


def test_data_at_fault_is_told_before_anything_is_made(place: Path, flow: Config) -> None:
    with pytest.raises(DataError, match=r"data\.label names the column 'absent'"):
        run(changed(flow, data__label="absent"))
    assert counts() == (0, 0)


# ---------------------------------------------------------------- labels that mature


def test_frauds_that_arrive_late_change_the_figures_of_both_models(
    place: Path, transactions: Path, flow: Config, command: Command
) -> None:
    """Most frauds of the test period are unknown at first: flags on them look like mistakes."""
    table = pq.read_table(transactions)
    fraud = table["TX_FRAUD"].to_numpy()
    late = (fraud == 1) & (np.arange(len(table)) >= 0.8 * len(table))
    late[np.flatnonzero(late)[0]] = False
    index = table.column_names.index("TX_FRAUD")
    immature = table.set_column(index, "TX_FRAUD", pa.array(np.where(late, 0, fraud)))
    pq.write_table(immature, "rows.parquet")
    folder = Path("late")
    folder.mkdir()
    config = write_config(changed(flow, data__path="rows.parquet", data__labels="late"))
    first = command("run", config)
    assert "late labels: none yet in 'late'" in first.err
    before = first.json["evaluations"]["challenger"]
    assert before["anomalies"] == 1
    ids = table["TRANSACTION_ID"].to_numpy()[late]
    text = "".join(f"{i},anomaly,2024-06-01T00:00:00Z\n" for i in ids)
    (folder / "june.csv").write_text(f"TRANSACTION_ID,label,at\n{text}")
    second = command("run", config)
    assert second.json["version"] == "2", "other labels are other inputs"
    assert second.json["labels"]["changed"] == len(ids)
    after = second.json["evaluations"]
    assert {name: figures["anomalies"] for name, figures in after.items()} == {
        "champion": len(ids) + 1,
        "challenger": len(ids) + 1,
    }
    assert after["champion"]["flagged"] == before["flagged"], "the rows are the same"
    assert after["champion"]["precision"] > before["precision"], "some mistakes were none"
    assert after["champion"]["fpr"] < before["fpr"]
    assert f"{len(ids)} labels changed ({len(ids)} to anomaly)" in second.err
    third = command("run", config)
    assert third.json["version"] == "2"

"""The command line's manners: exit codes, one JSON object on stdout, one line for a fault."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from mlflow import MlflowClient

from anomaly_vae import __version__, errors
from anomaly_vae.config import Config
from anomaly_vae.data.splitting import TEST
from anomaly_vae.evaluation.metrics import evaluate
from anomaly_vae.lifecycle.registry import Registry
from pipelines import cli, console
from tests.support.flows import Command, World
from tests.support.paths import ROOT
from tests.support.ports import free_port
from tests.support.terminal import run_on_terminal

pytestmark = pytest.mark.usefixtures("blank_figures")

COMMANDS = (
    "demo", "simulate", "train", "calibrate", "evaluate", "promote", "rollback", "run", "score",
    "serve", "models", "inspect", "thresholds",
)  # fmt: skip
GENERATING = ("sample", "reconstruct", "interpolate", "traverse", "latent", "denoise")


def fault(name: str) -> errors.AnomalyVAEError:
    """One of ours, whatever it wants to know."""
    kind = getattr(errors, name)
    return kind(3, "age", "expected a number") if name == "RecordError" else kind("what to mend")  # type: ignore[no-any-return]


OURS = [
    name for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, errors.AnomalyVAEError)
]  # fmt: skip


# ---------------------------------------------------------------- what there is


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_every_command(command: Command, flag: str) -> None:
    answer = command(flag)
    assert answer.code == 0
    words = answer.out.split()
    for name in (*COMMANDS, *GENERATING, "labels"):
        assert name in words


@pytest.mark.parametrize("name", [*COMMANDS, *GENERATING])
def test_every_command_has_help_that_says_what_it_does(command: Command, name: str) -> None:
    answer = command(name, "--help")
    assert answer.code == 0
    assert "Usage:" in answer.out
    registered = {
        c.name or c.callback.__name__: c for c in cli.app.registered_commands if c.callback
    }
    first = (registered[name].callback.__doc__ or "").split(".")[0].split(",")[0]
    assert first
    assert " ".join(first.split()[:3]) in answer.out


def test_the_version_is_the_packages(command: Command) -> None:
    answer = command("--version")
    assert (answer.code, answer.out.strip()) == (0, __version__)


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["train"],
        ["train", "a.yaml", "b.yaml"],
        ["models", "--nonsense"],
        ["score", "--model", "m"],
        ["score", "--model", "m", "--input", "i", "--output", "o", "--max-rejects", "-1"],
        ["promote", "fraud", "--force"],
        ["demo", "--kind", "nonsense"],
        ["serve"],
    ],
)
def test_wrong_usage_exits_2_and_says_so_on_stderr(
    place: Path, command: Command, arguments: list[str]
) -> None:
    answer = command(*arguments)
    assert (answer.code, answer.out) == (2, "")
    assert "Usage:" in answer.err
    assert "Traceback" not in answer.err


def test_no_command_at_all_shows_the_help(command: Command) -> None:
    answer = command()
    assert answer.code == 2
    assert "simulate" in answer.out + answer.err


# ---------------------------------------------------------------- how it ends


@pytest.mark.parametrize("name", OURS)
def test_each_of_our_errors_is_one_line_and_exit_1(
    command: Command, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def fail() -> Any:
        raise fault(name)

    monkeypatch.setattr(cli, "_registry", fail)
    answer = command("models")
    assert (answer.code, answer.out) == (1, "")
    assert answer.err == f"error: {fault(name)}\n"


def test_an_error_nobody_thought_of_is_one_line_too_and_asks_to_be_reported(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> Any:
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.delenv("ANOMALY_VAE_DEBUG", raising=False)
    monkeypatch.setattr(cli, "_registry", fail)
    answer = command("models")
    assert (answer.code, answer.out) == (1, "")
    assert "unexpected ZeroDivisionError: division by zero" in answer.err
    assert answer.err.count("\n") == 1
    monkeypatch.setenv("ANOMALY_VAE_DEBUG", "1")
    answer = command("models")
    assert answer.code == 1
    assert "Traceback" in answer.err
    assert "in fail" in answer.err


def test_an_install_without_what_trains_says_what_to_install(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lack() -> Any:
        raise ModuleNotFoundError("No module named 'sklearn'", name="sklearn")

    monkeypatch.setattr(cli, "_registry", lack)
    answer = command("models")
    remedy = "install it with: pip install 'anomaly-vae[train]'"
    assert (answer.code, answer.err) == (1, f"error: No module named 'sklearn'; {remedy}\n")


def test_an_interruption_exits_130(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_registry", interrupt)
    answer = command("models")
    assert (answer.code, answer.out) == (130, "")
    assert "Traceback" not in answer.err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "config.yaml"),
        ("[1, 2]", "must hold keys"),
        ("name: [", "not YAML"),
        ("name: fraud\ndata: {path: x.parquet}\ntrainin: {}", "did you mean training"),
        ("name: fraud\ndata: {path: nowhere.parquet}", "nowhere.parquet"),
    ],
)
def test_a_configuration_at_fault_exits_1_with_what_to_mend(
    place: Path, command: Command, content: str | None, said: str
) -> None:
    if content is not None:
        Path("config.yaml").write_text(content)
    for name in ("train", "run"):
        answer = command(name, "config.yaml")
        assert (answer.code, answer.out) == (1, "")
        assert said in answer.err
        assert "Traceback" not in answer.err


@pytest.mark.parametrize("override", ["nonsense", "=3", "training.epochs=many", "training.epoch=3"])
def test_an_override_at_fault_exits_1(
    place: Path, flow: Config, command: Command, override: str
) -> None:
    Path("config.yaml").write_text(yaml.safe_dump(flow.model_dump(mode="json")))
    answer = command("train", "config.yaml", "--set", override)
    assert (answer.code, answer.out) == (1, "")
    assert answer.err.startswith("error: ")


def test_train_and_calibrate_take_overrides_and_answer_with_what_the_next_needs(
    place: Path, flow: Config, command: Command
) -> None:
    Path("config.yaml").write_text(yaml.safe_dump(flow.model_dump(mode="json")))
    epochs = ("--set", "training.epochs=1")
    trained = command("train", "config.yaml", *epochs)
    assert trained.code == 0
    assert set(trained.json) == {"run_id", "model_uri", "bundle", "metrics"}
    assert trained.json["metrics"]["epochs"] == 1
    model = trained.json["model_uri"]
    refused = command("calibrate", "config.yaml", *epochs, "--model", model,
                      "--set", "calibration.alpha=0.001")  # fmt: skip
    assert (refused.code, refused.out) == (1, "")
    assert "needs 999" in refused.err
    answer = command("calibrate", "config.yaml", *epochs, "--model", model)
    assert answer.code == 0
    assert (answer.json["version"], answer.json["alias"]) == ("1", "challenger")
    assert command("promote", "fraud").code == 0


# ---------------------------------------------------------------- evaluate


@pytest.fixture
def labelled(champion: World, tmp_path: Path) -> str:
    """The test split as a file, and a column without any label."""
    path = tmp_path / "labelled.parquet"
    table = champion.trained.data.test_table
    pq.write_table(table.append_column("TX_NOTHING", pa.nulls(len(table), pa.int64())), path)
    return str(path)


def test_evaluate_gives_the_figures_of_the_decisions(
    champion: World, labelled: str, command: Command
) -> None:
    answer = command("evaluate", "--model", "models:/fraud@champion", "--data", labelled,
                     "--label", "TX_FRAUD")  # fmt: skip
    assert answer.code == 0
    data, detector = champion.trained.data, champion.calibrated.bundle.detector
    found = detector.detect(data.part(TEST))
    anomaly = data.rows.anomaly[data.assignment.rows(TEST)]
    truth = evaluate(found, anomaly, detector.calibration)
    assert answer.json["metrics"] == {**truth.to_json(), "rejected": 0, "unlabelled": 0}
    assert {"auroc", "average_precision", "fpr", "recall"} <= set(answer.json["metrics"])
    assert answer.json["rows"] == answer.json["scored"] == len(anomaly)
    assert answer.json["model"]["version"] == "1"
    assert "AUROC" in answer.err


def test_evaluate_takes_other_labels_and_leaves_unlabelled_and_unfit_rows_out(
    champion: World, labelled: str, tmp_path: Path, command: Command
) -> None:
    table = pq.read_table(labelled)
    words = [("bad" if fraud else "good") for fraud in table["TX_FRAUD"].to_pylist()]
    words[0] = None
    amounts = table["TX_AMOUNT"].to_pylist()
    amounts[1] = float("inf")
    table = table.set_column(table.column_names.index("TX_FRAUD"), "TX_FRAUD", pa.array(words))
    table = table.set_column(table.column_names.index("TX_AMOUNT"), "TX_AMOUNT", pa.array(amounts))
    pq.write_table(table, tmp_path / "words.parquet")
    answer = command("evaluate", "--model", "models:/fraud/1", "--data", tmp_path / "words.parquet",
                     "--label", "TX_FRAUD", "--positive", "bad")  # fmt: skip
    assert answer.code == 0
    assert answer.json["metrics"]["rejected"] == 1
    assert answer.json["metrics"]["rows"] == len(table) - 2
    assert answer.json["metrics"]["unlabelled"] == 1
    assert answer.json["metrics"]["anomalies"] == words[2:].count("bad")


@pytest.mark.parametrize(
    ("label", "positive", "said"),
    [("absent", "1", "'absent' is not there"), ("TX_NOTHING", "1", "has a label")],
)
def test_evaluate_without_such_labels_exits_1(
    champion: World, labelled: str, command: Command, label: str, positive: str, said: str
) -> None:
    answer = command("evaluate", "--model", "models:/fraud/1", "--data", labelled,
                     "--label", label, "--positive", positive)  # fmt: skip
    assert (answer.code, answer.out) == (1, "")
    assert said in answer.err


def test_rows_that_are_all_normal_are_evaluated_with_a_note(
    champion: World, labelled: str, tmp_path: Path, command: Command
) -> None:
    folder = champion.calibrated.bundle.save(tmp_path / "bundle")
    answer = command("evaluate", "--model", folder, "--data", labelled,
                     "--label", "TX_CHANNEL", "--positive", "pigeon")  # fmt: skip
    assert answer.code == 0
    assert answer.json["metrics"]["anomalies"] == 0
    assert answer.json["metrics"]["auroc"] is None
    assert "rows has 'pigeon' in column 'TX_CHANNEL'" in answer.err


def test_evaluating_a_registered_version_is_recorded_in_its_experiment(
    champion: World, labelled: str, command: Command
) -> None:
    answer = command("evaluate", "--model", "models:/fraud@champion", "--data", labelled,
                     "--label", "TX_FRAUD")  # fmt: skip
    uri = os.environ["MLFLOW_TRACKING_URI"]
    client = MlflowClient(uri, uri)
    experiment = client.get_experiment_by_name("fraud")
    assert experiment is not None
    run = client.search_runs([experiment.experiment_id], "run_name = 'evaluate'")[0]
    assert run.info.status == "FINISHED"
    about = {key: run.data.tags[key] for key in ("name", "version", "digest")}
    assert about == {"name": "fraud", "version": "1", "digest": champion.calibrated.bundle.digest}
    assert run.data.metrics["auroc"] == answer.json["metrics"]["auroc"]
    logged = Path(Registry().download(f"runs:/{run.info.run_id}/evaluation.json")).read_text()
    assert json.loads(logged) == answer.json["metrics"]
    assert Path(Registry().download(f"runs:/{run.info.run_id}/plots/scores.png")).exists()


# ---------------------------------------------------------------- a process of its own


@pytest.mark.e2e
def test_the_process_keeps_stdout_for_the_answer(champion: World, command: Command) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", "pipelines.cli", "inspect", "models:/fraud@champion"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout.count("\n") == 1
    assert json.loads(done.stdout)["model"]["name"] == "fraud"
    failed = command("inspect", "models:/absent/1")
    assert (failed.code, failed.out) == (1, "")
    assert failed.err.count("\n") == 1


# ---------------------------------------------------------------- passwords

CONFIG = """
name: fraud
data: {path: rows.csv, label: y}
preset: fast
training: {epochs: 1}
"""
ASKING = {
    "models": (),
    "train": ("config.yaml",),
    "calibrate": ("config.yaml", "--model", "models:/fraud/1"),
    "run": ("config.yaml",),
    "promote": ("fraud",),
    "rollback": ("fraud",),
    "inspect": ("models:/fraud@champion",),
    "evaluate": ("--model", "models:/fraud/1", "--data", "rows.csv", "--label", "y"),
    "score": ("--model", "runs:/0123/bundle", "--input", "rows.csv", "--output", "out"),
    "serve": ("--model", "models:/fraud@champion", "--port", "0"),
    "thresholds": ("--model", "models:/fraud@champion"),
    "sample": ("--model", "models:/fraud/1", "--out", "sample.csv"),
    "reconstruct": ("--model", "models:/fraud/1", "--out", "sample.csv"),
    "interpolate": ("--model", "models:/fraud/1", "--out", "sample.csv"),
    "traverse": ("--model", "models:/fraud/1", "--out", "sample.csv"),
    "latent": ("--model", "models:/fraud/1", "--out", "sample.csv"),
    "denoise": ("--model", "models:/fraud/1", "--out", "sample.csv"),
}
"""Arguments with which each command asks the registry."""


@pytest.fixture
def closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Host and port of a server that is down, in a folder with a configuration and its rows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    Path("config.yaml").write_text(CONFIG)
    rows = "".join(f"{i / 7},{(i * i) % 11},{int(i % 50 == 0)}\n" for i in range(400))
    Path("rows.csv").write_text(f"a,b,y\n{rows}")
    return f"127.0.0.1:{free_port()}"


def test_every_command_that_asks_the_registry_is_tested() -> None:
    assert set(ASKING) == {*COMMANDS, *GENERATING} - {"demo", "simulate"}


@pytest.mark.parametrize("name", ASKING)
@pytest.mark.parametrize("debug", ["", "1"])
def test_no_command_shows_the_password_of_the_registry(
    command: Command, closed: str, monkeypatch: pytest.MonkeyPatch, name: str, debug: str
) -> None:
    monkeypatch.setenv("ANOMALY_VAE_DEBUG", debug)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://bob:s3c@retPw@{closed}")
    answer = command(name, *ASKING[name])
    assert answer.code == 1
    assert "retPw" not in answer.out + answer.err
    assert "bob" not in answer.out + answer.err
    assert closed in answer.err
    assert "Traceback" not in answer.err


@pytest.mark.parametrize(
    "address",
    [
        "foo://bob:s3cretPw@{}", "postgresql://bob:s3cretPw@{}/x", "http://bob:s3cretPw/x@{}",
        "postgresql+psycopg2://bob:s3cret@Pw:1/x@{}/x", "bob:s3cretPw@{}", "mysql://s3cretPw@{}/x",
    ],
)  # fmt: skip
def test_no_address_of_another_kind_shows_its_password(
    command: Command, closed: str, address: str
) -> None:
    setting = f"mlflow.tracking_uri={address.format(closed)}"
    for arguments in (("train", "config.yaml"), ("run", "config.yaml")):
        answer = command(*arguments, "--set", setting)
        assert answer.code == 1
        assert "s3cret" not in answer.err
        assert answer.err.splitlines()[-1].startswith("error: ")
        assert answer.err.splitlines()[-1].count("; ") == 1  # a remedy


def test_whatever_is_written_to_the_terminal_is_masked(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> Any:
        warnings.warn("http://bob:s3cretPw@h:1 is slow", stacklevel=1)
        sys.stderr.write("http://bob:s3cretPw@h:1\n")
        console.table("", ("address",), [("x" * 50 + " http://bob:s3cretPw@h:1",)])
        console.result({"address": "http://bob:s3cretPw@h:1"})
        raise ZeroDivisionError("x" * 290 + "http://bob:s3cretPw@h:1")

    monkeypatch.setattr(cli, "_registry", fail)
    with pytest.warns(UserWarning, match="slow"):
        answer = command("models")
    assert "s3cret" not in answer.out + answer.err
    assert answer.out == '{"address": "http://h:1"}\n'
    assert answer.err.count("http://h:1") == 3
    monkeypatch.setenv("ANOMALY_VAE_DEBUG", "1")
    with pytest.warns(UserWarning, match="slow"):
        answer = command("models")
    assert "Traceback" in answer.err
    assert "s3cretPw@" not in answer.err.replace('"', "").split("ZeroDivisionError: ")[-1]


# ---------------------------------------------------------------- terminals


@pytest.mark.parametrize("option", [(), ("--json",)])
def test_a_command_on_a_terminal_prints_json_only_where_asked(
    tmp_path: Path, option: tuple[str, ...]
) -> None:
    command = [sys.executable, "-m", "pipelines.cli", "simulate", "transactions", "--rows", "50"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    code, text = run_on_terminal(
        [*command, "--out", "data", *option], 80, environment, str(tmp_path)
    )
    assert code == 0
    assert ("{" in text) == bool(option)
    assert "50" in text
    assert any(line.startswith("{") and json.loads(line) for line in text.splitlines()) == bool(
        option
    )


@pytest.mark.parametrize("name", [*COMMANDS, *GENERATING])
def test_every_command_mentions_and_accepts_json(command: Command, name: str) -> None:
    assert "--json" in command(name, "--help").out
    assert command(name, "--json", "--help").code == 0


def test_the_form_of_csv_files_is_an_option_of_score_and_evaluate(
    world: World, command: Command, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    world.calibrated.bundle.save(bundle)
    path = tmp_path / "t.csv"
    path.write_text("TX_AMOUNT~TX_FRAUD\n" + "".join(f"{i},5~{i % 2}\n" for i in range(40)))
    where = ("--input", path, "--output", tmp_path / "o")
    scored = command("score", "--model", bundle, *where, "--csv", "separator=~")
    assert scored.json["scored"] == 40
    assert scored.err.count("numbers are read with a decimal comma") == 1
    options = ("--model", bundle, "--data", path, "--label", "TX_FRAUD")
    evaluated = command("evaluate", *options, "--csv", "separator=~")
    assert evaluated.json["metrics"]["rows"] == 40
    wrong = command("evaluate", *options, "--csv", "seperator=~")
    assert wrong.code == 1
    assert "unknown key --csv seperator, did you mean separator" in wrong.err
    assert command("evaluate", *options, "--csv", "x").code == 2


def test_torchrun_is_for_train_alone(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    answer = command("models")
    assert answer.code == 1
    assert answer.err == (
        "error: torchrun starts several processes, which only train can share; leave it out\n"
    )


@pytest.mark.slow
def test_torchrun_shares_a_fit_and_prints_one_result(place: Path, flow: Config) -> None:
    Path("config.yaml").write_text(yaml.safe_dump(flow.model_dump(mode="json")))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*torchrun, "--nproc-per-node=2", "-m", "pipelines.cli", "train", "config.yaml"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    manifest = json.loads((Path(result["bundle"]) / "manifest.json").read_text())
    assert manifest["training"]["processes"] == 2
    assert done.stderr.count("The model learned from") == 1
    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    assert client.get_run(result["run_id"]).data.params["processes"] == "2"

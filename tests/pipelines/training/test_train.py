"""Training: all of it is recorded, it repeats, and what broke off goes on."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run
from PIL import Image

from anomaly_vae.artifacts.bundle import load_bundle
from anomaly_vae.artifacts.provenance import code_version
from anomaly_vae.config import Config
from anomaly_vae.data.encoding import PooledLevels
from anomaly_vae.data.splitting import TEST, TRAIN
from anomaly_vae.errors import BundleError, DataError, RegistryError, TrainingError
from anomaly_vae.lifecycle.registry import Registry
from anomaly_vae.training import trainer
from anomaly_vae.training.fit import Prepared
from anomaly_vae.training.trainer import State
from pipelines import cli
from pipelines.datasets.dataset import Dataset
from pipelines.training import train as flow_module
from pipelines.training.train import CHECKPOINTS, final_metrics, inputs_digest, show_pooled, train
from tests.support.flows import World
from tests.support.paths import ROOT
from tests.support.registries import changed, copy_registry

pytestmark = pytest.mark.usefixtures("blank_figures")


def client() -> MlflowClient:
    uri = os.environ["MLFLOW_TRACKING_URI"]
    return MlflowClient(uri, uri)


def runs() -> list[Run]:
    """The runs of the experiment, newest first."""
    experiment = client().get_experiment_by_name("fraud")
    return list(client().search_runs([experiment.experiment_id]))


@pytest.fixture
def recorded(champion: World) -> Run:
    """The training run of the champion."""
    return client().get_run(champion.trained.run_id)


# ---------------------------------------------------------------- what is recorded


def test_the_answer_names_the_run_the_model_and_the_bundle(champion: World) -> None:
    trained = champion.trained
    answer = trained.result()
    assert answer == {
        "run_id": trained.run_id,
        "model_uri": f"runs:/{trained.run_id}/bundle",
        "bundle": str(trained.folder),
        "metrics": final_metrics(trained.fitted),
    }
    json.dumps(answer, allow_nan=False)
    assert load_bundle(answer["bundle"]).digest == trained.fitted.bundle.digest


def test_every_parameter_is_recorded_with_what_was_chosen_for_it(
    champion: World, recorded: Run
) -> None:
    params = recorded.data.params
    config = champion.trained.fitted.bundle.manifest["config"]
    assert params["training.epochs"] == "3"
    assert params["training.batch_size"] == str(config["training"]["batch_size"])
    assert params["model.latent_dim"] == str(config["model"]["latent_dim"])
    assert params["data.label"] == "TX_FRAUD"
    assert params["calibration.alpha"] == "0.05"
    assert "None" not in {params["training.batch_size"], params["model.latent_dim"]}


def test_the_data_digest_and_the_code_version_are_recorded(champion: World, recorded: Run) -> None:
    assert recorded.data.params["rows.digest"] == champion.trained.data.digest
    assert recorded.data.params["code_version"] == code_version()
    digest = inputs_digest(champion.config, champion.trained.data)
    assert recorded.data.tags["inputs"] == digest


def test_every_epoch_has_its_point_on_every_curve(champion: World, recorded: Run) -> None:
    epochs = champion.trained.fitted.history.epochs
    assert len(epochs) == 3
    for name, values in {
        "validation_elbo": [e.validation_elbo for e in epochs],
        "validation_kl": [e.validation_kl for e in epochs],
        "train_elbo": [e.train_log_prob - e.train_kl for e in epochs],
        "learning_rate": [e.learning_rate for e in epochs],
        "beta": [e.beta for e in epochs],
    }.items():
        history = client().get_metric_history(recorded.info.run_id, name)
        assert [(m.step, m.value) for m in history] == list(enumerate(values))


def test_the_final_metrics_are_those_of_the_epoch_kept(champion: World, recorded: Run) -> None:
    for name, value in final_metrics(champion.trained.fitted).items():
        assert recorded.data.metrics[f"final_{name}"] == value


@pytest.mark.parametrize("name", ["loss", "reconstruction"])
def test_plots_are_recorded_as_pictures(champion: World, recorded: Run, name: str) -> None:
    path = Registry().download(f"runs:/{recorded.info.run_id}/plots/{name}.png")
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        picture.load()
        assert len(picture.convert("L").getcolors() or []) > 10


def test_values_that_are_no_levels_are_told(
    prepared: Prepared, capsys: pytest.CaptureFixture[str]
) -> None:
    show_pooled(prepared)
    assert capsys.readouterr().err == ""
    show_pooled(replace(prepared, pooled=(PooledLevels("shop", 900, 64, 0.25, False),)))
    said = " ".join(capsys.readouterr().err.split())
    assert said == (
        "column 'shop': 64 of 900 values are kept as levels; the others, in 25.0% of the training "
        "rows, become one level; data.features.shop.max_levels and min_count keep more"
    )


def test_the_bundle_is_an_artifact_of_the_run(champion: World) -> None:
    fetched = Registry().fetch(champion.trained.model_uri).load()
    assert fetched.digest == champion.trained.fitted.bundle.digest
    assert fetched.calibration is None


def test_nothing_of_this_machine_is_in_the_bundle(champion: World, transactions: Path) -> None:
    content = b"".join(champion.trained.fitted.bundle.files.values())
    for private in (str(transactions), str(champion.folder), champion.trained.run_id, "sqlite"):
        assert private.encode() not in content


# ---------------------------------------------------------------- it repeats


def test_the_same_seed_gives_the_same_bundle_in_another_folder(
    world: World, place: Path, flow: Config
) -> None:
    again = train(flow)
    assert again.fitted.bundle.digest == world.trained.fitted.bundle.digest
    assert again.folder.name == world.trained.folder.name
    assert again.run_id != world.trained.run_id
    files = {path.name: path.read_bytes() for path in (place / again.folder).iterdir()}
    theirs = world.folder / world.trained.folder
    assert files == {path.name: path.read_bytes() for path in theirs.iterdir()}


def test_another_seed_gives_another_bundle(
    world: World, place: Path, flow: Config, dataset: Dataset
) -> None:
    other = train(changed(flow, training__seed=1, training__epochs=1), dataset)
    assert other.fitted.bundle.digest != world.trained.fitted.bundle.digest


# ---------------------------------------------------------------- it goes on


def interrupt_after(epochs: int, patch: pytest.MonkeyPatch) -> None:
    """Break off in the epoch after these, as Ctrl-C does."""
    whole = trainer._Trainer._epoch

    def epoch(self: trainer._Trainer, number: int) -> trainer.Epoch:
        if number == epochs:
            raise KeyboardInterrupt
        return whole(self, number)

    patch.setattr(trainer._Trainer, "_epoch", epoch)


def epochs_kept() -> list[int]:
    """How many epochs each checkpoint holds."""
    paths = CHECKPOINTS.glob("[!.]*.safetensors")
    return [len(State.load(path).epochs) for path in paths]


def test_an_interrupted_run_is_killed_and_the_next_one_ends_as_if_unbroken(
    world: World,
    place: Path,
    flow: Config,
    dataset: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with monkeypatch.context() as patch:
        interrupt_after(2, patch)
        with pytest.raises(KeyboardInterrupt):
            train(flow, dataset)
    (checkpoint,) = CHECKPOINTS.iterdir()
    assert [run.info.status for run in runs()] == ["KILLED"]
    assert "the same command resumes" in capsys.readouterr().err
    done: list[int] = []
    whole = trainer._Trainer._epoch
    monkeypatch.setattr(
        trainer._Trainer, "_epoch", lambda self, n: (done.append(n), whole(self, n))[1]
    )
    resumed = train(flow, dataset)
    assert done == [2]
    said = capsys.readouterr().err
    assert f"Resumed after epoch 2 from {checkpoint}" in said
    assert "Training: 3 of 3 epochs, ELBO " in said
    assert resumed.fitted.bundle.digest == world.trained.fitted.bundle.digest
    assert not checkpoint.exists()
    assert sorted(run.info.status for run in runs()) == ["FINISHED", "KILLED"]
    history = client().get_metric_history(resumed.run_id, "validation_elbo")
    assert [m.step for m in history] == [0, 1, 2]


def test_without_resume_it_starts_anew(
    place: Path, flow: Config, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_after(2, patch)
        with pytest.raises(KeyboardInterrupt):
            train(flow, dataset)
    done: list[int] = []
    whole = trainer._Trainer._epoch
    monkeypatch.setattr(
        trainer._Trainer, "_epoch", lambda self, n: (done.append(n), whole(self, n))[1]
    )
    train(changed(flow, training__resume=False), dataset)
    assert done == [0, 1, 2]


def test_a_checkpoint_that_does_not_fit_is_not_said_to_be_resumed(
    place: Path,
    flow: Config,
    dataset: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with monkeypatch.context() as patch:
        interrupt_after(2, patch)
        with pytest.raises(KeyboardInterrupt):
            train(flow, dataset)
    (checkpoint,) = CHECKPOINTS.iterdir()
    checkpoint.write_bytes(b"not a checkpoint")
    train(flow, dataset)
    assert "Resum" not in capsys.readouterr().err


def test_an_interrupted_run_that_may_not_resume_does_not_promise_it(
    place: Path,
    flow: Config,
    dataset: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    interrupt_after(1, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train(changed(flow, training__resume=False), dataset)
    assert "resumes" not in capsys.readouterr().err


def test_a_checkpoint_of_other_data_or_settings_is_not_taken_up(
    place: Path, flow: Config, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_after(1, patch)
        with pytest.raises(KeyboardInterrupt):
            train(flow, dataset)
        interrupt_after(0, patch)
        with pytest.raises(KeyboardInterrupt):
            train(changed(flow, training__seed=1), dataset)
    assert sorted(epochs_kept()) == [0, 1]


def test_ctrl_c_ends_the_command_with_130(
    place: Path,
    flow: Config,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("config.yaml").write_text(yaml.safe_dump(flow.model_dump(mode="json")))
    interrupt_after(1, monkeypatch)
    monkeypatch.setattr("sys.argv", ["anomaly-vae", "train", "config.yaml"])
    assert cli._exit_code() == 130
    out, err = capsys.readouterr()
    assert out == ""
    assert "the same command resumes" in err
    assert "Traceback" not in err
    assert list(CHECKPOINTS.iterdir())


def test_a_fit_that_diverges_is_a_failed_run(place: Path, flow: Config, dataset: Dataset) -> None:
    wild = changed(flow, training__learning_rate=1e30, training__clip_norm=1e30)
    with pytest.raises(TrainingError, match="diverged"):
        train(wild, dataset)
    assert [run.info.status for run in runs()] == ["FAILED"]


# ---------------------------------------------------------------- what is refused


def test_data_that_is_not_there_makes_no_run(place: Path, flow: Config) -> None:
    with pytest.raises(DataError, match="nowhere"):
        train(changed(flow, data__path="nowhere.parquet"))
    assert client().get_experiment_by_name("fraud") is None


def test_a_registry_in_a_plain_folder_is_refused_before_the_fit(
    place: Path, flow: Config, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "mlruns")
    monkeypatch.setattr(flow_module, "fit_bundle", lambda *_: pytest.fail("it was fitted"))
    with pytest.raises(RegistryError, match="sqlite"):
        train(flow, dataset)


# ---------------------------------------------------------------- processes


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pipelines.cli", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def stop_at_checkpoint(process: subprocess.Popen[str], number: int) -> tuple[int, str]:
    """Send a signal once there is a checkpoint; the exit code and what was said."""
    deadline = time.monotonic() + 200
    while not any(epochs_kept()):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "no checkpoint"
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=100)
    return process.returncode, err


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_process_stopped_in_training_resumes_to_the_same_bundle(
    place: Path, flow: Config, number: int, code: int
) -> None:
    long = changed(flow, training__epochs=150, training__patience=150)
    Path("config.yaml").write_text(yaml.safe_dump(long.model_dump(mode="json")))
    stopped, err = stop_at_checkpoint(start("train", "config.yaml"), number)
    assert stopped == code
    assert "Traceback" not in err
    statuses = [run.info.status for run in runs()]
    assert statuses == (["KILLED"] if number == signal.SIGINT else ["RUNNING"])
    (checkpoint,) = CHECKPOINTS.glob("[!.]*")
    out, err = start("train", "config.yaml").communicate(timeout=300)
    assert re.search(rf"Resumed after epoch \d+ from {checkpoint}", err)
    resumed = load_bundle(json.loads(out)["bundle"]).digest
    unbroken = train(changed(long, training__resume=False))
    assert unbroken.fitted.bundle.digest == resumed


# ---------------------------------------------------------------- warm starts


def test_a_fit_starts_from_a_folder_and_says_from_which_model(
    place: Path, flow: Config, world: World, dataset: Dataset, capfd: pytest.CaptureFixture[str]
) -> None:
    warm = changed(flow, training__warm_start=str(world.folder / world.trained.folder))
    trained = train(warm, dataset)
    known = world.trained.fitted.bundle.digest
    assert trained.fitted.bundle.manifest["training"]["warm_start"] == known
    assert "A warm start from" in capfd.readouterr().err
    assert str(world.folder) not in json.dumps(trained.fitted.bundle.manifest)
    assert inputs_digest(warm, dataset) != inputs_digest(flow, dataset)


def test_a_champion_that_does_not_fit_is_told_and_the_start_is_cold(
    champion: World, flow: Config, dataset: Dataset, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    copy_registry(champion.folder, tmp_path, monkeypatch)
    other = changed(flow, model__members=1, training__warm_start="models:/fraud@champion")
    trained = train(other, dataset)
    assert "warm_start" not in trained.fitted.bundle.manifest["training"]
    assert "does not fit: its model.members is 3, this one's 1" in capfd.readouterr().err


def test_a_first_model_has_no_champion_to_start_from(
    place: Path, flow: Config, dataset: Dataset, capfd: pytest.CaptureFixture[str]
) -> None:
    warm = changed(flow, training__warm_start="models:/fraud@champion")
    assert train(warm, dataset).fitted.bundle.manifest["training"].get("warm_start") is None
    assert "A cold start: there is no models:/fraud@champion yet" in capfd.readouterr().err


@pytest.mark.parametrize("uri", ["models:/another@champion", "models:/fraud/7", "nowhere"])
def test_a_model_to_start_from_that_is_not_there_is_an_error(
    place: Path, flow: Config, dataset: Dataset, uri: str
) -> None:
    with pytest.raises((RegistryError, BundleError)):
        train(changed(flow, training__warm_start=uri), dataset)


def test_an_alias_counts_by_its_name_and_a_model_by_its_digest(
    champion: World, flow: Config, dataset: Dataset
) -> None:
    """The same rows are not trained on again because what they made was promoted."""
    alias = changed(flow, training__warm_start="models:/fraud@champion")
    number = changed(flow, training__warm_start="models:/fraud/1")
    folder = changed(flow, training__warm_start=str(champion.trained.folder))
    digests = [inputs_digest(one, dataset) for one in (flow, alias, number, folder)]
    assert len(set(digests)) == 4


def test_a_model_that_may_have_seen_what_calibrates_is_no_start(
    champion: World, flow: Config, dataset: Dataset, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Splits in another place, or by chance: the promise would rest on rows that trained it."""
    copy_registry(champion.folder, tmp_path, monkeypatch)
    uri = str(champion.folder / champion.trained.folder)
    earlier = changed(flow, training__warm_start=uri, data__splits__train=0.2)
    train(changed(earlier, data__splits__calibration=0.6))
    assert "are no later than those it saw" in capfd.readouterr().err
    train(changed(flow, training__warm_start=uri, data__time=None))
    assert "rows without a time" in capfd.readouterr().err


def test_the_manifest_says_until_when_rows_trained_it(champion: World, dataset: Dataset) -> None:
    assert dataset.rows.time is not None
    manifest = champion.trained.fitted.bundle.manifest
    rows = dataset.assignment.rows(TRAIN)
    assert manifest["data"]["trained_until"] >= dataset.rows.time[rows].max()
    assert (
        manifest["data"]["trained_until"] < dataset.rows.time[dataset.assignment.rows(TEST)].min()
    )

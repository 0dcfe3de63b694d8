"""Runs, versions and aliases on a real MLflow database; nothing in it is pretended."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import mlflow
import pytest
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.entities import Run as StoredRun
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from anomaly_vae import __version__
from anomaly_vae.artifacts.bundle import GRAPH, MANIFEST, SUMS, Bundle, load_bundle
from anomaly_vae.artifacts.registry_names import (
    DIGEST_TAG,
    FAULT,
    MISSING,
    UNFIT,
    UNWRITABLE,
)
from anomaly_vae.errors import BundleError, RegistryError
from anomaly_vae.lifecycle.registry import (
    CHALLENGER,
    INPUTS_TAG,
    MAX_PARAM_CHARACTERS,
    Registry,
    Version,
    cache_bundle,
    main,
    param_name,
)
from tests.support.paths import ROOT
from tests.support.ports import free_port
from tests.support.registries import (
    DATABASE,
    copy_registry,
    migrated,
    place,
    registry,
    use_registry,
)

__all__ = ["migrated", "place", "registry"]


def client() -> MlflowClient:
    uri = os.environ["MLFLOW_TRACKING_URI"]
    return MlflowClient(uri, uri)


def stored(run_id: str) -> StoredRun:
    return client().get_run(run_id)


def registered(registry: Registry, bundle: Bundle, name: str = "fraud", **tags: str) -> Version:
    with registry.run(name, "calibrate", {}) as run:
        return registry.register(run, bundle, name, tags)


@pytest.fixture(scope="module")
def made(migrated: Path, calibrated: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose registry holds one version of one model."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        use_registry(migrated, folder, patch)
        registered(Registry(), calibrated)
    return folder


@pytest.fixture
def version(made: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> Version:
    """That version, in a registry of this test's own."""
    copy_registry(made, place, monkeypatch)
    return Registry().version("fraud", "1")


# ---------------------------------------------------------------- where it is


def test_the_environment_wins_over_what_the_configuration_says(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Registry("sqlite:///elsewhere.db").uri == os.environ["MLFLOW_TRACKING_URI"]
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    one, other = (f"sqlite:///{shutil.copy(place / DATABASE, place / name)}" for name in "ab")
    assert Registry(one).uri == one
    assert Registry(other).uri == other, "the first one must not stay in the environment"
    assert "MLFLOW_TRACKING_URI" not in os.environ


def test_a_plain_folder_is_refused_with_what_to_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "./mlruns")
    with pytest.raises(RegistryError, match=r"'\./mlruns' is not .* sqlite:///FILE"):
        Registry()


@pytest.mark.parametrize("uri", ["sqlite:////dev/null/mlflow.db", "nonsense://x"])
def test_a_database_that_cannot_be_opened_is_one_line(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(RegistryError, match=r"^MLflow: .+") as caught:
        Registry().models()
    assert "\n" not in str(caught.value)


def test_artifacts_lie_beside_the_database(registry: Registry, place: Path) -> None:
    with registry.run("fraud", "train", {}) as run:
        run.log_json({"a": 1}, "some.json")
    (found,) = (place / "mlartifacts").rglob("some.json")
    assert json.loads(found.read_text()) == {"a": 1}


# ---------------------------------------------------------------- runs


def test_a_run_records_who_made_it_and_how_it_ended(registry: Registry) -> None:
    with registry.run("fraud", "train", {"inputs": "abc"}) as run:
        assert stored(run.id).info.status == "RUNNING"
    kept = stored(run.id)
    assert kept.info.status == "FINISHED"
    assert kept.info.run_name == "train"
    assert kept.data.tags["inputs"] == "abc"
    assert kept.data.tags["anomaly_vae.version"] == __version__


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")]
)
def test_a_run_that_breaks_off_says_so(
    registry: Registry, error: type[BaseException], status: str
) -> None:
    with pytest.raises(error), registry.run("fraud", "train", {}) as run:
        raise error
    assert stored(run.id).info.status == status


def test_nested_parameters_become_dotted_names_and_long_ones_are_cut(registry: Registry) -> None:
    with registry.run("fraud", "train", {}) as run:
        run.log_params({"data": {"splits": {"test": 0.2}, "path": None}, "long": "x" * 10_000})
    params = stored(run.id).data.params
    assert params["data.splits.test"] == "0.2"
    assert params["data.path"] == "None"
    assert params["long"] == "x" * MAX_PARAM_CHARACTERS


def test_more_than_a_request_carries_is_logged_in_several(registry: Registry) -> None:
    with registry.run("fraud", "train", {}) as run:
        run.log_params({f"p{i}": i for i in range(250)})
        run.log_curves([{"loss": step / 7, "beta": 1.0} for step in range(1_100)])
    assert len(stored(run.id).data.params) == 250
    history = client().get_metric_history(run.id, "loss")
    assert [(m.step, m.value) for m in history] == [(step, step / 7) for step in range(1_100)]


def test_only_numbers_are_metrics(registry: Registry) -> None:
    with registry.run("fraud", "train", {}) as run:
        run.log_metrics({"auroc": 0.9, "rows": 3, "fpr_interval": [0, 1], "recall": None})
    assert stored(run.id).data.metrics == {"auroc": 0.9, "rows": 3.0}


def test_figures_files_and_bundles_are_artifacts(
    registry: Registry, place: Path, calibrated: Bundle
) -> None:
    (place / "notes.txt").write_text("kept")
    with registry.run("fraud", "train", {}) as run:
        run.log_figure(Figure(), "plots/loss.png")
        run.log_file(place / "notes.txt")
        uri = run.log_bundle(calibrated.save(place / "here"))
    assert uri == f"runs:/{run.id}/bundle"
    fetched = registry.fetch(uri)
    assert fetched.load().digest == calibrated.digest
    assert (fetched.name, fetched.version, fetched.digest) == (None, None, None)
    assert Path(registry.download(f"runs:/{run.id}/notes.txt")).read_text() == "kept"
    assert Path(registry.download(f"runs:/{run.id}/plots/loss.png")).read_bytes()[1:4] == b"PNG"


# ---------------------------------------------------------------- versions


def test_a_registered_version_holds_the_bundle_its_digest_and_the_alias_challenger(
    registry: Registry, calibrated: Bundle
) -> None:
    version = registered(registry, calibrated, **{INPUTS_TAG: "abc"})
    assert (version.name, version.version, version.aliases) == ("fraud", "1", (CHALLENGER,))
    assert version.tags[DIGEST_TAG] == calibrated.digest
    assert version.tags[INPUTS_TAG] == "abc"
    for uri in ("models:/fraud/1", f"models:/fraud@{CHALLENGER}"):
        fetched = registry.fetch(uri)
        assert (fetched.name, fetched.version) == ("fraud", "1")
        assert fetched.digest == calibrated.digest
        assert fetched.load().digest == calibrated.digest
        listed = {path.name for path in Path(fetched.path).iterdir()}
        assert listed == {SUMS, *calibrated.files}


def test_registering_leaves_no_run_active_and_nothing_unfinished(
    version: Version, registry: Registry
) -> None:
    assert mlflow.active_run() is None
    assert version.run_id is not None
    assert stored(version.run_id).info.status == "FINISHED"


def test_versions_count_up_and_the_alias_follows(
    version: Version, registry: Registry, calibrated: Bundle
) -> None:
    later = registered(registry, calibrated)
    assert later.version == "2"
    assert registry.by_alias("fraud", CHALLENGER).version == "2"
    assert registry.version("fraud", "1").aliases == ()
    assert registry.models() == [
        {"name": "fraud", "aliases": {CHALLENGER: "2"}, "versions": ["1", "2"]}
    ]


@pytest.mark.parametrize("name", [MANIFEST, GRAPH, SUMS])
def test_a_file_altered_in_the_artifact_store_is_refused(
    version: Version, registry: Registry, name: str
) -> None:
    path = Path(registry.fetch("models:/fraud/1").path) / name
    path.write_bytes(path.read_bytes().replace(b"0", b"1", 1))
    with pytest.raises(BundleError):
        registry.fetch("models:/fraud/1").load()


def test_another_valid_bundle_in_its_place_is_refused(
    version: Version, registry: Registry, calibrated: Bundle, bundle: Bundle
) -> None:
    bundle.save(registry.fetch("models:/fraud/1").path)
    with pytest.raises(BundleError, match="not the registered bundle"):
        registry.fetch("models:/fraud/1").load()


def test_a_missing_and_an_extra_file_are_refused(version: Version, registry: Registry) -> None:
    folder = Path(registry.fetch("models:/fraud/1").path)
    (folder / "extra.txt").write_text("x")
    with pytest.raises(BundleError, match=r"extra\.txt"):
        registry.fetch("models:/fraud/1").load()
    (folder / "extra.txt").unlink()
    (folder / GRAPH).unlink()
    with pytest.raises(BundleError, match=GRAPH):
        registry.fetch("models:/fraud/1").load()


def test_a_version_made_by_others_is_refused(registry: Registry) -> None:
    client().create_registered_model("theirs")
    client().create_model_version("theirs", source="file:///nowhere")
    with pytest.raises(RegistryError, match="not registered by anomaly-vae"):
        registry.fetch("models:/theirs/1")


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("models:/fraud@nobody", "nobody"),
        ("models:/fraud/99", "99"),
        ("models:/absent@champion", "absent"),
        ("models:/absent/1", "absent"),
        ("models:/fraud", "models:/NAME@ALIAS"),
        ("models:/fraud/latest", "models:/NAME@ALIAS"),
        ("models:/", "models:/NAME@ALIAS"),
        ("runs:/0123456789abcdef/bundle", "0123456789abcdef"),
        ("runs:/", "MLflow: "),
    ],
)
def test_what_is_not_there_is_one_line_that_names_it(
    version: Version, registry: Registry, uri: str, said: str
) -> None:
    with pytest.raises(RegistryError) as caught:
        registry.fetch(uri)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_is_itself(registry: Registry) -> None:
    assert registry.fetch("some/folder").path == "some/folder"


def test_the_newest_version_of_the_same_inputs_is_found(
    registry: Registry, calibrated: Bundle
) -> None:
    assert registry.find("fraud", "abc") is None
    for digest in ("abc", "abc", "other"):
        registered(registry, calibrated, **{INPUTS_TAG: digest})
    found = registry.find("fraud", "abc")
    assert found is not None
    assert found.version == "2"
    assert registry.find("fraud", "none") is None


def test_a_model_is_found_and_listed_among_very_many(
    registry: Registry, calibrated: Bundle
) -> None:
    """More than one page of registered models, of which MLflow returns a hundred at a time."""
    for i in range(110):
        client().create_registered_model(f"another-{i}")
    registered(registry, calibrated, "fraud", **{INPUTS_TAG: "abc"})
    assert registry.find("fraud", "abc") is not None
    assert len(registry.models()) == 111


# ---------------------------------------------------------------- champions


def test_a_model_without_champion_has_none(version: Version, registry: Registry) -> None:
    assert registry.champion("fraud") is None


def test_the_champion_is_the_version_that_the_alias_points_to(
    version: Version, registry: Registry
) -> None:
    registry.set_champion("fraud", "1")
    champion = registry.champion("fraud")
    assert champion is not None
    assert champion.version == "1"


def test_a_parameter_is_written_once(registry: Registry) -> None:
    with registry.run("fraud", "train", {}) as run:
        assert run.set_param_once("who", "me") == "me"
        assert run.set_param_once("who", "you") == "me"
        assert run.set_param_once("who", "me") == "me"
    assert run.set_param_once("when", "later") == "later", "even when the run has ended"
    assert run.params == {"who": "me", "when": "later"}


def test_a_run_that_was_deleted_takes_no_parameter(registry: Registry) -> None:
    with registry.run("fraud", "train", {}) as run:
        pass
    client().delete_run(run.id)
    with pytest.raises(RegistryError, match="active"):
        run.set_param_once("who", "me")


# ---------------------------------------------------------------- the child process


def test_a_fetched_bundle_is_kept_under_its_digest(
    version: Version, registry: Registry, calibrated: Bundle, place: Path
) -> None:
    cached = cache_bundle(registry.fetch("models:/fraud@challenger"), place / "cache")
    assert cached.path == str(place / "cache" / calibrated.digest)
    assert (cached.name, cached.version, cached.alias) == ("fraud", "1", "challenger")
    assert load_bundle(cached.path, cached.digest).digest == calibrated.digest
    before = (Path(cached.path) / SUMS).stat().st_mtime_ns
    assert cache_bundle(registry.fetch("models:/fraud/1"), place / "cache").path == cached.path
    assert (Path(cached.path) / SUMS).stat().st_mtime_ns == before


def test_a_cached_copy_that_was_damaged_is_replaced(
    version: Version, registry: Registry, place: Path
) -> None:
    cached = cache_bundle(registry.fetch("models:/fraud/1"), place / "cache")
    (Path(cached.path) / GRAPH).write_bytes(b"damaged")
    again = cache_bundle(registry.fetch("models:/fraud/1"), place / "cache")
    assert load_bundle(again.path, again.digest).digest == cached.digest


def test_an_altered_bundle_never_enters_the_cache(
    version: Version, registry: Registry, place: Path
) -> None:
    (Path(registry.fetch("models:/fraud/1").path) / GRAPH).write_bytes(b"x")
    with pytest.raises(BundleError):
        cache_bundle(registry.fetch("models:/fraud/1"), place / "cache")
    assert not (place / "cache").exists()


def test_fetch_prints_one_line_of_json(
    version: Version, place: Path, calibrated: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fetch", "models:/fraud@challenger", "--to", str(place / "cache")]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == {
        "path": str(place / "cache" / calibrated.digest),
        "digest": calibrated.digest,
        "name": "fraud",
        "version": "1",
        "alias": "challenger",
        "registered_at": version.registered_at,
    }


def test_fetch_says_in_one_line_what_is_wrong(
    version: Version, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fetch", "models:/fraud@nobody", "--to", str(place / "cache")]) == MISSING
    out, err = capsys.readouterr()
    assert out == ""
    assert "nobody" in err
    assert len(err.splitlines()) == 1


def test_what_is_in_the_cache_is_not_fetched_again(
    version: Version, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Asking whether anything changed needs no artifacts, not even sound ones."""
    command = ["fetch", "models:/fraud@challenger", "--to", str(place / "cache")]
    assert main(command) == 0
    shutil.rmtree(Registry().fetch("models:/fraud/1").path)
    assert main(command) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == second


def test_fetch_tells_failures_apart(
    version: Version, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ends(uri: str, cache: Path) -> int:
        return main(["fetch", uri, "--to", str(cache)])

    (place / "file").touch()
    assert ends("models:/fraud/1", place / "file") == UNWRITABLE
    (Path(Registry().fetch("models:/fraud/1").path) / GRAPH).write_bytes(b"x")
    assert ends("models:/fraud/1", place / "cache") == UNFIT
    assert ends("models:/nothing/1", place / "cache") == MISSING
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place / 'none.db'}")
    assert ends("models:/fraud/1", place / "cache") == FAULT
    assert not (place / "none.db").exists()


@pytest.mark.e2e
@pytest.mark.slow
def test_fetch_works_as_a_process_of_its_own(version: Version, place: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "anomaly_vae.lifecycle.registry",
        "fetch",
        "models:/fraud/1",
        "--to",
        "c",
    ]
    root = str(ROOT)
    environment = {**os.environ, "PYTHONPATH": root}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    (line,) = done.stdout.splitlines()
    assert (place / json.loads(line)["path"] / SUMS).exists()


def test_mlflows_own_exceptions_never_leave_it(registry: Registry) -> None:
    with pytest.raises(RegistryError) as caught:
        registry.set_champion("absent", "1")
    assert not isinstance(caught.value, MlflowException)
    with pytest.raises(RegistryError):
        registry.by_alias("absent", CHALLENGER)


def test_a_file_that_is_no_database_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLAlchemy's errors are none of MLflow's."""
    (tmp_path / "corrupt.db").write_bytes(b"no database at all" * 100)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'corrupt.db'}")
    with pytest.raises(RegistryError, match=r"^MLflow: .*not a database"):
        Registry().models()


def test_a_missing_database_driver_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql+absent://nobody@localhost/x")
    with pytest.raises(RegistryError, match=r"^MLflow: "):
        Registry().models()


@pytest.mark.parametrize(
    ("uri", "form"),
    [
        ("postgresql://bob:s3cret@h/x", "postgresql+psycopg2://…, and pip install psycopg2-binary"),
        ("postgresql+absent://bob:s3cret@h/x", "write the tracking URI as postgresql+psycopg2://…"),
        ("mysql://bob:s3cret@h/x", "mysql+pymysql://…, and pip install pymysql"),
        ("mssql://bob:s3cret@h/x", "mssql+pyodbc://…, and pip install pyodbc"),
        ("oracle://bob:s3cret@h/x", "no registry at 'oracle://h/x'; use http"),
        ("postgres://bob:s3cret@h/x", "or postgresql+psycopg2://"),
        ("foo://bob:s3cret@h", "no registry at 'foo://h'; use http"),
        ("http://bob:s3cret/x@h", "write / as %2F"),
        ("http://", "host or the port of the tracking URI 'http://' is invalid"),
        ("postgresql+psycopg2://bob:s3@cret@h/x", "@ as %40"),
        ("postgresql+psycopg2://bob:s3cret@h:abc/x", "host or the port"),
        ("bob:s3cret@h", "is not a tracking URI; use http"),
    ],
)
def test_an_address_that_cannot_be_used_names_one_that_can(uri: str, form: str) -> None:
    with pytest.raises(RegistryError) as caught:
        Registry(uri).models()
    assert form in str(caught.value)
    assert "cret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_child_process_of_the_service_shows_no_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://bob:s3cret@127.0.0.1:{free_port()}")
    assert main(["fetch", "models:/fraud/1", "--to", str(tmp_path)]) == FAULT
    err = capsys.readouterr().err
    assert "http://127.0.0.1:" in err
    assert "s3cret" not in err


def test_a_run_that_cannot_even_be_ended_tells_what_broke_it(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MlflowException("the disk is full")

    monkeypatch.setattr(MlflowClient, "set_terminated", fail)
    with pytest.raises(ZeroDivisionError), registry.run("fraud", "train", {}):
        raise ZeroDivisionError
    with pytest.raises(RegistryError, match="disk is full"), registry.run("fraud", "train", {}):
        pass


def test_the_same_inputs_are_found_among_more_versions_than_a_page_holds(
    version: Version, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.tag_version(version, INPUTS_TAG, "sought")
    for _ in range(3):
        client().create_model_version("fraud", source="file:///nowhere")
    search = MlflowClient.search_model_versions

    def one_by_one(self: MlflowClient, text: str, page_token: str | None = None) -> object:
        return search(self, text, max_results=1, page_token=page_token)

    monkeypatch.setattr(MlflowClient, "search_model_versions", one_by_one)
    found = registry.find("fraud", "sought")
    assert found is not None
    assert found.version == version.version


def test_a_name_that_nobody_registered_has_no_champion(registry: Registry) -> None:
    assert registry.champion("absent") is None


# ---------------------------------------------------------------- a database that is not there

BROKEN_OFF = """
import os, sys
import mlflow.store.db.utils as utils
from anomaly_vae.lifecycle.registry import Registry
from sqlalchemy import text

def half(engine):
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE secrets (secret_id INTEGER)"))
    os.kill(os.getpid(), 9)

utils._upgrade_db = half
Registry(sys.argv[1]).models()
"""


@pytest.fixture
def absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a database is wanted and none is."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path / "new" / DATABASE


@pytest.mark.e2e
@pytest.mark.slow
def test_a_process_killed_while_it_makes_the_database_leaves_none(absent: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", BROKEN_OFF, f"sqlite:///{absent}"]
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not absent.exists()
    assert Registry(f"sqlite:///{absent}").models() == []


def test_a_failure_while_the_database_is_made_leaves_nothing(
    absent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise MlflowException("the disk is full")

    monkeypatch.setattr("mlflow.store.db.utils._upgrade_db", fail)
    with pytest.raises(RegistryError, match="MLflow: the disk is full"):
        Registry(f"sqlite:///{absent}")
    assert list(absent.parent.iterdir()) == []


def test_a_database_that_another_process_makes_meanwhile_stays(
    absent: Path, migrated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_store = SqlAlchemyStore.__init__

    def overtaken(*arguments: object) -> None:
        create_store(*arguments)
        if not absent.exists():
            shutil.copy(migrated, absent)

    monkeypatch.setattr(SqlAlchemyStore, "__init__", overtaken)
    assert Registry(f"sqlite:///{absent}").models() == []
    assert [path.name for path in absent.parent.iterdir()] == [DATABASE]
    assert absent.read_bytes() == migrated.read_bytes()


def test_a_database_that_was_broken_off_is_told_with_the_remedy(absent: Path) -> None:
    absent.parent.mkdir()
    with closing(sqlite3.connect(absent)) as database, database:
        database.execute("CREATE TABLE secrets (secret_id INTEGER)")
    with pytest.raises(RegistryError, match="secrets already exists") as caught:
        Registry(f"sqlite:///{absent}").models()
    assert f"the creation of '{absent}' was interrupted: move it away" in str(caught.value)


NAMES = (
    "Amount ($)", "ch=[web]", "a/b", "a//b", "./a", "../a", "/a", "a/", "", " ", ".", "a\nb", "a\n",
    "größe", "金額", "😀", "a:b", "a:28:", "a(", "a:3a:28:", "%, #&'?", "x" * 300, "x" * 299 + "y",
    "a\x00b", "a\\b", "type", "a\u200bb", "é", "e\u0301",
)  # fmt: skip
"""Names of columns, all different."""


def test_columns_of_any_name_are_logged_as_parameters(registry: Registry) -> None:
    features = {name: {"type": f"numeric-{i}", "rare": i} for i, name in enumerate(NAMES)}
    with registry.run("fraud", "train", {}) as run:
        run.log_params({"data": {"features": features}})
    params = stored(run.id).data.params
    assert len(params) == 2 * len(NAMES)
    for name, feature in features.items():
        assert params[param_name(f"data.features.{name}.type")] == feature["type"]


def test_a_name_that_mlflow_accepts_is_logged_as_it_is() -> None:
    for name in ("data.features.größe.type", "a/b", "a b", "a:b", "training.epochs"):
        assert param_name(name) == name

"""Resolving URIs to bundle folders."""

import asyncio
import importlib.util
import json
import os
import shutil
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from anomaly_vae.artifacts.registry_names import MISSING, UNFIT, UNWRITABLE, BundleRef
from anomaly_vae.errors import BundleError, RegistryError
from serving.registry.sources import FETCH, Sources, Spec, is_followed
from serving.scoring.loading import load_model
from serving.settings import Settings
from tests.support.fetching import answer, stand_in
from tests.support.mlflow_registry import URI, registered, rival, versions, world
from tests.support.registries import DATABASE, migrated

__all__ = ["migrated", "registered", "rival", "versions", "world"]


def find(tmp_path, uri, command=FETCH, known=None, seconds=60.0):
    settings = Settings(cache_dir=tmp_path / "cache", fetch_seconds=seconds)
    return asyncio.run(Sources(settings, command).find(uri, known))


def test_a_folder_is_taken_as_it_is(tmp_path, folder):
    assert find(tmp_path, str(folder)) == BundleRef(str(folder))


def test_names_are_told_from_paths():
    assert Spec.parse("cards=models:/fraud/3") == ("cards", "models:/fraud/3")
    assert Spec.parse("models:/fraud@champion") == (None, "models:/fraud@champion")
    assert Spec.parse("./a=b") == (None, "./a=b")


def test_only_an_alias_moves():
    assert is_followed("models:/fraud@champion")
    for uri in ("models:/fraud/3", "runs:/0123/bundle", "bundles/fraud", "models:/fraud@a/b"):
        assert not is_followed(uri)


def test_a_registered_model_is_fetched_by_another_process(tmp_path, folder):
    cache = str(tmp_path / "cache")
    code = f"assert sys.argv[2:] == ['--to', {cache!r}]\nprint('a warning')\n"
    command = stand_in(tmp_path, code + f"print(json.dumps({answer(folder)!r}))")
    served = load_model(find(tmp_path, "models:/fraud/3", command))
    assert (served.name, served.version, served.alias) == ("fraud", "3", None)


@pytest.mark.parametrize(
    ("code", "error", "said"),
    [
        ("sys.exit('noise\\nno model fraud')", RegistryError, "^no model fraud$"),
        ("sys.exit(1)", RegistryError, "could not be fetched"),
        ("print('nonsense')", RegistryError, "unreadable"),
        ("", RegistryError, "unreadable"),
        ("time.sleep(60)", RegistryError, "within 1 seconds"),
        (f"sys.exit({UNFIT})", BundleError, "could not be fetched"),
        (f"sys.exit({UNWRITABLE})", OSError, "could not be fetched"),
        ("sys.exit('no postgresql://me:secret@host/db')", RegistryError, "^no postgresql://host/db$"),
    ],
)  # fmt: skip
def test_a_fetch_that_fails_is_one_line(tmp_path, code, error, said):
    with pytest.raises(error, match=said) as caught:
        find(tmp_path, "models:/fraud/1", stand_in(tmp_path, code), seconds=1.0)
    assert "\n" not in str(caught.value)


def test_missing_is_told_from_failing(tmp_path):
    for code, missing in ((MISSING, True), (1, False)):
        with pytest.raises(RegistryError) as caught:
            find(tmp_path, "models:/fraud/1", stand_in(tmp_path, f"sys.exit({code})"))
        assert caught.value.missing == missing


def test_a_fetch_that_is_broken_off_leaves_nothing(tmp_path):
    """Neither the child process nor its temporary files remain."""
    code = "said = json.dumps([os.getpid(), os.environ['TMPDIR']])\n"
    code += f"open({str(tmp_path / 'child')!r}, 'w').write(said)\n"
    command = stand_in(tmp_path, code + "time.sleep(60)")

    async def broken_off():
        sources = Sources(Settings(cache_dir=tmp_path / "cache"), command)
        task = asyncio.create_task(sources.find("models:/fraud/1"))
        while not (tmp_path / "child").exists() or not (tmp_path / "child").read_text():
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(broken_off())
    pid, place = json.loads((tmp_path / "child").read_text())
    assert not Path(place).exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize(
    ("installed", "uri", "said"),
    [
        ((), "http://localhost", "needs mlflow"),
        (("mlflow",), "sqlite:///mlflow.db", "needs the full mlflow, as mlflow-skinny"),
    ],
)
def test_a_lean_install_says_what_it_lacks(tmp_path, monkeypatch, installed, uri, said):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    found = importlib.util.find_spec
    lean = {"mlflow", "sqlalchemy"} - set(installed)
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in lean else found(name)
    )
    with pytest.raises(RegistryError, match=said) as caught:
        find(tmp_path, "models:/fraud/1")
    assert "\n" not in str(caught.value)


def test_a_database_that_nobody_wrote_to_is_not_asked(tmp_path, folder, monkeypatch):
    """Writes of any process are detected, in every journal mode."""
    database = tmp_path / "mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    asked = tmp_path / "asked"
    code = f"open({str(asked)!r}, 'a').write('x')\nprint(json.dumps({answer(folder)!r}))"
    sources = Sources(Settings(cache_dir=tmp_path / "cache"), stand_in(tmp_path, code))

    async def looks():
        known = None
        counts = []
        with closing(sqlite3.connect(database, isolation_level=None)) as writer:
            writer.execute("CREATE TABLE t (x)")
            for change in ("", "", "INSERT INTO t VALUES (1)", "", "PRAGMA journal_mode=WAL", "",
                           "INSERT INTO t VALUES (2)", ""):  # fmt: skip
                time.sleep(0.02)  # the clock of some file systems is coarse
                writer.execute(change)
                known = await sources.find("models:/fraud@champion", known)
                counts.append(len(asked.read_text()))
        return counts

    assert asyncio.run(looks()) == [1, 1, 2, 2, 3, 3, 4, 4]


def test_a_registry_made_anew_does_not_serve_the_old_version(world, versions, migrated):
    """A registry at the same path that lacks the version is told from one that is absent."""
    sources = Sources(Settings(cache_dir=world / "cache"))
    served = BundleRef("served", versions["1"].digest, "fraud", "1", "champion")
    sources.cache.remember(URI, served)
    database = world / DATABASE
    assert sources.quick_start(URI) == served
    for change in (database.unlink, lambda: database.write_bytes(b"damaged" * 200)):
        change()
        assert sources.quick_start(URI) == served
    shutil.copy(migrated, database)
    assert sources.quick_start(URI) is None

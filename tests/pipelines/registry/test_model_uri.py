"""A model's URI, of whichever kind, leads to the same bundle."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from anomaly_vae.errors import BundleError, ConfigError, RegistryError
from pipelines.registry.model_uri import open_model
from tests.support.flows import Command, World
from tests.support.paths import ROOT


def test_each_kind_of_uri_opens_what_it_names(champion: World) -> None:
    registered, trained = champion.calibrated.bundle.digest, champion.trained.fitted.bundle.digest
    named = {
        "models:/fraud@champion": (registered, "fraud", "1", "champion"),
        "models:/fraud@challenger": (registered, "fraud", "1", "challenger"),
        "models:/fraud/1": (registered, "fraud", "1", None),
        champion.trained.model_uri: (trained, None, None, None),
        str(champion.trained.folder): (trained, None, None, None),
    }
    for uri, (digest, *which) in named.items():
        source = open_model(uri)
        assert source.bundle.digest == digest
        assert [source.name, source.version, source.alias] == which


def test_a_folder_is_called_by_the_name_in_its_manifest(champion: World) -> None:
    source = open_model(str(champion.trained.folder))
    assert source.to_json() == {
        "name": "fraud", "version": None, "alias": None, "digest": source.bundle.digest
    }  # fmt: skip


@pytest.mark.parametrize(
    ("uri", "error"),
    [
        ("models:/absent@champion", RegistryError),
        ("models:/fraud@nobody", RegistryError),
        ("runs:/0123/bundle", RegistryError),
        ("no/such/folder", BundleError),
        ("", BundleError),
    ],
)
def test_what_is_not_there_is_one_line(champion: World, uri: str, error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        open_model(uri)
    assert "\n" not in str(caught.value)


def test_a_run_without_a_bundle_is_no_model(champion: World) -> None:
    with pytest.raises((BundleError, RegistryError)):
        open_model(f"runs:/{champion.trained.run_id}/plots")


def test_a_folder_needs_no_mlflow(champion: World) -> None:
    code = (
        "import sys; from pipelines.registry.model_uri import open_model; "
        f"open_model({str(champion.trained.folder)!r}).bundle.scorer; "
        "print(sorted({'mlflow', 'torch', 'pandas'} & set(sys.modules)))"
    )
    root = ROOT
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(root)}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "[]"


def test_without_mlflow_the_registry_says_what_to_install(
    champion: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "anomaly_vae.lifecycle.registry", None)
    with pytest.raises(ConfigError, match=r"pip install 'anomaly-vae\[train\]'"):
        open_model("models:/fraud@champion")


def test_the_models_command_lists_versions_and_aliases(champion: World, command: Command) -> None:
    answer = command("models")
    assert answer.code == 0
    assert answer.json == {
        "models": [
            {
                "name": "fraud",
                "aliases": {"champion": "1", "challenger": "1"},
                "versions": ["1"],
            }
        ]
    }
    assert "champion → 1" in answer.err


def test_an_empty_registry_lists_nothing(place: Path, command: Command) -> None:
    answer = command("models")
    assert (answer.code, answer.json) == (0, {"models": []})

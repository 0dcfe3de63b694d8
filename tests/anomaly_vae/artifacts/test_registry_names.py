"""Names of registered bundles are read from URIs, and a bundle is checked by its digest."""

from __future__ import annotations

from pathlib import Path

import pytest

from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.artifacts.registry_names import (
    ALIAS_URI,
    DEFAULT_URI,
    MODEL_URI,
    BundleRef,
    database_file,
)
from anomaly_vae.errors import BundleError


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("models:/fraud@champion", ("fraud", "champion", None)),
        ("models:/card fraud/12", ("card fraud", None, "12")),
        ("models:/fraud", None),
        ("models:/fraud/latest", None),
        ("models:/fraud@a/1", None),
        ("models:/a/b@champion", None),
        ("runs:/fraud@champion", None),
    ],
)
def test_a_model_is_named_by_alias_or_by_version(
    uri: str, expected: tuple[str | None, ...] | None
) -> None:
    found = MODEL_URI.fullmatch(uri)
    assert (found and found.group("name", "alias", "version")) == expected


def test_only_an_alias_may_point_elsewhere_later() -> None:
    found = ALIAS_URI.fullmatch("models:/fraud@champion")
    assert found
    assert found.group("name", "alias") == ("fraud", "champion")
    assert not ALIAS_URI.fullmatch("models:/fraud/3")


@pytest.mark.parametrize(
    ("uri", "file"),
    [
        (DEFAULT_URI, Path("mlflow.db")),
        ("sqlite:////srv/mlflow.db", Path("/srv/mlflow.db")),
        ("sqlite:///mlflow.db?timeout=5", Path("mlflow.db")),
        ("sqlite:///:memory:", None),
        ("sqlite://", None),
        ("postgresql://host/mlflow", None),
        ("http://host:5000", None),
    ],
)
def test_a_database_file_is_known_by_its_uri(uri: str, file: Path | None) -> None:
    assert database_file(uri) == file


def test_a_bundle_is_read_with_or_without_its_digest(calibrated: Bundle, tmp_path: Path) -> None:
    folder = str(calibrated.save(tmp_path / "bundle"))
    assert BundleRef(folder).load().digest == calibrated.digest
    assert BundleRef(folder, calibrated.digest).load().digest == calibrated.digest


def test_a_bundle_of_another_digest_is_refused(calibrated: Bundle, tmp_path: Path) -> None:
    folder = str(calibrated.save(tmp_path / "bundle"))
    with pytest.raises(BundleError, match="digest"):
        BundleRef(folder, "0" * 64, "fraud", "3").load()

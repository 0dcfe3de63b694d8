"""The cache of bundles: what it keeps and what it removes."""

import os
import time
from pathlib import Path

import pytest

from anomaly_vae.artifacts.bundle import WEIGHTS
from anomaly_vae.artifacts.registry_names import BundleRef
from serving.registry.cache import MIN_PRUNE_AGE_SECONDS, Cache

URI = "models:/fraud@champion"


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache")


def bundle_of(cache, character, age=2 * MIN_PRUNE_AGE_SECONDS):
    """Make a folder of this age that looks like a bundle."""
    digest = character * 64
    place = cache.folder / digest
    place.mkdir(parents=True)
    (place / "file").touch()
    then = time.time() - age
    os.utime(place, (then, then))
    return BundleRef(str(place), digest, "fraud", character, "champion")


def kept(cache):
    return {path.name[0] for path in cache.folder.iterdir() if path.name != "last"}


def test_the_last_and_the_one_before_stay(cache):
    assert cache.last_served(URI) is None
    for character in "abc":
        source = bundle_of(cache, character)
        cache.remember(URI, source)
        assert cache.last_served(URI) == source
    assert kept(cache) == {"b", "c"}


def test_the_same_again_is_no_change(cache):
    """The version before it is kept."""
    cache.remember(URI, bundle_of(cache, "a"))
    second = bundle_of(cache, "b")
    for _ in range(3):
        cache.remember(URI, second)
    assert kept(cache) == {"a", "b"}


def test_each_uri_has_its_own(cache):
    for uri in (URI, "models:/fraud@challenger", "models:/fraud/1"):
        for character in {"n": "ab", "r": "cd", "1": "e"}[uri[-1]]:
            cache.remember(uri, bundle_of(cache, character))
    cache.remember(URI, bundle_of(cache, "f"))
    assert kept(cache) == {"b", "f", "c", "d", "e"}


def test_each_registry_has_its_own(cache, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://one")
    cache.remember(URI, bundle_of(cache, "a"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://other")
    assert cache.last_served(URI) is None


def test_a_relative_database_is_where_it_is(cache, monkeypatch, tmp_path):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    cache.remember(URI, bundle_of(cache, "a"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert cache.last_served(URI) is None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    assert cache.last_served(URI) is not None


def test_what_is_new_is_spared(cache):
    """Another process may have fetched it just now and not recorded it yet."""
    bundle_of(cache, "a", age=MIN_PRUNE_AGE_SECONDS / 2)
    cache.remember(URI, bundle_of(cache, "b"))
    assert kept(cache) == {"a", "b"}


def test_what_is_not_ours_is_spared(cache):
    place = bundle_of(cache, "a")
    Path(place.path).rename(cache.folder / "a user's")
    cache.remember(URI, bundle_of(cache, "b"))
    assert kept(cache) == {"a", "b"}


def test_a_damaged_record_is_none(cache):
    cache.remember(URI, bundle_of(cache, "a"))
    (record,) = (cache.folder / "last").iterdir()
    record.write_bytes(b"{")
    assert cache.last_served(URI) is None
    cache.remember(URI, bundle_of(cache, "b"))
    assert cache.last_served(URI).version == "b"


def test_only_what_is_sound_is_held(cache, calibrated):
    place = calibrated.save(cache.folder / calibrated.digest)
    assert cache.find(calibrated.digest) == place
    assert cache.find("0" * 64) is None
    assert cache.find("../..") is None
    (place / WEIGHTS).write_bytes(b"x")
    assert cache.find(calibrated.digest) is None

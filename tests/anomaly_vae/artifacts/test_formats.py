"""Bundles of older versions are read, verified and used for scoring, unchanged."""

import base64
import json

import numpy as np
import pytest

from anomaly_vae.artifacts.bundle import FORMAT, KEYS, from_files, load_bundle, upgrade
from anomaly_vae.config import validate_config
from anomaly_vae.config.detector import merged
from anomaly_vae.monitoring.exchangeability import Reference, Window
from anomaly_vae.renames import RENAMED_KEYS

EXPECTED = [(version, kind) for version in range(1, FORMAT) for kind in ("table", "image")]


@pytest.fixture(params=EXPECTED, ids=lambda one: f"format {one[0]}, {one[1]}")
def old(request, fixtures):
    """The folder of an old bundle, and the results expected from it."""
    version, kind = request.param
    folder = fixtures / f"format-{version}"
    return folder / kind, json.loads((folder / "expected.json").read_text())[kind]


def rows_of(expected):
    if "records" in expected:
        return expected["records"]
    return [{"image": base64.b64decode(image)} for image in expected["images"]]


def test_an_old_bundle_decides_as_it_did(old):
    folder, expected = old
    detector = load_bundle(folder).detector
    found = detector.detect(detector.scorer.schema.from_records(rows_of(expected)))
    np.testing.assert_allclose(found.score, expected["score"], rtol=1e-5)
    assert found.p_value.tolist() == expected["p_value"]
    assert found.is_anomaly.tolist() == expected["is_anomaly"]


def test_its_digest_is_what_it_was(old, tmp_path):
    folder, expected = old
    bundle = load_bundle(folder, expected["digest"])
    assert bundle.digest == expected["digest"]
    assert from_files(bundle.files).digest == expected["digest"]
    assert (
        load_bundle(bundle.save(tmp_path / "again"), expected["digest"]).digest
        == expected["digest"]
    )


def test_it_reads_like_one_of_today(old):
    manifest = load_bundle(old[0]).manifest
    assert manifest["format"] == FORMAT
    assert set(KEYS) <= set(manifest)
    assert upgrade(manifest) == manifest


def test_its_configuration_has_the_names_of_today(old):
    """Each old value is under the new name, the digest is of the old file."""
    bundle = load_bundle(old[0])
    written, manifest = json.loads((old[0] / "manifest.json").read_text()), bundle.manifest
    for before, now in RENAMED_KEYS.items():
        (section, was), (_, name) = before.split("."), now.split(".")
        recorded = written["config"][section]
        assert was not in manifest["config"][section]
        assert manifest["config"][section].get(name) == recorded.get(was)
    assert validate_config(merged(manifest["config"], {"data": {"path": "x"}}))
    if manifest["kind"] == "image":
        assert manifest["schema"]["reading"]["intensity_window"] == "auto"
        assert bundle.scorer.schema.to_json() == manifest["schema"]


def test_it_is_watched_and_so_are_the_columns_it_kept_a_sketch_of(old):
    """Format 1 kept no sketches; images have no columns."""
    bundle = load_bundle(old[0])
    report = bundle.monitor.report(Window(bundle.monitor).blocks)
    sketched = old[0].parts[-2:] == ("format-2", "table")
    assert report.status == "unknown"
    assert (report.columns is not None) == sketched


def test_calibrated_again_it_is_of_the_format_of_today(old):
    bundle = load_bundle(old[0])
    again = bundle.calibrated(bundle.detector.calibration, None, Reference(0.5))
    assert json.loads(again.files["manifest.json"])["format"] == FORMAT
    assert again.digest != bundle.digest
    assert from_files(again.files).monitor.reference == Reference(0.5)


def test_format_1_tested_on_as_many_anomalies_as_may_be_expected(fixtures):
    manifest = json.loads((fixtures / "format-1" / "table" / "manifest.json").read_bytes())
    tested = {**manifest, "evaluation": {"rows": 200, "anomalies": 3}}
    assert upgrade(tested)["reference"] == {"anomaly_share": 0.015, "columns": None}
    assert upgrade({**manifest, "calibration": None})["reference"] is None
    assert manifest["format"] == 1, "what was read stays as it is"

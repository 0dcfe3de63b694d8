"""Models are verified, warmed up and tried before they are served."""

import dataclasses
import json

import numpy as np
import pytest

from anomaly_vae.artifacts.bundle import load_bundle
from anomaly_vae.artifacts.registry_names import BundleRef
from anomaly_vae.errors import BundleError, NotCalibratedError
from anomaly_vae.scoring.detector import Detections
from serving.scoring.images.served import ServedImages
from serving.scoring.loading import check, load_model
from serving.scoring.tables import ServedTable


def test_tables_and_images_are_told_apart_once(served, scanner):
    assert (type(served), served.kind) == (ServedTable, "tabular")
    assert (type(scanner), scanner.kind) == (ServedImages, "image")
    assert (served.reads_files, scanner.reads_files) == (False, True)
    assert served.table_encoding is served.encoding
    assert scanner.table_encoding is None


def test_a_wrong_digest_is_refused(folder):
    with pytest.raises(BundleError, match="digest differs"):
        load_model(BundleRef(str(folder), digest="0" * 64))


def test_no_bundle_and_no_threshold(tmp_path, bundle):
    with pytest.raises(BundleError, match="not a bundle"):
        load_model(BundleRef(str(tmp_path)))
    with pytest.raises(NotCalibratedError, match="anomaly-vae calibrate"):
        load_model(BundleRef(str(bundle.save(tmp_path / "raw"))))


def test_what_is_loaded_is_warm_and_has_an_example(served):
    schema = served.detector.scorer.schema
    assert set(served.example) == set(schema.names)
    batch = schema.from_records([served.example])
    assert not batch.problems
    assert not batch.ignored
    json.dumps(served.example)


def test_a_model_of_images_is_ready_to_draw(scanner, scan_bundle):
    assert scanner.kind == "image"
    assert scanner.heat_scale == scan_bundle.heat_scale
    batch = scanner.detector.scorer.schema.from_records([scanner.example])
    assert not batch.problems
    assert scanner.load_seconds > 0


def test_there_is_one_example_the_bundles(served, folder):
    """What the document shows is what the registry records as the input example."""
    assert served.example == load_bundle(folder).example


@pytest.mark.parametrize("score", ["nan", "inf", "-inf"])
def test_what_gives_its_example_no_score_is_refused(served, score):
    found = Detections(np.array([float(score)]), np.array([0.5]), np.array([False]))
    with pytest.raises(BundleError, match=f"gives its own example the score {score}"):
        check(served, found)


@pytest.mark.parametrize("p_value", [0.0, 1.5, np.nan])
def test_what_gives_its_example_no_p_value_is_refused(served, p_value):
    found = Detections(np.array([1.0]), np.array([p_value]), np.array([False]))
    with pytest.raises(BundleError, match="train it again"):
        check(served, found)


@pytest.mark.parametrize("part", ["graph", "weights"])
def test_a_bundle_that_is_whole_but_cannot_score_is_one_line(tmp_path, calibrated, part):
    """Its digests are right; what they are of is not."""
    broken = dataclasses.replace(calibrated, **{part: b"\x00" * 64}).save(tmp_path / "broken")
    with pytest.raises(BundleError, match="cannot be scored with: ") as caught:
        load_model(BundleRef(str(broken)))
    assert "\n" not in str(caught.value)

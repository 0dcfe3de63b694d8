"""What is served."""

import dataclasses
import json

import numpy as np
import pytest

from anomaly_vae.artifacts.bundle import load_bundle
from anomaly_vae.artifacts.registry_names import BundleRef
from anomaly_vae.errors import BundleError, ConfigError, NotCalibratedError
from anomaly_vae.scoring.detector import Detections
from serving.models.loading import check, load_model
from serving.models.store import Store


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


def test_two_of_one_name(served):
    with pytest.raises(ConfigError, match="NAME=URI"):
        Store([served, dataclasses.replace(served, version="2")])


def test_a_snapshot_does_not_change(served):
    store = Store([served])
    before = store.current
    store.swap([dataclasses.replace(served, name="other")])
    assert list(before) == ["fraud"]
    assert list(store.current) == ["other"]
    with pytest.raises(TypeError):
        store.current["x"] = served


def test_a_failed_swap_changes_nothing(served):
    store = Store([served])
    with pytest.raises(ConfigError):
        store.swap([served, dataclasses.replace(served)])
    assert store.current["fraud"] is served


def test_one_is_replaced_and_the_others_stay(served):
    other = dataclasses.replace(served, name="other")
    store = Store([served, other])
    before, newer = store.current, dataclasses.replace(served, version="2")
    store.put(newer)
    store.put(other, shadow=True)
    assert dict(store.current) == {"fraud": newer, "other": other}
    assert dict(store.shadows) == {"other": other}
    assert before["fraud"] is served


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

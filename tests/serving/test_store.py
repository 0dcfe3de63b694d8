"""Where detectors come from."""

import dataclasses
import json
import sys

import pytest

from anomaly_vae.bundle import load as load_bundle
from anomaly_vae.errors import BundleError, ConfigError, NotCalibratedError, RegistryError
from serving.store import Source, Store, load, resolve


def stand_in(tmp_path, code):
    """A command in place of `python -m anomaly_vae.registry fetch`."""
    script = tmp_path / "fetch.py"
    script.write_text("import json, sys, time\n" + code)
    return [sys.executable, str(script)]


def test_a_folder_is_taken_as_it_is(tmp_path, folder):
    assert resolve(str(folder), tmp_path) == Source(str(folder))
    assert resolve(f"cards={folder}", tmp_path) == Source(str(folder), name="cards")
    assert resolve("./a=b", tmp_path) == Source("./a=b")


@pytest.mark.parametrize(
    ("model", "name"), [("models:/fraud@champion", "fraud"), ("cards=models:/fraud/3", "cards")]
)
def test_a_registered_model_is_fetched_by_another_process(tmp_path, folder, model, name):
    answer = {
        "path": str(folder), "digest": load_bundle(folder).digest, "name": "fraud", "version": "3",
        "alias": None, "something": "later versions may say more",
    }  # fmt: skip
    command = stand_in(tmp_path, f"assert sys.argv[2:] == ['--to', {str(tmp_path)!r}]\n"
        f"print('a warning')\nprint(json.dumps({answer!r}))")  # fmt: skip
    served = load(resolve(model, tmp_path, command=command))
    assert (served.name, served.version, served.alias) == (name, "3", None)
    assert served.digest == answer["digest"]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("sys.stderr.write('noise\\nno model fraud\\n'); sys.exit(1)", "^no model fraud$"),
        ("sys.exit(1)", "could not be fetched"),
        ("print('nonsense')", "unreadable"),
        ("", "unreadable"),
        ("time.sleep(60)", "within 0.5 seconds"),
    ],
)
def test_a_fetch_that_fails_is_one_line(tmp_path, code, said):
    command = stand_in(tmp_path, code)
    with pytest.raises(RegistryError, match=said) as caught:
        resolve("models:/fraud/1", tmp_path, seconds=0.5, command=command)
    assert "\n" not in str(caught.value)


def test_a_wrong_digest_is_refused(folder):
    with pytest.raises(BundleError, match="digest differs"):
        load(Source(str(folder), digest="0" * 64))


def test_no_bundle_and_no_threshold(tmp_path, bundle):
    with pytest.raises(BundleError, match="not a bundle"):
        load(Source(str(tmp_path)))
    with pytest.raises(NotCalibratedError, match="anomaly-vae calibrate"):
        load(Source(str(bundle.save(tmp_path / "raw"))))


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

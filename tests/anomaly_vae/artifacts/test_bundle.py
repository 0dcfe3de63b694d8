"""Bundles are complete or refused, deterministic, and free of facts about their maker."""

from __future__ import annotations

import getpass
import json
import re
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from anomaly_vae import __version__
from anomaly_vae.artifacts.bundle import (
    CALIBRATION,
    COUNTS,
    FORMAT,
    GRAPH,
    KEYS,
    MANIFEST,
    SUMS,
    WEIGHTS,
    Bundle,
    _sums,
    from_files,
    load_bundle,
)
from anomaly_vae.config import Config
from anomaly_vae.data.splitting import TEST
from anomaly_vae.errors import BundleError, NotCalibratedError
from pipelines.datasets.dataset import Dataset
from tests.support.merchants import merchant_bundle, payments
from tests.support.paths import ROOT
from tests.support.timed import TIME, timed_bundle


@pytest.fixture
def folder(calibrated: Bundle, tmp_path: Path) -> Path:
    """A calibrated bundle, saved."""
    return calibrated.save(tmp_path / "bundle")


def files_of(folder: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in folder.iterdir()}


def reseal(folder: Path) -> None:
    """Update the sums to the present content of the folder."""
    files = files_of(folder)
    files.pop(SUMS, None)
    (folder / SUMS).write_bytes(_sums(files))


def edit_manifest(folder: Path, **changes: object) -> None:
    manifest = json.loads((folder / MANIFEST).read_bytes())
    (folder / MANIFEST).write_text(json.dumps({**manifest, **changes}))
    reseal(folder)


# ---------------------------------------------------------------- round trip


def test_what_is_saved_is_what_is_loaded(
    calibrated: Bundle, folder: Path, dataset: Dataset
) -> None:
    again = load_bundle(folder, calibrated.digest)
    assert again.digest == calibrated.digest
    assert again.files == calibrated.files
    rows = dataset.part(TEST)
    np.testing.assert_array_equal(again.scorer.score(rows), calibrated.scorer.score(rows))
    assert again.calibration is not None
    assert calibrated.calibration is not None
    assert again.calibration.threshold == calibrated.calibration.threshold
    assert again.calibration.alpha == calibrated.calibration.alpha
    np.testing.assert_array_equal(again.calibration.scores, calibrated.calibration.scores)


def test_a_saved_folder_loaded_and_saved_is_the_same_folder(folder: Path, tmp_path: Path) -> None:
    assert files_of(load_bundle(folder).save(tmp_path / "again")) == files_of(folder)


def test_the_digest_does_not_depend_on_the_order_of_the_manifest(calibrated: Bundle) -> None:
    backwards = dict(reversed(calibrated.manifest.items()))
    again = replace(calibrated, manifest=backwards)
    assert list(again.manifest) != list(calibrated.manifest)
    assert again.digest == calibrated.digest


def test_a_bundle_in_memory_is_the_one_on_disk(calibrated: Bundle) -> None:
    assert from_files(calibrated.files).digest == calibrated.digest


def test_the_folder_holds_the_five_files_of_its_description(folder: Path, bundle: Bundle) -> None:
    assert set(files_of(folder)) == {MANIFEST, GRAPH, WEIGHTS, CALIBRATION, SUMS}
    assert set(bundle.files) == {MANIFEST, GRAPH, WEIGHTS}
    scores = load_tensors((folder / CALIBRATION).read_bytes())["scores"]
    assert np.all(np.diff(scores) >= 0)


def test_the_sums_are_what_sha256sum_checks(folder: Path) -> None:
    lines = (folder / SUMS).read_text().splitlines()
    assert len(lines) == 4
    assert all(re.fullmatch(r"[0-9a-f]{64}  [\w.]+", line) for line in lines)


def test_calibrating_changes_the_digest_and_not_the_model(
    bundle: Bundle, calibrated: Bundle
) -> None:
    assert calibrated.digest != bundle.digest
    assert calibrated.graph == bundle.graph
    assert calibrated.weights == bundle.weights
    assert bundle.manifest["calibration"] is None
    assert calibrated.calibration is not None
    assert calibrated.manifest["calibration"]["n"] == len(calibrated.calibration.scores) > 250


def test_a_bundle_without_a_threshold_scores_but_does_not_decide(
    bundle: Bundle, dataset: Dataset, tmp_path: Path
) -> None:
    again = load_bundle(bundle.save(tmp_path / "bundle"))
    assert len(again.scorer.score(dataset.part(TEST))) == 300
    with pytest.raises(NotCalibratedError, match="'fraud' has no threshold yet; run: anomaly-vae"):
        _ = again.detector


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize("name", [MANIFEST, GRAPH, WEIGHTS, CALIBRATION])
def test_a_missing_file_is_refused_by_name(name: str, folder: Path) -> None:
    (folder / name).unlink()
    with pytest.raises(BundleError, match=re.escape(f"{name} is missing")):
        load_bundle(folder)


@pytest.mark.parametrize("name", [MANIFEST, GRAPH, WEIGHTS])
def test_a_file_missing_from_the_sums_too_is_refused_by_name(name: str, folder: Path) -> None:
    (folder / name).unlink()
    reseal(folder)
    with pytest.raises(BundleError, match=re.escape(f"{name} is missing")):
        load_bundle(folder)


@pytest.mark.parametrize("name", ["model.pkl", "notes.txt", ".hidden"])
def test_an_extra_file_is_refused_by_name(name: str, folder: Path) -> None:
    (folder / name).write_bytes(b"x")
    with pytest.raises(BundleError, match=re.escape(f"{name} does not belong")):
        load_bundle(folder)


def test_an_extra_folder_is_refused(folder: Path) -> None:
    (folder / "more").mkdir()
    with pytest.raises(BundleError, match="more does not belong"):
        load_bundle(folder)


@pytest.mark.parametrize("name", [MANIFEST, GRAPH, WEIGHTS, CALIBRATION])
@pytest.mark.parametrize("where", [0, -1])
def test_an_altered_file_is_refused_by_name(where: int, name: str, folder: Path) -> None:
    content = bytearray((folder / name).read_bytes())
    content[where] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(BundleError, match=re.escape(f"{name} was altered")):
        load_bundle(folder)


def _empty(sums: bytes) -> bytes:
    return b""


def _cut(sums: bytes) -> bytes:
    return sums[:-80]


def _no_text(sums: bytes) -> bytes:
    return b"\xff\xfe" + sums


def _other_digest(sums: bytes) -> bytes:
    return sums.translate(bytes.maketrans(b"0123456789", b"1234567890"))


@pytest.mark.parametrize("spoil", [_empty, _cut, _no_text, _other_digest])
def test_altered_sums_are_refused(spoil: Callable[[bytes], bytes], folder: Path) -> None:
    (folder / SUMS).write_bytes(spoil((folder / SUMS).read_bytes()))
    with pytest.raises(BundleError):
        load_bundle(folder)


def flipped(content: bytes, bit: int) -> bytes:
    """Return the content with one bit flipped."""
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_every_flipped_bit_of_the_sums_is_refused(tmp_path: Path) -> None:
    for name in (MANIFEST, GRAPH, WEIGHTS, CALIBRATION):  # small, so that it takes no time
        (tmp_path / name).write_bytes(name.encode())
    reseal(tmp_path)
    sums = (tmp_path / SUMS).read_bytes()
    for bit in range(8 * len(sums)):
        (tmp_path / SUMS).write_bytes(flipped(sums, bit))
        with pytest.raises(BundleError, match=r"altered|missing|does not belong"):
            load_bundle(tmp_path)


@pytest.mark.parametrize("name", [MANIFEST, GRAPH, WEIGHTS, CALIBRATION])
def test_flipped_bits_of_a_file_are_refused(name: str, folder: Path) -> None:
    content = (folder / name).read_bytes()
    for bit in np.random.default_rng(0).integers(8 * len(content), size=50):
        (folder / name).write_bytes(flipped(content, int(bit)))
        with pytest.raises(BundleError, match=re.escape(f"{name} was altered")):
            load_bundle(folder)


def _first_twice(sums: bytes) -> bytes:
    return sums[: sums.index(b"\n") + 1] + sums


def _reversed(sums: bytes) -> bytes:
    return b"".join(reversed(sums.splitlines(keepends=True)))


ALTERED = {
    "a repeated line": _first_twice,
    "another order": _reversed,
    "no last newline": lambda sums: sums[:-1],
    "a blank line": lambda sums: sums + b"\n",
    "carriage returns": lambda sums: sums.replace(b"\n", b"\r\n"),
    "vertical tabs": lambda sums: sums.replace(b"\n", b"\x0b"),
    "a separator of records": lambda sums: sums.replace(b"\n", b"\x1e", 1),
    "a line separator of Unicode": lambda sums: sums.replace(b"\n", "\u2028".encode(), 1),
    "upper case": lambda sums: sums.upper(),
    "one space": lambda sums: sums.replace(b"  ", b" ", 1),
    "binary mode": lambda sums: sums.replace(b"  ", b" *"),
    "a tab": lambda sums: sums.replace(b"  ", b" \t"),
    "a byte order mark": lambda sums: b"\xef\xbb\xbf" + sums,
    "a comment": lambda sums: b"# made by hand\n" + sums,
    "a path": lambda sums: sums.replace(b"graph", b"./graph"),
    "a parent": lambda sums: b"0" * 64 + b"  ../x\n" + sums,
    "an absolute path": lambda sums: b"0" * 64 + b"  /etc/passwd\n" + sums,
    "a NUL": lambda sums: sums + b"\0",
}


@pytest.mark.parametrize("how", ALTERED)
def test_sums_of_another_form_are_refused(how: str, folder: Path) -> None:
    (folder / SUMS).write_bytes(ALTERED[how]((folder / SUMS).read_bytes()))
    with pytest.raises(BundleError, match=f"{SUMS} was altered; fetch the bundle again"):
        load_bundle(folder)


@pytest.mark.parametrize("name", [MANIFEST, SUMS])
def test_a_link_is_refused(name: str, folder: Path, tmp_path: Path) -> None:
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match=f"{name} is not a regular file"):
        load_bundle(folder)


def test_a_folder_in_place_of_a_file_is_refused(folder: Path) -> None:
    (folder / GRAPH).unlink()
    (folder / GRAPH).mkdir()
    with pytest.raises(BundleError, match=f"{GRAPH} is not a regular file"):
        load_bundle(folder)


@pytest.mark.parametrize(
    ("manifest", "reason"),
    [
        (b"", "Expecting value"),
        (b"[]", "attribute 'get'"),
        (b"\xff", "decode"),
        (b'{"format": 3, "format": 2}', "'format' is repeated"),
        (b'{"data": {"rows": NaN}}', "NaN is no JSON number"),
        (b'{"data": {"rows": -Infinity}}', "-Infinity is no JSON number"),
    ],
)
def test_a_manifest_that_is_no_strict_json_is_refused(
    folder: Path, manifest: bytes, reason: str
) -> None:
    (folder / MANIFEST).write_bytes(manifest)
    reseal(folder)
    with pytest.raises(BundleError, match=f"manifest.json cannot be read: .*{reason}"):
        load_bundle(folder)


def test_scores_that_are_no_tensors_are_refused(folder: Path) -> None:
    (folder / CALIBRATION).write_bytes(b"nonsense")
    reseal(folder)
    with pytest.raises(BundleError, match="disagree"):
        load_bundle(folder)


def test_a_threshold_without_its_scores_is_refused(folder: Path) -> None:
    (folder / CALIBRATION).unlink()
    reseal(folder)
    with pytest.raises(BundleError, match=r"calibration\.safetensors and manifest\.json disagree"):
        load_bundle(folder)


def test_scores_without_a_threshold_are_refused(folder: Path) -> None:
    edit_manifest(folder, calibration=None)
    with pytest.raises(BundleError, match=r"calibration\.safetensors and manifest\.json disagree"):
        load_bundle(folder)


def test_a_newer_format_is_refused_with_the_remedy(folder: Path) -> None:
    edit_manifest(folder, format=FORMAT + 1, code_version="9.9.9")
    with pytest.raises(BundleError) as caught:
        load_bundle(folder)
    message = str(caught.value)
    assert f"format {FORMAT + 1}" in message
    assert "upgrade anomaly-vae" in message
    assert "9.9.9" in message
    assert str(folder) in message


@pytest.mark.parametrize("key", KEYS)
def test_a_manifest_of_an_older_version_is_refused_with_the_remedy(folder: Path, key: str) -> None:
    manifest = json.loads((folder / MANIFEST).read_bytes())
    del manifest[key]
    (folder / MANIFEST).write_text(json.dumps(manifest))
    reseal(folder)
    with pytest.raises(BundleError, match=rf"made by an older .*'{key}'; train it again"):
        load_bundle(folder)


def test_images_need_the_scale_of_their_maps(image_calibrated: Bundle) -> None:
    manifest = {k: v for k, v in image_calibrated.manifest.items() if k != "heat_scale"}
    files = replace(image_calibrated, manifest=manifest).files
    with pytest.raises(BundleError, match=r"made by an older .*'heat_scale'; train it again"):
        from_files(files)


def test_maps_are_drawn_unless_a_test_found_that_they_do_not_localise(
    image_calibrated: Bundle, bundle: Bundle
) -> None:
    figures = {"images": 20, "auroc": 0.9, "auroc_low": 0.8, "average_precision": 0.2}
    untested = {k: v for k, v in image_calibrated.manifest.items() if k != "localization"}
    for share, drawn in ((0.03, True), (0.1, False)):
        found = {"localization": {**figures, "base_rate": share}}
        tested = replace(image_calibrated, manifest=untested | found)
        read = from_files(tested.files)
        assert (read.localizes, read.heat_scale.localizes) == (drawn, drawn)
        assert "localizes" not in read.manifest["heat_scale"]
    assert replace(image_calibrated, manifest=untested).heat_scale.localizes
    assert bundle.localizes


def test_a_digest_that_is_not_the_registered_one_is_refused(folder: Path, bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="is not the registered bundle"):
        load_bundle(folder, bundle.digest)


def test_a_folder_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(BundleError, match=f"is not a bundle: it has no {SUMS}"):
            load_bundle(path)


# ---------------------------------------------------------------- what is inside


def test_the_manifest_says_what_made_it(calibrated: Bundle, config: Config) -> None:
    manifest = json.loads(calibrated.files[MANIFEST])
    assert manifest["format"] == FORMAT
    assert re.fullmatch(re.escape(__version__) + r"\+[0-9a-f]{12}", manifest["code_version"])
    assert manifest["name"] == "fraud"
    assert manifest["data"]["rows"] == 1_500
    assert manifest["training"]["epochs"] == 3
    chosen = manifest["config"]["model"]
    assert chosen["latent_dim"], "what was left to the data is recorded"
    assert manifest["config"]["training"]["batch_size"]


def test_nothing_of_the_host_the_time_or_a_path_is_inside(
    calibrated: Bundle, config: Config, transactions: Path
) -> None:
    """The same data and configuration give the same digest anywhere, at any time."""
    for name, content in calibrated.files.items():
        assert str(transactions.parent).encode() not in content, name
        assert str(Path(__file__).parent).encode() not in content, name
    manifest = calibrated.files[MANIFEST].decode()
    for word in (getpass.getuser(), socket.gethostname()):
        assert f'"{word}"' not in manifest
    assert not re.search(r'"[^"]*(/|\\\\)[^"]*"', manifest), "a path"
    assert not re.search(r"20\d\d-\d\d-\d\d", manifest), "a date"
    assert '"device"' not in manifest
    assert "tracking_uri" not in manifest


def test_nothing_is_pickled(calibrated: Bundle) -> None:
    """A bundle holds JSON, ONNX and safetensors: no file can run code when it is read."""
    for name, content in calibrated.files.items():
        assert not content.startswith((b"\x80", b"PK\x03\x04")), name
        assert name.endswith((".json", ".onnx", ".safetensors"))
    source = ROOT / "anomaly_vae"
    for path in source.glob("*.py"):
        assert not re.search(r"^\s*(import|from) (pickle|joblib|dill|cloudpickle)|torch\.load\(",
                             path.read_text(), re.MULTILINE), path  # fmt: skip


# ---------------------------------------------------------------- saving


@pytest.mark.parametrize("nth", [1, 3, 5])
def test_a_save_that_fails_midway_leaves_the_old_folder(
    nth: int, folder: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files_of(folder)
    write, calls = Path.write_bytes, []

    def fail(path: Path, content: bytes) -> int:
        calls.append(path)
        if len(calls) == nth:
            write(path, content[: len(content) // 2])
            raise OSError("no space left on device")
        return write(path, content)

    larger = load_bundle(folder)
    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match="no space"):
        larger.save(folder)
    assert files_of(folder) == before
    assert [entry.name for entry in folder.parent.iterdir()] == [folder.name]


def test_saving_over_another_bundle_replaces_it(folder: Path, bundle: Bundle) -> None:
    bundle.save(folder)
    assert load_bundle(folder).digest == bundle.digest
    assert not (folder / CALIBRATION).exists()


def test_loading_a_bundle_never_disturbs_those_who_write_it(
    calibrated: Bundle, folder: Path
) -> None:
    """A reader finds a complete bundle or none, and does not interfere with writers."""

    def save() -> None:
        for _ in range(30):
            calibrated.save(folder)

    with ThreadPoolExecutor(3) as pool:
        writers = [pool.submit(save) for _ in range(2)]
        while not all(writer.done() for writer in writers):
            with suppress(BundleError, FileNotFoundError):
                load_bundle(folder)
    assert [writer.result() for writer in writers] == [None, None]
    assert load_bundle(folder).digest == calibrated.digest
    assert [entry.name for entry in folder.parent.iterdir()] == [folder.name]


def test_loading_does_not_put_back_what_was_set_aside(folder: Path) -> None:
    aside = folder.rename(folder.with_name(f".{folder.name}.previous"))
    with pytest.raises(BundleError, match="is not a bundle"):
        load_bundle(folder)
    assert aside.exists()


# ---------------------------------------------------------------- counts of values


def test_counts_of_values_are_saved_and_loaded(tmp_path: Path) -> None:
    bundle = merchant_bundle()
    again = load_bundle(bundle.save(tmp_path / "bundle"), bundle.digest)
    assert again.files == bundle.files
    rows = bundle.scorer.schema.from_arrow(payments(100, seed=1))
    np.testing.assert_array_equal(again.scorer.score(rows), bundle.scorer.score(rows))
    assert b"m57" not in bundle.files[COUNTS]
    assert not [name for name in json.loads(bundle.files[MANIFEST])["encoding"] if "counts" in name]


def test_a_bundle_without_its_counts_or_with_damaged_ones_is_refused(tmp_path: Path) -> None:
    bundle = merchant_bundle()
    folder = bundle.save(tmp_path / "bundle")
    (folder / COUNTS).unlink()
    with pytest.raises(BundleError, match=f"{COUNTS} is missing"):
        load_bundle(folder)
    reseal(folder)
    with pytest.raises(BundleError, match="column 'merchant' are absent or damaged; make"):
        _ = load_bundle(folder).scorer
    files = {**bundle.files, COUNTS: bundle.files[COUNTS][:-9]}
    with pytest.raises(BundleError, match=f"{COUNTS} cannot be read: .*; make the bundle anew"):
        _ = from_files(files).scorer


def test_models_without_such_columns_have_no_counts(calibrated: Bundle) -> None:
    assert COUNTS not in calibrated.files
    assert all("bands" not in column for column in calibrated.manifest["encoding"])
    assert "pooled" not in calibrated.manifest["training"]


# ---------------------------------------------------------------- variation over time


def test_what_was_learned_about_times_is_saved_and_loaded(tmp_path: Path) -> None:
    bundle = timed_bundle()
    again = load_bundle(bundle.save(tmp_path / "bundle"), bundle.digest)
    assert again.files == bundle.files
    assert again.manifest["reference"]["time"] == TIME
    before, after = bundle.monitor, again.monitor
    counts = np.ones((3, before.cells), np.int64)
    assert after.cells == before.cells
    assert after.report(counts) == before.report(counts)


def test_a_bundle_without_its_tensors_about_times_is_refused() -> None:
    bundle = timed_bundle()
    tensors = load_tensors(bundle.files[CALIBRATION])
    del tensors["cycle/hours"]
    with pytest.raises(BundleError, match="disagree; make it anew"):
        from_files({**bundle.files, CALIBRATION: save_tensors(tensors)})


def test_an_earlier_bundle_keeps_its_digest_and_is_monitored(tmp_path: Path) -> None:
    """Earlier bundles have a concentration in place of dispersions that grow with the age."""
    bundle = timed_bundle()
    tensors = load_tensors(bundle.files[CALIBRATION])
    (_, streams, _), _ = tensors.pop("cycle/dispersions").shape, tensors.pop("cycle/since")
    tensors["cycle/concentrations"] = np.full(streams, 500.0)
    files = {**bundle.files, CALIBRATION: save_tensors(tensors)}
    earlier = from_files(files)
    assert earlier.files == files
    again = load_bundle(earlier.save(tmp_path / "bundle"), earlier.digest).monitor
    assert again.noticed_after == {"amount": None, "other": None}
    counts = again.empty_counts
    assert again.report(counts[None]).status == "unknown"


def test_a_calibration_keeps_the_open_session_and_opens_none(folder: Path) -> None:
    loaded = load_bundle(folder)
    assert loaded.calibration is not None
    assert "scorer" not in vars(loaded.calibrated(loaded.calibration, None))
    scorer = loaded.scorer
    assert loaded.calibrated(loaded.calibration, None).scorer is scorer
    assert loaded.with_notes(manifest=dict(loaded.manifest)).scorer is scorer


def test_without_times_the_files_are_as_before(calibrated: Bundle) -> None:
    assert set(load_tensors(calibrated.files[CALIBRATION])) == {"scores"}
    assert set(calibrated.manifest["reference"]) == {"anomaly_share", "columns"}
    recalibrated = timed_bundle().calibrated(timed_bundle().detector.calibration, None)
    assert set(load_tensors(recalibrated.files[CALIBRATION])) == {"scores"}

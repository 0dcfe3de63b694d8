"""Generated pictures as sheets and tables: what stands where, what is said, what is refused."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from anomaly_vae import ImageVAEDetector
from anomaly_vae.artifacts.bundle import Bundle
from anomaly_vae.errors import ConfigError, DataError
from anomaly_vae.generation import images, latent_space
from anomaly_vae.images import heatmaps
from pipelines.generate import images as generate
from pipelines.generate.images import Band
from tests.support.untrained import untrained

Command = Callable[..., dict[str, Any]]
SHEETS: dict[str, Command] = {
    "sample": generate.sample,
    "reconstruct": generate.reconstruct,
    "interpolate": generate.interpolate,
    "traverse": generate.traverse,
    "denoise": generate.denoise,
}


@dataclass
class Drawn:
    """What a sheet was drawn from."""

    images: NDArray[Any]
    captions: Sequence[str]
    columns: int | None
    rows: Sequence[str]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Drawn]:
    """Every sheet that is drawn."""
    sheets: list[Drawn] = []

    def sheet(*arguments: Any) -> Image.Image:
        sheets.append(Drawn(*arguments))
        return heatmaps.sheet(*arguments)

    monkeypatch.setattr(generate, "sheet", sheet)
    return sheets


@pytest.fixture
def folder(manifest: Path, tmp_path: Path) -> Path:
    """Five images between two files that are none."""
    place = tmp_path / "mixed"
    place.mkdir()
    for name in ("000", "001", "002", "003", "139"):
        shutil.copy(manifest.parent / "images" / f"{name}.png", place)
    (place / "000-broken.png").write_bytes(b"no picture")
    (place / "zzz.png").write_bytes(b"")
    return place


def names(place: Path) -> list[str]:
    return sorted(p.name for p in place.iterdir() if "-" not in p.name and p.name[0] != "z")


# ---------------------------------------------------------------- every command


@pytest.mark.parametrize("name", SHEETS)
def test_without_input_images_come_from_the_prior(
    image_calibrated: Bundle, tmp_path: Path, name: str
) -> None:
    out = tmp_path / "new" / "sheet.png"
    said = SHEETS[name](image_calibrated, out)
    assert json.loads(json.dumps(said, allow_nan=False)) == said
    assert said["out"] == str(out)
    assert (said["rejected"], said["rows"] > 0) == (0, True)
    first = out.read_bytes()
    SHEETS[name](image_calibrated, out)
    assert out.read_bytes() == first
    with Image.open(out) as page:
        assert min(page.size) > heatmaps.MIN_TILE


@pytest.mark.parametrize("name", SHEETS)
def test_a_table_holds_each_picture_as_a_file_that_can_be_read_again(
    image_calibrated: Bundle, folder: Path, tmp_path: Path, name: str
) -> None:
    out, more = tmp_path / "table.parquet", [[str(folder)]] if name != "sample" else []
    said = SHEETS[name](image_calibrated, out, *more)
    table = pq.read_table(out)
    assert len(table) == said["rows"]
    schema = image_calibrated.scorer.schema
    again = schema.from_arrow(table.select(["image"]))
    assert not again.problems
    with Image.open(io.BytesIO(table["image"][0].as_py())) as picture:
        assert picture.size == (24, 24)


@pytest.mark.parametrize("name", [name for name in SHEETS if name != "sample"])
def test_what_cannot_be_read_is_counted_and_told(
    image_calibrated: Bundle,
    folder: Path,
    tmp_path: Path,
    name: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = SHEETS[name](image_calibrated, tmp_path / "sheet.png", [str(folder)])
    assert said["rejected"] > 0
    told = capsys.readouterr().err
    assert "cannot be used, of" in told
    assert "000-broken.png'" in told


@pytest.mark.parametrize("name", SHEETS)
def test_another_ending_is_refused_before_anything_is_read(
    image_calibrated: Bundle, tmp_path: Path, name: str
) -> None:
    more = [["nowhere"]] if name != "sample" else []
    with pytest.raises(ConfigError, match=r"must end in \.png or \.parquet"):
        SHEETS[name](image_calibrated, tmp_path / "sheet.csv", *more)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("sample", {"rows": 257}),
        ("reconstruct", {"rows": 129}),
        ("denoise", {"rows": 86}),
        ("interpolate", {"steps": 255}),
        ("traverse", {"dims": [0, 1], "steps": 128}),
    ],
)
def test_more_than_a_sheet_holds_is_refused_and_a_table_holds_it(
    tmp_path: Path, name: str, wanted: dict[str, Any]
) -> None:
    bundle = untrained(network="dense")
    with pytest.raises(ConfigError, match=r"a sheet holds 256 pictures, not 2\d\d; ask for fewer"):
        SHEETS[name](bundle, tmp_path / "sheet.png", **wanted)
    if name in {"sample", "interpolate"}:
        assert SHEETS[name](bundle, tmp_path / "table.parquet", **wanted)["rows"] >= 255


def test_an_input_without_a_usable_image_is_refused(
    image_calibrated: Bundle, folder: Path, tmp_path: Path
) -> None:
    for name in names(folder):
        (folder / name).unlink()
    with pytest.raises(DataError, match=r"no image of the input can be used, of 2; the first: '"):
        generate.reconstruct(image_calibrated, tmp_path / "sheet.png", [str(folder)])
    with pytest.raises(DataError, match="no image is there"):
        generate.reconstruct(image_calibrated, tmp_path / "sheet.png", [str(tmp_path / "none")])
    assert not (tmp_path / "sheet.png").exists()


# ---------------------------------------------------------------- what is read


def test_the_first_images_are_taken_and_that_there_are_more_is_told(
    image_calibrated: Bundle, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = generate.read_source(image_calibrated, [str(folder)], 3)
    assert source.names == names(folder)[:3]
    assert source.x.shape == (3, 24 * 24)
    assert "7 files; the first 3 images are used" in capsys.readouterr().err
    every = generate.read_source(image_calibrated, [str(folder)])
    assert every.names == names(folder)
    assert every.rejected == 2
    assert "are taken" not in capsys.readouterr().err


def test_images_are_the_same_alone_and_as_the_first_of_many(
    image_calibrated: Bundle, folder: Path
) -> None:
    every = generate.read_source(image_calibrated, [str(folder)]).x
    for most in (1, 2, 4):
        first = generate.read_source(image_calibrated, [str(folder)], most).x
        np.testing.assert_array_equal(first, every[:most])


def test_a_manifest_gives_labels(image_calibrated: Bundle, manifest: Path, folder: Path) -> None:
    source = generate.read_source(image_calibrated, [str(manifest)])
    assert source.facts["label"].to_pylist() == ["0"] * 120 + ["1"] * 20
    assert "label" not in generate.read_source(image_calibrated, [str(folder)]).facts


# ---------------------------------------------------------------- what is drawn


def test_samples_are_drawn_as_they_are(
    image_calibrated: Bundle, tmp_path: Path, drawn: list[Drawn]
) -> None:
    generate.sample(image_calibrated, tmp_path / "sheet.png", rows=5, seed=3)
    truth = images.sample(image_calibrated, 5, 3)
    np.testing.assert_array_equal(drawn[0].images[..., 0], truth[:, 0])


def test_a_reconstruction_stands_below_its_image_with_its_score(
    image_calibrated: Bundle, folder: Path, tmp_path: Path, drawn: list[Drawn]
) -> None:
    generate.reconstruct(image_calibrated, tmp_path / "sheet.png", [str(folder)], rows=3)
    source = generate.read_source(image_calibrated, [str(folder)], 3)
    seen = images.to_pictures(image_calibrated, source.x)
    expected = images.reconstruct(image_calibrated, source.x)
    np.testing.assert_array_equal(drawn[0].images[..., 0], np.concatenate([seen, expected])[:, 0])
    assert (drawn[0].columns, drawn[0].rows) == (3, ["seen", "expected"])
    x = source.x.numpy()
    found = image_calibrated.detector.decide(image_calibrated.scorer.score_encoded(x), x)
    words = [f"score {s:.4g}, p {p:.2g}" for s, p in zip(found.score, found.p_value, strict=True)]
    assert drawn[0].captions == [*names(folder)[:3], *words]
    generate.reconstruct(image_calibrated, tmp_path / "table.parquet", [str(folder)], rows=3)
    table = pq.read_table(tmp_path / "table.parquet")
    assert table.column_names == ["path", "frame", "score", "p_value", "image"]
    np.testing.assert_array_equal(table["score"], found.score)


def test_an_uncalibrated_model_gives_scores_alone(
    image_bundle: Bundle, tmp_path: Path, drawn: list[Drawn]
) -> None:
    generate.reconstruct(image_bundle, tmp_path / "sheet.png", rows=1)
    assert drawn[0].captions[0] == "sample 1"
    assert drawn[0].captions[1].startswith("score ")
    assert "p " not in drawn[0].captions[1]


def test_a_path_lies_between_the_images_that_it_connects(
    image_calibrated: Bundle, folder: Path, tmp_path: Path, drawn: list[Drawn]
) -> None:
    out = tmp_path / "sheet.png"
    said = generate.interpolate(image_calibrated, out, [str(folder)], steps=3, shape="spherical")
    assert said["rows"] == 3
    first, second = names(folder)[:2]
    assert drawn[0].captions == [first, "0", "0.5", "1", second]
    assert drawn[0].columns == 5
    source = generate.read_source(image_calibrated, [str(folder)], 2)
    seen = images.to_pictures(image_calibrated, source.x)
    _, made = images.interpolate(image_calibrated, source.x, None, 3, "spherical")
    truth = np.concatenate([seen[:1], made, seen[1:]])
    np.testing.assert_array_equal(drawn[0].images[..., 0], truth[:, 0])


def test_one_image_has_no_path(image_calibrated: Bundle, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least two"):
        generate.interpolate(image_calibrated, tmp_path / "a.png", [str(folder / "000.png")])


def test_a_traversal_shows_the_latents_that_change_pictures_most(
    image_calibrated: Bundle, manifest: Path, tmp_path: Path, drawn: list[Drawn]
) -> None:
    said = generate.traverse(image_calibrated, tmp_path / "a.png", [str(manifest)], steps=3)
    source = generate.read_source(image_calibrated, [str(manifest)])
    told = latent_space.activity(image_calibrated, source.x).tolist()
    _, _, ends = images.traverse(image_calibrated, source.x, range(4), 3.0, 2)
    change = abs(ends[1::2] - ends[::2]).mean((1, 2, 3)).tolist()
    assert said["dims"] == sorted(range(4), key=lambda dim: -change[dim])[:3]
    assert said["activity"] == pytest.approx([told[dim] for dim in said["dims"]])
    assert drawn[0].rows == [f"z{dim}: {told[dim]:.2f} nats" for dim in said["dims"]]
    assert drawn[0].columns == 4
    assert drawn[0].captions[:3] == ["-3", "0", "3"]


def test_latents_are_chosen_and_keep_their_order(
    image_calibrated: Bundle, tmp_path: Path, drawn: list[Drawn]
) -> None:
    said = generate.traverse(image_calibrated, tmp_path / "a.png", dims=[2, 0], span=1, steps=2)
    assert (said["dims"], said["rows"]) == ([2, 0], 4)
    assert [row.split(":")[0] for row in drawn[0].rows] == ["z2", "z0"]
    with pytest.raises(ConfigError, match="no latent dimension 4; they are 0 to 3"):
        generate.traverse(image_calibrated, tmp_path / "a.png", dims=[4])


def test_of_a_long_vector_of_latents_three_are_shown(tmp_path: Path, drawn: list[Drawn]) -> None:
    bundle = untrained(network="hierarchical", latent_dim=4)
    assert latent_space.load_model(bundle).latent_dim > 100
    said = generate.traverse(bundle, tmp_path / "a.png", steps=2)
    assert len(said["dims"]) == len(drawn[0].rows) == 3


@pytest.fixture(scope="module")
def of_many_latents() -> Bundle:
    """A model of bright squares of many sizes, with 64 latents."""
    scans = np.zeros((60, 16, 16), np.float32)
    for number, scan in enumerate(scans):
        half = 2 + number % 6
        scan[8 - half : 8 + half, 8 - half : 8 + half] = 0.8
    detector = ImageVAEDetector(
        network="dense", size=16, hidden_dim=16, latent_dim=64, epochs=1, alpha=0.2, threads=1
    )
    return detector.fit(scans).bundle_


def test_many_latents_are_traversed_along_their_components(
    of_many_latents: Bundle, tmp_path: Path, drawn: list[Drawn]
) -> None:
    said = generate.traverse(of_many_latents, tmp_path / "a.png", steps=3)
    shown = said["components"]
    count = range(len(latent_space.load_model(of_many_latents).drawing.basis))
    _, _, ends = images.traverse_components(of_many_latents, None, count, 3.0, 2)
    change = abs(ends[1::2] - ends[::2]).mean((1, 2, 3)).tolist()
    assert shown == sorted(count, key=lambda one: -change[one])[:3]
    assert (said["unit"], drawn[0].rows[0]) == ("sd", f"component {shown[0]}")
    assert drawn[0].captions[:3] == ["-3", "0", "3"]


def test_components_are_written_as_a_table_and_single_latents_on_demand(
    of_many_latents: Bundle, tmp_path: Path
) -> None:
    said = generate.traverse(of_many_latents, tmp_path / "a.parquet", steps=2)
    table = pq.read_table(tmp_path / "a.parquet")
    assert table.column_names == ["component", "z", "image"]
    assert table["component"].to_pylist()[::2] == said["components"]
    assert generate.traverse(of_many_latents, tmp_path / "a.png", dims=[9])["dims"] == [9]


def test_the_codes_of_an_autoencoder_have_deviations_instead_of_nats(
    tmp_path: Path, drawn: list[Drawn]
) -> None:
    said = generate.traverse(untrained(type="autoencoder"), tmp_path / "a.png")
    assert said["unit"] == "sd"
    assert drawn[0].rows[0].endswith(" sd")


def test_the_last_column_of_a_traversal_shows_where_its_ends_differ(
    tmp_path: Path, drawn: list[Drawn], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bright where most changes, and dark where next to nothing does."""
    for least in (1e-9, 10.0):
        monkeypatch.setattr(generate, "MIN_CHANGE", least)
        generate.traverse(untrained(), tmp_path / "a.png", dims=[0, 1], steps=3)
        rows = drawn.pop().images[..., 0].reshape(2, 4, 16, 16)
        change = np.abs(rows[:, 2] - rows[:, 0])
        largest = np.maximum(change.max((1, 2), keepdims=True), least)
        np.testing.assert_allclose(rows[:, 3], change / largest, atol=1e-6)


def test_the_last_caption_of_a_traversal_is_how_far_its_ends_differ(
    tmp_path: Path, drawn: list[Drawn]
) -> None:
    generate.traverse(untrained(), tmp_path / "a.png", dims=[0], steps=2)
    first, last, _ = drawn[0].images
    assert drawn[0].captions[2] == f"change, up to {np.abs(last - first).max():.2g}"


@pytest.mark.parametrize("kind", ["coarse", "pixel", "mask", "downsample"])
def test_denoising_shows_clean_corrupted_and_denoised_with_their_ratios(
    image_calibrated: Bundle, folder: Path, tmp_path: Path, drawn: list[Drawn], kind: str
) -> None:
    out, table = tmp_path / "sheet.png", tmp_path / "table.parquet"
    more = {"rows": 2, "seed": 1, "corruption": kind, "strength": 0.4}
    said = generate.denoise(image_calibrated, out, [str(folder)], **more)
    clean, noisy, made = drawn[0].images[..., 0].reshape(3, 2, 24, 24)
    assert drawn[0].rows == ["clean", f"{kind} 0.4", "denoised"]
    assert not np.allclose(clean, noisy, atol=1e-3)
    before, after = (images.psnr(one, clean) for one in (noisy, made))
    words = [f"{ratio:.1f} dB" for ratio in [*before, *after]]
    assert drawn[0].captions == [*names(folder)[:2], *words]
    assert said["psnr_before"] == pytest.approx(before.mean())
    assert said["psnr"] == pytest.approx(after.mean())
    generate.denoise(image_calibrated, table, [str(folder)], **more)
    np.testing.assert_allclose(pq.read_table(table)["psnr"], after)


def test_an_input_that_is_noisy_itself_is_denoised_as_it_is(
    image_calibrated: Bundle, folder: Path, tmp_path: Path, drawn: list[Drawn]
) -> None:
    out = tmp_path / "sheet.png"
    said = generate.denoise(image_calibrated, out, [str(folder)], rows=2, corruption="none")
    assert drawn[0].rows == ["input", "denoised"]
    assert "psnr" not in said
    source = generate.read_source(image_calibrated, [str(folder)], 2)
    truth = images.reconstruct(image_calibrated, source.x)
    np.testing.assert_array_equal(drawn[0].images[2:, ..., 0], truth[:, 0])


def test_images_are_corrupted_as_in_training_unless_told() -> None:
    bundle = untrained()
    trained = bundle.manifest["config"]["training"]["corruption"]
    found = generate.corruption_of(bundle, None, None)
    assert found.model_dump() == trained
    assert generate.corruption_of(bundle, trained["type"], 0.7).strength == 0.7
    assert generate.corruption_of(bundle, "mask", None).type == "mask"
    assert generate.corruption_of(bundle, "none", None).type == "none"


@pytest.mark.parametrize(
    ("kind", "strength", "said"),
    [
        ("mask", -1.0, "--strength -1: expected a number of at least 0"),
        ("mask", float("nan"), "--strength nan"),
        ("mask", float("inf"), "--strength inf"),
        ("none", 0.5, "needs something to corrupt with"),
    ],
)
def test_a_strength_of_nothing_or_out_of_range_is_refused(
    kind: str, strength: float, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        generate.corruption_of(untrained(), kind, strength)


# ---------------------------------------------------------------- latents


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_latents_are_written_with_what_is_known_of_each_image(
    image_calibrated: Bundle, manifest: Path, tmp_path: Path, suffix: str
) -> None:
    out = tmp_path / f"z{suffix}"
    said = generate.latent(image_calibrated, out, [str(manifest)])
    assert said["rows"] == 140
    table = pq.read_table(out) if suffix == ".parquet" else pa.csv.read_csv(out)
    assert table.column_names == ["path", "frame", "label", "z0", "z1", "z2", "z3"]
    assert table["path"][3].as_py() == "images/003.png"
    source = generate.read_source(image_calibrated, [str(manifest)])
    means = latent_space.latent_means(image_calibrated, source.x)
    z = np.column_stack([table[f"z{i}"].to_numpy() for i in range(4)])
    np.testing.assert_allclose(z, means, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("colour", [None, "p_value", "score", "label"])
def test_latents_are_drawn_as_a_map(
    image_calibrated: Bundle, manifest: Path, tmp_path: Path, colour: str | None
) -> None:
    out = tmp_path / "map.png"
    assert generate.latent(image_calibrated, out, [str(manifest)], colour=colour)["rows"] == 140
    with Image.open(out) as image:
        assert image.size == (840, 720)


def test_a_map_by_label_needs_labels(
    image_calibrated: Bundle, folder: Path, tmp_path: Path
) -> None:
    for paths in ((), [str(folder)]):
        with pytest.raises(DataError, match="no input has a 'label'"):
            generate.latent(image_calibrated, tmp_path / "map.png", paths, colour="label")
    assert not (tmp_path / "map.png").exists()


def test_the_grid_shows_the_whole_plane(tmp_path: Path, drawn: list[Drawn]) -> None:
    bundle = untrained(latent_dim=2)
    said = generate.latent(bundle, tmp_path / "grid.png", grid=True)
    assert said["rows"] == len(drawn[0].images) == 225
    assert (drawn[0].columns, len(drawn[0].rows)) == (15, 15)
    assert (drawn[0].rows[0], drawn[0].rows[7]) == ("z1 = +1.83", "z1 = +0.00")
    assert drawn[0].captions[-1] == "z0 = +1.83"
    corner = images.decode(bundle, np.float32([[-1.8339, 1.8339]]))
    np.testing.assert_allclose(drawn[0].images[0, ..., 0], corner[0, 0], atol=1e-3)


def test_a_grid_takes_two_latents_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "grid.png"
    with pytest.raises(ConfigError, match="needs a model of 2 latents, this one has 3"):
        generate.latent(untrained(latent_dim=3), out, grid=True)
    for more in ({"paths": ["x"]}, {"colour": "score"}):
        with pytest.raises(ConfigError, match="leave out --input and --color"):
            generate.latent(untrained(latent_dim=2), out, grid=True, **more)


# ---------------------------------------------------------------- sheets


@given(st.integers(1, 3), st.integers(1, 20), st.integers(1, 6))
def test_bands_stand_below_each_other_block_by_block(bands: int, count: int, columns: int) -> None:
    """Picture i of band b says b + i/100, and so does its caption."""
    values = [[b / 10 + i / 1000 for i in range(count)] for b in range(bands)]
    pictures = [np.float32(row).reshape(count, 1, 1, 1) for row in values]
    page = generate.stacked(
        [Band(f"band {b}", p, [f"{b}:{i}" for i in range(count)]) for b, p in enumerate(pictures)],
        columns,
    )
    columns = min(columns, count)
    naive: list[str] = []
    for start in range(0, count, columns):
        for b in range(bands):
            row = [f"{b}:{i}" for i in range(start, min(start + columns, count))]
            naive += row + [""] * (columns - len(row))
    assert page.captions == naive
    assert page.rows == [f"band {b}" for _ in range(0, count, columns) for b in range(bands)]
    for picture, caption in zip(page.pictures.ravel(), naive, strict=True):
        b, _, i = caption.partition(":")
        assert picture == (np.float32(values[int(b)][int(i)]) if caption else 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_sheets_and_tables_are_grey_or_coloured_as_the_model_is(
    tmp_path: Path, channels: int
) -> None:
    bundle = untrained(channels=channels)
    for name in ("sample", "interpolate", "traverse"):
        SHEETS[name](bundle, tmp_path / "a.png")
        SHEETS[name](bundle, tmp_path / "a.parquet")
        with Image.open(io.BytesIO(pq.read_table(tmp_path / "a.parquet")["image"][0].as_py())) as p:
            assert p.mode == ("RGB" if channels == 3 else "I;16")

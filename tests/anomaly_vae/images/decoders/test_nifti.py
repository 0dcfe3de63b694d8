"""NIfTI volumes become slices, upright, exact and comparable, wherever their axes point."""

import gzip
import io
import struct
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform
from numpy.typing import NDArray

from anomaly_vae.images.decoding import read_bytes
from anomaly_vae.images.pixels import DecodedImage, DecodeFailure, DecodeOptions
from tests.support.mutations import mutations

OPTIONS = DecodeOptions()
RNG = np.random.default_rng(0)
VOXELS = RNG.integers(-500, 1500, (5, 6, 7)).astype(np.int16)
RAS = np.diag([2.0, 3.0, 4.0, 1.0])


def written(
    voxels: NDArray[Any] = VOXELS,
    affine: NDArray[Any] | None = RAS,
    slope: float | None = None,
    intercept: float = 0,
    kind: type[nib.Nifti1Image] = nib.Nifti1Image,
) -> bytes:
    image = kind(voxels, affine)
    if slope is not None:
        image.header.set_slope_inter(slope, intercept)
    return image.to_bytes()


def pixels(content: bytes, options: DecodeOptions = OPTIONS) -> NDArray[np.uint16]:
    """Return all slices (N, H, W)."""
    results = list(read_bytes(content, options))
    assert all(isinstance(result, DecodedImage) for result in results), results[0]
    assert [result.frame for result in results] == list(range(len(results)))
    return np.stack([result.pixels for result in results])


def why(content: bytes, options: DecodeOptions = OPTIONS) -> str:
    [result] = read_bytes(content, options)
    assert isinstance(result, DecodeFailure)
    return result.reason


def shown(values: NDArray[Any], low: float, high: float) -> NDArray[np.float64]:
    return np.clip((values.astype(float) - low) / (high - low), 0, 1) * 65535


def slices(voxels: NDArray[Any], axis: int) -> NDArray[Any]:
    """Slice voxels (R, A, S) pixel by pixel, rows from the front or the head; returns (N, H, W)."""
    count = voxels.shape[axis]
    across, down = (i for i in range(3) if i != axis)
    out = np.empty((count, voxels.shape[down], voxels.shape[across]), voxels.dtype)
    for n, row, column in np.ndindex(out.shape):
        place = [0, 0, 0]
        place[axis] = n
        place[across] = voxels.shape[across] - 1 - column
        place[down] = voxels.shape[down] - 1 - row
        out[n, row, column] = voxels[tuple(place)]
    return out


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_are_cut_and_shown_as_radiologists_see_them(axis):
    low, high = np.percentile(VOXELS, (0.5, 99.5))
    result = pixels(written(), DecodeOptions(axis=axis))
    np.testing.assert_allclose(result, shown(slices(VOXELS, axis), low, high), atol=0.51)


def test_the_front_is_at_the_top_and_the_patients_right_at_the_left():
    voxels = np.zeros((8, 8, 3), np.uint8)
    voxels[-2:, -2:, 1] = 9  # right, anterior
    result = pixels(written(voxels))
    assert result[1, :2, :2].min() == 65535
    assert result.sum() == 4 * 65535


@pytest.mark.parametrize("codes", ["RAS", "LPS", "LAS", "SAR", "PIR", "ASL"])
def test_slices_are_the_same_wherever_the_axes_of_the_file_point(codes):
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    voxels = nib.orientations.apply_orientation(VOXELS, turn)
    affine = RAS @ inv_ornt_aff(turn, VOXELS.shape)
    assert nib.aff2axcodes(affine) == tuple(codes)
    np.testing.assert_array_equal(pixels(written(voxels, affine)), pixels(written()))


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_gzip_and_both_versions_are_read(kind):
    content = written(kind=kind)
    np.testing.assert_array_equal(pixels(content), pixels(written()))
    half = len(content) // 2
    members = gzip.compress(content[:half]) + gzip.compress(content[half:])
    for packed in (gzip.compress(content), members):
        np.testing.assert_array_equal(pixels(packed), pixels(content))


@pytest.mark.parametrize("kind", ["u1", "i2", "u2", "i4", "f4", "f8", ">i2", ">f4"])
def test_every_kind_of_number_is_read(kind):
    voxels = RNG.integers(0, 250, (4, 4, 3))
    content = written(voxels.astype(kind[-2:]))
    if kind[0] == ">":
        image = nib.Nifti1Image.from_bytes(content)
        header = image.header.as_byteswapped(">")
        content = nib.Nifti1Image(image.dataobj, RAS, header).to_bytes()
    low, high = np.percentile(voxels, (0.5, 99.5))
    np.testing.assert_allclose(pixels(content), shown(slices(voxels, 2), low, high), atol=0.6)


def test_a_window_is_in_scaled_units():
    content = written(slope=2, intercept=-100)
    result = pixels(content, DecodeOptions(intensity_window=(300, 801)))
    expected = shown(slices(VOXELS * 2.0 - 100, 2), 299.5 - 400, 299.5 + 400)
    np.testing.assert_allclose(result, expected, atol=0.51)


def test_slope_changes_nothing_that_percentiles_show_unless_it_is_negative():
    plain = pixels(written())
    np.testing.assert_allclose(pixels(written(slope=3, intercept=7)), plain, atol=1)
    turned = 65535 - pixels(written(slope=-3, intercept=7)).astype(int)
    np.testing.assert_allclose(turned, plain, atol=1)


def test_all_slices_of_a_volume_share_their_grey_scale():
    voxels = np.full((4, 4, 3), 10.0, np.float32)
    voxels[..., 1], voxels[..., 2] = 20, 30
    values = [set(page.ravel()) for page in pixels(written(voxels))]
    assert values == [{0}, {round(65535 / 2)}, {65535}]


def test_each_volume_of_a_series_has_its_own_grey_scale():
    series = np.stack([VOXELS, VOXELS * 3], -1)
    result = pixels(written(series))
    assert len(result) == 14
    np.testing.assert_array_equal(result[:7], pixels(written()))
    np.testing.assert_allclose(result[7:], result[:7], atol=1)


def test_a_flat_image_is_a_volume_of_one_slice():
    flat = VOXELS[..., :1]
    np.testing.assert_array_equal(pixels(written(flat[..., 0])), pixels(written(flat)))
    np.testing.assert_array_equal(pixels(written(flat[..., None, None])), pixels(written(flat)))


def test_nan_costs_the_slices_that_hold_it():
    voxels = VOXELS.astype(np.float32)
    voxels[1, 2, 3] = np.nan
    voxels[2, 2, 3] = np.inf
    results = list(read_bytes(written(voxels), OPTIONS))
    assert [r.frame for r in results if isinstance(r, DecodeFailure)] == [3]
    assert results[3].reason == "2 of its values are NaN or infinite; replace them"
    low, high = np.percentile(voxels[np.isfinite(voxels)], (0.5, 99.5))
    expected = shown(slices(voxels, 2)[0], low, high)
    np.testing.assert_allclose(results[0].pixels, expected, atol=0.51)


def test_a_volume_of_nan_is_refused_slice_by_slice():
    results = list(read_bytes(written(np.full((2, 3, 4), np.nan, np.float32)), OPTIONS))
    assert {r.reason for r in results} == {"6 of its values are NaN or infinite; replace them"}


# ---------------------------------------------------------------- hostile files


def changed(place: int, kind: str, *values: float) -> bytes:
    """Return a volume with a field of its header overwritten."""
    content = bytearray(written())
    struct.pack_into("<" + kind, content, place, *values)
    return bytes(content)


def pair() -> bytes:
    image = nib.Nifti1Pair(VOXELS, RAS)
    files = nib.Nifti1Pair.make_file_map({"header": io.BytesIO(), "image": io.BytesIO()})
    image.to_file_map(files)
    return files["header"].fileobj.getvalue() + bytes(10)


NAN = float("nan")


@pytest.mark.parametrize("alpha", [False, True])
def test_colours_are_kept_and_alpha_is_laid_on_black(alpha):
    names = ["R", "G", "B", "A"][: 3 + alpha]
    layers = RNG.integers(0, 256, (4, 5, 3, len(names)), np.uint8)
    voxels = np.zeros(layers.shape[:3], [(name, "u1") for name in names])
    for index, name in enumerate(names):
        voxels[name] = layers[..., index]
    share = layers[..., 3:] / 255 if alpha else 1.0
    expected = np.stack(
        [slices(np.rint(layers[..., :3] * share * 257)[..., n], 2) for n in range(3)], -1
    )
    np.testing.assert_array_equal(pixels(written(voxels)), expected)


SHIPPED = Path(nib.__file__).parent / "tests" / "data"
NAMES = [
    path.name
    for path in sorted(SHIPPED.glob("*"))
    if path.name.endswith((".nii", ".nii.gz", ".mgz"))
]


@pytest.mark.slow
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_every_volume_that_nibabel_ships_is_as_nibabel_reads_it(name, axis):
    results = list(read_bytes((SHIPPED / name).read_bytes(), DecodeOptions(axis=axis)))
    if isinstance(results[0], DecodeFailure) and results[0].frame is None:
        assert "dimensions; save 3" in results[0].reason
        return
    volume = nib.as_closest_canonical(nib.load(SHIPPED / name)).get_fdata()
    volumes = np.moveaxis(volume.reshape(*volume.shape[:3], -1), 3, 0)
    bounds = [np.percentile(each[np.isfinite(each)], [0.5, 99.5]) for each in volumes]
    planes = [(p, b) for each, b in zip(volumes, bounds, strict=True) for p in slices(each, axis)]
    for result, (plane, (low, high)) in zip(results, planes, strict=True):
        if isinstance(result, DecodeFailure):
            assert "NaN" in result.reason
            assert np.isnan(plane).any()
        else:
            np.testing.assert_allclose(result.pixels, shown(plane, low, high), atol=1)


# ---------------------------------------------------------------- FreeSurfer

DIRECTIONS = np.array([[-1.0, 0, 0, 9], [0, 0, 1, 8], [0, -1, 0, 7], [0, 0, 0, 1]])
"""The affine of a volume that lies as FreeSurfer conforms it."""


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.int32, np.float32])
@pytest.mark.parametrize("packed", [False, True])
def test_a_volume_of_freesurfer_looks_like_the_same_one_in_nifti(kind, packed):
    voxels = np.abs(VOXELS).astype(kind)
    content = nib.MGHImage(voxels, DIRECTIONS).to_bytes()
    content = gzip.compress(content) if packed else content
    expected = pixels(nib.Nifti1Image(voxels, DIRECTIONS).to_bytes())
    np.testing.assert_array_equal(pixels(content), expected)


def test_frames_of_a_volume_of_freesurfer_follow_one_another():
    voxels = np.stack([VOXELS, VOXELS[::-1]], 3)
    several = pixels(nib.MGHImage(voxels, DIRECTIONS).to_bytes())
    np.testing.assert_array_equal(several[:6], pixels(nib.MGHImage(VOXELS, DIRECTIONS).to_bytes()))
    assert len(several) == 12


def test_a_volume_of_freesurfer_that_is_cut_or_too_large_is_refused():
    content = nib.MGHImage(VOXELS, DIRECTIONS).to_bytes()
    assert why(content[:-700]) == "it is cut short; copy the file again"
    assert why(content[:100]) == "it is cut short; copy the file again"
    assert "pixels is over the limit of 9" in why(content, DecodeOptions(max_pixels=9))
    huge = content[:4] + struct.pack(">4i", 1 << 30, 1 << 30, 1, 1) + content[20:]
    assert why(huge) == "it is cut short; copy the file again"


HOSTILE = {
    "cut": (written()[:-1], "it is cut short; copy the file again"),
    "cut in the header": (written()[:350], "it is cut short"),
    "cut gzip": (gzip.compress(written())[:-20], "it is cut short; copy the file again"),
    "bomb": (gzip.compress(bytes(3 << 20)), "it has more than 2097152 bytes; split it or raise"),
    "bomb of members": (gzip.compress(bytes(1 << 20)) * 3, "it has more than 2097152 bytes"),
    "no NIfTI": (gzip.compress(b"text" * 99), "it is text and no image"),
    "empty gzip": (gzip.compress(b""), "it is no PNG, JPEG, TIFF, GIF, BMP"),
    "bad checksum": (gzip.compress(written())[:-8] + bytes(8), "it is damaged; export it again"),
    "pair": (pair(), "it is half of a NIfTI pair; save it as a single .nii file"),
    "huge": (changed(40, "8h", 3, 32767, 32767, 32767, 1, 1, 1, 1), "it is cut short"),
    "no voxels": (changed(40, "8h", 3, 5, 0, 7, 1, 1, 1, 1), "it has no voxels; export it"),
    "below none": (changed(40, "8h", 3, 5, -6, 7, 1, 1, 1, 1), "it has no voxels; export it"),
    "five dimensions": (written(VOXELS[..., None, None].repeat(2, 4)), "it has 5 dimensions"),
    "one dimension": (changed(40, "8h", 1, 5, 1, 1, 1, 1, 1, 1), "it has 1 dimensions; save 3"),
    "complex": (written(VOXELS.astype(np.complex64)), "its voxels are complex64, which"),
    "unknown numbers": (changed(70, "h", 12345), "it is damaged; export it again"),
    "nowhere": (changed(280, "4f", NAN, NAN, NAN, NAN), "it is damaged; export it again"),
    "no direction": (changed(280, "4f", 0, 0, 0, 0), "it does not say how the patient lies"),
    "infinite intercept": (changed(112, "2f", 1, float("inf")), "it is damaged; export it again"),
    "beyond the end": (changed(108, "f", 1e6), "it is cut short; copy the file again"),
    "before the beginning": (changed(108, "f", -900), "it is damaged; export it again"),
    "wide": (written(np.zeros((1200, 1000, 1), np.uint8)), "1200 × 1000 pixels is over the limit"),
    "many slices": (written(np.zeros((1, 1, 5000), np.uint8)), "it has more than 4096 frames"),
    "many volumes": (written(np.zeros((1, 1, 70, 70), np.uint8)), "it has more than 4096 frames"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_each_hostile_file_has_its_reason(name, capfd):
    content, reason = HOSTILE[name]
    assert reason in why(content, DecodeOptions(max_bytes=1 << 21, max_pixels=1 << 20))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("content", [written(), gzip.compress(written())], ids=["plain", "gzip"])
def test_damage_anywhere_raises_nothing(content):
    for damaged in mutations(content, "nifti", 150):
        results = list(read_bytes(damaged, DecodeOptions(max_bytes=1 << 20, max_frames=64)))
        assert results
        assert all(isinstance(r, DecodedImage) or "\n" not in r.reason for r in results)


@pytest.mark.parametrize(("axis", "expected"), [(0, (4, 3)), (1, (4, 2)), (2, (3, 2))])
@pytest.mark.parametrize("axes", ["RAS", "LPS", "SAR", "AIL"])
def test_slices_state_the_distances_of_their_rows_and_columns(
    axis: int, expected: tuple[float, float], axes: str
) -> None:
    volume = nib.Nifti1Image(VOXELS, RAS)
    turned = volume.as_reoriented(ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(axes)))
    for image in read_bytes(turned.to_bytes(), DecodeOptions(axis=axis)):
        assert isinstance(image, DecodedImage)
        assert image.spacing == expected


def test_a_volume_without_distances_has_no_spacing() -> None:
    content = bytearray(written(affine=np.eye(4)))
    content[80:88] = struct.pack("<2f", 0, 0)  # pixdim[1] and pixdim[2]
    image = next(read_bytes(bytes(content), OPTIONS))
    assert isinstance(image, DecodedImage)
    assert image.spacing is None


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("axes", ["RAS", "LPS", "SAR", "AIL"])
def test_slices_state_their_positions_however_the_voxels_are_stored(axis: int, axes: str) -> None:
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    affine[:3, 3] = (10, -20, 30)
    volume = nib.Nifti1Image(VOXELS, affine)
    turned = volume.as_reoriented(ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(axes)))
    images = list(read_bytes(turned.to_bytes(), DecodeOptions(axis=axis)))
    first, step = affine[axis, 3], affine[axis, axis]
    expected = first + step * np.arange(VOXELS.shape[axis])
    assert [image.position for image in images] == pytest.approx(expected)

"""Recognise folders whose subfolders name a split or a label, as benchmarks are laid out.

Two layouts are known. In one, as of MVTec AD (Bergmann et al. 2019), ``train/good`` has images to
train on, ``test/<defect>`` images to test on and ``ground_truth/<defect>`` masks. In the other, the
subfolders name labels only, such as ``normal`` and ``tumour``. Images of such folders never train
without their labels, and what was found is always said.
"""

from __future__ import annotations

import glob
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from anomaly_vae.errors import DataError
from anomaly_vae.messages import listed
from anomaly_vae.types import ImageLayout
from pipelines.datasets.images.files import DEFECT, LABEL, SPLIT, ImageFile
from pipelines.datasets.reading.objects import glob_base, is_remote, object_path

TRAIN, TEST = "train", "test"
"""Values of the attribute `SPLIT`."""
SPLIT_FOLDERS = {
    "train": TRAIN, "training": TRAIN, "val": TRAIN, "valid": TRAIN, "validation": TRAIN,
    "test": TEST, "testing": TEST,
}  # fmt: skip
"""Split that the images of a folder belong to, by its name; one validates with held-out ones."""
MASK_FOLDERS = frozenset({"ground_truth", "groundtruth", "masks", "mask"})
"""Names of folders with masks of defects, which are no images to score."""
NORMAL_FOLDERS = frozenset(
    {
        "benign", "clean", "control", "controls", "good", "healthy", "negative", "no",
        "normal", "normals", "ok", "okay", "pass",
    }
)  # fmt: skip
"""Names of folders with normal images."""
NEGATIONS = ("no_", "no-", "no ", "non_", "non-", "non ", "not_", "not-", "not ")
"""Beginnings of the names of folders with normal images, such as ``no_tumour``."""
ANOMALOUS_FOLDERS = frozenset(
    {
        "abnormal", "abnormals", "anomalies", "anomalous", "anomaly", "bad", "broken",
        "covid", "defect", "defective", "defects", "disease", "diseased", "fail", "fake", "fault",
        "faulty", "fraud", "lesion", "lesions", "malignant", "ng", "nok", "not_ok", "pneumonia",
        "positive", "sick", "tumor", "tumour", "yes",
    }
)  # fmt: skip
"""Names of folders with anomalies that need no normal folder beside them to be told as such."""
MASK = "it is a mask of the folder layout; give its folder to score it as an image"
REMEDY = "set data.layout: folder to take all images as normal, or list them in a manifest"


@dataclass(frozen=True)
class Arrangement:
    """Images of inputs with the label and split that their folders name, and notes on them."""

    files: tuple[ImageFile, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Placed:
    """An image and the folders below the searched one that lead to it."""

    file: ImageFile
    folders: tuple[str, ...]

    @property
    def first(self) -> str:
        """Name of the first folder in lower case; empty for an image in the searched folder."""
        return self.folders[0].lower() if self.folders else ""


def arrange(paths: Sequence[str], files: Sequence[ImageFile], layout: ImageLayout) -> Arrangement:
    """Give images the attributes that the folders below each of the paths name.

    ``label`` is 0 for a normal image and 1 for an anomaly, ``defect`` the name of the folder, and
    ``split`` is ``train`` or ``test`` if folders name splits. Rows of manifests stay as they are.

    Args:
        paths: files, folders, globs and manifests.
        files: the images behind the paths.
        layout: ``auto`` recognises both layouts, ``mvtec`` requires folders of splits, ``folder``
            takes no notice of names.

    Raises:
        DataError: folders have names of labels but none of normal images, or ``mvtec`` is required
            and there are no folders of splits.
    """
    if layout == "folder":
        return Arrangement(tuple(files))
    replaced: dict[str, ImageFile] = {}
    notes: list[str] = []
    for root in _roots(paths):
        arranged = _arrange(root, _below(root, files), layout)
        replaced |= {str(file.path): file for file in arranged.files}
        notes.extend(arranged.notes)
    kept = [file if file.row is not None else replaced.get(str(file.path), file) for file in files]
    return Arrangement(tuple(kept), tuple(notes))


def _roots(paths: Sequence[str]) -> list[Path]:
    """Return the folders below which names may have a meaning.

    These are folders that are given, the parent of several of them, and the fixed part of a glob.
    """
    local = [path for path in paths if not is_remote(path)]
    remote = [object_path(path) for path in paths if is_remote(path)]
    places = [*map(Path, local), *map(glob_base, remote)]
    folders = [path for path in places if path.is_dir()]
    parents = Counter(path.parent for path in folders)
    roots = [path.parent if parents[path.parent] > 1 else path for path in folders]
    roots += [_fixed_part(path) for path in local if glob.has_magic(path)]
    return list(dict.fromkeys(roots))


def _fixed_part(pattern: str) -> Path:
    """Return the folder of a glob before its first wildcard."""
    parts = Path(pattern).parts
    return Path(*itertools.takewhile(lambda part: not glob.has_magic(part), parts))


def _below(root: Path, files: Sequence[ImageFile]) -> list[_Placed]:
    """Return the images below a folder that no manifest lists."""
    return [
        _Placed(file, file.path.relative_to(root).parts[:-1])
        for file in files
        if file.row is None and not file.problem and file.path.is_relative_to(root)
    ]


def _arrange(root: Path, images: Sequence[_Placed], layout: ImageLayout) -> Arrangement:
    named = [image for image in images if image.first not in MASK_FOLDERS]
    if named and all(image.first in SPLIT_FOLDERS for image in named):
        return _by_split(root, images)
    if layout == "mvtec":
        found = listed(sorted({image.first or "images" for image in images}))
        raise DataError(
            f"'{root}': data.layout is mvtec, which needs train/good and test/<defect>; found "
            f"{found}; set data.layout: auto or folder",
            path=str(root),
        )
    if _normal_names(named) or any(image.first in ANOMALOUS_FOLDERS for image in named):
        return _by_label(root, images)
    return Arrangement(())


def _normal_names(images: Sequence[_Placed]) -> bool:
    """Return whether some, but not all, first folders have the name of normal images."""
    names = {image.first for image in images}
    return names == {"0", "1"} or ("0" not in names and 0 < sum(map(is_normal, names)) < len(names))


def is_normal(name: str) -> bool:
    """Return whether a folder of this name holds normal images.

    Examples:
        >>> [is_normal(name) for name in ("good", "NORMAL", "no_tumour", "notch", "not_ok")]
        [True, True, True, False, False]
    """
    lower = name.lower()
    normal = lower in (NORMAL_FOLDERS | {"0"}) or lower.startswith(NEGATIONS)
    return normal and lower not in ANOMALOUS_FOLDERS


def _by_split(root: Path, images: Sequence[_Placed]) -> Arrangement:
    """Arrange images by the folders of splits, and the labels below those."""
    both = {TRAIN, TEST} <= {SPLIT_FOLDERS.get(image.first) for image in images}
    files = tuple(_in_split(image, both) for image in images)
    return _checked(root, images, files, depth=2)


def _in_split(image: _Placed, both: bool) -> ImageFile:
    """Return an image with its label and, if there are folders of both splits, its split."""
    split = SPLIT_FOLDERS.get(image.first)
    if split is None:
        return replace(image.file, problem=MASK)
    found = _labelled(image.file, image.folders[1] if len(image.folders) > 1 else "")
    attributes = {**found.attributes, SPLIT: split} if both else found.attributes
    return replace(found, attributes=attributes)


def _by_label(root: Path, images: Sequence[_Placed]) -> Arrangement:
    """Arrange images by the folders of labels."""
    files = tuple(
        replace(image.file, problem=MASK)
        if image.first in MASK_FOLDERS
        else _labelled(image.file, image.folders[0] if image.folders else "")
        for image in images
    )
    return _checked(root, images, files, depth=1)


def _labelled(file: ImageFile, folder: str) -> ImageFile:
    """Return the image with the label that its folder means; none outside such a folder."""
    label = str(int(not is_normal(folder)))
    return replace(file, attributes={LABEL: label, DEFECT: folder} if folder else {})


def _checked(
    root: Path, images: Sequence[_Placed], files: tuple[ImageFile, ...], depth: int
) -> Arrangement:
    """Refuse folders none of which is known to hold normal images to train on; else describe them.

    Args:
        root: the searched folder.
        images: the images below it.
        files: the same images with their attributes.
        depth: number of folders that name split and label.

    Raises:
        DataError: see `arrange`.
    """
    counts = Counter(
        "/".join(image.folders[: 1 if file.problem else depth]) or "no folder"
        for image, file in zip(images, files, strict=True)
    )
    found = listed([f"{where} ({count:,})" for where, count in counts.items()])
    to_train = [file for file in files if file.attributes.get(SPLIT) != TEST and not file.problem]
    if to_train and all(file.attributes.get(LABEL) == "1" for file in to_train):
        names = listed(sorted({str(file.attributes[DEFECT]) for file in to_train}))
        raise DataError(
            f"'{root}': found {found}; the folders {names} seem to name labels, and none is known "
            f"to hold normal images, such as good or normal; rename it, {REMEDY}",
            path=str(root),
        )
    return Arrangement(files, (_note(root, found, files),))


def _note(root: Path, counts: str, files: Sequence[ImageFile]) -> str:
    """Return a note that tells what was found, and what each folder is taken for."""
    names: dict[str, set[str]] = {"0": set(), "1": set()}
    for file in files:
        names.get(file.attributes.get(LABEL) or "", set()).add(str(file.attributes.get(DEFECT)))
    meanings = {"0": "normal", "1": "anomalies, only to test on"}
    means = (f"; {meanings[key]}: {listed(sorted(found))}" for key, found in names.items() if found)
    what = "splits" if any(SPLIT in file.attributes for file in files) else "labels"
    return f"'{root.name}' has folders of {what}: found {counts}{''.join(means)}; {REMEDY}"

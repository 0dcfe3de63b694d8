"""Write simulated transactions and scans to disk."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from anomaly_vae.errors import ConfigError, DataError
from anomaly_vae.files import atomic_folder, atomic_path
from anomaly_vae.simulation.scans import Scans, simulate_scans
from anomaly_vae.simulation.transactions import simulate_transactions

TRANSACTIONS = "transactions.parquet"
MANIFEST = "manifest.csv"
IMAGES = "images"
MASKS = "masks"

_HEADER: Final = "path,label,group\n"
_ROW: Final = re.compile(rf"{IMAGES}/(scan-[0-9]{{5}}\.png),[01],patient-[0-9]{{5}}\n")
_NAME: Final = re.compile(r"scan-[0-9]{5}\.png")
_SOFTWARE: Final = "anomaly-vae simulate"  # marks the PNG files that this command wrote
_START: Final = re.compile(rb"\x89PNG\r\n\x1a\n.{29}tEXtSoftware\0" + _SOFTWARE.encode(), re.DOTALL)


def write_transactions(out: str | Path, rows: int, seed: int) -> dict[str, Any]:
    """Write ``OUT/transactions.parquet`` and return the JSON object that the command prints."""
    table: pa.Table = simulate_transactions(rows, seed)
    path = Path(out) / TRANSACTIONS
    with atomic_path(path) as whole:
        pq.write_table(table, whole)
    frauds = int(pc.sum(table.column("TX_FRAUD")).as_py() or 0)
    return {"out": str(path), "rows": len(table), "frauds": frauds, "seed": seed}


def write_scans(out: str | Path, rows: int, seed: int) -> dict[str, Any]:
    """Write ``OUT/images/``, ``OUT/masks/`` and ``OUT/manifest.csv``; return the JSON to print.

    Each image ``images/scan-00000.png`` has a mask of the same name: 255 inside a lesion and 0
    elsewhere, all 0 for a normal scan. The columns of the manifest are ``path`` (relative to the
    manifest), ``label`` (1 = lesion) and ``group`` (the patient). Earlier simulated scans are
    replaced, one folder after the other, if the folders hold no files except those that the
    manifest lists. The old manifest is deleted first and the new one written last, so that a
    manifest always describes the images beside it.

    Raises:
        DataError: ``rows`` or ``seed`` is invalid, or files that were not simulated are in the way.
    """
    folder = Path(out)
    _check_replaceable(folder)
    scans = simulate_scans(rows, seed)
    manifest, images, masks = folder / MANIFEST, folder / IMAGES, folder / MASKS
    with (
        atomic_path(manifest) as new_manifest,
        atomic_folder(masks) as new_masks,
        atomic_folder(images) as new_images,
    ):
        _write_images(new_images, scans.images)
        _write_images(new_masks, np.where(scans.masks, np.uint8(255), np.uint8(0)))
        new_manifest.write_text(_manifest(scans), encoding="utf-8")
        manifest.unlink(missing_ok=True)
    return {
        "out": str(manifest),
        "images": str(images),
        "rows": len(scans.labels),
        "lesions": int(scans.labels.sum()),
        "patients": len(np.unique(scans.groups)),
        "seed": seed,
    }


def _name(index: int) -> str:
    return f"scan-{index:05d}.png"


def _manifest(scans: Scans) -> str:
    rows = enumerate(zip(scans.labels, scans.groups, strict=True))
    lines = (f"{IMAGES}/{_name(i)},{label},patient-{group:05d}\n" for i, (label, group) in rows)
    return _HEADER + "".join(lines)


def _write_images(folder: Path, images: NDArray[np.uint8]) -> None:
    try:
        from PIL import Image, PngImagePlugin
    except ImportError as error:
        raise ConfigError(f"{error}; install it with: pip install 'anomaly-vae[images]'") from None
    text = PngImagePlugin.PngInfo()
    text.add_text("Software", _SOFTWARE)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / _name(i), pnginfo=text)


def _check_replaceable(folder: Path) -> None:
    """Refuse to replace files that `write_scans` did not write."""
    for path in _foreign_files(folder):
        raise DataError(
            f"'{path}' is no simulated scan and would be lost; "
            "name another folder, or move it away",
            path=str(path),
        )


def _foreign_files(folder: Path) -> Iterator[Path]:
    """Yield the files that `write_scans` did not write.

    An interrupted run leaves folders without a manifest; their files are known by their content.
    """
    manifest, listed = folder / MANIFEST, None
    if os.path.lexists(manifest):
        listed = _listed(manifest)
        if listed is None:
            yield manifest
    for part in (folder / IMAGES, folder / MASKS):
        if part.is_dir():
            yield from (path for path in sorted(part.iterdir()) if not _is_simulated(path, listed))
        elif os.path.lexists(part):
            yield part


def _is_simulated(path: Path, listed: set[str] | None) -> bool:
    """Tell whether `_write_images` wrote a file, by its name, the manifest and its first chunk."""
    if path.is_symlink() or not path.is_file() or not _NAME.fullmatch(path.name):
        return False
    if listed is not None and path.name not in listed:
        return False
    with path.open("rb") as file:
        return _START.match(file.read(128)) is not None


def _listed(manifest: Path) -> set[str] | None:
    """Return the image names in a manifest of `write_scans`, None for any other file."""
    if manifest.is_symlink() or not manifest.is_file():
        return None
    with manifest.open(encoding="utf-8", errors="replace") as lines:
        header, rows = next(lines, ""), [_ROW.fullmatch(line) for line in lines]
    return {row[1] for row in rows if row} if header == _HEADER and all(rows) else None

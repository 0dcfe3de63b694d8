"""Return the pictures of kept scans: the scan, what its model expected, and the heatmap."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from serving.problems import NOT_FOUND, ProblemError

if TYPE_CHECKING:
    from anomaly_vae.review.cases import Case

PICTURE, EXPECTED = "heatmap.png", "expected.png"
"""File with the scan, the expectation and the heatmap with its regions, side by side, and file with
the expectation alone, which models of features have not."""
MAX_BYTES = 16 * 1024 * 1024
"""Maximum size of a picture that is shown, in bytes."""


def panels_in_words(expects: bool, localizes: bool = True) -> str:
    """Return the alternative text of the panels beside each other.

    >>> panels_in_words(expects=False)
    'The scan and its heatmap'
    """
    heat = "its heatmap" if localizes else "no heatmap, since this score does not localise"
    return f"The scan, what the model expected, and {heat}" if expects else f"The scan and {heat}"


class Pictures:
    """The pictures in the folder of kept scans.

    Args:
        folder: the folder, with a folder for each scan; None if no scans are kept.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder.resolve() if folder else None

    def is_kept(self, case: Case) -> bool:
        """Return whether there is a picture of a case."""
        return self._path(case) is not None

    def read(self, case: Case) -> bytes:
        """Return the picture of a case as PNG.

        Raises:
            ProblemError: it is not kept.
        """
        path = self._path(case)
        if path is None:
            raise ProblemError(NOT_FOUND, "the scan of this case is not kept")
        return path.read_bytes()

    def alt(self, case: Case) -> str:
        """Return what the picture of a case shows, in words."""
        path = self._path(case)
        return panels_in_words(path is not None and path.with_name(EXPECTED).is_file())

    def _path(self, case: Case) -> Path | None:
        """Return the picture of a case; None if there is none in the folder."""
        if self._folder is None or not case.image or "\0" in case.image:
            return None
        path = (self._folder / case.image / PICTURE).resolve()
        is_kept = path.is_relative_to(self._folder) and path.is_file()
        return path if is_kept and path.stat().st_size <= MAX_BYTES else None

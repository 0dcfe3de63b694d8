"""Draw the pictures of kept scans: the scan, what its model expected, and the heatmap."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from serving.models.store import Store
from serving.problems import NOT_FOUND, ProblemError
from serving.settings import Settings

if TYPE_CHECKING:
    from anomaly_vae.review.cases import Case

MAX_BYTES = 64 * 1024 * 1024
"""Maximum size of a kept image that is drawn, in bytes."""
MAX_REGIONS = 10
"""Maximum number of regions that are outlined."""


class Pictures:
    """The pictures of the scans in a folder.

    Args:
        folder: the folder; None if no scans are kept.
        models: the models, which must have scored the scans.
        settings: limits on images.
    """

    def __init__(self, folder: Path | None, models: Store, settings: Settings) -> None:
        self._folder = folder.resolve() if folder else None
        self._models, self._settings = models, settings

    def is_kept(self, case: Case) -> bool:
        """Return whether the scan of a case is kept."""
        return self._path(case) is not None

    def _path(self, case: Case) -> Path | None:
        """Return the file of a case; None if there is none in the folder."""
        if self._folder is None or not case.image or "\0" in case.image:
            return None
        path = (self._folder / case.image).resolve()
        return path if path.is_relative_to(self._folder) and path.is_file() else None

    def draw(self, case: Case) -> bytes:
        """Return the picture of a case as PNG.

        Raises:
            ProblemError: the scan is not kept, or the version that scored it is not loaded.
        """
        path, model = self._path(case), self._models.current.get(case.model)
        if path is None or path.stat().st_size > MAX_BYTES:
            raise ProblemError(NOT_FOUND, "the scan of this case is not kept")
        if model is None or not model.reads_files or (model.version or "") != case.version:
            detail = f"version {case.version or '(none)'} of '{case.model}' is not loaded"
            raise ProblemError(NOT_FOUND, f"{detail}; only it can say what it expected")
        from serving.scoring.images.served import score
        from serving.scoring.images.uploads import ImageOptions

        options = ImageOptions(MAX_REGIONS, heatmap=True)
        results = score(model, [path.read_bytes()], options, self._settings).results  # type: ignore[arg-type]  # it reads files
        pictures = [result.heatmap for result in results if result.heatmap]
        if not pictures:
            raise ProblemError(NOT_FOUND, "the scan of this case cannot be read")
        return pictures[0]

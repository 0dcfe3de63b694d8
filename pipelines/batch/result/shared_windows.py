"""Share window features, which one machine computes, with the machines that score their rows."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

from pipelines.batch.result.folder import RUN, ResultFolder
from pipelines.datasets.reading.plain_text import source_of
from pipelines.datasets.windows import WindowColumns


@contextmanager
def shared_windows(windows: WindowColumns, folder: ResultFolder) -> Iterator[WindowColumns]:
    """Keep the features of all rows in the folder of a result until the block ends.

    Yields:
        The same features, which any machine reads there.

    Raises:
        OSError: they cannot be written.
    """
    features = windows.features
    names = [f"{RUN}/{path.name}" for path in features.paths]
    try:
        for name, path in zip(names, features.paths, strict=True):
            with folder.create(name) as copy:
                shutil.copyfile(path, copy)
        there = replace(features, folder=folder.path / RUN, source=source_of)
        yield replace(windows, features=there)
    finally:
        with suppress(OSError):  # the next run tidies up
            for name in names:
                folder.remove(name)

"""Open the results of batch runs, which lie below a folder that the settings name.

The name of a result comes from the browser. It is resolved, links included, and must then still be
below the folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

from starlette.responses import Response

from anomaly_vae.errors import DataError
from anomaly_vae.files import strict_json
from anomaly_vae.messages import plain_number
from anomaly_vae.monitoring.exchangeability import STATUSES
from anomaly_vae.scoring.detector import RegionContribution
from anomaly_vae.scoring.wording import describe_region
from serving.console.access import ADMIN
from serving.console.rendering import NO_VALUE
from serving.console.visits import Gate, Visit
from serving.paths import CONSOLE, Template
from serving.problems import INVALID_REQUEST, NOT_FOUND, ProblemError

SUMMARY, REJECTS, HEATMAPS = "summary.json", "rejects.parquet", "heatmaps"
"""Files of a result and its folder of pictures, as `anomaly-vae score` writes them."""
PART = re.compile(r"(.*/)?part-\d{5,}(_\d{5,})?\.(parquet|csv)")
"""Pattern of the names of files with scored rows, relative to the result."""
PICTURE = re.compile(r"[\w.-]+\.png")
MAX_DEPTH = 4
"""Maximum number of folders between the root and a result."""
MAX_RESULTS = 500
"""Maximum number of results that are listed."""
MAX_FOLDERS = 20_000
"""Maximum number of folders that are searched for results."""
MAX_SUMMARY_BYTES = 1024 * 1024
MAX_PICTURE_BYTES = 8 * 1024 * 1024
READ_ROWS = 65_536
"""Number of rows that are read at a time."""
SHOWN_ROWS = 100
"""Number of rows and of rejects that are shown."""
MAX_READ_BYTES = 512 * 1024 * 1024
"""Maximum size of the files that are read for the shown rows; a larger result shows those of its
first files."""
LIST_OF_OBJECTS = '[{"'
"""Beginning of the contributions of a row in CSV, which are JSON."""
DECISION = ("score", "p_value", "is_anomaly")


@dataclass(frozen=True)
class Listed:
    """A result in the list."""

    name: str
    """Path below the root."""
    written_at: float
    """Time in seconds since 1970."""
    summary: Mapping[str, Any]

    @property
    def address(self) -> str:
        """Path of its page."""
        return f"{CONSOLE}/batches/{quote(self.name)}"

    @property
    def model(self) -> str:
        """The model that scored, with its version if it was registered."""
        model = self.summary.get("model")
        if not isinstance(model, dict):
            return NO_VALUE
        version = f" version {model['version']}" if model.get("version") else ""
        return f"{model.get('name', NO_VALUE)}{version}"

    @property
    def guarantee(self) -> str:
        """State of the guarantee on its rows; empty if it is not known."""
        guarantee = self.summary.get("guarantee")
        status = guarantee.get("status") if isinstance(guarantee, dict) else None
        return status if status in STATUSES else ""

    @property
    def alpha(self) -> float | None:
        """Alpha of the model; None if it is not known."""
        alpha = self.summary.get("alpha")
        return alpha if isinstance(alpha, int | float) else None

    @property
    def expected(self) -> float | None:
        """Number of flags if all rows were normal; None if it is not known."""
        return None if self.alpha is None else self.alpha * self.summary["scored"]


@dataclass(frozen=True)
class Rows:
    """Rows of a result: the names of the columns, and the cells of each row."""

    columns: Sequence[str] = ()
    cells: Sequence[Sequence[Any]] = ()
    is_partial: bool = False
    """Whether a large result was read in part."""


class BatchPages:
    """The list of results, and the page of each.

    Args:
        root: the folder below which results lie; empty for none.
    """

    def __init__(self, root: str) -> None:
        self._root = Path(root).resolve() if root else None

    def routes(self, gate: Gate) -> list[Template]:
        """Create the routes of the pages."""
        route = partial(gate.route, scope=ADMIN, is_slow=True)
        return [
            route("/batches", self.list),
            route("/batches/{name:path}/heatmaps/{file}", self.picture),
            route("/batches/{name:path}", self.show),
        ]

    # ------------------------------------------------------------ pages

    def list(self, visit: Visit) -> Response:
        """List all results, the newest first."""
        found = sorted(self._results(), key=lambda one: -one.written_at) if self._root else []
        return visit.page("batches.html", root=self._root, results=found[:MAX_RESULTS])

    def show(self, visit: Visit) -> Response:
        """Show one result."""
        folder = self._folder(visit.request.path_params["name"])
        summary = _read_summary(folder)
        listed = Listed(self._name(folder), _written_at(folder), summary)
        return visit.page(
            "batch.html",
            result=listed,
            rows=_highest(folder, summary),
            rejects=_rejects(folder),
            pictures=sorted(one.name for one in _pictures(folder))[:SHOWN_ROWS],
        )

    def picture(self, visit: Visit) -> Response:
        """Return a heatmap of a result."""
        parameters = visit.request.path_params
        folder = self._folder(parameters["name"])
        path = self._inside(folder / HEATMAPS / parameters["file"])
        if not (PICTURE.fullmatch(parameters["file"]) and _is_file(path)):
            raise ProblemError(NOT_FOUND, "no such picture")
        if path.stat().st_size > MAX_PICTURE_BYTES:
            raise ProblemError(INVALID_REQUEST, "the picture is too large to show")
        return Response(path.read_bytes(), media_type="image/png")

    # ------------------------------------------------------------ folders

    def _folder(self, name: str) -> Path:
        """Return the folder of a result by its path below the root.

        Raises:
            ProblemError: there is no such result below the root.
        """
        if self._root is None or "\0" in name:
            raise ProblemError(NOT_FOUND, "no such result")
        folder = self._inside(self._root / name)
        if not _is_file(folder / SUMMARY):
            raise ProblemError(NOT_FOUND, f"no result of that name; it has no {SUMMARY}")
        return folder

    def _inside(self, path: Path) -> Path:
        try:
            resolved = path.resolve()
        except (OSError, RuntimeError):  # a loop of links, or a name that is too long
            raise ProblemError(NOT_FOUND, "no such result") from None
        if self._root is None or not resolved.is_relative_to(self._root):
            raise ProblemError(NOT_FOUND, "no such result")
        return resolved

    def _name(self, folder: Path) -> str:
        assert self._root is not None, "a result was found"
        return folder.relative_to(self._root).as_posix()

    def _results(self) -> Iterator[Listed]:
        """Yield the results below the root; folders that cannot be read are left out."""
        assert self._root is not None, "only called with a root"
        for folder in _folders(self._root):
            try:
                inside = self._inside(folder)
                yield Listed(self._name(folder), _written_at(inside), _read_summary(inside))
            except (OSError, ProblemError):
                continue


def _folders(root: Path) -> Iterator[Path]:
    """Yield folders with a summary, without following links."""
    waiting, seen = [(root, 0)], 0
    while waiting and seen < MAX_FOLDERS:
        folder, depth = waiting.pop()
        seen += 1
        try:
            entries = [one for one in folder.iterdir() if not one.name.startswith(".")]
        except OSError:
            continue
        if any(one.name == SUMMARY for one in entries):
            yield folder
        elif depth < MAX_DEPTH:
            inner = (one for one in entries if one.is_dir() and not one.is_symlink())
            waiting += [(one, depth + 1) for one in inner]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long
        return False


def _written_at(folder: Path) -> float:
    return (folder / SUMMARY).stat().st_mtime


def _read_summary(folder: Path) -> Mapping[str, Any]:
    """Return the summary of a result.

    Raises:
        ProblemError: it is damaged, or not the summary of a result.
    """
    path = folder / SUMMARY
    try:
        if path.stat().st_size > MAX_SUMMARY_BYTES:
            raise ValueError("it is too long")
        content = strict_json(path.read_bytes())
        counts = {name: int(content[name]) for name in ("rows", "scored", "flagged", "rejected")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"'{folder.name}/{SUMMARY}' cannot be read: {error}"
        raise ProblemError(INVALID_REQUEST, reason) from None
    return {**content, **counts}


# ---------------------------------------------------------------- rows


def _highest(folder: Path, summary: Mapping[str, Any]) -> Rows:
    """Return the flagged rows with the lowest p-values, or the lowest of all if none is flagged."""
    import pyarrow as pa

    names = [str(one) for one in summary.get("parts", ())]
    paths, is_partial = _within_limit(_existing(folder, names))
    kept = None
    for batch in chain.from_iterable(map(_batches, paths)):
        tables = [table for table in (kept, pa.Table.from_batches([batch])) if table is not None]
        kept = _lowest(pa.concat_tables(tables, promote_options="permissive"))
    return Rows() if kept is None else Rows(kept.column_names, _cells(kept), is_partial)


def _existing(folder: Path, names: Sequence[str]) -> list[Path]:
    """Return the parts that a summary names, none of them outside the result."""
    paths = ((folder / name).resolve() for name in names if PART.fullmatch(name))
    return [path for path in paths if path.is_relative_to(folder) and path.is_file()]


def _within_limit(paths: Sequence[Path]) -> tuple[list[Path], bool]:
    kept, size = list[Path](), 0
    for path in paths:
        size += path.stat().st_size
        if size > MAX_READ_BYTES:
            return kept, True
        kept.append(path)
    return kept, False


def _batches(path: Path) -> Iterator[Any]:
    """Yield the rows of a file on the thread of the page, a few at a time.

    Raises:
        DataError: the file is damaged.
    """
    import pyarrow as pa
    from pyarrow import csv, parquet

    try:
        if path.suffix == ".csv":
            yield from csv.open_csv(path, csv.ReadOptions(use_threads=False))
        else:
            with parquet.ParquetFile(path) as file:
                yield from file.iter_batches(READ_ROWS, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"'{path.name}' cannot be read: {str(error)[:200]}") from None


def _lowest(table: Any) -> Any:
    """Return the flagged rows with the lowest p-values, followed by the others."""
    missing = {*DECISION} - {*table.column_names}
    if missing:
        raise DataError(f"a part has no column '{min(missing)}'")
    order = [("is_anomaly", "descending"), ("p_value", "ascending"), ("score", "descending")]
    return table.sort_by(order).slice(0, SHOWN_ROWS)


def _cells(table: Any) -> list[list[Any]]:
    return [[_short(cell) for cell in row.values()] for row in table.to_pylist()]


def _short(cell: Any) -> Any:
    """Return a cell, with the contributions of a row, which are JSON in CSV, as words."""
    if isinstance(cell, str) and cell.startswith(LIST_OF_OBJECTS):
        with suppress(ValueError):
            cell = strict_json(cell)
    return list(map(_named, cell)) if isinstance(cell, list) else cell


def _named(part: Any) -> str:
    if not isinstance(part, dict):
        return str(part)
    with suppress(KeyError, TypeError, ValueError):
        return describe_region(RegionContribution(part["box"], part["nats"], part["share"]))
    if "feature" not in part:
        return str(part)
    observed, expected = (_rounded(part.get(name)) for name in ("observed", "expected"))
    return f"{part['feature']} {observed} (expected {expected})"


def _rounded(text: Any) -> Any:
    """Return a number, which results hold as text, with three digits; anything else as it is."""
    try:
        return plain_number(float(text))
    except (TypeError, ValueError):
        return text


def _rejects(folder: Path) -> Rows:
    path = folder / REJECTS
    if not path.is_file():
        return Rows()
    import pyarrow as pa

    batches = islice(_batches(path), 1)
    tables = [pa.Table.from_batches([batch]).slice(0, SHOWN_ROWS) for batch in batches]
    return Rows(tables[0].column_names, _cells(tables[0])) if tables else Rows()


def _pictures(folder: Path) -> Iterator[Path]:
    pictures = folder / HEATMAPS
    if pictures.is_dir() and not pictures.is_symlink():
        yield from (one for one in pictures.iterdir() if PICTURE.fullmatch(one.name))

"""Score what a reviewer enters, without counting, recording or queueing it."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from starlette.responses import Response

from anomaly_vae.client.types import Result
from anomaly_vae.data.encoding import Binary, Categorical
from anomaly_vae.data.schema import Column, RawBatch
from anomaly_vae.errors import DataError
from anomaly_vae.scoring.detector import Detections, Explanation, RegionContribution
from anomaly_vae.scoring.wording import Wording, describe_region
from anomaly_vae.types import ColumnType
from serving.console import charts, rendering
from serving.console.pages.pictures import panels_in_words
from serving.console.visits import Gate, Visit
from serving.models.store import ServedModel, Store
from serving.paths import Template
from serving.problems import INVALID_REQUEST, NOT_READY, UNKNOWN_MODEL, ProblemError
from serving.scoring.handlers import Resources
from serving.settings import Settings

if TYPE_CHECKING:
    from anomaly_vae.images.heatmaps import Scale

CELL = "cell:"
"""Beginning of the names of the fields of a record."""
MAX_ROWS = 200
"""Maximum number of rows or images that are tried at once."""
MAX_LISTED_LEVELS = 200
"""Maximum number of levels that a field suggests."""
MAX_REASONS = 8
"""Maximum number of reasons for a row."""


@dataclass(frozen=True)
class Input:
    """A field of the form."""

    column: Column
    kind: str
    value: str
    usual: str
    levels: Sequence[str] = ()

    @property
    def name(self) -> str:
        """Name of the field."""
        return CELL + self.column.name


@dataclass(frozen=True)
class Reason:
    """A part of a score: a sentence, and its length as a share of the longest."""

    text: str
    share: float


@dataclass(frozen=True)
class Tried:
    """The decision on a row or an image, or the fault because of which there is none."""

    name: str
    score: float = 0.0
    p_value: float = 1.0
    is_anomaly: bool = False
    reasons: Sequence[Reason] = ()
    unusual: str | None = None
    fault: str = ""
    picture: str = ""
    """PNG as a URI."""
    chart: charts.ScoreChart | None = None


class TryPage:
    """The page that scores what is entered."""

    def __init__(self, store: Store, settings: Settings, resources: Resources) -> None:
        self._store, self._settings, self._resources = store, settings, resources

    def routes(self, gate: Gate) -> list[Template]:
        """Create the routes of the page."""
        return [gate.route("/try", self.show), gate.route("/try", self.score, "POST", is_slow=True)]

    def show(self, visit: Visit) -> Response:
        """Show the form of a model, filled in with a typical record."""
        return self._page(visit, self._model(visit.request.query_params.get("model", "")))

    def score(self, visit: Visit) -> Response:
        """Score what was entered."""
        model = self._model(visit.form["model"])
        try:
            tried = self._tried(visit, model)
        except (DataError, ProblemError) as error:
            return self._page(visit, model, fault=str(error))
        return self._page(visit, model, tried)

    def _model(self, name: str) -> ServedModel:
        current = self._store.current
        if not current:
            raise ProblemError(NOT_READY, "no model is loaded")
        if name and name not in current:
            raise ProblemError(UNKNOWN_MODEL, f"no model '{name[:100]}' is loaded")
        return current[name or next(iter(current))]

    def _page(
        self, visit: Visit, model: ServedModel, tried: Sequence[Tried] = (), fault: str = ""
    ) -> Response:
        inputs = () if model.reads_files else inputs_of(model, visit.form.fields)
        return visit.page(
            "try.html", 422 if fault else 200, model=model, names=list(self._store.current),
            inputs=inputs, text=visit.form["text"], tried=tried, fault=fault, most=MAX_ROWS,
            alt=alt_of(model),
        )  # fmt: skip

    def _tried(self, visit: Visit, model: ServedModel) -> Sequence[Tried]:
        if model.reads_files:
            return self._images(model, visit.form.files)
        if visit.form["from"] == "text":
            records = parse_records(visit.form["text"], model)
        else:
            records = [_record(model, visit.form.fields)]
        return self._rows(model, records)

    # ------------------------------------------------------------ rows

    def _rows(self, model: ServedModel, records: Sequence[Mapping[str, Any]]) -> Sequence[Tried]:
        batch = model.schema.from_records(records)
        faults = {problem.row: str(problem) for problem in reversed(batch.problems)}
        usable = np.array([row not in faults for row in range(len(records))])
        good = iter(self._decided(model, batch.take(usable)) if usable.any() else ())
        names = [_name(model, record, row) for row, record in enumerate(records)]
        return [
            Tried(name, fault=faults[row]) if row in faults else replace(next(good), name=name)
            for row, name in enumerate(names)
        ]

    def _decided(self, model: ServedModel, batch: RawBatch) -> Sequence[Tried]:
        windows = self._resources.windows and self._resources.windows.of(model)
        complete = windows.prepare(batch).batch if windows else batch
        detections, explained = model.detector.detect_and_explain(complete, None)
        return [_tried(model, detections, row, one) for row, one in enumerate(explained)]

    # ------------------------------------------------------------ images

    def _images(self, model: ServedModel, files: Sequence[tuple[str, bytes]]) -> Sequence[Tried]:
        from serving.scoring.images.served import score
        from serving.scoring.images.uploads import ImageOptions

        if not files:
            raise ProblemError(INVALID_REQUEST, "choose one or more images first")
        options = ImageOptions(MAX_REASONS, heatmap=True)
        scored = score(model, [content for _, content in files], options, self._settings)  # type: ignore[arg-type]  # an image model reads files
        return [_image(result, files) for result in scored.results]


# ---------------------------------------------------------------- what is entered


def inputs_of(model: ServedModel, given: Mapping[str, str]) -> list[Input]:
    """Return the fields of a model's record, filled in as before or with its example."""
    wording, encoding = model.wording, model.table_encoding
    parts = encoding.parts if encoding else {}
    return [
        Input(
            column,
            column.type,
            given.get(CELL + column.name, _text(model.example.get(column.name))),
            wording.usual_values(column.name),
            _levels(parts.get(column.name, ())),
        )
        for column in model.schema.columns
        if isinstance(column, Column)
    ]


def _text(value: Any) -> str:
    return "" if value is None else rendering.value(value)


def _levels(parts: Sequence[Any]) -> Sequence[str]:
    first = parts[0] if parts else None
    if isinstance(first, Categorical):
        return first.levels[:MAX_LISTED_LEVELS]
    return ("0", "1") if isinstance(first, Binary) else ()


def _record(model: ServedModel, fields: Mapping[str, str]) -> dict[str, Any]:
    """Return the record in the fields of the form."""
    return {
        column.name: cell_of(column.type, fields.get(CELL + column.name, ""))
        for column in model.schema.columns
    }


def cell_of(kind: str, text: str) -> Any:
    """Return a text as a value of a column; a number that is none stays a text, as a fault.

    >>> cell_of("numeric", "12.5"), cell_of("numeric", "12,5"), cell_of("binary", ""), cell_of(
    ...     "categorical", "12")
    (12.5, '12,5', None, '12')
    """
    text = text.strip()
    if not text:
        return None
    if kind not in (ColumnType.NUMERIC, ColumnType.BINARY):
        return text
    try:
        return float(text)
    except ValueError:
        return text


def parse_records(text: str, model: ServedModel) -> list[dict[str, Any]]:
    """Return the records in a text: JSON, one JSON object a line, or CSV with a header.

    Raises:
        DataError: it is none of these, or has too many records.
    """
    if not text.strip():
        raise DataError("paste one or more rows first")
    records = _parse_json(text) if text.lstrip()[0] in "[{" else _parse_csv(text, model)
    if len(records) > MAX_ROWS:
        raise DataError(f"{len(records)} rows; at most {MAX_ROWS} are tried at once")
    if not records:
        raise DataError("there is a header but no row")
    return records


def _parse_json(text: str) -> list[dict[str, Any]]:
    try:
        content = msgspec.json.decode(text)
    except msgspec.DecodeError:
        content = _parse_lines(text)
    except RecursionError:
        raise DataError("not JSON that can be read: it is nested too deeply") from None
    if isinstance(content, dict):
        content = content.get("records", [content])
    if not isinstance(content, list) or not all(isinstance(one, dict) for one in content):
        raise DataError("expected a JSON object for each row, or a list of them")
    return content


def _parse_lines(text: str) -> list[Any]:
    found = []
    for number, line in enumerate(filter(str.strip, text.splitlines()), 1):
        try:
            found.append(msgspec.json.decode(line))
        except (msgspec.DecodeError, RecursionError) as error:
            raise DataError(f"line {number}: not JSON: {error}") from None
    return found


def _parse_csv(text: str, model: ServedModel) -> list[dict[str, Any]]:
    kinds = {column.name: column.type for column in model.schema.columns}
    header = text.lstrip().partition("\n")[0]
    delimiter = max(",;\t|", key=header.count)
    try:
        reader = csv.DictReader(io.StringIO(text.strip()), delimiter=delimiter)
        rows = list(islice(reader, MAX_ROWS + 1))
    except csv.Error as error:
        raise DataError(f"the CSV cannot be read: {error}") from None
    for number, row in enumerate(rows, 1):
        if None in row or None in row.values():
            raise DataError(f"row {number} has another number of cells than the header")
    return [
        {name: cell_of(kinds.get(name, ColumnType.CATEGORICAL), cell) for name, cell in row.items()}
        for row in rows
    ]


def _name(model: ServedModel, record: Mapping[str, Any], row: int) -> str:
    given = record.get(model.id_column) if model.id_column else None
    return f"row {row + 1}" if given is None else f"{model.id_column} {rendering.value(given)[:80]}"


# ---------------------------------------------------------------- what is found


def _tried(model: ServedModel, found: Detections, row: int, explanation: Explanation) -> Tried:
    score = float(found.score[row])
    calibration = model.detector.calibration
    threshold = calibration.threshold if found.threshold is None else float(found.threshold[row])
    return Tried(
        "",
        score,
        float(found.p_value[row]),
        bool(found.is_anomaly[row]),
        reasons_of(explanation, model.wording),
        None if found.unusual_input is None else found.unusual_input[row],
        chart=charts.score_chart(calibration.scores, threshold, score),
    )


def reasons_of(explanation: Explanation, wording: Wording) -> list[Reason]:
    """Return the reasons for a score, the most important first."""
    texts = wording.reasons(explanation, MAX_REASONS)
    nats = [part.nats for part in explanation.contributions if part.nats > 0] or [1.0]
    return [Reason(text, size / nats[0]) for text, size in zip(texts, nats, strict=False)]


def _image(result: Result, files: Sequence[tuple[str, bytes]]) -> Tried:
    name = files[result.file or 0][0] or f"image {(result.file or 0) + 1}"
    name += "" if result.frame is None else f", frame {result.frame}"
    if result.error:
        return Tried(name, fault=result.error.detail)
    largest = max((region.share for region in result.regions), default=1.0) or 1.0
    return Tried(
        name,
        result.score,
        result.p_value,
        result.is_anomaly,
        [
            Reason(
                describe_region(RegionContribution(one.box, one.nats, one.share)),
                one.share / largest,
            )
            for one in result.regions
        ],
        result.unusual_input,
        picture=png_address(result.heatmap or b""),
    )


def alt_of(model: ServedModel) -> str:
    """Return what the pictures of a model show, in words."""
    scale: Scale | None = getattr(model, "heat_scale", None)
    return panels_in_words(scale.expects, scale.localizes) if scale else ""


def png_address(content: bytes) -> str:
    """Return a picture as a URI, which nobody has to store."""
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"

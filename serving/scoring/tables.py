"""Serve table models."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, count
from typing import Any, ClassVar, Self, cast, get_args

import numpy as np
from numpy.typing import NDArray

from anomaly_vae.client.types import Result
from anomaly_vae.data.encoding import TabularEncoding
from anomaly_vae.data.schema import Column, RawBatch, TabularSchema, Values
from anomaly_vae.review.cases import CaseReason
from anomaly_vae.scoring.detector import Contribution, Detections
from anomaly_vae.scoring.wording import raising_parts
from serving.models.store import BodyDescription, CasePart, Json, ServedModel
from serving.scoring import requests, responses
from serving.scoring.handlers import Resources
from serving.scoring.images.uploads import EXPLAIN_SCHEMA
from serving.scoring.record_handler import RecordHandler
from serving.scoring.row_decoder import RowDecoder
from serving.scoring.schemas import JSON, MAX_ID, REF, ErrorMode
from serving.settings import Settings

ID_SCHEMA: Json = {
    "description": "The id of the record, which its result repeats.",
    "type": ["string", "number", "boolean", "null"],
}
CASE_REASONS = 5
"""Maximum number of reasons of a case."""
EXAMPLE_CONTRIBUTIONS = 3
"""Number of contributions per record in the example."""
TEXT = """Records: a value that is absent or null is missing, and the record is scored by its other
values. A record without any of the model's columns is refused. Unknown keys are ignored and named
in `ignored`. One record that does not fit the schema refuses the whole request; with
`"errors": "per_record"` it gets an `error` in place of its result."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ServedTable(ServedModel):
    """A loaded model of a table."""

    kind: ClassVar[str] = "tabular"
    reads_files: ClassVar[bool] = False

    raw_schema: TabularSchema | None = None
    """The columns that a client sends to a model with windows; None for other models."""
    converted: tuple[Column, ...] = ()
    """Windows that the model does not read as numbers."""

    @property
    def schema(self) -> TabularSchema:
        """The columns that a client sends."""
        return self.raw_schema or self._model_schema

    @property
    def _model_schema(self) -> TabularSchema:
        return cast("TabularSchema", self.detector.scorer.schema)

    def with_windows(self, batch: RawBatch, values: NDArray[np.float64]) -> RawBatch:
        """Return N rows completed with their windows (N, F)."""
        assert self.windows is not None
        found = dict(zip(self.windows.definition.names, values.T, strict=True))
        read = {c.name: _window_values(c, found[c.name]) for c in self.converted}
        completed = {**batch.values, **found, **read}
        return RawBatch(completed, len(batch), batch.problems, batch.ignored)

    def _example_batch(self) -> RawBatch:
        """Return the example, with the typical values of its windows."""
        batch = self.schema.from_records([self.example])
        if not self.windows:
            return batch
        typical = self.table_encoding.typical_record(self._model_schema)
        found = [typical.get(name) for name in self.windows.definition.names]
        return self.with_windows(batch, np.array([found], np.float64))

    def warm_up(self) -> Detections:
        """Score and explain the example once, so that the first request is not slow."""
        batch = self._example_batch()
        self.detector.detect_and_explain(batch, None)
        return self.detector.detect(batch)

    @property
    def table_encoding(self) -> TabularEncoding:
        """The encoding of rows for the scoring graph."""
        return cast("TabularEncoding", self.detector.scorer.encoding)

    def handler(self, resources: Resources) -> RecordHandler:
        """Create the request handler, which reads records."""
        return RecordHandler(self, RowDecoder(self.schema, self.id_column), resources)

    def read_columns(self, columns: Mapping[str, Sequence[Any]]) -> RawBatch:
        """Read N rows, given as columns (N,); refuse them all if any value does not fit."""
        count = len(next(iter(columns.values())))
        return requests.read_strictly(partial(self.schema.from_columns, columns, count))

    def detect(self, content: RawBatch, _: Settings) -> Detections:
        """Decide on N rows; windows that they lack are missing."""
        return self.detector.detect(self._completed(content))

    def _completed(self, batch: RawBatch) -> RawBatch:
        if not self.windows or self.windows.definition.names[0] in batch.values:
            return batch
        missing = np.full((len(batch), len(self.windows.definition.names)), np.nan)
        return self.with_windows(batch, missing)

    def detect_readable(
        self, content: RawBatch, _: Settings
    ) -> tuple[NDArray[np.bool_], Detections]:
        """Decide on the rows without problems."""
        readable = content.usable
        return readable, self.detector.detect(self._completed(content).take(readable))

    def case_parts(
        self,
        records: Sequence[Mapping[str, Any]],
        detections: Detections,
        explained: NDArray[np.bool_],
        _: Settings,
    ) -> list[CasePart]:
        """Return the windows of N rows, and the reasons for the scores of the explained ones."""
        windows = _window_records(detections)
        reasons = iter(self._case_reasons(records, detections, explained))
        return [
            CasePart(next(reasons) if is_explained else (), values)
            for is_explained, values in zip(explained.tolist(), windows, strict=True)
        ]

    def _case_reasons(
        self,
        records: Sequence[Mapping[str, Any]],
        detections: Detections,
        explained: NDArray[np.bool_],
    ) -> list[tuple[CaseReason, ...]]:
        rows = np.flatnonzero(explained).tolist()
        if not rows:
            return []
        batch = self.schema.from_records([records[row] for row in rows])
        if (windows := detections.part(explained).windows) is not None:
            batch = self.with_windows(batch, np.array(windows.tolist(), np.float64))
        _, found = self.detector.detect_and_explain(self._completed(batch), CASE_REASONS)
        return [tuple(map(self._case_reason, raising_parts(one.contributions))) for one in found]

    def _case_reason(self, part: Contribution) -> CaseReason:
        text = self.wording.sentence(part)
        return CaseReason(part.feature, part.nats, part.observed, part.expected, text)

    @classmethod
    def describe_bodies(cls, models: Sequence[Self], settings: Settings) -> BodyDescription:
        """Describe requests with records."""
        components: Json = {}
        for model in models:
            components[_component(model, components)] = record_schema(model)
        components["ScoreRequest"] = _request_schema(list(components), settings.max_records)
        body = {
            "schema": {"$ref": REF.format(name="ScoreRequest")},
            "examples": {model.name: {"value": example_request(model)} for model in models},
        }
        return BodyDescription(TEXT, {JSON: body}, (), components)

    def example_results(self, _: Settings) -> list[Result]:
        """Score and explain the example."""
        batch = self._example_batch()
        return responses.results(*self.detector.detect_and_explain(batch, EXAMPLE_CONTRIBUTIONS))


def _window_records(detections: Detections) -> list[dict[str, float]]:
    """Return the windows of N rows by name."""
    windows = detections.windows
    if windows is None or windows.dtype.names is None:
        return [{} for _ in detections.score]
    return [dict(zip(windows.dtype.names, row, strict=True)) for row in windows.tolist()]


def _window_values(column: Column, values: NDArray[np.float64]) -> Values:
    """Return a window (N,) as the schema of the model reads it."""
    cells = [None if math.isnan(value) else value for value in values.tolist()]
    return column.from_values(cells)[0]


def _request_schema(components: Sequence[str], max_records: int) -> Json:
    """Describe a request whose records fit one of these components."""
    records = [{"$ref": REF.format(name=name)} for name in components]
    item = records[0] if len(records) == 1 else {"anyOf": records or [{"type": "object"}]}
    return {
        "type": "object",
        "required": ["records"],
        "properties": {
            "records": {"type": "array", "items": item, "minItems": 1, "maxItems": max_records},
            "explain": EXPLAIN_SCHEMA,
            "errors": {
                "description": "Whether a bad record refuses the request or has its own `error`.",
                "enum": list(get_args(ErrorMode)),
                "default": "refuse",
            },
            "id": {
                "description": "An id of the request, which the answer repeats.",
                "anyOf": [
                    {"type": "string", "maxLength": MAX_ID},
                    {"type": "number"},
                    {"type": "null"},
                ],
            },
        },
    }


def record_schema(model: ServedTable) -> Json:
    """Describe a record of this model; every key is optional, but one column is needed."""
    properties: Json = {model.id_column: ID_SCHEMA} if model.id_column else {}
    properties |= {
        column.name: {**column.json_schema, "examples": [model.example[column.name]]}
        for column in model.schema.columns
    }
    return {"type": "object", "properties": properties, "additionalProperties": True}


def _component(model: ServedTable, others: Iterable[str]) -> str:
    """Name the records of a model, so that generators name no two of them alike."""
    name = "Record." + re.sub(r"[^A-Za-z0-9._-]", "_", model.name)
    taken = {_letters(other) for other in others}
    numbered = chain([name], (f"{name}.{number}" for number in count(2)))
    return next(one for one in numbered if _letters(one) not in taken)


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def example_request(model: ServedTable) -> Json:
    """Return a valid example request."""
    return {"records": [dict(model.example)], "explain": EXAMPLE_CONTRIBUTIONS}

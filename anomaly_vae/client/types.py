"""Define the answers of the service.

The service encodes these types, and the client decodes them. Fields with a default may be absent
from an answer: they read as None or as an empty tuple.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

from msgspec import Struct

if TYPE_CHECKING:
    import pyarrow as pa


class Model(Struct, frozen=True):
    """The model that answered; version and alias are null for a model served from a folder.

    >>> Model("fraud", version="3", alias="champion").version
    '3'
    """

    name: str
    version: str | None
    alias: str | None


class Contribution(Struct, frozen=True):
    """A feature's share of a score, in the model's unit, with its observed and expected value.

    >>> part = Contribution("amount", nats=41.7, observed=900.0, expected=38.5)
    >>> f"{part.feature}: {part.observed} instead of {part.expected}"
    'amount: 900.0 instead of 38.5'
    """

    feature: str
    nats: float
    observed: str | float | bool | None
    expected: str | float | bool | None


class Region(Struct, frozen=True):
    """An anomalous region, in pixels of the model's image; x points right, y points down.

    ``box`` is (x0, y0, x1, y1), with x1 and y1 just outside. ``nats`` is the region's part of the
    score, in the unit of the score, and ``share`` its fraction of all positive pixels of the
    image. ``area`` is in pixels; ``peak`` and ``total`` are in the unit of the heatmap.

    >>> region = Region(
    ...     x=4, y=9, width=3, height=2, area=5, peak=2.5, total=7.0,
    ...     box=(4, 9, 7, 11), nats=7.0, share=0.25,
    ... )
    >>> region.x + region.width, region.y + region.height  # the lower right corner
    (7, 11)
    """

    x: int
    y: int
    width: int
    height: int
    area: int
    peak: float
    total: float
    box: tuple[int, int, int, int]
    nats: float
    share: float


class Fault(Struct, frozen=True):
    """The reason why a record or image was not scored; ``field`` is None if all of it is at fault.

    >>> Fault("amount", "expected a number, got 'much'").field
    'amount'
    """

    field: str | None
    detail: str


ResultId = str | int | float | bool | None
"""Id of a record, in the type in which it was sent."""


class Result(Struct, frozen=True, omit_defaults=True):
    """The decision on one record or image, or the error that prevented it.

    ``id`` repeats the record's id, if the model was trained with an id column. A result with an
    ``error`` has no decision: ``score``, ``p_value`` and ``is_anomaly`` are None. Only images, and
    records sent with ``errors="per_record"``, have such results.

    An explained score is the sum of its contributions (for images, the ``nats`` of its regions),
    ``rest`` and ``kl``, in the model's unit.
    An image is ``frame`` of upload ``file``, both counted from 0; ``heatmap`` is a PNG, encoded
    as base64 in JSON. For a model with groups, ``threshold`` is the threshold that was applied:
    that of ``group``, or, where ``group`` is null, that of all rows. ``unusual_input`` says why the
    input is unlike the training data at all, and is None if it is like them or was not tested. For
    a model with ``data.windows``, ``windows`` are the features that were computed for the record,
    None where missing.

    >>> result = Result(score=96.2, p_value=0.00025, is_anomaly=True)
    >>> result.is_anomaly, result.contributions, result.heatmap
    (True, (), None)
    """

    score: float = None  # type: ignore[assignment]  # None only in a result with an error
    p_value: float = None  # type: ignore[assignment]
    is_anomaly: bool = None  # type: ignore[assignment]
    id: ResultId = None
    contributions: tuple[Contribution, ...] = ()
    rest: float | None = None
    kl: float | None = None
    file: int | None = None
    frame: int | None = None
    heatmap: bytes | None = None
    regions: tuple[Region, ...] = ()
    group: str | None = None
    threshold: float | None = None
    error: Fault | None = None
    unusual_input: str | None = None
    windows: dict[str, float | None] | None = None


class GroupResult(Struct, frozen=True):
    """The decision on images that belong together: those of a series, of a file or of a patient.

    ``group_by`` is the kind of the group: ``series``, ``volume`` or a column of the training data.
    Its score is the highest of its ``images``, that of ``frame`` of upload ``file``; it is
    anomalous where the score exceeds ``threshold``. ``files`` are the uploads with its images.

    >>> group = GroupResult("series", (0, 1), 2, 96.2, 0.01, True, 80.0, file=1, frame=0)
    >>> group.is_anomaly, group.files
    (True, (0, 1))
    """

    group_by: str
    files: tuple[int, ...]
    images: int
    score: float
    p_value: float
    is_anomaly: bool
    threshold: float
    file: int
    frame: int


TABLE_FIELDS = (
    "id", "file", "frame", "score", "p_value", "is_anomaly", "group", "threshold", "unusual_input"
)  # fmt: skip
"""Fields of a result that are columns of a table."""


@dataclass(frozen=True, slots=True)
class Scores(Sequence[Result]):
    """The results in the order of the records; a record is anomalous where score > threshold.

    ``guarantee_status`` says whether recently scored rows still look like the calibration rows:
    ``holding``, ``unknown`` (too few rows or calibration days to tell), ``doubtful`` or
    ``broken``; None if the service is too old to report it.
    ``ignored`` names the keys that the model does not know, ``warnings`` says what else may be
    unintended. ``groups`` are the decisions on images that belong together.

    >>> results = Result(96.2, 0.00025, True), Result(3.1, 0.61, False)
    >>> scores = Scores(Model("fraud", None, None), alpha=0.01, threshold=40.0, results=results)
    >>> len(scores), [result.is_anomaly for result in scores]
    (2, [True, False])
    """

    model: Model
    alpha: float
    threshold: float
    results: tuple[Result, ...]
    guarantee_status: str | None = None
    ignored: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    groups: tuple[GroupResult, ...] = ()

    def to_table(self) -> pa.Table:
        """Return a pyarrow table of N rows, which ``to_pandas`` turns into a data frame.

        Its columns are ``score``, ``p_value``, ``is_anomaly`` and ``error``, which are null where
        they do not apply; ``id``, ``file``, ``frame``, ``group``, ``threshold`` and
        ``unusual_input`` are there if any result has them.

        >>> bad = Result(error=Fault("amount", "expected a number, got 'much'"))
        >>> scores = Scores(Model("fraud", None, None), 0.01, 40.0, (Result(3.1, 0.6, False), bad))
        >>> scores.to_table()["error"].to_pylist()
        [None, "amount: expected a number, got 'much'"]
        """
        import pyarrow as pa

        columns = {name: [getattr(one, name) for one in self.results] for name in TABLE_FIELDS}
        used = {name: cells for name, cells in columns.items() if cells.count(None) < len(cells)}
        types = {"score": pa.float64(), "p_value": pa.float64(), "is_anomaly": pa.bool_()}
        decisions = {name: pa.array(columns[name], kind) for name, kind in types.items()}
        errors = pa.array([_error_text(one.error) for one in self.results], pa.string())
        others = {name: _column(cells) for name, cells in used.items() if name not in types}
        return pa.table({**others, **decisions, "error": errors})

    def __len__(self) -> int:
        return len(self.results)

    @overload
    def __getitem__(self, index: int) -> Result: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Result, ...]: ...
    def __getitem__(self, index: int | slice) -> Result | tuple[Result, ...]:
        return self.results[index]


def _error_text(error: Fault | None) -> str | None:
    if error is None:
        return None
    return f"{error.field}: {error.detail}" if error.field else error.detail


def _column(cells: Sequence[Any]) -> pa.Array:
    """Return cells as an array, as text if they are of several types."""
    import pyarrow as pa

    try:
        return pa.array(cells)
    except (pa.ArrowException, OverflowError):
        return pa.array([None if cell is None else str(cell) for cell in cells], pa.string())


class EventCounts(Struct, frozen=True):
    """Counts of events by outcome; ``incomplete`` ones lack a time or an entity and count nowhere.

    >>> EventCounts(recorded=2, duplicate=1, late=0, incomplete=0).recorded
    2
    """

    recorded: int = 0
    duplicate: int = 0
    late: int = 0
    incomplete: int = 0


class LabelCounts(Struct, frozen=True):
    """How many labels were of events that the window store knows, and how many were not.

    >>> LabelCounts(known=1, unknown=0).known
    1
    """

    known: int = 0
    unknown: int = 0


class RecordedEvents(Struct, frozen=True):
    """Counts of events and labels by outcome, summed over the models with other columns.

    >>> RecordedEvents(EventCounts(recorded=2), LabelCounts()).events.recorded
    2
    """

    events: EventCounts
    labels: LabelCounts
    warnings: tuple[str, ...] = ()


class Column(Struct, frozen=True):
    """A column that a model reads; ``type`` is numeric, binary, categorical, datetime or image.

    >>> Column("amount", "numeric").type
    'numeric'
    """

    name: str
    type: str


class Schema(Struct, frozen=True, omit_defaults=True):
    """The columns that a model reads; images are resized to ``size`` by ``size`` pixels.

    >>> Schema((Column("image", "image"),), size=64, channels=1).size
    64
    """

    columns: tuple[Column, ...]
    size: int | None = None
    channels: int | None = None


class Groups(Struct, frozen=True):
    """The column whose levels have their own thresholds; other rows have the model's.

    >>> Groups("channel", {"online": 44.5}).thresholds["online"]
    44.5
    """

    column: str
    thresholds: dict[str, float]


class ModelInfo(Struct, frozen=True, kw_only=True):
    """A loaded model; ``groups`` is null where all rows have one threshold.

    ``guarantee_lacks`` says what is missing if the status of the guarantee is unknown: ``rows``, or
    days or rows of the ``calibration``; None otherwise, or if the service is too old to report it.

    >>> info = ModelInfo(
    ...     name="fraud", version="3", alias="champion", digest="9f2c", kind="tabular",
    ...     unit="nats", alpha=0.01, threshold=40.0, schema=Schema((Column("amount", "numeric"),)),
    ... )
    >>> f"{info.name} flags scores above {info.threshold} {info.unit}"
    'fraud flags scores above 40.0 nats'
    """

    name: str
    version: str | None
    alias: str | None
    digest: str
    kind: str
    unit: str
    alpha: float
    threshold: float
    groups: Groups | None = None
    guarantee_status: str | None = None
    guarantee_lacks: str | None = None
    schema: Schema


class Models(Struct, frozen=True):
    """All models that the service has loaded."""

    models: tuple[ModelInfo, ...]


class FeedbackResult(Struct, frozen=True):
    """A label that the service has; ``outcome`` is stored, or unchanged if it had it before.

    ``id`` is the id of the row as text: 12, 12.0 and "12" are the same.

    >>> FeedbackResult("12", "fraud", "anomaly", outcome="stored").outcome
    'stored'
    """

    id: str
    model: str
    label: str
    outcome: str


class Feedback(Struct, frozen=True):
    """The numbers of labels stored and unchanged, and a result for each, in their order.

    ``ignored`` names the keys of labels that the service does not know.

    >>> results = (FeedbackResult("12", "fraud", "anomaly", "unchanged"),)
    >>> Feedback(stored=0, unchanged=1, results=results).unchanged
    1
    """

    stored: int
    unchanged: int
    results: tuple[FeedbackResult, ...]
    ignored: tuple[str, ...] = ()


class BadRecord(Struct, frozen=True):
    """The error in one field of one record; for images, ``record`` is the number of the file.

    >>> BadRecord(2, "amount", "expected a number, got str").record
    2
    """

    record: int
    field: str | None
    detail: str


class Problem(Struct, frozen=True):
    """The service's description of an error (RFC 9457); ``errors`` lists the first bad records.

    >>> bad = BadRecord(2, "amount", "expected a number, got str")
    >>> problem = Problem("urn:anomaly-vae:invalid-record", "…", 422, "record 2, …", (bad,))
    >>> [(one.record, one.field) for one in problem.errors]
    [(2, 'amount')]
    """

    type: str
    title: str
    status: int
    detail: str
    errors: tuple[BadRecord, ...] = ()

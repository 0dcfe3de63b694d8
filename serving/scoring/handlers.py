"""Define what a handler of scoring requests to one model does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from starlette.types import Receive, Scope

from anomaly_vae.client.types import Result
from anomaly_vae.scoring.attribution import CANDIDATES, HIDDEN
from anomaly_vae.scoring.detector import Detections
from serving.models.store import Content, ServedModel
from serving.observability import logs
from serving.scoring import responses
from serving.scoring.resources import Resources

INLINE_BYTES = 128 * 1024
"""Maximum size of a body that is decoded on the event loop, in under a millisecond."""
INLINE_VALUES = 4096
"""Maximum number of values, records times columns, that are scored on the event loop, in a few
milliseconds."""
EXPLAIN_COST = 1 + HIDDEN * CANDIDATES
"""Cost of explaining a value, as a multiple of the cost of scoring it."""


class RequestHandler(ABC):
    """Answers the scoring requests to one model in this process."""

    needs_thread: ClassVar[bool]
    """Whether every request is scored on a worker thread."""

    def __init__(self, model: ServedModel, resources: Resources) -> None:
        self.model, self.resources = model, resources
        self.metrics = resources.metrics.of(model)
        self._width = model.width

    def may_need_thread(self, size: int) -> bool:
        """Return whether a body of this size, in bytes, may be scored on a worker thread."""
        return self.needs_thread or size > INLINE_BYTES

    def is_inline(self, count: int, cost: int = 1) -> bool:
        """Return whether so few records are scored on the event loop."""
        return not self.needs_thread and count * self._width * cost <= INLINE_VALUES

    @abstractmethod
    def read_head(self, scope: Scope) -> Any:
        """Read the options in the head of a request to `POST /score`.

        Raises:
            ProblemError: the model does not accept the media type or the query.
        """

    @abstractmethod
    async def answer(
        self, body: bytes, options: Any, receive: Receive, log_fields: logs.Facts
    ) -> bytes:
        """Return the answer to the body of a request to `POST /score`.

        Args:
            body: the whole body.
            options: what `read_head` returned.
            receive: source of the message that the client disconnected.
            log_fields: fields of the log line about the request; ``records`` is added.
        """

    @abstractmethod
    def decide(self, content: Content) -> Detections:
        """Decide on rows or files and count them."""

    def encode(self, results: list[Result]) -> bytes:
        """Encode results as an answer."""
        return responses.encode(responses.answer(self.model, results, self.metrics.watch.status))

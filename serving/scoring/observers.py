"""Tell others of scored rows after the answer: a shadow scores them too, flagged ones become cases.

No answer waits for them or depends on them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from anomaly_vae.scoring.detector import Detections
from serving.models.store import ServedModel
from serving.scoring import requests
from serving.scoring.shadow import Read, Shadows

Records = Callable[[Sequence[int]], Sequence[Mapping[str, Any]]]
"""Function that reads the rows at these positions of a request."""


Ends = Sequence[int]
"""Numbers of the rows at which the bodies end that were scored together."""


class CaseSink(Protocol):
    """The part of `CaseRecorder` that scoring uses."""

    def offer(
        self, model: ServedModel, detections: Detections, size: int, records: Records
    ) -> None:
        """Count scored rows, and queue those that become cases."""


class Observers:
    """The shadows of the models, and the recorder of cases if there is one."""

    def __init__(self, shadows: Shadows, cases: CaseSink | None = None) -> None:
        self.shadows, self._cases = shadows, cases

    def watches(self, model: ServedModel) -> bool:
        """Return whether anybody is told of the rows of a model."""
        return self._cases is not None or self.shadows.shadow_of(model) is not None

    def offer(
        self,
        model: ServedModel,
        detections: Detections,
        body: bytes,
        records: Records | None = None,
        read: Read | None = None,
    ) -> None:
        """Tell of the rows of a request.

        Args:
            model: the model that answered.
            detections: its decisions.
            body: body of the request.
            records: function that reads rows for cases; None for the records of `POST /score`.
            read: function that reads the body for a shadow; None likewise.
        """
        self.shadows.offer(model, detections, body, read)
        self.offer_cases(
            model, detections, len(body), records or partial(requests.records_at, body)
        )

    def offer_together(
        self, model: ServedModel, detections: Detections, bodies: Sequence[bytes], ends: Ends
    ) -> None:
        """Tell of the records of several bodies of `POST /score`, which end at these rows."""
        if self.shadows.shadow_of(model):
            for body, start, end in zip(bodies, [0, *ends], ends, strict=False):
                self.shadows.offer(model, detections.part(slice(start, end)), body)
        records = partial(_records_together, bodies, ends)
        self.offer_cases(model, detections, sum(map(len, bodies)), records)

    def offer_cases(
        self, model: ServedModel, detections: Detections, size: int, records: Records
    ) -> None:
        """Tell of rows that become cases if they are flagged."""
        if self._cases is not None:
            self._cases.offer(model, detections, size, records)


def _records_together(
    bodies: Sequence[bytes], ends: Ends, rows: Sequence[int]
) -> list[dict[str, Any]]:
    """Decode the records at these positions of several bodies; the positions ascend."""
    found: list[dict[str, Any]] = []
    for body, start, end in zip(bodies, [0, *ends], ends, strict=False):
        own = [row - start for row in rows if start <= row < end]
        found += requests.records_at(body, own) if own else []
    return found

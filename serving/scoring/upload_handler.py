"""Answer `POST /score` for images: one file as the body, or files in a form."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

from starlette.types import Receive, Scope

from anomaly_vae.client.types import Result
from anomaly_vae.scoring.detector import Detections
from serving.models.store import ServedModel
from serving.observability import logs
from serving.paths import HEADERS
from serving.scoring import uploads
from serving.scoring.handlers import RequestHandler
from serving.scoring.resources import Resources
from serving.scoring.uploads import ImageOptions
from serving.settings import Settings

Score = Callable[[Sequence[bytes], ImageOptions, Settings], tuple[Detections, list[Result]]]
"""Scores the images in files."""
Head = tuple[bytes | None, ImageOptions]
"""Boundary of the form, None for a body that is one file, and the options in the query."""


class UploadHandler(RequestHandler):
    """Answers scoring requests to an image model, always on a worker thread."""

    needs_thread = True

    def __init__(self, model: ServedModel, score: Score, resources: Resources) -> None:
        super().__init__(model, resources)
        self._score = score

    def read_head(self, scope: Scope) -> Head:
        """Read the boundary of the form and the options in the query."""
        boundary = uploads.boundary_of(scope[HEADERS])
        return boundary, uploads.image_options(scope["query_string"])

    async def answer(
        self, body: bytes, options: Head, receive: Receive, log_fields: logs.Facts
    ) -> bytes:
        """Answer on a worker thread."""
        task = self._answer_files, body, *options
        content, log_fields["records"] = await self.resources.run_on_thread(receive, *task)
        return content

    def _answer_files(
        self, body: bytes, boundary: bytes | None, options: ImageOptions
    ) -> tuple[bytes, int]:
        """Return the answer to uploaded files, and their number of images."""
        start, settings = time.perf_counter(), self.resources.settings
        split = partial(uploads.split_files, boundary=boundary, max_files=settings.max_records)
        detections, results = self._score(split(body), options, settings)
        self._count(detections, start)
        self.metrics.sizes.observe(len(results))
        self.resources.shadows.offer(self.model, detections, body, lambda bodies, _: split(*bodies))
        return self.encode(results), len(results)

    def decide(self, content: Sequence[bytes]) -> Detections:
        """Decide on files with one image each, and count them."""
        start = time.perf_counter()
        detections = self.model.detect(content, self.resources.settings)
        self._count(detections, start)
        return detections

    def _count(self, detections: Detections, start: float) -> None:
        self.metrics.inference.observe(time.perf_counter() - start)
        self.metrics.observe(detections, None)

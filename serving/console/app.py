"""Assemble the console: its pages, and what they share."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from anomaly_vae.errors import StoreError
from serving.console import assets
from serving.console.access import Access
from serving.console.issuer import Issuer
from serving.console.pages.batches import BatchPages
from serving.console.pages.cases import CasePages
from serving.console.pages.models import ModelsPage
from serving.console.pages.pictures import Pictures
from serving.console.pages.queue import QueuePages
from serving.console.pages.sign_in import SignIn
from serving.console.pages.trying import TryPage
from serving.console.pages.what_if import WhatIfPage
from serving.console.queries import Query
from serving.console.visits import Gate
from serving.models.store import Store
from serving.observability.metrics import Metrics
from serving.paths import Template
from serving.registry.follower import Follower
from serving.review.label_writer import LabelWriter
from serving.scoring.handlers import Resources
from serving.settings import ApiKey, Settings

if TYPE_CHECKING:
    from anomaly_vae.review import CaseStore

COUNT_SECONDS = 5.0
"""Time for which the number of open cases in the navigation is kept, in seconds."""


class Console:
    """The console of a service.

    Args:
        cases: the case store.
        writer: writes labels.
        store: the models.
        follower: the state of the registry checks.
        metrics: metrics of the models.
        resources: limits and windows of scoring.
        settings: keys and folders.
        find_client: returns the client of a key or token, or None if it is unknown.
    """

    def __init__(
        self,
        cases: CaseStore,
        writer: LabelWriter,
        store: Store,
        follower: Follower,
        metrics: Metrics,
        resources: Resources,
        settings: Settings,
        find_client: Callable[[bytes], ApiKey | None],
    ) -> None:
        from anomaly_vae.review import GuaranteeLog

        self.cases, self.guarantees = cases, GuaranteeLog(settings.cases)
        access = Access(settings, find_client)
        self._gate = Gate(access, resources, settings, metrics, _OpenCases(cases))
        pictures = Pictures(settings.cases_images)
        self._pages = (
            QueuePages(cases),
            CasePages(cases, writer, store, pictures),
            WhatIfPage(cases, store),
            ModelsPage(store, follower, metrics, cases, self.guarantees, settings.fetch_seconds),
            TryPage(store, settings, resources),
            BatchPages(settings.console_results),
            SignIn(access, Issuer(settings)),
        )

    def routes(self) -> list[Template]:
        """Create all routes."""
        pages = [route for page in self._pages for route in page.routes(self._gate)]
        return [*pages, assets.route(), self._gate.unknown()]

    def close(self) -> None:
        """Wait for the pages in progress, and close the connections."""
        self._gate.close()
        self.cases.close()
        self.guarantees.close()


class _OpenCases:
    """The number of open cases, which is kept for a moment as each page shows it."""

    def __init__(self, cases: CaseStore) -> None:
        self._cases, self._count, self._read_at = cases, None, -COUNT_SECONDS

    _count: int | None

    def __call__(self) -> int | None:
        """Return the number; None while the store is down."""
        if time.monotonic() - self._read_at > COUNT_SECONDS:
            self._read_at = time.monotonic()
            try:
                self._count = self._cases.count(Query().filter())
            except StoreError:
                self._count = None
        return self._count

"""Keep the states of guarantees over time."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, insert, select

from anomaly_vae.review.base import PER_SECOND, ReviewStore
from anomaly_vae.review.tables import GUARANTEES

__all__ = ["GuaranteeLog", "GuaranteeState"]


@dataclass(frozen=True, slots=True)
class GuaranteeState:
    """The state of a model's guarantee from a time on, in seconds since 1970.

    ``version`` is empty for a model from a folder.

    >>> GuaranteeState("fraud", "3", "holding", 1.7e9).status
    'holding'
    """

    model: str
    version: str
    status: str
    at: float


class GuaranteeLog(ReviewStore):
    """The states of guarantees in the database of the cases; several processes may write it.

    Args:
        address: ``sqlite:///cases.db`` or ``postgresql://USER:PASSWORD@HOST/DATABASE``.

    Raises:
        ConfigError: it is no such address, or its driver is not installed.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder, GuaranteeLog(f"sqlite:///{folder}/cases.db") as log:
    ...     states = [log.note("fraud", "3", state) for state in ("unknown", "holding", "holding")]
    ...     print(states, [one.status for one in log.states("fraud")])
    [True, True, False] ['holding', 'unknown']
    """

    noun = "case store"
    creation = "anomaly-vae serve"

    def note(self, model: str, version: str | None, status: str, at: float | None = None) -> bool:
        """Add the state of a guarantee, unless it is the newest one already.

        Args:
            model: name of the model.
            version: its version; None for a model from a folder.
            status: ``holding``, ``unknown``, ``doubtful`` or ``broken``.
            at: time in seconds since 1970; None for now.

        Returns:
            Whether it was added.

        Raises:
            StoreError: the database cannot be used, or a newer version wrote it.
        """
        at = time.time() if at is None else at
        row = {"model": model, "version": version or "", "status": status}
        with self._writing() as connection:
            newest = connection.execute(_newest(model).limit(1)).first()
            if newest and (newest.version, newest.status) == (row["version"], status):
                return False
            connection.execute(insert(GUARANTEES).values(**row, at_us=round(at * PER_SECOND)))
        return True

    def states(self, model: str, limit: int = 20) -> list[GuaranteeState]:
        """Return the last states of a model's guarantee, the newest first.

        Raises:
            StoreError: there is no store, or the database cannot be used.
        """
        with self._reading() as connection:
            rows = connection.execute(_newest(model).limit(limit)).all()
        return [
            GuaranteeState(row.model, row.version, row.status, row.at_us / PER_SECOND)
            for row in rows
        ]


def _newest(model: str) -> Select[Any]:
    return (
        select(GUARANTEES).where(GUARANTEES.c.model == model).order_by(GUARANTEES.c.number.desc())
    )

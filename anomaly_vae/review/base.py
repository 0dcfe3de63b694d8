"""Define what the stores of labels and of cases share: a database and its tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import ClassVar, Self, TypeVar

from sqlalchemy import Connection

from anomaly_vae.errors import StoreError
from anomaly_vae.review.database import (
    is_absent,
    open_engine,
    parse_address,
    reading,
    shown,
    writing,
)
from anomaly_vae.review.tables import is_current, migrate

PER_SECOND = 1_000_000
"""Number of microseconds in a second."""

T = TypeVar("T")


def batches(values: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield the values in lists of this size, the last of which may be shorter."""
    rest = iter(values)
    while some := list(islice(rest, size)):
        yield some


class ReviewStore:
    """The tables of labels and cases in a database; threads may share one object.

    Args:
        address: ``sqlite:///labels.db`` or ``postgresql://USER:PASSWORD@HOST/DATABASE``.

    Raises:
        ConfigError: it is no such address, or its driver is not installed.
    """

    noun: ClassVar[str]
    """Name of the store in messages."""
    creation: ClassVar[str]
    """Command that creates the store, as messages quote it."""

    def __init__(self, address: str) -> None:
        self._url = parse_address(address, self.noun)
        self._engine = open_engine(self._url)
        self._is_ready = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __str__(self) -> str:
        """Return the address without its password."""
        return shown(self._url)

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def prepare(self, create: bool = True) -> None:
        """Create the tables, or bring those of an older version up to date.

        Args:
            create: whether to create a store that does not exist.

        Raises:
            StoreError: the database cannot be used, a newer version wrote it, or there is no
                store, and ``create`` is false.
        """
        if self._is_ready:
            return
        if not (create or self._exists()):
            raise StoreError(
                f"there is no {self.noun} at {self}; check the address, or create the store with "
                f"`{self.creation}`"
            )
        with writing(self._engine, self.noun) as connection:
            migrate(connection)
        self._is_ready = True

    def _exists(self) -> bool:
        if is_absent(self._url):
            return False
        with reading(self._engine, self.noun) as connection:
            current = is_current(connection)
        self._is_ready = bool(current)
        return current is not None

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        """Yield a connection that is the only writer until the block ends, which commits."""
        self.prepare()
        self._is_ready = False  # until it has worked: the database may have been replaced
        with writing(self._engine, self.noun) as connection:
            yield connection
        self._is_ready = True

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        """Yield a connection that reads the state of one moment."""
        self.prepare(create=False)
        with reading(self._engine, self.noun) as connection:
            yield connection

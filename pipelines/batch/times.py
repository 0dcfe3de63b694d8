"""Find the day of each row of a table, by the column of times that the model names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from anomaly_vae.data.days import day_numbers, zone_of_days
from anomaly_vae.data.schema import RawBatch
from anomaly_vae.data.type_inference import read_times
from anomaly_vae.errors import DataError


@dataclass(frozen=True)
class Times:
    """The column of times that gives each row its day."""

    name: str
    format: str | None = None
    """Format of the times; None if it is recognised."""
    zone: str | None = None
    """Time zone of the days; None for UTC."""

    @classmethod
    def of_model(cls, config: Mapping[str, Any], formats: Mapping[str, str | None]) -> Times | None:
        """Return the times of a model; None if it has none.

        Args:
            config: the recorded configuration of the model.
            formats: the format of each column of the model.
        """
        data = config["data"]
        name = data.get("time")
        form = formats.get(name or "") or data.get("time_format")
        return cls(name, form, zone_of_days(config)) if name else None

    def days(self, batch: RawBatch, cells: pa.Array) -> pa.Array:
        """Return the day (N,) of each row, null if its time cannot be read.

        Args:
            batch: the rows.
            cells: their times, as the input has them.
        """
        seconds = batch.values[self.name] if self.name in batch.values else self._read(cells)
        seconds = np.asarray(seconds, np.float64)
        days = day_numbers(seconds, self.zone)
        return pa.array(days.astype(np.int32), pa.int32(), mask=np.isnan(seconds)).cast(pa.date32())

    def _read(self, cells: pa.Array) -> NDArray[np.float64]:
        try:
            return read_times(pa.chunked_array([cells]), self.format)
        except DataError:
            return np.full(len(cells), np.nan)

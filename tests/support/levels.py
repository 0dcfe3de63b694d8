"""Read the level of each row."""

from anomaly_vae.data.converters import (
    Levels,
)


def names(levels: Levels) -> list[str | None]:
    """Return the level of each row, None if it is missing."""
    return [None if code < 0 else levels.names[code] for code in levels.codes]

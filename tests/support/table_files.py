"""Write files of tables, damage them, and read them back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.datasets.files import read_chunks
from pipelines.datasets.reading.parts import Broken

Row = tuple[str | None, ...]
COLUMNS = {"a": list(range(25)), "b": [str(i) for i in range(25)]}


def write(path: Path, content: str | bytes = "a\n1\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def write_parquet(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    pq.write_table(pa.table(columns), path, **options)
    return path


def read(*files: Path, batch_rows: int = 65_536) -> tuple[dict[int, Row], list[Broken]]:
    """Position → cells of every row read, and what was broken; no position comes twice."""
    rows: dict[int, Row] = {}
    broken = []
    for part in read_chunks(files, batch_rows):
        if isinstance(part, Broken):
            broken.append(part)
            continue
        assert len(part.rows) == len(part.table) > 0
        cells = zip(*(column.to_pylist() for column in part.table.columns), strict=True)
        for position, row in zip(part.rows.tolist(), cells, strict=True):
            assert position not in rows
            rows[position] = row
    return rows, broken


def damage(path: Path, group: int, column: int = 0) -> None:
    """Overwrite the last bytes of a column in a row group."""
    chunk = pq.read_metadata(path).row_group(group).column(column)
    place = (chunk.dictionary_page_offset or chunk.data_page_offset) + chunk.total_compressed_size
    content = bytearray(path.read_bytes())
    content[place - 40 : place] = b"\xff" * 40
    path.write_bytes(content)

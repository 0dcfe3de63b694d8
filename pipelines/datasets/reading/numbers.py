"""Recognise how a column of text writes numbers, and rewrite them with a decimal point."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from anomaly_vae.data.arrow import NUMBER, is_missing

Mark = Literal[".", ","]
SPACES = r" '’\x{a0}\x{202f}"
"""Separators of thousands that are no decimal mark."""
EXPONENT = r"([eE][+-]?\d+)?$"
COMMA = (
    rf"^[+-]?((\d+|[1-9]\d{{0,2}}([.{SPACES}]\d{{3}})+),\d*|\d+|[1-9]\d{{0,2}}(\.\d{{3}}){{1,2}}"
    rf"|[1-9]\d{{0,2}}([{SPACES}]\d{{3}})+)" + EXPONENT
)
"""Pattern of a number that may have a decimal comma, and points or spaces between thousands.

Three points without a comma are an address such as 192.168.100.101.
"""
POINT = rf"^[+-]?(\d+|[1-9]\d{{0,2}}([,{SPACES}]\d{{3}})+)?(\.\d*)?" + EXPONENT
"""Pattern of a number that may have a decimal point, and commas or spaces between thousands."""
MOSTLY = 0.5
"""Share of numbers above which a column is taken for one of numbers."""


@dataclass
class Spelling:
    """Counts of the forms of a column's cells, and the decimal mark that follows from them.

    >>> spelling = Spelling()
    >>> spelling.count(pa.array(["12,50", "1.234,00", "7"]))
    >>> spelling.decide(None)
    ','
    """

    values: int = 0
    numbers: int = 0
    """Cells that are a number in some form."""
    comma: int = 0
    """Cells that are a number with a decimal comma, and with no other decimal mark."""
    point: int = 0
    """Cells that are a number with a decimal point, and with no other decimal mark."""
    doubtful: int = 0
    """Cells such as 1,234 and 1.234, whose mark may be of either kind."""
    grouped: int = 0
    """Cells with separators of thousands, which are no plain numbers."""
    example: str = field(default="", compare=False)
    """A cell with a mark or separators."""

    def count(self, cells: pa.Array) -> None:
        """Count the cells (N,) of a block of text."""
        text = cells.drop_null()
        text = pc.utf8_trim_whitespace(text.filter(pc.invert(is_missing(text))))
        plain, comma, point = (pc.match_substring_regex(text, p) for p in (NUMBER, COMMA, POINT))
        point = pc.and_(point, pc.match_substring_regex(text, r"\d"))
        marked = pc.match_substring_regex(text, "[.,]")
        other = pc.and_(pc.or_(comma, point), pc.invert(plain))
        self.values += len(text)
        self.numbers += _sum(pc.or_(comma, pc.or_(point, plain)))
        self.comma += _sum(pc.and_not(comma, pc.or_(point, plain)))
        self.point += _sum(pc.and_not(pc.or_(point, plain), comma))
        self.doubtful += _sum(pc.and_(marked, pc.and_(comma, point)))
        self.grouped += _sum(other)
        for mask in (other, pc.and_(marked, comma)):
            self.example = self.example or _first(text.filter(mask))

    @property
    def certain(self) -> Mark | None:
        """Decimal mark that the cells of this column show beyond doubt; None if they do not."""
        if self.numbers <= MOSTLY * self.values or bool(self.comma) == bool(self.point):
            return None
        return "," if self.comma else "."

    def decide(self, of_file: Mark | None) -> Mark | None:
        """Return the mark to rewrite the column with; None if it stays as it is.

        Args:
            of_file: the mark that the configuration or other columns of the file give.
        """
        mark = self.certain
        if mark is None and not (self.comma or self.point) and self.doubtful:
            mark = of_file if self.numbers > MOSTLY * self.values else None
        return mark if mark == "," or self.grouped else None


def _first(text: pa.Array) -> str:
    return str(text[0].as_py()) if len(text) else ""


def _sum(mask: pa.Array) -> int:
    return pc.sum(mask).as_py() or 0


def rewritten(cells: pa.Array, mark: Mark) -> pa.Array:
    """Return text (N,) in which numbers with this decimal mark have a point and no separators.

    >>> rewritten(pa.array(["1.234,50", "x", None]), ",").to_pylist()
    ['1234.50', 'x', None]
    """
    pattern, separator = (COMMA, ".") if mark == "," else (POINT, ",")
    text = pc.utf8_trim_whitespace(cells)
    plain = pc.replace_substring_regex(text, rf"[{separator}{SPACES}]", "")
    number = pc.fill_null(pc.match_substring_regex(text, pattern), False)
    return pc.if_else(number, pc.replace_substring(plain, ",", "."), cells)


def mark_of_file(spellings: dict[str, Spelling]) -> Mark | None:
    """Return the decimal mark on which all columns agree that show one; None without such columns.

    >>> first, second = Spelling(), Spelling()
    >>> first.count(pa.array(["12,5"]))
    >>> second.count(pa.array(["1,234"]))
    >>> mark_of_file({"a": first, "b": second})
    ','
    """
    marks = {spelling.certain for spelling in spellings.values()} - {None}
    return marks.pop() if len(marks) == 1 else None

"""Find the line of a file on which a row of a delimited table begins."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from dynamo_mtl.data.dialect import Dialect
from dynamo_mtl.data.text_files import Reading, open_bytes, open_text


def lines_at(place: str, positions: Sequence[int]) -> Iterator[int]:
    """Yield the line numbers at byte positions of a file, which must ascend. DuckDB counts rows instead of lines."""
    with open_bytes(Path(place)) as file:
        number, end = 1, 0
        for position in positions:
            feeds = returns = 0
            while (left := position - end) > 0 and (block := file.read(min(left, 1 << 20))):
                feeds, returns, end = feeds + block.count(b"\n"), returns + block.count(b"\r"), end + len(block)
            end = max(end, position)
            number += feeds or returns
            yield number + _blank_lines(file, end)


def _blank_lines(file: Any, place: int) -> int:
    """Count the blank lines at a position. To DuckDB, the row after them begins there."""
    ahead = file.read(1 << 12)
    file.seek(place)
    return ahead[: len(ahead) - len(ahead.lstrip(b"\r\n"))].count(b"\n")


class RowLines:
    """Finds the lines of rows. A row begins on the next line that contains its first words."""

    def __init__(self, path: Path, reading: Reading, dialect: Dialect, bad: Collection[int] = ()) -> None:
        """
        Args:
            path: of the file.
            reading: what the user has said of it.
            dialect: how it is written.
            bad: lines on which no row begins, since they do not fit.
        """
        self._bad = bad
        self._lines = self._read(path, reading)
        self._marks = {dialect.quote, dialect.escape} - {""}
        self.number = 0
        for _ in range(dialect.skip + dialect.has_header):
            next(self._lines, None)
            self.number += 1

    @staticmethod
    def _read(path: Path, reading: Reading) -> Iterator[str]:
        with open_text(path, reading) as text:
            yield from text.file

    def find(self, row: Sequence[str]) -> int:
        """The number of the first line of the next row, from 1."""
        begin = self._begin(next((cell for cell in row if cell), ""))
        for line in self._lines:
            self.number += 1
            if self.number in self._bad:
                continue
            if begin in line and (begin or line.strip()):
                break
        found = self.number
        for _ in range(sum(cell.replace("\r\n", "\n").count("\n") for cell in row)):
            next(self._lines, None)
            self.number += 1
        return found

    def _begin(self, cell: str) -> str:
        """Return the first words of a cell, up to a character that the file may write in another way."""
        end = min((place for mark in (*self._marks, "\n", "\r") if (place := cell.find(mark)) >= 0), default=40)
        return cell[: min(end, 40)]

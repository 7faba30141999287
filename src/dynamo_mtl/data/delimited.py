"""Read CSV and TSV files with DuckDB in strict mode. A row is read as written, or refused with its line number.

The separator and the quoting are not guessed from a sample. Every possible dialect reads the whole file once, and the
first with the fewest faults is used; ``docs/decisions/0011-how-tables-are-read.md`` explains why.
"""

from __future__ import annotations

import csv
import io
import itertools
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb

from dynamo_mtl.data.dialect import QUOTINGS, SEPARATORS, Dialect
from dynamo_mtl.data.line_numbers import RowLines, lines_at
from dynamo_mtl.data.text_files import Reading, open_bytes, open_text
from dynamo_mtl.errors import DataError

NEVER = "\x1f"
"""A separator that no text contains."""
LONGEST_LINE = 1 << 26
"""Bytes of the longest row."""
ROWS = 5000
"""Rows in memory at once."""
SEEN = 200_000
"""Rows whose last value is looked at."""
VALUES = 2000
"""Most values of the last column to compare with the lines of a cell."""
_WHAT = {
    "UNQUOTED VALUE": "a quotation mark is not closed, or stands where none can",
    "INVALID ENCODING": "bytes that are no UTF-8",
    "LINE SIZE OVER MAXIMUM": f"longer than {LONGEST_LINE >> 20} MiB",
}


def delimited_rows(
    path: Path, reading: Reading, refuse: Callable[[DataError], None]
) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Yield the rows of a delimited file as texts, each with its place ("file, line 3").

    Args:
        path: file whose name ends with ``.csv`` or ``.tsv``, perhaps followed by ``.gz``.
        reading: what cannot be seen from the file.
        refuse: called with each line that does not fit and each row that has other rows in a cell, in the order of
            the file.

    Raises:
        DataError: there is no header, a column name occurs twice, or the file cannot be read as a table.
    """
    with duckdb.connect(config={"threads": 1}) as connection, _readable(path, reading) as place:
        dialect, faults = _best(connection, place, path, reading)
        if faults and faults[-1][1] == TOO_MANY:
            raise DataError(
                f"{path}: more than {MOST_FAULTS} lines do not fit; say its separator and quote with {_says(reading)}"
            )
        bad: deque[tuple[int, DataError]] = deque()
        for line, (_, sentence, kind) in zip(lines_at(place, [fault[0] for fault in faults]), faults, strict=True):
            hint = f"; {_says(reading)} can say separator and quote" if kind == _COLUMNS else ""
            bad.append((line, DataError(f"{path}, line {line}: {sentence}{hint}", kind)))
        lines = RowLines(path, reading, dialect, {line for line, _ in bad})
        looks_like_row = _row_test(connection, place, dialect) if reading.quote is None and dialect.quote else None
        for row in _scan(connection, place, dialect):
            line = lines.find(row)
            while bad and bad[0][0] < line:
                refuse(bad.popleft()[1])
            where = f"{path}, line {line}"
            if looks_like_row is not None and any(map(looks_like_row, row)):
                refuse(
                    DataError(
                        f"{where}: a cell runs over several lines, of which one looks like a row: a quotation mark is "
                        f"probably not closed; if all is right, say {reading.place.format('quote')}",
                        "a cell that holds rows",
                    )
                )
                continue
            yield dict(zip(dialect.names, row, strict=True)), where
        for _, error in bad:
            refuse(error)


def column_names(path: Path, reading: Reading) -> list[str]:
    """The names on the first line of a file. Raises ``DataError`` as ``delimited_rows`` does."""
    with duckdb.connect(config={"threads": 1}) as connection, _readable(path, reading) as place:
        return list(_best(connection, place, path, reading)[0].names)


def _says(reading: Reading) -> str:
    """What says how a file is written, without what it says of it."""
    return reading.place.partition("{")[0].rstrip(". ")


@contextmanager
def _readable(path: Path, reading: Reading) -> Iterator[str]:
    """Yield a path that DuckDB can read: UTF-8, no pattern in the name, equal line ends. It may be a copy."""
    with open_text(path, reading) as text:
        if text.is_plain and not set(str(path)) & set("*?[") and not _ends_differ(path):
            yield str(path)
            return
        with tempfile.TemporaryDirectory(prefix="dynamo-") as folder:
            copy = Path(folder) / "table"
            with copy.open("w", encoding="utf-8", newline="") as file:
                while block := text.file.read(1 << 20):
                    block += text.file.read(1) if block.endswith("\r") else ""
                    file.write(block.replace("\r\n", "\n"))
            yield str(copy)


def _ends_differ(path: Path) -> bool:
    """Whether a file has both Windows line ends and others."""
    windows = lines = 0
    with open_bytes(path) as file:
        while block := file.read(1 << 20):
            block += file.read(1) if block.endswith(b"\r") else b""
            windows += block.count(b"\r\n")
            lines += block.count(b"\n")
    return 0 < windows < lines


TOO_MANY = "too many lines that do not fit"
Fault = tuple[int, str, str]
"""A row that does not fit: the byte where it begins, what is wrong, and the kind of fault."""


def _best(
    connection: duckdb.DuckDBPyConnection, place: str, path: Path, reading: Reading
) -> tuple[Dialect, list[Fault]]:
    """Return the dialect with the fewest faults, and its faults.

    Among equals, it is the most common one, unless its cells contain rows.
    """
    found: list[tuple[int, Dialect, list[Fault]]] = []
    for dialect in _possible(path, reading):
        try:
            count, faults = _try(connection, place, dialect)
        except duckdb.Error:
            continue  # not a way to read this file
        found.append((count, dialect, faults))
    if not found:
        raise DataError(f"{path}: cannot be read as a table; say its separator and quote with {_says(reading)}")
    several = [one for one in found if len(one[1].names) > 1] or found
    count, dialect, faults = min(several, key=lambda one: len(one[2]))
    plain = next((one for one in several if not one[1].quote and one[0] > count and len(one[2]) == len(faults)), None)
    if plain is not None and dialect.quote and reading.quote is None:
        looks_like_row = _row_test(connection, place, dialect)
        if any(looks_like_row(cell) for row in _scan(connection, place, dialect) for cell in row):
            _, dialect, faults = plain
    return dialect, faults


def _possible(path: Path, reading: Reading) -> Iterator[Dialect]:
    """Yield all dialects under which the first line names columns."""
    with open_text(path, reading) as text:
        first = text.file.readline(1 << 20)
        said = first.strip("\r\n").lower()
        # Excel writes the separator into a line of its own.
        marked = said[4:] if len(said) == 5 and said.startswith("sep=") else None
        rest = text.file.read(1 << 16)
    head, skip = (rest, 1) if marked else (first + rest, 0)
    if not head.strip():
        raise DataError(f"{path}: is empty; the first line names the columns, each further one is a row")
    is_tsv = ".tsv" in path.name.lower()
    known = reading.separator or marked
    separators = [known] if known else [one for one in SEPARATORS if one in _first_line(head)]
    separators = separators or [NEVER]  # a file of one column, whose texts may hold anything
    separators.sort(key=lambda one: is_tsv and one != "\t")
    quotings = [q for q in QUOTINGS if reading.quote is None or q[0] == reading.quote]
    if not quotings:
        quotings = [(reading.quote or "", reading.quote or "")]
    for separator, (quote, escape) in itertools.product(separators, quotings):
        names = _names(head, separator, quote)
        if isinstance(reading.header, list):
            yield Dialect(separator, quote, escape, skip, tuple(reading.header), has_header=False)
        elif names is not None:
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None and len(separators) == 1:
                raise DataError(f"{path}, line {skip + 1}: the column '{twice}' is there twice; rename one")
            if twice is None:
                yield Dialect(separator, quote, escape, skip, tuple(names), has_header=True)


def _first_line(head: str) -> str:
    return next((line for line in head.splitlines() if line.strip()), "")


def _names(head: str, separator: str, quote: str) -> list[str] | None:
    quoting = csv.QUOTE_MINIMAL if quote else csv.QUOTE_NONE
    try:
        lines = io.StringIO(head, newline="")
        names = next(csv.reader(lines, delimiter=separator, quotechar=quote or None, quoting=quoting))
    except (csv.Error, StopIteration):
        return None
    return [name.strip() or f"column {number}" for number, name in enumerate(names, start=1)] or None


MOST_FAULTS = 100_000
COLLECT, LEAVE_OUT = f"store_rejects=true, rejects_limit={MOST_FAULTS}", "ignore_errors=true"
"""What DuckDB does with lines that do not fit. The first pass collects them in memory. The second pass returns the
rows and leaves out these lines."""


def _select(dialect: Dialect, what: str = "*", faults: str = LEAVE_OUT) -> str:
    columns = ", ".join(f"{_quoted(name)}: 'VARCHAR'" for name in dialect.names)
    settings = {
        "delim": dialect.separator, "quote": dialect.quote, "escape": dialect.escape, "comment": "",
        "nullstr": "\x01",  # an empty cell stays an empty text
    }  # fmt: skip
    given = ", ".join(f"{key}={_quoted(value)}" for key, value in settings.items())
    return (
        f"SELECT {what} FROM read_csv(?, auto_detect=false, columns={{{columns}}}, {given}, skip={dialect.skip}, "
        f"header={str(dialect.has_header).lower()}, {faults}, strict_mode=true, max_line_size={LONGEST_LINE})"
    )


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


_COLUMNS = "another number of columns"


def _try(connection: duckdb.DuckDBPyConnection, place: str, dialect: Dialect) -> tuple[int, list[Fault]]:
    """Return the number of rows that fit a dialect, and the faults of the others."""
    counts = connection.execute(_select(dialect, "count(COLUMNS(*))", COLLECT), [place]).fetchall()
    counted = connection.execute("SELECT count(*) FROM reject_errors").fetchall()[0][0]
    errors = connection.execute(
        "SELECT line_byte_position - 1, arg_max(error_type, error_type), arg_max(error_message, error_type) "
        "FROM reject_errors GROUP BY line_byte_position ORDER BY line_byte_position"
    ).fetchall()
    connection.execute("DROP TABLE reject_errors; DROP TABLE reject_scans")
    faults: list[Fault] = []
    for line, error, message in errors:
        if error in ("TOO MANY COLUMNS", "MISSING COLUMNS"):
            count = (message or "").rpartition(" ")[2]
            faults.append((line, f"expected {len(dialect.names)} columns as in the header, found {count}", _COLUMNS))
        else:
            what = _WHAT.get(error or "", (message or "unreadable").split("\n")[0].lower())
            faults.append((line, what, what))
    if counted >= MOST_FAULTS:  # the others are not known
        faults.append((faults[-1][0], TOO_MANY, TOO_MANY))
    return counts[0][0], faults


def _scan(connection: duckdb.DuckDBPyConnection, place: str, dialect: Dialect) -> Iterator[Sequence[str]]:
    for batch in connection.sql(_select(dialect), params=[place]).to_arrow_reader(ROWS):
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def _row_test(connection: duckdb.DuckDBPyConnection, place: str, dialect: Dialect) -> Callable[[str], bool]:
    """Return a function that tells whether a line in a cell looks like a row: as many cells, a known last value."""
    last = f'"{dialect.names[-1].replace(chr(34), chr(34) * 2)}"'
    first = f"SELECT v FROM ({_select(dialect, last + ' AS v')}) WHERE length(v) < 100 LIMIT {SEEN}"
    query = f"SELECT v FROM ({first}) GROUP BY v LIMIT {VALUES}"
    values = {value for (value,) in connection.execute(query, [place]).fetchall()}
    columns = len(dialect.names)

    def looks_like_row(cell: str) -> bool:
        if "\n" not in cell or columns < 2:
            return False
        parts = (line.strip("\r").split(dialect.separator) for line in cell.split("\n"))
        return any(len(own) == columns and own[-1] in values for own in parts)

    return looks_like_row

"""Open text files with their encoding and compression, and with what a user has said about them."""

from __future__ import annotations

import codecs
import gzip
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TextIO

from pydantic import BaseModel, ConfigDict, Field, field_validator

from dynamo_mtl.errors import DataError

MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
"""Byte order marks and the encodings that they name."""


class Reading(BaseModel):
    """The format of a task's text files, where it cannot be detected."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    place: ClassVar[str] = "tasks.NAME.reading.{}"
    """Where a user says it, for messages."""

    separator: str | None = Field(default=None, min_length=1, max_length=1)
    """Separator of the cells of a CSV or TSV file; detected if not given."""
    quote: str | None = Field(default=None, max_length=1)
    """Mark around cells with separators or line breaks; empty if the file quotes nothing; detected if not given."""
    encoding: str | None = None
    """Encoding such as ``cp1252``, which Excel writes. If not given, the byte order mark decides, else it is UTF-8."""
    header: list[str] | None = Field(default=None, min_length=1)
    """Column names of a file whose first line does not name them."""

    @field_validator("encoding")
    @classmethod
    def _is_known(cls, name: str | None) -> str | None:
        if name is not None:
            try:
                codecs.lookup(name)
            except LookupError as error:
                raise ValueError("no such encoding; try utf-8, cp1252 or utf-16") from error
        return name


@dataclass(frozen=True)
class Text:
    """An open text file."""

    file: TextIO
    is_plain: bool
    """Whether the file on disk is UTF-8, neither compressed nor with a byte order mark."""


def open_bytes(path: Path) -> Any:
    """Open a file for reading. It is decompressed if its name ends with ``.gz``."""
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")


@contextmanager
def open_text(path: Path, reading: Reading, errors: str = "strict") -> Iterator[Text]:
    """Open a file as text, without changing its line ends.

    Args:
        path: of the file.
        reading: what a user has said of it.
        errors: what to do with bytes that are not valid in its encoding, as of ``open``.

    Raises:
        DataError: while reading, if bytes are not valid in the file's encoding.
    """
    is_packed = path.suffix.lower() == ".gz"
    with open_bytes(path) as raw:
        start = raw.read(4)
    marked = next((name for mark, name in MARKS if start.startswith(mark)), None)
    # A byte order mark is never part of the text, even if plain UTF-8 is asked for.
    is_utf8 = (reading.encoding or "").lower().replace("_", "-") in ("utf-8", "utf8")
    encoding = (None if is_utf8 else reading.encoding) or marked or "utf-8"
    with io.TextIOWrapper(open_bytes(path), encoding=encoding, errors=errors, newline="") as file:
        try:
            yield Text(file, is_plain=encoding == "utf-8" and not is_packed)
        except UnicodeDecodeError as error:
            raise not_encoded(f"{path}{_line_of_bytes(path, encoding)}", encoding, error.reason, reading) from error


def encodes(text: str) -> bool:
    """Whether a text can be written as UTF-8: it has no half of a surrogate pair."""
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def not_encoded(where: str, encoding: str, reason: str, reading: Reading) -> DataError:
    """The error for bytes that are not valid in the encoding of their file."""
    place = reading.place.format("encoding")
    return DataError(
        f"{where}: not {encoding.upper()} text ({reason}); say its encoding with {place}, such as cp1252 for a file "
        "from Excel on Windows",
        "another encoding",
    )


def _line_of_bytes(path: Path, encoding: str) -> str:
    """Return the first line that cannot be decoded, for a message; empty if its number is not known."""
    with open_bytes(path) as lines:
        for number, line in enumerate(lines, start=1):
            try:
                line.decode(encoding)
            except UnicodeDecodeError:
                return "" if "16" in encoding else f", line {number}"
    return ""

"""Text files as people have them: their encoding, compression, and what a user says of them."""

from __future__ import annotations

import codecs
import gzip
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from pydantic import BaseModel, ConfigDict, Field, field_validator

from dynamo_mtl.errors import DataError

MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
"""Byte order marks and the encodings that they name."""


class Reading(BaseModel):
    """How a task's text files are written, where that cannot be seen from them."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    separator: str | None = Field(default=None, min_length=1, max_length=1)
    """Between the cells of a CSV or TSV file; found by reading if not given."""
    quote: str | None = Field(default=None, max_length=1)
    """Around cells that hold separators or line breaks; an empty text where nothing is quoted; found if not given."""
    encoding: str | None = None
    """Such as ``cp1252``, which Excel writes; a byte order mark says it, else UTF-8 is expected."""
    header: list[str] | None = Field(default=None, min_length=1)
    """Names of the columns of a file whose first line names none."""

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
    """Whether it is UTF-8 as it lies there, neither compressed nor marked."""


def open_bytes(path: Path) -> Any:
    """Open a file for reading, unpacked where its name ends with ``.gz``."""
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")


@contextmanager
def open_text(path: Path, reading: Reading) -> Iterator[Text]:
    """Open a file as text, with line ends as they are.

    Raises:
        DataError: bytes that are no text in its encoding, when they are read.
    """
    is_packed = path.suffix.lower() == ".gz"
    with open_bytes(path) as raw:
        start = raw.read(4)
    marked = next((name for mark, name in MARKS if start.startswith(mark)), None)
    encoding = reading.encoding or marked or "utf-8"
    with io.TextIOWrapper(open_bytes(path), encoding=encoding, newline="") as file:
        try:
            yield Text(file, is_plain=encoding == "utf-8" and not is_packed)
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}{_line_of_bytes(path, encoding)}: not {encoding.upper()} text ({error.reason}); say its "
                "encoding with tasks.NAME.reading.encoding, such as cp1252 for a file from Excel on Windows",
                "another encoding",
            ) from error


def _line_of_bytes(path: Path, encoding: str) -> str:
    """The first line that is no text, for a message; nothing where the bytes show no lines."""
    with open_bytes(path) as lines:
        for number, line in enumerate(lines, start=1):
            try:
                line.decode(encoding)
            except UnicodeDecodeError:
                return "" if "16" in encoding else f", line {number}"
    return ""

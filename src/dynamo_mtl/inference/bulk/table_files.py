"""Answer the rows of files, and go on where an interrupted run was.

Answered windows of rows are stored one by one in ``OUTPUT.partial``, and joined to the output in the end. So the output
is there completely or not at all, and a resumed run writes the same bytes as one that was not interrupted.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from dynamo_mtl.errors import ConfigError, DataError
from dynamo_mtl.inference.bulk.input_rows import (
    COLUMNAR,
    FileReading,
    count_rows,
    input_files,
    read_input_rows,
    schema_of,
)
from dynamo_mtl.inference.bulk.output_format import ENDINGS, JsonLines, OutputFormat, output_format, write_joined
from dynamo_mtl.inference.bulk.table import (
    WINDOW_CHARACTERS,
    WINDOW_ROWS,
    TableAnswerer,
    TableRequest,
    names_of,
    windows,
)
from dynamo_mtl.messages import clock
from dynamo_mtl.storage import MANIFEST, flush, only_writer, writable_folder

if TYPE_CHECKING:
    from dynamo_mtl.inference.api import DynamoInference

logger = logging.getLogger(__name__)

PROGRESS = "progress.json"
LOG_SECONDS = 5.0
"""Least time between two lines of progress."""


@dataclass
class Counts:
    """Rows of a run."""

    rows: int = 0
    failed: int = 0
    """Those with an error in place of an answer."""

    def add(self, other: Counts) -> None:
        """Count those of another run, too."""
        self.rows += other.rows
        self.failed += other.failed


def predict_files(
    model: DynamoInference,
    source: Path,
    output: Path,
    request: TableRequest,
    *,
    reading: FileReading | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> Counts:
    """Answer every row of a file, or of all files of a folder.

    Args:
        model: what answers.
        source: a file, or a folder of files, which are read in the order of their names.
        output: a file of any of ``ENDINGS``; or a folder, where each file of ``source`` gets one of its name.
        request: how the rows are answered.
        reading: how text files are written.
        resume: go on with an interrupted run, or do nothing if it has ended.
        overwrite: replace an output that is there already.

    Raises:
        ConfigError: a file does not exist, has an unknown type, or would be replaced; or the request does not fit it.
        DataError: a file that cannot be read as a table.
    """
    files, reading = input_files(source), reading or FileReading()
    if output.is_dir() or (source.is_dir() and not output.name.lower().endswith(ENDINGS)):
        jobs = [([file], output / _named_like(file)) for file in files]
    else:
        jobs = [(files, output)]
    taken = next((place for _, place in jobs if place.exists()), None)
    if taken is not None and not (resume or overwrite):
        raise ConfigError(f"--output: {taken} is there already; give another name, or --overwrite")
    inputs = {file.resolve() for file in files}
    total = Counts()
    for own, place in jobs:
        if place.resolve() in inputs:
            raise ConfigError(f"--output: {place} is the input; give another name")
        if resume and place.exists() and not _partial(place).exists():
            logger.info("%s is complete", place)
            continue
        writable_folder(place.parent, "--output")
        total.add(_FileRun(model, own, place, request, reading).run(resume, overwrite))
    return total


def write_stream(
    model: DynamoInference, source: Path, stream: BinaryIO, request: TableRequest, reading: FileReading
) -> Counts:
    """Answer every row of a file, or of all files of a folder, as JSON lines into a stream. Raises as above."""
    files, counts = input_files(source), Counts()
    answerer, form = TableAnswerer(model, request), JsonLines({})
    for number, group in enumerate(windows(row for file in files for row in read_input_rows(file, reading))):
        if number == 0:
            answerer.begin(names_of(group))
        cells = answerer.answer(group)
        stream.write(form.part([{**row.values, **own} for row, own in zip(group, cells, strict=True)]))
        stream.flush()
        counts.add(_counted(cells, request.prefix))
    return counts


class _FileRun:
    """Answers the rows of some files into one."""

    def __init__(
        self, model: DynamoInference, files: Sequence[Path], output: Path, request: TableRequest, reading: FileReading
    ) -> None:
        self.files, self.output, self.request, self.reading = files, output, request, reading
        self.answerer = TableAnswerer(model, request)
        self.form: OutputFormat = output_format(output.name, self.answerer.cells.types)
        self.folder = _partial(output)
        stamps = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        settings = asdict(request) | {"reading": reading.model_dump()}
        made_by = hashlib.sha256((model.checkpoint / MANIFEST).read_bytes()).hexdigest()
        parts = (stamps, settings, made_by, self.form.__class__.__name__, WINDOW_ROWS, WINDOW_CHARACTERS)
        self.identity = hashlib.sha256(repr(parts).encode()).hexdigest()

    def run(self, resume: bool, overwrite: bool) -> Counts:
        """Answer what is not answered yet, and write the output."""
        if self.folder.exists() and not resume:
            if not overwrite:
                raise ConfigError(
                    f"--output: an unfinished run left {self.folder}; go on with --resume, or begin anew with "
                    "--overwrite"
                )
            shutil.rmtree(self.folder)
        self.folder.mkdir(exist_ok=True)
        with only_writer(self.folder, "--output"):
            counts = self._answer()
            joined = self.folder / f"{self.output.name}.new"
            write_joined(self.form, (self._part(number) for number in range(self.parts)), joined)
            flush(joined)
            os.replace(joined, self.output)
        shutil.rmtree(self.folder)
        return counts

    def _answer(self) -> Counts:
        done, self.parts = self._stored()
        begun, counts = done.rows, done
        schema = schema_of(self.files[0])
        rows = (row for file in self.files for row in read_input_rows(file, self.reading))
        groups = windows(rows)
        first = next(groups, [])
        self.form.begin([row.values for row in first if row.error is None], schema)
        if first:
            self.answerer.begin(schema.names if schema is not None else names_of(first))
        known = [count_rows(file) for file in self.files]
        total = None if None in known else sum(filter(None, known))
        began, said = time.monotonic(), float("-inf")
        for number, group in enumerate(itertools.chain([first] if first else [], groups)):
            if number < self.parts:
                continue
            cells = self.answerer.answer(group)
            try:
                part = self.form.part([{**row.values, **own} for row, own in zip(group, cells, strict=True)])
            except DataError as error:
                raise DataError(
                    f"{self.output}: rows {counts.rows + 1} to {counts.rows + len(group)}: {error}"
                ) from error
            counts.add(_counted(cells, self.request.prefix))
            self._store(number, part, counts)
            now = time.monotonic()
            if now - said >= LOG_SECONDS:
                said = now
                _log(counts, (counts.rows - begun) / max(1e-9, now - began), total)
        rate = (counts.rows - begun) / max(1e-9, time.monotonic() - began)
        logger.info("%s: %d rows, %d of them with an error, %.0f rows/s", self.output, counts.rows, counts.failed, rate)
        return counts

    def _stored(self) -> tuple[Counts, int]:
        """What an interrupted run has answered: its rows, and the number of its parts."""
        path = self.folder / PROGRESS
        if not path.exists():
            return Counts(), 0
        try:
            found = json.loads(path.read_bytes())
            known, counts, parts = found["identity"], Counts(found["rows"], found["failed"]), int(found["parts"])
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"--resume: {path} is damaged; begin anew with --overwrite") from error
        if known != self.identity:
            raise ConfigError(
                f"--resume: {self.folder} is of another input, model or request; use those, or begin anew with "
                "--overwrite"
            )
        return counts, parts

    def _store(self, number: int, part: bytes, counts: Counts) -> None:
        """Store a part, and only then that it is there."""
        self.parts = number + 1
        progress: dict[str, Any] = {"identity": self.identity, **asdict(counts), "parts": self.parts}
        for path, content in ((self._part(number), part), (self.folder / PROGRESS, json.dumps(progress).encode())):
            beside = path.with_suffix(".new")
            beside.write_bytes(content)
            flush(beside)
            os.replace(beside, path)

    def _part(self, number: int) -> Path:
        return self.folder / f"{number:08d}.part"


def _partial(output: Path) -> Path:
    return output.with_name(f"{output.name}.partial")


def _named_like(file: Path) -> str:
    """Name of the output for one file of a folder: its own, if it can be written as it is."""
    name = file.name
    if name.lower().endswith(ENDINGS):
        return name
    return f"{name.split('.')[0]}{'.parquet' if file.suffix.lower() in COLUMNAR else '.jsonl'}"


def _counted(cells: Sequence[dict[str, Any]], prefix: str) -> Counts:
    return Counts(len(cells), sum(own[f"{prefix}error"] is not None for own in cells))


def _log(counts: Counts, rate: float, total: int | None) -> None:
    of = "" if total is None else f" of about {total}"
    left = "" if total is None or not rate else f", about {clock(max(0.0, (total - counts.rows) / rate))} left"
    logger.info("rows %d%s  %d failed  %.0f rows/s%s", counts.rows, of, counts.failed, rate, left)

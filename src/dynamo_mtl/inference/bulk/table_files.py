"""Answer the rows of files, and go on where an interrupted run was.

Answered windows of rows are stored one by one in ``OUTPUT.partial``, and joined to the output in the end. So the output
is there completely or not at all, and a resumed run writes the same bytes as one that was not interrupted.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from dynamo_mtl.data.files import SUFFIXES
from dynamo_mtl.errors import ConfigError, DataError, DynamoError
from dynamo_mtl.inference.bulk.input_rows import (
    COLUMNAR,
    FileReading,
    InputRow,
    count_rows,
    header_of,
    input_files,
    read_input_rows,
    schema_of,
)
from dynamo_mtl.inference.bulk.output_format import ENDINGS, JsonLines, output_format, write_joined
from dynamo_mtl.inference.bulk.table import (
    WINDOW_CHARACTERS,
    WINDOW_ROWS,
    TableAnswerer,
    TableRequest,
    first_readable,
    windows,
)
from dynamo_mtl.messages import clock
from dynamo_mtl.storage import MANIFEST, flush, only_writer, remove_folder, writable_folder

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

    def add(self, rows: Sequence[dict[str, Any]], prefix: str) -> None:
        """Count answered rows."""
        self.rows += len(rows)
        self.failed += sum(row[f"{prefix}error"] is not None for row in rows)


@dataclass(frozen=True)
class _Job:
    """Files whose rows are answered into one."""

    files: Sequence[Path]
    output: Path


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
        resume: go on with an interrupted run; do nothing if the output is there and there is no such run.
        overwrite: begin anew, and replace an output that is there already once all is answered.

    Raises:
        ConfigError: a file does not exist, has an unknown type, or would be replaced; or the request does not fit it.
        DataError: a file that cannot be read as a table, or an output that cannot be written.
    """
    files = input_files(source)
    if output.is_dir() or (source.is_dir() and not output.name.lower().endswith(ENDINGS)):
        jobs = [_Job([file], output / _named_like(file)) for file in files]
    else:
        jobs = [_Job(files, output)]
    places = [job.output for job in jobs]
    twice = next((place for number, place in enumerate(places) if place in places[:number]), None)
    if twice is not None:
        raise ConfigError(f"--output: two files of {source} would be written as {twice.name}; give one file as output")
    inputs = {file.resolve() for file in files}
    same = next((place for place in places if place.resolve() in inputs), None)
    if same is not None:
        raise ConfigError(f"--output: {same} is the input; give another name")
    run = _Run(model, jobs, output, request, reading or FileReading())
    taken = next((place for place in places if place.exists()), None)
    if taken is not None and resume and not run.has_begun:
        logger.info("%s is there, and no unfinished run of it", taken)
        return Counts()
    if taken is not None and not (overwrite or (resume and run.has_begun)):
        raise ConfigError(f"--output: {taken} is there already; give another name, or --overwrite")
    return run.run(resume, overwrite)


def write_stream(
    model: DynamoInference, source: Path, stream: BinaryIO, request: TableRequest, reading: FileReading
) -> Counts:
    """Answer every row of a file, or of all files of a folder, as JSON lines into a stream. Raises as above."""
    files, counts, form = input_files(source), Counts(), JsonLines({})
    answerer = TableAnswerer(model, request)
    progress = _Progress(None, counts)
    for group in first_readable(answerer, windows(_rows(files, reading))):
        rows = answerer.answered(group)
        stream.write(form.part(rows))
        stream.flush()
        counts.add(rows, request.prefix)
        progress.log()
    return counts


def _rows(files: Sequence[Path], reading: FileReading) -> Iterator[InputRow]:
    return (row for file in files for row in read_input_rows(file, reading))


class _Run:
    """Answers the rows of some jobs, one after the other."""

    def __init__(
        self, model: DynamoInference, jobs: Sequence[_Job], output: Path, request: TableRequest, reading: FileReading
    ) -> None:
        self.model, self.jobs, self.output, self.request, self.reading = model, jobs, output, request, reading
        self.folder = output.with_name(f"{output.name}.partial")
        files = [file for job in jobs for file in job.files]
        stamps = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        settings = asdict(request) | {"reading": reading.model_dump()}
        made_by = hashlib.sha256((model.checkpoint / MANIFEST).read_bytes()).hexdigest()
        names = [job.output.name for job in jobs]
        parts = (stamps, settings, made_by, names, WINDOW_ROWS, WINDOW_CHARACTERS)
        self.identity = hashlib.sha256(repr(parts).encode()).hexdigest()
        self.counts, self.jobs_done, self.parts = Counts(), 0, 0

    @property
    def has_begun(self) -> bool:
        """Whether an interrupted run has stored anything."""
        return (self.folder / PROGRESS).is_file()

    def run(self, resume: bool, overwrite: bool) -> Counts:
        """Answer what is not answered yet, and write the output."""
        for job in self.jobs:  # says now what can never be written
            output_format(job.output.name, {})
            writable_folder(job.output.parent, "--output")
        lock = only_writer(self.folder, "--output", inside=False)
        try:
            if self.has_begun and not resume and not overwrite:
                raise ConfigError(
                    f"--output: an unfinished run left {self.folder}; go on with --resume, or begin anew with "
                    "--overwrite"
                )
            if self.folder.exists() and not (self.has_begun and resume):
                remove_folder(self.folder)
            self.folder.mkdir(exist_ok=True)
            try:
                self._read_progress()
                for number in range(self.jobs_done, len(self.jobs)):
                    self._do(number)
                for number, job in enumerate(self.jobs):
                    if self._joined(number).exists():  # not moved by a run that was killed here
                        os.replace(self._joined(number), job.output)
            except OSError as error:
                raise DataError(f"{self.output}: cannot be written ({error.strerror or error})") from error
            except DynamoError:
                if not self.has_begun:
                    remove_folder(self.folder)
                raise
            remove_folder(self.folder)
        finally:
            lock.release()
            Path(lock.lock_file).unlink(missing_ok=True)
        logger.info("%s: %d rows, %d of them with an error", self.output, self.counts.rows, self.counts.failed)
        return self.counts

    def _do(self, number: int) -> None:
        """Answer the rows of one job, from the part on that is missing, and join them."""
        job = self.jobs[number]
        answerer = TableAnswerer(self.model, self.request)
        form, schema = output_format(job.output.name, answerer.cells.types), schema_of(job.files[0])
        (self.folder / f"{number:06d}").mkdir(exist_ok=True)
        known = [count_rows(file) for file in job.files]
        progress = _Progress(None if None in known else sum(filter(None, known)), self.counts)
        is_settled = False
        groups = windows(_rows(job.files, self.reading))
        for part, group in enumerate(first_readable(answerer, groups, schema.names if schema is not None else None)):
            if not is_settled and answerer.has_begun:
                form.begin([row.values for row in group if row.error is None], schema, answerer.names)
                is_settled = True
            if part < self.parts:
                continue
            rows = answerer.answered(group)
            try:
                made = form.part(rows)
            except DataError as error:
                which = f"rows {self.counts.rows + 1} to {self.counts.rows + len(group)}"
                raise DataError(f"{job.output}: {which}: {error}") from error
            self.counts.add(rows, self.request.prefix)
            self._store(self._part(number, part), made)
            self.parts = part + 1
            self._store_progress()
            progress.log()
        if not is_settled:
            form.begin([], schema, schema.names if schema is not None else header_of(job.files[0], self.reading))
        beside = self._joined(number).with_suffix(".new")
        write_joined(form, (self._part(number, part) for part in range(self.parts)), beside, job.output.name)
        flush(beside)
        os.replace(beside, self._joined(number))
        self.jobs_done, self.parts = number + 1, 0
        self._store_progress()
        remove_folder(self.folder / f"{number:06d}")

    def _read_progress(self) -> None:
        """What an interrupted run has answered."""
        path = self.folder / PROGRESS
        if not path.exists():
            return
        try:
            found = json.loads(path.read_bytes())
            known, self.counts = found["identity"], Counts(found["rows"], found["failed"])
            self.jobs_done, self.parts = int(found["jobs"]), int(found["parts"])
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"--resume: {path} is damaged; begin anew with --overwrite") from error
        if known != self.identity:
            raise ConfigError(
                f"--resume: {self.folder} is of another input, model or request; use those, or begin anew with "
                "--overwrite"
            )

    def _store_progress(self) -> None:
        """Store what is there; called once it is."""
        progress = {"identity": self.identity, **asdict(self.counts), "jobs": self.jobs_done, "parts": self.parts}
        self._store(self.folder / PROGRESS, json.dumps(progress).encode())

    @staticmethod
    def _store(path: Path, content: bytes) -> None:
        beside = path.with_suffix(".new")
        beside.write_bytes(content)
        flush(beside)
        os.replace(beside, path)

    def _part(self, job: int, number: int) -> Path:
        return self.folder / f"{job:06d}" / f"{number:08d}.part"

    def _joined(self, job: int) -> Path:
        return self.folder / f"{job:06d}.joined"


class _Progress:
    """Lines about how far a run is."""

    def __init__(self, total: int | None, counts: Counts) -> None:
        self.total, self.counts = total, counts
        self._first, self._began, self._said = counts.rows, time.monotonic(), float("-inf")

    def log(self) -> None:
        """Log a line, unless there was one a moment ago."""
        now = time.monotonic()
        if now - self._said < LOG_SECONDS:
            return
        self._said = now
        done = self.counts.rows - self._first
        rate = done / max(1e-9, now - self._began)
        of, left = "", ""
        if self.total is not None:
            of = f" of about {self.total}"
            left = f", about {clock(max(0.0, (self.total - done) / rate))} left" if rate else ""
        logger.info("rows %d%s  %d failed  %.0f rows/s%s", self.counts.rows, of, self.counts.failed, rate, left)


def _named_like(file: Path) -> str:
    """Name of the output for one file of a folder: its own, if it can be written as it is."""
    name = file.name
    if name.lower().endswith(ENDINGS):
        return name
    suffix = max((one for one in SUFFIXES if name.lower().endswith(one)), key=len)
    return f"{name[: -len(suffix)]}{'.parquet' if file.suffix.lower() in COLUMNAR else '.jsonl'}"

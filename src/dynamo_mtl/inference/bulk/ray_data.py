"""Answer tables on a Ray cluster: Ray Data reads, spreads batches over actors with a model each, and writes.

Scheduling, retries, back-pressure and spilling are Ray's own. Each actor is one process with its own copy of the model.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pyarrow
import ray
import torch
from pyarrow import csv
from ray.data import DataContext, Dataset
from ray.exceptions import RayError

from dynamo_mtl.errors import ConfigError, DataError
from dynamo_mtl.inference.api import DynamoInference
from dynamo_mtl.inference.bulk.input_rows import InputRow
from dynamo_mtl.inference.bulk.output_format import cell_arrays
from dynamo_mtl.inference.bulk.table import WINDOW_ROWS, TableAnswerer, TableRequest
from dynamo_mtl.inference.bulk.table_files import Counts
from dynamo_mtl.storage import remove_folder, writable_folder

ENDINGS = (".parquet", ".csv", ".jsonl")


class Answering:
    """An actor: a model that answers batches of rows."""

    def __init__(self, checkpoint: Path, request: TableRequest, threads: int, device: str) -> None:
        """
        Args:
            checkpoint: a folder that every node can read.
            request: how rows are answered.
            threads: of a forward pass.
            device: where the model runs.
        """
        torch.set_num_threads(threads)
        self.answerer = TableAnswerer(DynamoInference(checkpoint, device=device), request)

    def __call__(self, batch: pyarrow.Table) -> pyarrow.Table:
        """A batch with its new columns."""
        rows = [InputRow(row) for row in batch.to_pylist()]
        self.answerer.begin(batch.schema.names, rows)
        cells = self.answerer.answer(rows)
        for name, column in cell_arrays(cells, self.answerer.cells.types).items():
            batch = batch.append_column(name, column)
        return batch


def predict_on_ray(
    checkpoint: Path,
    source: str,
    output: str,
    request: TableRequest,
    *,
    actors: int,
    cpus: float = 1.0,
    gpus: float = 0.0,
    overwrite: bool = False,
) -> Counts:
    """Answer every row of a file or folder, and write a folder of shards in the order of the input.

    Connects to the cluster in ``RAY_ADDRESS``, or starts Ray on this machine.

    Args:
        checkpoint: a folder that every node can read.
        source: a file, or a folder of files of one type; a path or an address that Ray can read, such as ``s3://…``.
        output: folder for the shards, which has the type of the input.
        request: how rows are answered.
        actors: copies of the model.
        cpus: cores of each, which its forward passes use.
        gpus: GPUs of each.
        overwrite: replace a local folder that is there, once all is answered.

    Raises:
        ConfigError: an unknown type of file, a request that does not fit the table, or an output that is there already.
        DataError: a file that Ray cannot read.
    """
    ending = _ending(source)
    place = None if "://" in output else Path(output)
    if place is not None:
        _check_place(place, source, overwrite)
    if not ray.is_initialized():
        ray.init(configure_logging=False, log_to_driver=False, include_dashboard=False)
    DataContext.get_current().execution_options.preserve_order = True
    try:
        rows = _read(source, ending)
        schema = rows.schema()
        # Says now what does not fit.
        answerer = TableAnswerer(DynamoInference(checkpoint, device="cpu"), request)
        answerer.begin([] if schema is None else schema.names)
        answered = rows.map_batches(
            Answering,
            fn_constructor_args=(checkpoint.absolute(), request, max(1, int(cpus)), "cuda" if gpus else "cpu"),
            batch_format="pyarrow",
            batch_size=WINDOW_ROWS,
            compute=ray.data.ActorPoolStrategy(size=actors),
            num_cpus=cpus,
            num_gpus=gpus,
        )
        beside = output if place is None else str(place.with_name(f".{place.name}.new"))
        shutil.rmtree(beside, ignore_errors=True)
        _write(answered, beside, ending)
        counts = _counted(beside, ending, f"{request.prefix}error")
    except (RayError, OSError, pyarrow.ArrowException) as error:
        said = next((line for line in str(error).splitlines()[::-1] if line.strip()), type(error).__name__)
        raise DataError(f"{source}: Ray cannot read, answer or write it ({said:.200})") from error
    if place is not None:
        if place.exists():
            remove_folder(place)
        os.replace(beside, place)
    return counts


def _check_place(place: Path, source: str, overwrite: bool) -> None:
    """Refuse an output that would take the input with it, or replace something that was not meant."""
    read = Path(source).resolve()
    if place.resolve() in (read, *read.parents):
        raise ConfigError(f"--output: {place} is the input or holds it; give another folder")
    if place.exists() and not place.is_dir():
        raise ConfigError(f"--output: {place} is a file; with Ray, name a folder")
    if place.is_dir() and any(place.iterdir()) and not overwrite:
        raise ConfigError(f"--output: {place} is there already; give another name, or --overwrite")
    writable_folder(place.absolute().parent, "--output")


def _ending(source: str) -> str:
    """The type of the files."""
    place = Path(source)
    names = [path.name for path in sorted(place.iterdir())] if place.is_dir() else [source]
    names = [name for name in names if not name.startswith(".")]
    found = [next((ending for ending in ENDINGS if name.lower().endswith(ending)), None) for name in names]
    if not found or None in found or len(set(found)) > 1:
        raise ConfigError(f"--input: {source}: with Ray, files of one type are read, of {', '.join(ENDINGS)}")
    if "://" not in source and not place.exists():
        raise ConfigError(f"--input: {source}: no such file or folder")
    return str(found[0])


def _read(source: str, ending: str) -> Dataset:
    if ending == ".parquet":
        return ray.data.read_parquet(source)
    if ending == ".jsonl":
        return ray.data.read_json(source)
    schema = ray.data.read_csv(source).schema()
    types = dict.fromkeys([] if schema is None else schema.names, pyarrow.string())  # texts, as they are written
    return ray.data.read_csv(source, convert_options=csv.ConvertOptions(column_types=types))


def _write(rows: Dataset, output: str, ending: str) -> None:
    {".parquet": rows.write_parquet, ".csv": rows.write_csv, ".jsonl": rows.write_json}[ending](output)


def _counted(output: str, ending: str, error: str) -> Counts:
    """The rows that were written, and those of them with an error."""
    if ending == ".parquet":
        written = ray.data.read_parquet(output, columns=[error])
    elif ending == ".csv":
        options = csv.ConvertOptions(column_types={error: pyarrow.string()}, include_columns=[error])
        written = ray.data.read_csv(output, convert_options=options)
    else:
        written = ray.data.read_text(output).map(lambda row: {error: json.loads(row["text"]).get(error)})
    return Counts(written.count(), written.filter(fn=lambda row: bool(row[error])).count())

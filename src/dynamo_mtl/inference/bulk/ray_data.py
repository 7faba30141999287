"""Answer tables on a Ray cluster: Ray Data reads, spreads batches over actors with a model each, and writes.

Scheduling, retries, back-pressure and spilling are Ray's own. Each actor is one process with its own copy of the model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow
import ray
import torch
from ray.data import DataContext, Dataset

from dynamo_mtl.errors import ConfigError, DataError
from dynamo_mtl.inference.api import DynamoInference
from dynamo_mtl.inference.bulk.input_rows import InputRow
from dynamo_mtl.inference.bulk.output_format import cell_arrays
from dynamo_mtl.inference.bulk.table import WINDOW_ROWS, TableAnswerer, TableRequest
from dynamo_mtl.inference.bulk.table_files import Counts

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
        self.answerer.begin(batch.schema.names)
        cells = self.answerer.answer([InputRow(row) for row in batch.to_pylist()])
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

    Raises:
        ConfigError: an unknown type of file, or a request that does not fit the table.
        DataError: a file that Ray cannot read.
    """
    ending = _ending(source)
    if not ray.is_initialized():
        ray.init(configure_logging=False, log_to_driver=False, include_dashboard=False)
    DataContext.get_current().execution_options.preserve_order = True
    rows = _read(source, ending)
    schema = rows.schema()
    names = [] if schema is None else schema.names
    TableAnswerer(DynamoInference(checkpoint, device="cpu"), request).begin(names)  # say now what does not fit
    answered = rows.map_batches(
        Answering,
        fn_constructor_args=(checkpoint.absolute(), request, max(1, int(cpus)), "cuda" if gpus else "cpu"),
        batch_format="pyarrow",
        batch_size=WINDOW_ROWS,
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=cpus,
        num_gpus=gpus,
    )
    _write(answered, output, ending)
    written = _read(output, ending)
    error = f"{request.prefix}error"
    failed = written.select_columns([error]).filter(fn=lambda row: bool(row[error])).count()
    return Counts(written.count(), failed)


def _ending(source: str) -> str:
    """The type of the files."""
    place = Path(source)
    names = [path.name for path in sorted(place.iterdir())] if place.is_dir() else [source]
    found = {ending for name in names for ending in ENDINGS if name.lower().endswith(ending)}
    if len(found) != 1:
        raise ConfigError(f"--input: {source}: with Ray, files of one type are read, of {', '.join(ENDINGS)}")
    return found.pop()


def _read(source: str, ending: str) -> Dataset:
    read: dict[str, Any] = {".parquet": ray.data.read_parquet, ".csv": ray.data.read_csv, ".jsonl": ray.data.read_json}
    try:
        return read[ending](source)
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise DataError(f"{source}: cannot be read ({str(error).partition(chr(10))[0]:.150})") from error


def _write(rows: Dataset, output: str, ending: str) -> None:
    {".parquet": rows.write_parquet, ".csv": rows.write_csv, ".jsonl": rows.write_json}[ending](output)

"""A table on a local Ray: two actors, of which one is killed, give what one process gives."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import ray
from pyarrow import Table, parquet
from tiny import nearly

from dynamo_mtl.cli import main
from dynamo_mtl.errors import ConfigError
from dynamo_mtl.inference.api import DynamoInference
from dynamo_mtl.inference.bulk import ray_data
from dynamo_mtl.inference.bulk.table import TableRequest

ROWS = [
    {"id": number, "text": f"A slow start {'but what ' * (number % 9)}an ending {number}."} for number in range(9000)
]


@pytest.fixture(scope="module")
def cluster():
    """A Ray of this machine."""
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield
    ray.shutdown()


@pytest.fixture
def folder(tmp_path):
    """The rows in three files."""
    place = tmp_path / "in"
    place.mkdir()
    for number in range(3):
        parquet.write_table(Table.from_pylist(ROWS[number * 3000 : (number + 1) * 3000]), place / f"{number}.parquet")
    return place


def actors():
    """Processes of the actors that answer."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            name = place.read_bytes()
        except OSError:
            continue
        if name.startswith(b"ray::") and b"Answering" in name:
            found.append(int(place.parent.name))
    return found


def test_one_of_two_actors_is_killed_and_no_row_is_lost(checkpoint, cluster, folder, tmp_path):
    killed = []

    def kill():
        end = time.monotonic() + 60
        while time.monotonic() < end:
            found = actors()
            if len(found) == 2:
                time.sleep(1.0)
                os.kill(found[0], signal.SIGKILL)
                killed.append(found[0])
                return
            time.sleep(0.1)

    killer = threading.Thread(target=kill)
    killer.start()
    output, request = tmp_path / "out", TableRequest(task_hint="sentiment")
    counts = ray_data.predict_on_ray(checkpoint, str(folder), str(output), request, actors=2)
    killer.join()
    assert len(killed) == 1
    assert (counts.rows, counts.failed) == (len(ROWS), 0)
    found = [row for path in sorted(output.iterdir()) for row in parquet.read_table(path).to_pylist()]
    expected = DynamoInference(checkpoint, device="cpu").predict_table(ROWS, task_hint="sentiment")
    assert [row["id"] for row in found] == list(range(len(ROWS)))
    for one, other in zip(found, expected, strict=True):
        assert one == nearly(other, 1e-4)


def test_the_command_writes_a_folder_and_says_what_failed(checkpoint, cluster, tmp_path, capsys):
    rows = [*ROWS[:20], {"id": 20, "text": ""}]
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["predict", str(checkpoint), "--input", str(source), "--output", str(tmp_path / "out"), "--ray", "1"]
    for _ in range(2):
        with pytest.raises(SystemExit) as end:
            main([*command, "--tasks", "sentiment"])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert "1 of 21 rows could not be answered" in said
    assert "is there already; give another name, or --overwrite" in said
    lines = [json.loads(line) for path in (tmp_path / "out").iterdir() for line in path.read_text().splitlines()]
    assert [row["error"] for row in lines if row["id"] == 20] == ["column 'text' is empty"]
    assert len(lines) == 21
    for given, put, sentence in (
        ("x.tsv", "o", "with Ray, files of one type are read"),
        (str(source), str(tmp_path), "is the input or holds it"),
        ("missing.csv", "o", "no such file or folder"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            ray_data.predict_on_ray(checkpoint, given, put, TableRequest(), actors=1, overwrite=True)


def test_cells_of_csv_are_texts_on_ray_too(checkpoint, cluster, tmp_path):
    (tmp_path / "in.csv").write_text("code,text\n007,A slow start.\n,12\n")
    counts = ray_data.predict_on_ray(
        checkpoint, str(tmp_path / "in.csv"), str(tmp_path / "out"), TableRequest(tasks=["sentiment"]), actors=1
    )
    assert (counts.rows, counts.failed) == (2, 0)
    lines = [line for path in (tmp_path / "out").iterdir() for line in path.read_text().splitlines()]
    assert lines[1].startswith('"007","A slow start."')

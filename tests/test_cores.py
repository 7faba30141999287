"""How many cores there are and how threads wait: a container's quota counts, and the user's own word."""

import os
import subprocess
import sys

import pytest

from dynamo_mtl.cores import free_cores, settle, usable_cores

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "max 100000\n"}, CORES),
        ({"cpu.max": "100000 100000\n"}, 1),
        ({"cpu.max": "30000 100000\n"}, 1),
        ({"cpu.max": f"{CORES * 100000 - 1} 100000\n"}, CORES),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, CORES),
        ({"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({"cpu.max": "nonsense"}, CORES),
        ({}, CORES),
    ],
)
def test_a_containers_quota_limits_the_cores(tmp_path, files, cores):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert usable_cores(tmp_path) == cores


def test_what_the_user_says_counts(tmp_path):
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    environment = {}
    settle(environment, tmp_path)
    assert environment["GOMP_SPINCOUNT"] == "10000"
    assert environment.get("OMP_NUM_THREADS") == ("1" if CORES > 1 else None)
    for own in ({"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "1000"}, {"KMP_BLOCKTIME": "200"}):
        environment = {**own, "OMP_NUM_THREADS": "2"}
        settle(environment, tmp_path)
        assert environment == {**own, "OMP_NUM_THREADS": "2"}


def test_it_is_settled_before_pytorch_is_loaded():
    """By importing the package, which loads no PyTorch itself."""
    program = "import os, sys, dynamo_mtl; assert 'torch' not in sys.modules; print(os.environ['GOMP_SPINCOUNT'])"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP", "GOMP", "KMP"))}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "10000"


def test_cores_that_others_work_on_are_not_free(tmp_path, monkeypatch):
    """From what the system counts: user, nice, system, idle, waiting, interrupts, stolen, in ticks of each core."""
    from dynamo_mtl import cores

    stat = tmp_path / "stat"
    number = min(os.sched_getaffinity(0))

    def later(_):
        stat.write_text(f"cpu  0 0 0 0 0 0 0 0 0 0\ncpu{number} 130 0 0 102 0 0 0 0 0 0\n")

    stat.write_text(f"cpu  0 0 0 0 0 0 0 0 0 0\ncpu{number} 100 0 0 100 0 0 0 0 0 0\n")
    monkeypatch.setattr(cores.time, "sleep", later)
    assert free_cores(stat=stat) == max(1, CORES - 1)
    assert free_cores(stat=tmp_path / "nothing") == CORES


def test_a_run_takes_the_threads_that_are_free_and_keeps_them(monkeypatch):
    import torch

    from dynamo_mtl.training import run as pipeline

    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(pipeline, "free_cores", lambda: 1)
    cpu = torch.device("cpu")
    try:
        for start, wanted, resumed, expected in ((2, None, None, 1), (2, None, 2, 2), (2, 3, 1, 3), (1, None, None, 1)):
            torch.set_num_threads(start)
            pipeline.choose_threads(wanted, resumed, cpu)
            assert torch.get_num_threads() == expected
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        torch.set_num_threads(2)
        pipeline.choose_threads(None, None, cpu)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)

"""How many cores there are and how threads wait: a container's quota counts, and the user's own word."""

import os
import subprocess
import sys

import pytest

from dynamo_mtl.cores import settle, usable_cores

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
    assert environment["OMP_WAIT_POLICY"] == "PASSIVE"
    assert environment.get("OMP_NUM_THREADS") == ("1" if CORES > 1 else None)
    for own in ({"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "1000"}, {"KMP_BLOCKTIME": "200"}):
        environment = {**own, "OMP_NUM_THREADS": "2"}
        settle(environment, tmp_path)
        assert environment == {**own, "OMP_NUM_THREADS": "2"}


def test_it_is_settled_before_pytorch_is_loaded():
    """By importing the package, which loads no PyTorch itself."""
    program = "import os, sys, dynamo_mtl; assert 'torch' not in sys.modules; print(os.environ['OMP_WAIT_POLICY'])"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP", "GOMP", "KMP"))}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "PASSIVE"

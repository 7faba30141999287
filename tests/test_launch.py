"""The launch scripts start jobs of several machines; here every machine is this one."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file

from dynamo_mtl.storage import verify_folder
from dynamo_mtl.strict_yaml import dump_yaml

ROOT = Path(__file__).parent.parent
SRUN = """#!/usr/bin/env bash
# A stand-in for Slurm's: runs the command once for every node, all on this machine.
trap 'kill 0' ERR
for node in $(seq 0 $((SLURM_NNODES - 1))); do SLURM_NODEID=$node "$@" & jobs="${jobs:-} $!"; done
for job in $jobs; do wait "$job" || exit 1; done
"""


@pytest.fixture
def environment(tmp_path):
    """Two nodes of one process each, and the commands that Slurm would bring."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "srun").write_text(SRUN)
    (tools / "scontrol").write_text("#!/usr/bin/env bash\necho 127.0.0.1\n")
    for tool in tools.iterdir():
        tool.chmod(0o755)
    path = f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    slurm = {"SLURM_JOB_NODELIST": "node[0-1]", "SLURM_NNODES": "2", "GPUS": "1", "PORT": port}
    return {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", **slurm}


def test_a_slurm_job_trains_on_two_nodes(tiny_settings, tmp_path, environment):
    """``slurm.sbatch`` runs ``several-nodes.sh`` on each node, which runs ``dynamo train`` under torchrun."""
    names = ("sentiment", "qa")
    data = {k: v for k, v in tiny_settings["data"].items() if not k.endswith("_data_path")}
    settings = {
        **tiny_settings,
        "data": data | {f"{n}_data_path": "sample" for n in names},
        **{key: {n: tiny_settings[key][n] for n in names} for key in ("tasks", "lora_configs")},
        "log_dir": str(tmp_path / "logs"),
        "checkpoint_dir": str(tmp_path / "checkpoints"),
    }
    (tmp_path / "config.yaml").write_text(dump_yaml(settings))
    job = subprocess.run(
        ["bash", "launch/slurm.sbatch", str(tmp_path / "config.yaml"), "training.max_steps=2"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert job.returncode == 0, job.stderr
    assert job.stdout.count("trained: ") == 1  # one process speaks
    verify_folder(tmp_path / "checkpoints" / "final_model")


def test_a_missing_setting_is_named():
    bash = shutil.which("bash")
    assert bash
    job = subprocess.run(
        [bash, "launch/several-nodes.sh"], cwd=ROOT, env={"NNODES": "2"}, capture_output=True, text=True, check=False
    )
    assert job.returncode != 0
    assert "NODE_RANK: number of this machine" in job.stderr


def test_accelerate_reads_its_configuration():
    config = load_config_from_file(str(ROOT / "launch" / "one-node.yaml"))
    assert (config.num_machines, config.num_processes, config.use_cpu) == (1, 8, False)

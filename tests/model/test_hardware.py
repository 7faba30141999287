"""What the hardware can do is asked in one place, and code runs whatever the answer is."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dynamo_mtl
from dynamo_mtl.model.hardware import compute_dtype, cpu_has, fuses_bf16, has_amx, onednn_multiplies_bf16


@pytest.fixture
def answers(monkeypatch):
    """Set what PyTorch answers about this CPU."""

    def forget():
        for question in (cpu_has, onednn_multiplies_bf16, fuses_bf16, has_amx):
            question.cache_clear()

    def answer(capabilities, onednn):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: onednn, raising=False)
        forget()

    yield answer
    monkeypatch.undo()
    forget()


@pytest.mark.parametrize(
    ("capabilities", "onednn", "dtype", "fused", "amx"),
    [
        ({"avx512_bf16": True}, True, torch.bfloat16, True, False),
        ({"avx512_bf16": True, "amx_bf16": True}, True, torch.bfloat16, True, True),
        ({"avx512_f": True}, True, torch.float32, True, False),
        ({"avx2": True}, False, torch.float32, False, False),
        ({"avx512_bf16": True, "amx_bf16": True}, False, torch.float32, False, False),
    ],
    ids=["AVX-512 BF16", "AMX", "AVX-512", "AVX2", "AMX that oneDNN may not use"],
)
def test_an_answer_needs_both_the_cpu_and_onednn(answers, capabilities, onednn, dtype, fused, amx):
    answers(capabilities, onednn)
    assert compute_dtype("auto", torch.device("cpu")) is dtype
    assert (fuses_bf16(), has_amx()) == (fused, amx)


def test_precision_is_taken_as_configured():
    assert compute_dtype("fp32", torch.device("cpu")) is torch.float32
    assert compute_dtype("bf16", torch.device("cpu")) is torch.bfloat16


def test_bf16_runs_where_onednn_may_use_avx2_alone():
    """In a process of its own, since oneDNN asks once. Fails if any product there needs AVX-512."""
    program = (
        "import torch; from torch import nn\n"
        "from dynamo_mtl.model import hardware; from dynamo_mtl.model.fused import linear\n"
        "layer = nn.Linear(64, 64).to(torch.bfloat16)\n"
        "with torch.no_grad(): print(linear(layer, torch.ones(64, 64, dtype=torch.bfloat16), gelu=True).shape)\n"
        "assert not hardware.fuses_bf16() and not hardware.has_amx()"
    )
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    ran = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "[64, 64]" in ran.stdout


def test_no_other_module_asks_the_hardware():
    """Fails if a second place asks, which tests could not answer for."""
    sources = {path.name: path.read_text(encoding="utf-8") for path in Path(dynamo_mtl.__file__).parent.rglob("*.py")}
    questions = ("get_capabilities", "_is_mkldnn", "is_bf16_supported")
    assert [name for name, text in sources.items() if any(words in text for words in questions)] == ["hardware.py"]

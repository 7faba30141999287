"""What fewer bits cost: accuracy on real data and time an input, of the backbone in fp32, bf16 and 8 bits.

    python benchmarks/small_machines.py CHECKPOINT --output results/small-cpu.json [data.root=PATH …]

Sentiment and question answering are scored with oracle routing, routing on plain inputs of every task, all on inputs of
one window, which an exported graph reads. Times are of one input at a time, in turns between the forms.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from harness import machine

from dynamo_mtl.checkpoint.folder import CONFIG
from dynamo_mtl.config import load_config
from dynamo_mtl.evaluation.inputs import task_examples
from dynamo_mtl.export.onnx import GRAPH, QUANTIZED, export_onnx
from dynamo_mtl.inference.predictor import Predictor
from dynamo_mtl.inference.requests import TextInput
from dynamo_mtl.model.quantization import stored_bytes
from dynamo_mtl.system import System, load_system
from dynamo_mtl.tasks.encoding import EncodedSource
from dynamo_mtl.tasks.qa import QuestionAnswering
from dynamo_mtl.tasks.task import Answer, Example
from dynamo_mtl.training.provenance import source_revision

LIMIT = {"sentiment": 872, "qa": 500}
"""Examples that are answered; routing reads ``ROUTED`` of every task."""
ROUTED = 300
TIMED = 100
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Form:
    """One way to compute the same model."""

    routes: Callable[[Sequence[TextInput]], list[int]]
    answers: Callable[[str, Sequence[TextInput]], list[Answer]]
    backbone_mib: float


def torch_form(checkpoint: Path, config: Any, precision: str, quantization: str | None = None) -> Form:
    """The model itself in a precision."""
    own = config.model_copy(
        update={"model": config.model.model_copy(update={"precision": precision, "quantization": quantization})}
    )
    system, metadata = load_system(checkpoint, CPU, own)
    predictor = Predictor(system, metadata.calibration)
    size = stored_bytes(system.model.encoder) / 2**20

    def routes(inputs: Sequence[TextInput]) -> list[int]:
        return [int(np.argmax(route.probabilities)) for route in predictor.route(inputs)]

    def answers(task: str, inputs: Sequence[TextInput]) -> list[Answer]:
        return [p.answer for p in predictor.predict(inputs, [task] * len(inputs))]

    return Form(routes, answers, size)


def onnx_form(folder: Path, file: str, system: System) -> Form:
    """The exported graph."""
    options = onnxruntime.SessionOptions()
    # Its threads would go on looking for work for a while, and slow down whichever form comes next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(folder / file, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(source: EncodedSource, task: int) -> dict[str, np.ndarray]:
        ids = np.array([source.windows[0].ids], dtype=np.int64)
        fed = {"ids": ids, "mask": np.ones_like(ids), "task": np.array([task])}
        return dict(zip(names, session.run(names, fed), strict=True))

    def routes(inputs: Sequence[TextInput]) -> list[int]:
        return [int(run(system.source.encode(i.text, i.context), -1)["probabilities"].argmax()) for i in inputs]

    def answers(task: str, inputs: Sequence[TextInput]) -> list[Answer]:
        return [_answer(system, task, source, run(source, system.route_of(task))[task][0])
                for source in (system.source.encode(i.text, i.context) for i in inputs)]  # fmt: skip

    return Form(routes, answers, (folder / file).stat().st_size / 2**20)


def _answer(system: System, name: str, source: EncodedSource, logits: np.ndarray) -> Answer:
    task = system.tasks[name]
    if isinstance(task, QuestionAnswering):
        found = task.best_span(torch.tensor(logits), source.windows[0], source.body)
        return found[1] if found else {"answer": "", "score": 0.0, "start": 0, "end": 0}
    scores = torch.softmax(torch.tensor(logits), dim=0)
    return {"label": task.config.labels[int(scores.argmax())], "score": float(scores.max())}  # pyright: ignore


def one_window(system: System, rows: Sequence[Example]) -> list[Example]:
    """Examples whose source fits into one window."""
    return [row for row in rows if len(system.source.encode(row.text, row.context).windows) == 1]


def measure(form: Form, system: System, examples: dict[str, list[Example]]) -> dict[str, Any]:
    """Scores and routing of a form."""
    scores: dict[str, Any] = {}
    for task, limit in LIMIT.items():
        rows = examples[task][:limit]
        inputs = [TextInput(row.text, row.context) for row in rows]
        scores[task] = {**system.tasks[task].score(form.answers(task, inputs), rows), "n": len(rows)}
    right = total = 0
    for task, rows in examples.items():
        found = form.routes([TextInput(row.text, row.context) for row in rows[:ROUTED]])
        right += found.count(system.route_of(task))
        total += len(found)
    return {"scores": scores, "routing": right / total, "routed": total, "backbone_mib": form.backbone_mib}


def main() -> None:
    """Parse the command line, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--output", type=Path, required=True)
    chosen = parser.parse_args()
    config = load_config(chosen.checkpoint / CONFIG, chosen.overrides)
    system, metadata = load_system(chosen.checkpoint, CPU, config)
    examples = {
        task: one_window(system, task_examples(system, task, "validation", metadata.seed)) for task in system.tasks
    }
    with tempfile.TemporaryDirectory() as place:
        folder = export_onnx(chosen.checkpoint, Path(place) / "onnx", quantize=True)
        forms = {
            "fp32": torch_form(chosen.checkpoint, config, "fp32"),
            "bf16": torch_form(chosen.checkpoint, config, "bf16"),
            "bf16, layers in int8": torch_form(chosen.checkpoint, config, "bf16", "int8"),
            "onnx fp32": onnx_form(folder, GRAPH, system),
            "onnx int8": onnx_form(folder, QUANTIZED, system),
        }
        found = {name: measure(form, system, examples) for name, form in forms.items()}
        times: dict[str, list[float]] = {name: [] for name in forms}
        for number, row in enumerate(examples["sentiment"][:TIMED]):
            names = list(forms)
            for name in names[number % len(names) :] + names[: number % len(names)]:  # none always follows the same
                began = time.perf_counter()
                forms[name].answers("sentiment", [TextInput(row.text)])
                times[name].append(1000 * (time.perf_counter() - began))
    for name, values in times.items():
        ratios = [own / base for own, base in zip(values, times["fp32"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        found[name] |= {"ms": statistics.median(values), "over_fp32": {"ratio": middle, "low": low, "high": high}}
    content = {
        "backbone": metadata.backbone,
        "trained_at": metadata.commit,
        "commit": source_revision(),
        "forms": found,
        "machine": machine(CPU),
    }
    chosen.output.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

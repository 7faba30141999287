"""The routing analyzer: where a trained router sends the inputs of a data loader, in numbers and one picture."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dynamo_mtl.errors import DataError
from dynamo_mtl.inference.predictor import DynamoInference
from dynamo_mtl.metrics.routing import confusion_matrix, routing_scores
from dynamo_mtl.model.batch import Window, build_batch
from dynamo_mtl.model.dynamo import DynamoModel
from dynamo_mtl.model.packing import to_device
from dynamo_mtl.tasks.tables import first_examples, open_task_table


@dataclass
class RoutingAnalyzer:
    """Collects routing decisions of a model."""

    model: DynamoModel
    task_names: list[str]
    confusion: list[list[int]] | None = None
    """Of the last analysis."""

    @torch.inference_mode()
    def analyze_routing_decisions(self, dataloader: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """Route everything that a data loader yields.

        Args:
            dataloader: batches with padded ``input_ids`` and ``attention_mask`` ``(rows, length)``, and ``task``
                (names) or ``task_ids`` (numbers in the order of ``task_names``).

        Returns:
            The scores of ``routing_scores``, ``confusion`` and the mean ``probabilities`` of each task's inputs.

        Raises:
            DataError: a batch without tasks, or no batch at all.
        """
        self.model.eval()
        device = next(self.model.parameters()).device
        rows: list[np.ndarray] = []
        actual: list[int] = []
        for batch in dataloader:
            windows = [
                Window(ids[mask.bool()].tolist(), row, deep=False)
                for row, (ids, mask) in enumerate(zip(batch["input_ids"], batch["attention_mask"], strict=True))
            ]
            packed = to_device(build_batch(windows, [], self.model.encoder.config.first_position), device)
            rows.append(self.model.router(self.model.trunk(packed).features).weights.cpu().numpy())
            actual += self._tasks(batch)
        if not rows:
            raise DataError("the data loader of the routing analysis is empty")
        probabilities, truth = np.concatenate(rows), np.array(actual)
        self.confusion = confusion_matrix(probabilities.argmax(axis=1).tolist(), actual, len(self.task_names))
        means = {self.task_names[t]: probabilities[truth == t].mean(axis=0).tolist() for t in np.unique(truth)}
        return {
            **routing_scores(probabilities, actual),
            "confusion": self.confusion,
            "probabilities": means,
        }

    def _tasks(self, batch: Mapping[str, Any]) -> list[int]:
        if "task_ids" in batch:
            return torch.as_tensor(batch["task_ids"]).tolist()
        if "task" in batch:
            return [self.task_names.index(name) for name in batch["task"]]
        raise DataError(f"a batch of the routing analysis needs 'task' or 'task_ids', found {', '.join(batch)}")

    def visualize_routing_patterns(self, folder: str | Path) -> Path:
        """Draw the confusion matrix of the last analysis into ``folder`` and return the picture's path."""
        if self.confusion is None:
            raise DataError("there is nothing to draw yet: call analyze_routing_decisions first")
        return draw_confusion(self.confusion, self.task_names, Path(folder), "Where the router sends inputs")


def create_routing_analyzer(model: DynamoInference | DynamoModel, task_names: Sequence[str]) -> RoutingAnalyzer:
    """Make an analyzer for a model and the names of its tasks, in the order of the router's outputs."""
    inner = model.system.model if isinstance(model, DynamoInference) else model
    if list(task_names) != inner.task_names:
        raise DataError(f"task_names: the model's tasks are {inner.task_names}, found {list(task_names)}")
    return RoutingAnalyzer(inner, list(task_names))


def routing_dataloader(
    model: DynamoInference, split: str = "validation", batch_size: int = 64, limit: int | None = None
) -> Iterator[dict[str, Any]]:
    """Padded batches of every task's inputs (their first windows), as the analyzer reads them.

    Inputs are bare, but for tasks that require an instruction.
    """
    system = model.system
    for name, task in system.tasks.items():
        needed = system.config.tasks[name].requires_instruction
        instruction = task.evaluation_instructions[0] if needed else None
        table = open_task_table(task, split, system.config.data, seed=model.metadata.seed)
        examples = first_examples(table, limit)
        for first in range(0, len(examples), batch_size):
            batch = examples[first : first + batch_size]
            sources = [system.source.encode(e.text, e.context, instruction) for e in batch]
            ids = [torch.tensor(source.windows[0].ids) for source in sources]
            padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
            lengths = torch.tensor([len(i) for i in ids])
            mask = torch.arange(padded.shape[1])[None, :] < lengths[:, None]
            yield {"input_ids": padded, "attention_mask": mask.long(), "task": [name] * len(batch)}


def draw_confusion(matrix: Sequence[Sequence[int]], names: Sequence[str], folder: Path, title: str) -> Path:
    """Draw a confusion matrix, each row as shares of a task's inputs, to ``routing_confusion.png``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    counts = np.array(matrix, dtype=float)
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    figure = Figure(figsize=(1.6 + 1.1 * len(names), 1.3 + 0.9 * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("sent to the adapter of")
    axes.set_ylabel("input of")
    axes.set_title(title)
    for row in range(len(names)):
        for column in range(len(names)):
            share = shares[row, column]
            color = "white" if share > 0.5 else "black"
            text = f"{100 * share:.1f} %\n{int(counts[row, column])}"
            axes.text(column, row, text, ha="center", va="center", color=color, fontsize=8)
    figure.colorbar(image, ax=axes, label="share of the task's inputs", shrink=0.8)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "routing_confusion.png"
    figure.savefig(path, dpi=150)
    return path

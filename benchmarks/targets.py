"""What was aimed at with two CPU cores and 100 minutes, and what the result files say was reached."""

import json
from dataclasses import dataclass
from pathlib import Path

from dynamo_mtl.evaluation.result import Result, read_result
from dynamo_mtl.markdown import markdown_table

EXPERIMENTS = "experiments/reviews.json"
COMPARE = "compare-cpu.json"


@dataclass(frozen=True)
class Target:
    """One figure, and what it should be."""

    what: str
    aim: float
    reached: float
    digits: int
    at_least: bool = True

    @property
    def distance(self) -> float:
        """How far it is beyond the aim; negative where the aim was missed."""
        return self.reached - self.aim if self.at_least else self.aim - self.reached

    def row(self) -> list[str]:
        """As a row of a table."""
        distance, digits = self.distance, self.digits
        shown = "met" if distance >= 0 else f"missed by {-distance:.{digits}f}"
        return [
            self.what,
            f"{'≥' if self.at_least else '≤'} {self.aim:.{digits}f}",
            f"{self.reached:.{digits}f}",
            shown,
        ]


def targets(result: Result, compared: Result, reviews: dict[str, float]) -> list[Target]:
    """All targets.

    Args:
        result: of the full run.
        compared: of the comparison at equal, smaller budgets.
        reviews: variant → accuracy, of the experiment on sentiment.
    """
    own, trivial = result.systems["dynamo"], result.systems["trivial"]
    news, first_sentence = own["summarization"], trivial["summarization"]
    counts = result.parameters
    trained = counts["adapters"] + counts["router"] + counts["heads"]
    behind = 100 * (reviews["full fine-tuning"] - reviews["learning rate 5e-4"])
    return [
        Target("sentiment accuracy", 0.90, own["sentiment"]["accuracy"], 3),
        Target(
            "points that sentiment is behind our own full fine-tuning, both after 5,000 updates", 1.0,
            behind, 2, at_least=False,
        ),
        Target("qa F1", 73, own["qa"]["f1"], 1),
        Target("qa exact match", 60, own["qa"]["exact_match"], 1),
        Target("summarization ROUGE-1 above the first sentence", 4, news["rouge1"] - first_sentence["rouge1"], 1),
        Target("summarization ROUGE-2 above the first sentence", 1.5, news["rouge2"] - first_sentence["rouge2"], 1),
        Target("code BLEU", 72, own["code_generation"]["bleu"], 1),
        Target("code exact match", 0.55, own["code_generation"]["exact_match"], 3),
        Target("code that parses", 0.95, own["code_generation"]["parses"], 3),
        Target("translation BLEU", 34, own["translation"]["bleu"], 1),
        Target("translation chrF", 60, own["translation"]["chrf"], 1),
        Target("bare routing, mean over tasks", 0.995, result.routing["bare"]["macro"], 4),
        Target("bare routing, worst task", 0.99, result.routing["bare"]["worst_task"], 4),
        Target("dynamo over oracle, worst task", 0.995, min(_ratios(result, "oracle")), 4),
        Target("dynamo over single_task, worst task", 0.995, min(_ratios(result, "single_task")), 4),
        Target(
            "dynamo over full fine-tuning, mean over tasks, equal smaller budgets", 0.95,
            sum(_ratios(compared, "full_finetuning")) / len(compared.main_metrics), 3,
        ),
        Target(
            "trained numbers over those of full fine-tuning, without target vocabularies", 0.35,
            trained / (counts["backbone"] + counts["heads"]), 3, at_least=False,
        ),
        Target("minutes of training", 100, result.train_seconds / 60, 1, at_least=False),
    ]  # fmt: skip


def targets_table(path: Path) -> str:
    """The targets as a table; the other result files are looked for beside the one at ``path``."""
    content = json.loads((path.parent / EXPERIMENTS).read_text(encoding="utf-8"))
    reviews = {name: found["scores"]["accuracy"] for name, found in content["variants"].items()}
    found = targets(read_result(path), read_result(path.parent / COMPARE), reviews)
    return markdown_table(["what", "aimed at", "reached", ""], [target.row() for target in found])


def _ratios(result: Result, other: str) -> list[float]:
    systems, metrics = result.systems, result.main_metrics
    return [systems["dynamo"][task][name] / systems[other][task][name] for task, name in metrics.items()]

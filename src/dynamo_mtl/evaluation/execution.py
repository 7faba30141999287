"""Does generated code do what it should? Only for problems with tests, and only where a user has confirmed it."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any

import torch

from dynamo_mtl.errors import ConfigError
from dynamo_mtl.evaluation.inputs import Examples, task_input
from dynamo_mtl.inference.predictor import Predictor
from dynamo_mtl.inference.scoring import InputProgress, predict_examples
from dynamo_mtl.processes import here
from dynamo_mtl.sandbox.run import SHORTEST, SLACK, pass_at_k, run_tests
from dynamo_mtl.tasks.code_generation import CodeGeneration
from dynamo_mtl.tasks.task import Example

APART = 1_000_003
"""Between the seeds of the processes, so that they do not draw the same."""

logger = logging.getLogger(__name__)


def score_execution(predictor: Predictor, examples: Examples, samples: int, seed: int) -> dict[str, dict[str, Any]]:
    """Run generated code against its tests, every code task told its task.

    The reference solution runs first, in the same isolation: a problem that it does not solve is invalid. A program
    gets ``max(4 s, 4 × reference)``.

    Args:
        predictor: the system.
        examples: of every task.
        samples: programs for each problem; several need ``generation.sampling_temperature``.
        seed: of the draws.

    Returns:
        Task → ``pass@k`` for k = 1, 5, 10 as far as there are samples, ``problems``, ``invalid`` ones that are left
        out, ``samples``, and how many programs ended in which way.

    Raises:
        ConfigError: several samples of a task that decodes without sampling.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, task in predictor.system.tasks.items():
        rows = [row for row in examples[name] if row.tests]
        if not isinstance(task, CodeGeneration) or not rows:
            continue
        if samples > 1 and task.config.generation.sampling_temperature is None:
            raise ConfigError(
                f"--samples: found {samples}, but {name} decodes without drawing; set "
                f"tasks.{name}.generation.sampling_temperature and num_beams=1"
            )
        limits = [_limit(row) for row in rows]
        valid = [row for row, limit in zip(rows, limits, strict=True) if limit is not None]
        inputs = [task_input(predictor.system, name, row) for row in valid for _ in range(samples)]
        with torch.random.fork_rng():
            torch.manual_seed(seed + APART * here().rank)
            made = predict_examples(predictor, inputs, [name] * len(inputs), None, f"programs of {name}")
        programs = task.texts([p.answer for p in made])
        passed: list[int] = []
        outcomes: dict[str, int] = {}
        progress = InputProgress(f"tests of {name}", len(valid))
        for number, (row, limit) in enumerate(zip(valid, (x for x in limits if x is not None), strict=True)):
            own = programs[number * samples : (number + 1) * samples]
            verdicts = [run_tests(*_program(row, code), limit) for code in own]
            passed.append(sum(v.passed for v in verdicts))
            for verdict in verdicts:
                outcomes[verdict.outcome] = outcomes.get(verdict.outcome, 0) + 1
            progress.advance(1)
        chances = {k: [pass_at_k(samples, p, k) for p in passed] for k in (1, 5, 10) if k <= samples}
        found[name] = {
            **{f"pass@{k}": sum(values) / len(values) if values else 0.0 for k, values in chances.items()},
            "problems": len(valid),
            "invalid": len(rows) - len(valid),
            "samples": samples,
            "outcomes": outcomes,
        }
    return found


def _program(row: Example, code: str) -> tuple[str, Sequence[str]]:
    described = json.loads(row.tests or "{}")
    return f"{code}\n{described['setup']}", described["tests"]


def _limit(row: Example) -> float | None:
    """Seconds that a program gets; None where even the reference fails, or a test cannot be checked."""
    try:
        verdict = run_tests(*_program(row, row.target), 4 * SHORTEST)
    except ValueError as error:  # it could not be told from outside whether a program is right
        logger.debug("a problem is left out: %s", error)
        return None
    return max(SHORTEST, SLACK * verdict.seconds) if verdict.passed else None

"""Several tasks on one text: the layers below the adapters run once."""

from __future__ import annotations

import torch
from harness import Race, race
from rivals import Inputs, routed_model

LENGTH, TEXTS, TASKS = 64, 4, 5


def races(device: torch.device) -> dict[str, Race]:
    """Five tasks on each of four texts against five passes, over the tap; the default tap is what counts."""
    curve: dict[int, float] = {}
    found: dict[int, Race] = {}
    depth = 6
    default = routed_model("minilm", TASKS, device).tap_layer
    for tap in range(depth):
        model = routed_model("minilm", TASKS, device, tap_layer=tap)
        first = model.encoder.config.first_position
        once = Inputs.make([LENGTH] * TEXTS, first, device).batch
        rows = torch.arange(TEXTS, device=device).repeat_interleave(TASKS)
        every = Inputs.make([LENGTH] * TEXTS * TASKS, first, device).batch
        tokens = torch.cat([torch.arange(LENGTH, device=device) + int(row) * LENGTH for row in rows])
        tasks = torch.arange(TASKS, device=device).repeat(TEXTS)

        def shared(model=model, once=once, every=every, rows=rows, tokens=tokens, tasks=tasks) -> torch.Tensor:  # noqa: ANN001
            trunk = model.trunk(once).repeated(tokens, rows)
            return model(every, model.oracle_weights(tasks), top_k=1, trunk=trunk).hidden

        def passes(model=model, once=once) -> list[torch.Tensor]:  # noqa: ANN001
            oracle = [model.oracle_weights(torch.full((TEXTS,), task, device=device)) for task in range(TASKS)]
            return [model(once, weights, active=[task], top_k=1).hidden for task, weights in enumerate(oracle)]

        with torch.inference_mode():
            ours = shared().view(TEXTS, TASKS, LENGTH, -1)
            for task, states in enumerate(passes()):
                torch.testing.assert_close(ours[:, task].flatten(0, 1), states, atol=0.2, rtol=0.2)
            found[tap] = race(
                shared, passes, device, target=0.85, at_least=False,
                what="time of five tasks on one text over five passes",
            )  # fmt: skip
        curve[tap] = found[tap].ratio
    formula = {tap: (tap / depth + TASKS * (depth - tap) / depth) / TASKS for tap in range(depth)}
    best = found[default]
    details = {**best.details, "tap_layer": default, "measured_over_taps": curve, "work_over_taps": formula}
    return {"shared_trunk": Race(best.ratio, best.low, best.high, best.target, best.at_least, best.what, details)}

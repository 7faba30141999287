"""What a configuration needs in time and memory, calculated, with its code path run over random weights.

    python benchmarks/plan.py configs/roberta-base.yaml [key=value …] --output results/plan-roberta-base.json

For machines without the backbone's weights: a stand-in of its published shape, with a byte-level tokenizer of the same
size trained on the configured data, goes through all three phases with few steps. From that come the tokens of an
update and what the code path takes here; the rest is arithmetic, written out below.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from harness import machine
from rivals import backbone_folder
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from dynamo_mtl.checkpoint.metadata import read_metadata
from dynamo_mtl.config import DynamoConfig, load_config
from dynamo_mtl.system import System, load_system
from dynamo_mtl.tasks.registry import make_tasks
from dynamo_mtl.tasks.tables import all_examples
from dynamo_mtl.training.run import load_tables, train

SHAPE = "roberta-base"
SIZES = (50265, 514)
"""Words and positions of roberta-base."""
TOKENIZER_TEXTS = 20_000
"""Training examples of each task that the stand-in's tokenizer is trained on."""
STEPS = 12
"""Of each task and of phase 3, in the run of the code path."""
GPU_FLOPS, UTILISATION = 312e12, 0.3
"""Dense bf16 peak of an A100 (its data sheet), and the share of it that is assumed."""
ADAM = 16
"""Bytes of a trained number: fp32 value, gradient and two moments."""
KEPT_PER_TOKEN = 34
"""Bytes kept for the backward pass per token, layer and unit of width, without the attention matrix, which the fused
kernels recompute (Korthikanti et al. 2022, arXiv 2205.05198, section 4.1)."""
GIB = 1024**3


def make_stand_in(config: DynamoConfig) -> Path:
    """Random weights of the shape, and a byte-level tokenizer of its size for the configured data."""
    folder = backbone_folder(SHAPE)
    tables = load_tables(config, make_tasks(config.tasks))

    def texts() -> Any:
        for table in tables.values():
            for example in itertools.islice(all_examples(table.train), TOKENIZER_TEXTS):
                yield from (text for text in (example.text, example.context) if text)

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        texts(), trainers.BpeTrainer(vocab_size=SIZES[0], special_tokens=special, initial_alphabet=alphabet)
    )
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    names = dict(zip(("bos", "pad", "eos", "unk", "mask"), special, strict=True))
    tokens = {f"{name}_token": token for name, token in names.items()}
    PreTrainedTokenizerFast(
        tokenizer_object=backend, cls_token="<s>", sep_token="</s>", model_max_length=SIZES[1] - 2, **tokens
    ).save_pretrained(folder)
    return folder


def run_code_path(path: Path, overrides: Sequence[str], backbone: Path, place: Path) -> tuple[System, dict[str, Any]]:
    """Train all three phases with few steps. Returns the system, and what each stretch took."""
    tasks = load_config(path, overrides).tasks
    short = [
        *(f"tasks.{name}.training.max_steps={STEPS}" for name in tasks),
        *(f"tasks.{name}.train_examples=2000" for name in tasks),
        *(f"tasks.{name}.validation_examples=50" for name in tasks),
        "training.router.examples_per_task=200", "training.router.mixture_steps=2", "training.router.feature_epochs=1",
        f"training.joint.max_steps={STEPS}", "training.joint.examples_per_task=100", "training.eval_examples=8",
        f"training.log_every={STEPS}", f"model.base_model_name={backbone}",
        f"checkpoint_dir={place / 'checkpoints'}", f"log_dir={place / 'logs'}",
    ]  # fmt: skip
    final = train(load_config(path, [*overrides, *short]), (1, 2, 3))
    lines = (place / "logs" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rates = [record for record in map(json.loads, lines) if "tokens_per_second" in record]
    took = {
        record["phase"]: {
            "tokens_an_update": record["tokens_per_second"] / record["steps_per_second"],
            "seconds_an_update_here": 1 / record["steps_per_second"],
        }
        for record in rates
    }
    metadata = read_metadata(final)
    return load_system(final, torch.device("cpu"))[0], {"stretches": took, "peak_mib": metadata.peak_memory_mib}


def plan(config: DynamoConfig, system: System, run: dict[str, Any]) -> dict[str, Any]:
    """Parameters, memory and time of the whole configuration.

    A frozen layer costs 2 floating-point operations per parameter and token forward, and 2 backward where a gradient
    passes through it, which is above the tap; the adapters' own products and attention's are left out.
    """
    model = system.model
    layers, width = model.encoder.config.num_layers, model.encoder.config.hidden_size
    layer = sum(p.numel() for p in model.encoder.layers[0].parameters())
    above = layers - model.tap_layer
    backbone = sum(p.numel() for p in model.encoder.parameters())
    trained = {name: sum(p.numel() for p in model.bank[name].parameters()) for name in system.tasks}
    heads = {name: sum(p.numel() for p in model.head(name).parameters()) for name in system.tasks}
    router = sum(p.numel() for p in model.router.parameters())
    everything = sum(trained.values()) + sum(heads.values()) + router
    budget = config.training.token_budget
    stretches: dict[str, Any] = {}
    for phase, found in run["stretches"].items():
        task = phase.removeprefix("phase 1 ")
        steps = config.tasks[task].training.max_steps if task in config.tasks else None
        steps = config.training.joint.max_steps if phase.startswith("phase 3") else steps
        if not steps:
            continue
        flops = steps * found["tokens_an_update"] * layer * (2 * layers + 2 * above)
        stretches[phase] = {
            **found,
            "updates": steps,
            "flops": flops,
            "gpu_minutes": flops / (GPU_FLOPS * UTILISATION) / 60,
            "hours_here": steps * found["seconds_an_update_here"] / 3600,
        }
    return {
        "parameters": {"backbone": backbone, "adapters": trained, "heads": heads, "router": router},
        "trained_over_full_finetuning": everything / (backbone + sum(heads.values())),
        "trained_over_full_finetuning_without_heads": (sum(trained.values()) + router) / backbone,
        "gib": {
            "backbone in bf16": 2 * backbone / GIB,
            "adapters, heads and router with gradients and moments": ADAM * everything / GIB,
            f"kept for the backward pass of {budget:,} tokens": KEPT_PER_TOKEN * width * above * budget / GIB,
        },
        "stretches": stretches,
        "peak_mib_here": run["peak_mib"],
    }


def main() -> None:
    """Parse the command line, run, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--output", type=Path, required=True)
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config = load_config(chosen.config, chosen.overrides)
    backbone = make_stand_in(config)
    with tempfile.TemporaryDirectory() as place:
        system, run = run_code_path(chosen.config, chosen.overrides, backbone, Path(place))
    content = {
        "config": str(chosen.config),
        "shape": SHAPE,
        "assumes": {"gpu_flops": GPU_FLOPS, "utilisation": UTILISATION},
        **plan(config, system, run),
        "machine": machine(torch.device("cpu")),
    }
    chosen.output.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Training steps against PEFT: one task under the Trainer of ``transformers``, five tasks by switching adapters."""

from __future__ import annotations

import random
import tempfile
from typing import Any

import rivals
import torch
from harness import Race, peak_extra_mib, race
from rivals import LENGTHS, Inputs, peft_model, routed_model
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from dynamo_mtl.model.dynamo import DynamoModel
from dynamo_mtl.model.heads import ClassificationHead

STEPS = 6
BATCH = 32


class Classifier(nn.Module):
    """A classification head over a PEFT model, with the loss that the Trainer asks for."""

    def __init__(self, encoder: Any, head: ClassificationHead) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Padded rows and their classes → the mean loss."""
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state.float()
        mask = attention_mask[..., None].float()
        mean = (states * mask).sum(dim=1) / mask.sum(dim=1)
        logits = self.head(states[:, 0], mean)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def our_loss(model: DynamoModel, head: ClassificationHead, inputs: Inputs, labels: Tensor, adapter: int) -> Tensor:
    """The mean loss of a packed batch that is known to belong to one adapter."""
    rows = inputs.batch.example_count
    weights = model.oracle_weights(torch.full((rows,), adapter, device=labels.device))
    states = model(inputs.batch, weights, active=[adapter], top_k=1).hidden.float()[: len(inputs.batch.windows)]
    owners = inputs.batch.top_examples[: len(states)]
    counts = torch.bincount(owners, minlength=rows)[:, None]
    mean = states.new_zeros(rows, states.shape[1]).index_add(0, owners, states) / counts
    return nn.functional.cross_entropy(head(states[inputs.batch.starts], mean), labels)


def races(device: torch.device) -> dict[str, Race]:
    """One task and five."""
    return {"train_vs_peft_trainer": _one_task(device), "mixed_step_vs_peft": _five_tasks(device)}


def _trainable(model: DynamoModel, names: list[str]) -> list[nn.Parameter]:
    model.train()
    chosen = [p for name in names for p in model.bank[name].parameters()]
    for parameter in chosen:
        parameter.requires_grad_(True)
    return chosen


def _one_task(device: torch.device) -> Race:
    model = routed_model("minilm", 1, device)
    mixed = model.dtype != torch.float32
    torch.manual_seed(0)
    heads = [ClassificationHead(model.encoder.config.hidden_size, 2, 0.0).to(device) for _ in range(2)]
    heads[1].load_state_dict(heads[0].state_dict())
    rng = random.Random(0)
    lengths = [rng.choice(LENGTHS["sentiment"]) for _ in range(BATCH * STEPS)]
    first = model.encoder.config.first_position
    batches = [Inputs.make(lengths[n : n + BATCH], first, device, seed=n) for n in range(0, len(lengths), BATCH)]
    classes = torch.tensor([rng.randrange(2) for _ in lengths], device=device)
    labels = list(classes.split(BATCH))

    rival = Classifier(peft_model(model, "minilm", torch.float32, device), heads[1])
    rows = [
        {"input_ids": ids, "labels": int(label)}
        for inputs, own in zip(batches, labels, strict=True)
        for ids, label in zip(inputs.ids, own, strict=True)
    ]
    folder = tempfile.mkdtemp(prefix="dynamo-bench-")
    arguments = TrainingArguments(
        folder, per_device_train_batch_size=BATCH, max_steps=STEPS, learning_rate=1e-4, bf16=mixed, report_to="none",
        save_strategy="no", logging_strategy="no", disable_tqdm=True, use_cpu=device.type == "cpu",
        dataloader_num_workers=0, lr_scheduler_type="constant", weight_decay=0.01, max_grad_norm=1.0,
        train_sampling_strategy="sequential",
    )  # fmt: skip

    def pad(members: list[dict[str, Any]]) -> dict[str, Tensor]:
        longest = max(len(m["input_ids"]) for m in members)
        padded = [m["input_ids"] + [0] * (longest - len(m["input_ids"])) for m in members]
        mask = [[1] * len(m["input_ids"]) + [0] * (longest - len(m["input_ids"])) for m in members]
        return {
            "input_ids": torch.tensor(padded),
            "attention_mask": torch.tensor(mask),
            "labels": torch.tensor([m["labels"] for m in members]),
        }

    trainer = Trainer(rival, arguments, data_collator=pad, train_dataset=rows)  # pyright: ignore

    parameters = [*_trainable(model, model.task_names), *heads[0].parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.01, fused=True)

    def ours() -> None:
        for number, own in enumerate(labels):
            ids = lengths[number * BATCH : (number + 1) * BATCH]
            inputs = Inputs.make(ids, first, device, seed=number * BATCH)  # packing is part of a step
            our_loss(model, heads[0], inputs, own, 0).backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def one_step_theirs() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            loss = rival(batches[0].padded, batches[0].mask, labels[0])["loss"]
        loss.backward()
        rival.zero_grad(set_to_none=True)

    def one_step_ours() -> None:
        our_loss(model, heads[0], batches[0], labels[0], 0).backward()
        optimizer.zero_grad(set_to_none=True)

    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=mixed):
        theirs = rival(batches[0].padded, batches[0].mask, labels[0])["loss"]
    with torch.no_grad():
        torch.testing.assert_close(our_loss(model, heads[0], batches[0], labels[0], 0), theirs, atol=2e-2, rtol=2e-2)
    memory = [peak_extra_mib(run, device) for run in (one_step_ours, one_step_theirs)]
    return race(
        trainer.train, ours, device, target=1.3, at_least=True, pairs=7, steps=STEPS, batch=BATCH,
        extra_mib={"dynamo": memory[0], "peft": memory[1]}, memory_ratio=memory[0] / memory[1], memory_target=0.8,
        memory_met=memory[0] / memory[1] <= 0.8,
        what="time of PEFT under the transformers Trainer over ours, the same batches of one task",
    )  # fmt: skip


def _five_tasks(device: torch.device) -> Race:
    """One mixed step with all adapters' gradients, against a micro-batch for each adapter."""
    model = routed_model("minilm", 5, device)
    torch.manual_seed(0)
    head = ClassificationHead(model.encoder.config.hidden_size, 2, 0.0).to(device)
    rival = peft_model(model, "minilm", torch.float32, device)
    first = model.encoder.config.first_position
    lengths = [n for own in LENGTHS.values() for n in own]
    owner = torch.tensor([task for task, own in enumerate(LENGTHS.values()) for _ in own], device=device)
    labels = torch.tensor([n % 2 for n in range(len(lengths))], device=device)
    whole = Inputs.make(lengths, first, device)
    parts = [Inputs.make(own, first, device) for own in LENGTHS.values()]
    start = 0
    for part in parts:  # the same words as in the whole batch
        ids = whole.ids[start : start + len(part.ids)]
        longest = max(map(len, ids))
        part.padded.copy_(torch.tensor([row + [0] * (longest - len(row)) for row in ids]))
        start += len(part.ids)
    _trainable(model, model.task_names)
    mixed = model.dtype != torch.float32
    classifier = Classifier(rival, head)

    def ours() -> Tensor:
        states = model(whole.batch, model.oracle_weights(owner), top_k=1).hidden.float()[: len(whole.batch.windows)]
        rows = whole.batch.top_examples[: len(states)]
        counts = torch.bincount(rows, minlength=len(lengths))[:, None]
        mean = states.new_zeros(len(lengths), states.shape[1]).index_add(0, rows, states) / counts
        losses = nn.functional.cross_entropy(head(states[whole.batch.starts], mean), labels)
        losses.backward()
        return losses.detach()

    def theirs() -> Tensor:
        total = torch.zeros((), device=device)
        for task, (name, part) in enumerate(zip(model.task_names, parts, strict=True)):
            rival.set_adapter(name)
            with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
                loss = classifier(part.padded, part.mask, labels[owner == task])["loss"] / len(parts)
            loss.backward()
            total += loss.detach()
        return total

    torch.testing.assert_close(ours(), theirs(), atol=2e-2, rtol=2e-2)
    return race(
        theirs, ours, device, target=1.2, at_least=True, examples=len(lengths), sites=list(rivals.SITES)[:2],
        what="time of five PEFT micro-batches with set_adapter over one mixed step",
    )  # fmt: skip

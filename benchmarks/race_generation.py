"""Generation of 64 tokens for 16 inputs: with and without a cache, and beside an encoder-decoder of the same shape.

The inputs have the lengths of the three tasks that generate, in turn.
"""

from __future__ import annotations

from typing import Any

import torch
from harness import Race, race
from rivals import LENGTHS, Inputs, backbone_folder, routed_model
from transformers import BertConfig, BertLMHeadModel, BertModel, EncoderDecoderModel

from dynamo_mtl.inference.decoding import Decoder, make_cache
from dynamo_mtl.inference.draft import Draft
from dynamo_mtl.model.batch import Target, Window, build_batch, to_device
from dynamo_mtl.model.dynamo import DynamoModel
from dynamo_mtl.model.heads import LanguageModelHead
from dynamo_mtl.tasks.generation_task import GenerationConfig

ROWS, TOKENS, BOS, EOS = 16, 64, 101, 102


def races(device: torch.device) -> dict[str, Race]:
    """Greedy decoding in the backbone's vocabulary; every row runs to the full length."""
    model = routed_model("minilm", 5, device, heads="language_model")
    head = model.task_names[0]
    by_task = zip(*(LENGTHS[task] for task in ("summarization", "code_generation", "translation")), strict=True)
    lengths = [length for own in by_task for length in own][:ROWS]
    inputs = Inputs.make(lengths, model.encoder.config.first_position, device)
    settings = GenerationConfig(max_new_tokens=TOKENS, min_new_tokens=TOKENS)
    rival = _encoder_decoder(model, device)

    def with_cache() -> list[list[int]]:
        output = model(inputs.batch, record=True)
        cache = make_cache(output.recorded, inputs.batch, list(range(ROWS)), TOKENS, model.encoder.config.num_heads)
        drafts = [Draft(head, own, BOS, EOS, settings) for own in output.weights]
        decoder = Decoder(model)
        decoder.add(drafts, cache, range(len(model.task_names)))
        while decoder.drafts:
            decoder.step()
        return [draft.best().ids for draft in drafts]

    def encoder_decoder() -> Any:
        return rival.generate(
            inputs.padded, attention_mask=inputs.mask, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False,
            num_beams=1, decoder_start_token_id=BOS, bos_token_id=BOS, eos_token_id=EOS, pad_token_id=0,
        )  # fmt: skip

    with torch.inference_mode():
        fast, slow = with_cache(), _without_cache(model, head, inputs, device)
        # In bf16 two candidates may tie within rounding, after which the rest differs: most must be equal to the end.
        equal = sum(a[: len(b)] == b for a, b in zip(fast, slow, strict=True))
        assert equal >= ROWS - 4, f"{equal} of {ROWS} rows agree"
        assert all(len(ids) == TOKENS for ids in fast)
        assert encoder_decoder().shape[1] == TOKENS + 1
        return {
            "generate_vs_no_cache": race(
                lambda: _without_cache(model, head, inputs, device), with_cache, device, target=10, at_least=True,
                pairs=3, rows=ROWS, tokens=TOKENS, rows_equal=equal,
                what="time of decoding by a whole pass for each token over decoding with the cache",
            ),
            "generate_vs_encoder_decoder": race(
                encoder_decoder, with_cache, device, target=1.3, at_least=True, pairs=5, rows=ROWS, tokens=TOKENS,
                what="time of transformers generating with an encoder and a decoder of the same shape over ours",
            ),
        }  # fmt: skip


def _without_cache(model: DynamoModel, head: str, inputs: Inputs, device: torch.device) -> list[list[int]]:
    """Greedy decoding by a whole pass over source and target for every token."""
    answers: list[list[int]] = [[] for _ in inputs.ids]
    module = model.head(head)
    assert isinstance(module, LanguageModelHead)
    for _ in range(TOKENS):
        windows = [Window(ids, row) for row, ids in enumerate(inputs.ids)]
        targets = [Target(row, head, [BOS, *own]) for row, own in enumerate(answers)]
        batch = to_device(build_batch(windows, targets, model.encoder.config.first_position), device)
        hidden = model(batch).hidden
        first, last = batch.target_slices[head]
        ends = torch.arange(first, last, device=device).view(len(answers), -1)[:, -1]
        logits = module(hidden[ends])
        logits[:, EOS] = float("-inf")
        for own, token in zip(answers, logits.argmax(dim=1).tolist(), strict=True):
            own.append(token)
    return answers


def _encoder_decoder(model: DynamoModel, device: torch.device) -> Any:
    folder = backbone_folder("minilm")
    config = BertConfig.from_pretrained(folder, is_decoder=True, add_cross_attention=True)
    torch.manual_seed(0)
    encoder = BertModel.from_pretrained(folder, add_pooling_layer=False)
    rival = EncoderDecoderModel(encoder=encoder, decoder=BertLMHeadModel(config))
    rival.generation_config.eos_token_id = None
    return rival.to(model.dtype).to(device).eval()

"""Target vocabularies of generation tasks: an own byte-level BPE trained on the targets, or the backbone's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from dynamo_mtl.model.backbone import SourceTokenizer
from dynamo_mtl.tasks.encoding import clean

START, END = "<s>", "</s>"


@dataclass(frozen=True)
class TargetVocabulary:
    """Text ↔ target ids. A byte-level one gives back every text exactly: capitals, indentation, line breaks."""

    backend: Tokenizer
    start: int
    """Fed before the first token."""
    end: int
    """Predicted after the last token."""
    own: bool

    @property
    def size(self) -> int:
        """Number of ids."""
        return self.backend.get_vocab_size()

    def encode(self, text: str, limit: int) -> list[int]:
        """Ids of a text without start and end, cut to ``limit``."""
        return self.backend.encode(clean(text)[: limit * 64], add_special_tokens=False).ids[:limit]

    def decode(self, ids: list[int]) -> str:
        """Text of ids up to the first end; start and end are left out."""
        if self.end in ids:
            ids = ids[: ids.index(self.end)]
        return self.backend.decode([i for i in ids if i != self.start], skip_special_tokens=False)

    def to_json(self) -> str:
        """The vocabulary as a ``tokenizers`` JSON text."""
        return self.backend.to_str()


def train_vocabulary(texts: Iterable[str], size: int) -> TargetVocabulary:
    """Train a byte-level BPE of at most ``size`` ids (at least 258: bytes, start and end)."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator((clean(text) for text in texts), trainer)
    return own_vocabulary(backend)


def own_vocabulary(backend: Tokenizer) -> TargetVocabulary:
    """Wrap a trained byte-level tokenizer; start and end inside a text stay plain text."""
    backend.encode_special_tokens = True
    start, end = backend.token_to_id(START), backend.token_to_id(END)
    if start is None or end is None:
        raise ValueError(f"the vocabulary lacks {START} or {END}")
    return TargetVocabulary(backend, start, end, own=True)


def backbone_vocabulary(tokenizer: SourceTokenizer) -> TargetVocabulary:
    """The backbone's own vocabulary as a target vocabulary."""
    return TargetVocabulary(tokenizer.backend, tokenizer.first, tokenizer.separator, own=False)


def mean_embeddings(vocabulary: TargetVocabulary, tokenizer: SourceTokenizer, table: Tensor) -> Tensor:
    """Start embeddings of an own vocabulary: each the mean of the backbone's embeddings of the token's text.

    Args:
        vocabulary: an own vocabulary.
        tokenizer: the backbone's.
        table: the backbone's word embeddings ``(backbone vocabulary, hidden)``.

    Returns:
        ``(vocabulary, hidden)``; tokens without text start from the mean of the whole table.
    """
    fallback = table.mean(dim=0)
    rows: list[Tensor] = []
    for index in range(vocabulary.size):
        text = vocabulary.backend.decode([index], skip_special_tokens=False)
        ids = (
            []
            if index in (vocabulary.start, vocabulary.end)
            else tokenizer.backend.encode(text, add_special_tokens=False).ids
        )
        rows.append(table[ids].mean(dim=0) if ids else fallback)
    return torch.stack(rows)

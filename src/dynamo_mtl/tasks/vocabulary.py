"""Target vocabularies of generation tasks: an own byte-level BPE trained on the targets, or the backbone's."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from dynamo_mtl.model.backbone import SourceTokenizer
from dynamo_mtl.tasks.copying import split_copied
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

    @property
    def is_exact(self) -> bool:
        """Whether it gives back every text as it was, with capitals and blanks."""
        return isinstance(self.backend.decoder, decoders.ByteLevel)

    def encode(self, text: str, limit: int, words: Mapping[str, int] | None = None) -> list[int]:
        """Ids of a text without start and end, cut to ``limit``.

        Args:
            text: any text.
            limit: maximum number of ids.
            words: words that are copied instead of spelled; their ids are ``size`` plus their number.
        """
        ids: list[int] = []
        size = self.size
        for part in split_copied(clean(text)[: limit * 64], words or {}):
            ids += [size + part] if isinstance(part, int) else self._spell(part)
        return ids[:limit]

    def _spell(self, text: str) -> list[int]:
        return self.backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int], words: Mapping[str, int] | None = None) -> str:
        """Text of ids up to the first end; start and end are left out. ``words`` as for ``encode``."""
        if self.end in ids:
            ids = ids[: ids.index(self.end)]
        texts = list(words or ())
        size = self.size
        parts: list[str] = []
        for copied, group in itertools.groupby((i for i in ids if i != self.start), key=lambda i: i >= size):
            run = list(group)
            parts += [texts[i - size] for i in run] if copied else [self.backend.decode(run, skip_special_tokens=False)]
        return "".join(parts)

    def to_json(self) -> str:
        """The vocabulary as a ``tokenizers`` JSON text."""
        return self.backend.to_str()


def train_vocabulary(texts: Iterable[str], size: int, across_words: bool = False) -> TargetVocabulary:
    """Train a byte-level BPE.

    Args:
        texts: texts like those that it will encode.
        size: maximum number of ids, at least 258: bytes, start and end.
        across_words: whether a token may span several words of a line; used for the text between copied words.
    """
    backend = Tokenizer(models.BPE())
    lines = pre_tokenizers.Split(Regex(r"\n\s*"), behavior="isolated")
    whole = pre_tokenizers.Sequence([lines, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    backend.pre_tokenizer = whole if across_words else pre_tokenizers.ByteLevel(add_prefix_space=False)
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
    """Initial embeddings of an own vocabulary: for each token, the mean of the backbone's embeddings of its text.

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

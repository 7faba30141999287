"""Task heads. A task picks one by ``HeadConfig``; a head knows hidden states and nothing of the task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dynamo_mtl.model.padded_plan import round_up


@dataclass(frozen=True)
class HeadConfig:
    """Which head a task needs, and its sizes."""

    kind: Literal["classification", "regression", "choice", "token", "language_model"]
    labels: int = 0
    """Outputs of a head that writes no text."""
    vocabulary: int | None = None
    """Own target vocabulary of a language-model head; None ties it to the backbone's word embeddings."""
    copies: bool = False
    """Whether a language-model head may also point at words of the source."""
    dropout: float = 0.1
    pooling: Literal["first_and_mean", "first"] = "first_and_mean"
    """What a head for whole texts reads."""


@dataclass(frozen=True)
class Copyable:
    """The words that a language-model head may copy, with a row for each source or for each hidden state."""

    keys: Tensor
    """``(rows, occurrences, width)`` pointer keys of the tokens where words begin."""
    words: Tensor
    """``(rows, occurrences)`` number of the word that begins there; -1 where there is none."""
    pieces: Tensor
    """``(rows, words)`` backbone token that stands for each word when it is fed."""

    def select(self, rows: Tensor) -> Copyable:
        """Keep, drop, repeat or reorder rows."""
        return Copyable(*(part.index_select(0, rows) for part in (self.keys, self.words, self.pieces)))

    def joined(self, other: Copyable) -> Copyable:
        """The rows of both."""
        pairs = ((self.keys, other.keys), (self.words, other.words), (self.pieces, other.pieces))
        return Copyable(*(_stacked(*pair, fill) for pair, fill in zip(pairs, (0, -1, 0), strict=True)))

    def pieces_of(self, words: Tensor) -> Tensor:
        """Backbone tokens ``(rows,)`` of one word a row, by number; any token where the number is negative."""
        return self.pieces.gather(1, words.clamp_min(0)[:, None])[:, 0]


def _stacked(first: Tensor, second: Tensor, fill: int) -> Tensor:
    """Concatenate rows, after padding the shorter ones along dimension 1."""
    longest = max(first.shape[1], second.shape[1])

    def long(part: Tensor) -> Tensor:
        missing = longest - part.shape[1]
        return F.pad(part, (0, 0) * (part.dim() - 2) + (0, missing), value=fill)

    return torch.cat([long(first), long(second)])


class ClassificationHead(nn.Module):
    """Two layers over the state of the first token of a window, by default with the mean state beside it."""

    def __init__(self, hidden: int, config: HeadConfig) -> None:
        super().__init__()
        self.reads_mean = config.pooling == "first_and_mean"
        self.dense = nn.Linear((1 + self.reads_mean) * hidden, hidden)
        self.dropout = nn.Dropout(config.dropout)
        self.out = nn.Linear(hidden, config.labels)

    def forward(self, first: Tensor, mean: Tensor) -> Tensor:
        """``(windows, hidden)`` twice → logits ``(windows, labels)`` in fp32."""
        read = torch.cat([first, mean], dim=-1) if self.reads_mean else first
        inner = torch.tanh(self.dense(read.float()))
        return self.out(self.dropout(inner))


class RegressionHead(ClassificationHead):
    """A head whose outputs are standardised scores. It knows the mean and the spread of the scores it was trained on.

    ``forward`` gives standardised values: ``(value - mean) / spread``.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, hidden: int, config: HeadConfig) -> None:
        super().__init__(hidden, config)
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("spread", torch.zeros(()))

    @property
    def is_fitted(self) -> bool:
        """Whether mean and spread are known."""
        return bool(self.spread > 0)

    def values(self, outputs: Tensor) -> Tensor:
        """Standardised values → scores as they are in the data."""
        return outputs * self.spread + self.mean


class ChoiceHead(nn.Module):
    """One scorer for every option, which reads the state of the marker in front of it."""

    def __init__(self, hidden: int, config: HeadConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden, hidden)
        self.dropout = nn.Dropout(config.dropout)
        self.out = nn.Linear(hidden, 1)

    def forward(self, markers: Tensor) -> Tensor:
        """``(options, hidden)`` → ``(options,)`` in fp32."""
        return self.out(self.dropout(torch.tanh(self.dense(markers.float()))))[:, 0]


class TokenHead(nn.Module):
    """Scores of every token: its classes, or whether an answer starts or ends there."""

    def __init__(self, hidden: int, labels: int) -> None:
        super().__init__()
        self.out = nn.Linear(hidden, labels)

    def forward(self, hidden: Tensor) -> Tensor:
        """``(tokens, hidden)`` → ``(tokens, labels)`` in fp32."""
        return self.out(hidden.float())


class Pointer(nn.Module):
    """Scores words of the source as next tokens (copy mode of CopyNet, Gu et al. 2016, arXiv 1603.06393, eq. 8).

    A word's score is the log-sum-exp over its occurrences (eq. 6), in one softmax with the vocabulary.
    """

    WIDTH = 128

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.query = nn.Linear(hidden, self.WIDTH)
        self.key = nn.Linear(hidden, self.WIDTH)
        self.fed = nn.Parameter(torch.zeros(hidden))
        """Added to the backbone's embedding of a copied word when it is fed."""

    def forward(self, hidden: Tensor, source: Copyable) -> Tensor:
        """``(rows, hidden)`` → scores ``(rows, words)`` in fp32; minus infinity where a row has no such word."""
        query = self.query(hidden.float())
        at = torch.einsum("rw,row->ro", query, source.keys) * self.WIDTH**-0.5
        at = at.masked_fill(source.words < 0, float("-inf"))
        highest = at.detach().amax(dim=1, keepdim=True).nan_to_num(neginf=0.0)
        share = torch.exp(at - highest)
        sums = at.new_zeros(source.pieces.shape).scatter_add(1, source.words.clamp_min(0), share)
        scores = torch.log(sums.clamp_min(torch.finfo(sums.dtype).tiny)) + highest
        return scores.masked_fill(sums == 0, float("-inf"))


class LanguageModelHead(nn.Module):
    """Next-token logits, tied to the embeddings of the target tokens.

    With its own vocabulary, the head has trainable embeddings. Otherwise it uses the backbone's frozen word embeddings,
    and its transform has the form of the published masked-language-model head, so that it can start from published
    weights. With a pointer, ids from ``vocabulary_size`` on are words of the source.
    """

    def __init__(
        self, hidden: int, vocabulary: int | None, backbone_embeddings: nn.Embedding, eps: float, copies: bool = False
    ) -> None:
        super().__init__()
        self.own_vocabulary = vocabulary is not None
        self.dense = nn.Linear(hidden, hidden)
        self.norm = nn.LayerNorm(hidden, eps=eps)
        nn.init.eye_(self.dense.weight)
        nn.init.zeros_(self.dense.bias)
        # A tuple, so that the frozen table is neither a parameter of the head nor saved with it.
        self._backbone_embeddings = (backbone_embeddings,)
        self.embeddings = nn.Parameter(torch.empty(vocabulary, hidden)) if vocabulary else None
        self.bias = nn.Parameter(torch.zeros(vocabulary or backbone_embeddings.num_embeddings))
        if self.embeddings is not None:
            nn.init.normal_(self.embeddings, std=float(backbone_embeddings.weight.float().std()))
        self.pointer = Pointer(hidden) if copies else None

    @property
    def vocabulary_size(self) -> int:
        """Number of ids that are not copied words."""
        return len(self.bias)

    @property
    def table(self) -> Tensor:
        """Token embeddings ``(vocabulary, hidden)``."""
        return self._backbone_embeddings[0].weight if self.embeddings is None else self.embeddings

    def embed(self, ids: Tensor, pieces: Tensor | None = None) -> Tensor:
        """Word vectors ``(tokens, hidden)`` of target tokens.

        Args:
            ids: ``(tokens,)``.
            pieces: ``(tokens,)`` backbone token that stands for each copied word; needed with a pointer.
        """
        if self.pointer is None:
            return F.embedding(ids, self.table)
        assert pieces is not None
        copied = ids >= self.vocabulary_size
        words = F.embedding(ids.masked_fill(copied, 0), self.table)
        fed = F.embedding(pieces, self._backbone_embeddings[0].weight) + self.pointer.fed
        return torch.where(copied[:, None], fed, words)

    def copyable(self, states: Tensor, words: Tensor, pieces: Tensor) -> Copyable:
        """What rows may copy, from the top's states ``(rows, occurrences, hidden)`` where words begin."""
        assert self.pointer is not None
        return Copyable(self.pointer.key(states.float()), words, pieces)

    def forward(self, hidden: Tensor, source: Copyable | None = None) -> Tensor:
        """``(rows, hidden)`` → logits in fp32; the large product is in the input's type.

        Returns:
            ``(rows, vocabulary)``, followed by ``(rows, words)`` for the words that may be copied.
        """
        inner = self.dense(hidden.float())
        if not self.own_vocabulary:
            inner = F.gelu(inner)
        rows, states = len(inner), self.norm(inner).to(hidden.dtype)
        padding = round_up(rows) - rows if states.device.type == "cpu" else 0
        # Adding the fp32 bias gives fp32; converting first would cost one more pass over the vocabulary.
        logits = F.linear(F.pad(states, (0, 0, 0, padding)), self.table.to(hidden.dtype))[:rows] + self.bias
        if self.pointer is None or source is None:
            return logits
        return torch.cat([logits, self.pointer(hidden, source)], dim=1)


Head = ClassificationHead | RegressionHead | ChoiceHead | TokenHead | LanguageModelHead


def build_head(config: HeadConfig, hidden: int, backbone_embeddings: nn.Embedding, eps: float) -> Head:
    """Make the head that ``config`` describes, freshly initialised."""
    if config.kind == "classification":
        return ClassificationHead(hidden, config)
    if config.kind == "regression":
        return RegressionHead(hidden, config)
    if config.kind == "choice":
        return ChoiceHead(hidden, config)
    if config.kind == "token":
        return TokenHead(hidden, config.labels)
    return LanguageModelHead(hidden, config.vocabulary, backbone_embeddings, eps, config.copies)

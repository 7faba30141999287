"""Task heads. A task picks one by ``HeadConfig``; a head knows hidden states and nothing of the task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class HeadConfig:
    """Which head a task needs, and its sizes."""

    kind: Literal["classification", "span", "language_model"]
    labels: int = 0
    """Classes of a classification head."""
    vocabulary: int | None = None
    """Own target vocabulary of a language-model head; None ties it to the backbone's word embeddings."""
    dropout: float = 0.1


class ClassificationHead(nn.Module):
    """Two layers on the first token's state beside the mean state of an input."""

    def __init__(self, hidden: int, labels: int, dropout: float) -> None:
        super().__init__()
        self.dense = nn.Linear(2 * hidden, hidden)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(hidden, labels)

    def forward(self, first: Tensor, mean: Tensor) -> Tensor:
        """``(examples, hidden)`` twice → logits ``(examples, labels)`` in fp32."""
        inner = torch.tanh(self.dense(torch.cat([first, mean], dim=-1).float()))
        return self.out(self.dropout(inner))


class SpanHead(nn.Module):
    """Start and end scores of every token."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.out = nn.Linear(hidden, 2)

    def forward(self, hidden: Tensor) -> Tensor:
        """``(tokens, hidden)`` → ``(tokens, 2)`` in fp32."""
        return self.out(hidden.float())


class LanguageModelHead(nn.Module):
    """Next-token logits, tied to the embeddings of the target tokens.

    With an own vocabulary the embeddings are trainable parameters of the head. Without, they are the backbone's frozen
    word embeddings, and the transform has the form of the published masked-language-model head, so that it can start
    from published weights.
    """

    def __init__(self, hidden: int, vocabulary: int | None, backbone_embeddings: nn.Embedding, eps: float) -> None:
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

    @property
    def table(self) -> Tensor:
        """Token embeddings ``(vocabulary, hidden)``."""
        return self._backbone_embeddings[0].weight if self.embeddings is None else self.embeddings

    def embed(self, ids: Tensor) -> Tensor:
        """Target token ids ``(tokens,)`` → word vectors ``(tokens, hidden)``."""
        return F.embedding(ids, self.table)

    def forward(self, hidden: Tensor) -> Tensor:
        """``(tokens, hidden)`` → logits ``(tokens, vocabulary)`` in fp32; the large product is in the input's type."""
        inner = self.dense(hidden.float())
        if not self.own_vocabulary:
            inner = F.gelu(inner)
        return F.linear(self.norm(inner).to(hidden.dtype), self.table.to(hidden.dtype)).float() + self.bias


Head = ClassificationHead | SpanHead | LanguageModelHead


def build_head(config: HeadConfig, hidden: int, backbone_embeddings: nn.Embedding, eps: float) -> Head:
    """Make the head that ``config`` describes, freshly initialised."""
    if config.kind == "classification":
        return ClassificationHead(hidden, config.labels, config.dropout)
    if config.kind == "span":
        return SpanHead(hidden)
    return LanguageModelHead(hidden, config.vocabulary, backbone_embeddings, eps)

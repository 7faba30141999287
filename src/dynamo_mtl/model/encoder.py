"""The backbone: post-norm layers of the BERT family over packed tokens, ``(tokens, hidden)``.

- It takes published RoBERTa, XLM-RoBERTa, CamemBERT and BERT weights (``backbone.py``) and equals ``transformers``.
- Attention (``PackedAttention``, ``Cache``) and adapters are arguments, so no module here keeps anything of a batch.
- Query, key and value are one product: ``joint`` has them side by side.
- The token type is always 0, so that it does not tell which fields a source has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dynamo_mtl.model.attention import AttentionPlan, attention
from dynamo_mtl.model.fused import gelu_over, linear

SITES = ("query", "key", "value", "attention.output", "intermediate", "output")
"""The linear layers of a block, under the names by which target modules are chosen."""
JOINT_SITES = SITES[:3]
"""The sites that share their input and are computed as one product."""


@dataclass(frozen=True)
class EncoderConfig:
    """The shape of the backbone, read from its published ``config.json``."""

    model_type: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    max_positions: int
    """Rows of the position table."""
    first_position: int
    """Position of the first token: 0 for BERT, padding index + 1 for RoBERTa."""
    type_vocab_size: int
    layer_norm_eps: float
    activation: str = "gelu"

    @property
    def longest_sequence(self) -> int:
        """Maximum number of tokens in a sequence, source and target together."""
        return self.max_positions - self.first_position

    def site_shape(self, site: str) -> tuple[int, int]:
        """Input and output width of a linear layer of ``SITES``."""
        inputs = self.intermediate_size if site == "output" else self.hidden_size
        return inputs, self.intermediate_size if site == "intermediate" else self.hidden_size


class Attention(Protocol):
    """Attention inside a packed batch, or of one decoding step against a cache."""

    def __call__(self, layer: int, joint: Tensor) -> Tensor:
        """Queries, keys and values, ``(tokens, 3 · hidden)`` → ``(tokens, hidden)``."""
        ...


class Adapters(Protocol):
    """What is added to the outputs of linear layers."""

    def __call__(self, layer: int, sites: Sequence[str], inputs: Tensor, output: Tensor) -> Tensor:
        """Add to linear layers that share their input.

        Args:
            layer: number of the block.
            sites: names of the linear layers.
            inputs: ``(tokens, in)``.
            output: ``(tokens, out)`` with the sites side by side; it may contain the residual already. Without
                gradient it may be overwritten.
        """
        ...

    def act_at(self, layer: int, site: str) -> bool:
        """Whether anything is added at a site."""
        ...


class NoAdapters:
    """The adapters of the trunk: none."""

    def __call__(self, layer: int, sites: Sequence[str], inputs: Tensor, output: Tensor) -> Tensor:
        """See ``Adapters``."""
        return output

    def act_at(self, layer: int, site: str) -> bool:
        """See ``Adapters``."""
        return False


NO_ADAPTERS = NoAdapters()


class PackedAttention:
    """Attention inside a packed batch.

    ``record`` collects keys and values, for a cache or for later target tokens. ``before`` has the recorded keys and
    values of other tokens (the source), which are put in front of those of the given tokens.
    """

    def __init__(
        self,
        plan: AttentionPlan,
        heads: int,
        record: list[Tensor] | None = None,
        before: list[Tensor] | None = None,
    ) -> None:
        self.plan, self.heads, self.record, self.before = plan, heads, record, before

    def __call__(self, layer: int, joint: Tensor) -> Tensor:
        """``(tokens, 3 · hidden)`` → ``(tokens, hidden)``."""
        width = joint.shape[1] // 3
        if self.record is not None:
            self.record.append(joint[:, width:])
        if self.before is None:
            return self.plan.attend(joint, self.heads)
        return self.plan.attend_to(joint[:, :width], torch.cat([self.before[layer], joint[:, width:]]), self.heads)


class EncoderLayer(nn.Module):
    """One post-norm block: attention, add and norm, feed-forward, add and norm."""

    def __init__(self, config: EncoderConfig, index: int) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.index = index
        self.joint = nn.Linear(hidden, 3 * hidden)
        self.attention_output = nn.Linear(hidden, hidden)
        self.attention_norm = nn.LayerNorm(hidden, eps=config.layer_norm_eps)
        self.intermediate = nn.Linear(hidden, inner)
        self.output = nn.Linear(inner, hidden)
        self.output_norm = nn.LayerNorm(hidden, eps=config.layer_norm_eps)

    def forward(self, hidden: Tensor, attend: Attention, adapters: Adapters) -> Tensor:
        """``(tokens, hidden)`` → ``(tokens, hidden)``."""

        joint = adapters(self.index, JOINT_SITES, hidden, linear(self.joint, hidden))
        mixed = attend(self.index, joint)
        added = adapters(self.index, ("attention.output",), mixed, linear(self.attention_output, mixed, plus=hidden))
        hidden = self.attention_norm(added)
        if adapters.act_at(self.index, "intermediate"):
            inner = gelu_over(adapters(self.index, ("intermediate",), hidden, linear(self.intermediate, hidden)))
        else:
            inner = linear(self.intermediate, hidden, gelu=True)
        return self.output_norm(adapters(self.index, ("output",), inner, linear(self.output, inner, plus=hidden)))


class Encoder(nn.Module):
    """Embeddings and layers. ``run`` takes any range of layers, so that trunk and top are two calls."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.max_positions, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.embedding_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layers = nn.ModuleList(EncoderLayer(config, index) for index in range(config.num_layers))

    def embed(self, words: Tensor, positions: Tensor) -> Tensor:
        """Word vectors ``(tokens, hidden)`` at table rows ``positions`` ``(tokens,)`` → first hidden states."""
        dtype = self.embedding_norm.weight.dtype
        total = words.to(dtype) + self.position_embeddings(positions) + self.token_type_embeddings.weight[0]
        return self.embedding_norm(total)

    def run(self, hidden: Tensor, attend: Attention, first: int, last: int, adapters: Adapters = NO_ADAPTERS) -> Tensor:
        """Run layers ``first`` to ``last - 1``: ``(tokens, hidden)`` → ``(tokens, hidden)``."""
        for index in range(first, last):
            hidden = self.layers[index](hidden, attend, adapters)
        return hidden


class Cache:
    """Keys and values of every layer for rows that are being generated, one token a step.

    Storage is allocated once: ``(layers, 2, rows, heads, capacity, width)``, keys and values of each head. Row r holds
    ``lengths[r]`` valid entries at positions 0 … ``lengths[r] - 1``.
    """

    def __init__(self, storage: Tensor, lengths: Tensor) -> None:
        self.storage, self.lengths = storage, lengths
        self._update_mask()

    def _update_mask(self) -> None:
        places = torch.arange(self.storage.shape[4], device=self.lengths.device)
        # The entry of the token that is being fed counts as valid: it is written before attention.
        self.mask = (places[None, :] <= self.lengths[:, None])[:, None, None, :]
        self.rows = torch.arange(len(self.lengths), device=self.lengths.device)

    def __call__(self, layer: int, joint: Tensor) -> Tensor:
        """Write one token a row and attend: ``(rows, 3 · hidden)`` → ``(rows, hidden)``."""
        heads = self.storage.shape[3]
        parts = joint.view(len(joint), 3, heads, -1)
        self.storage[layer][:, self.rows, :, self.lengths] = parts[:, 1:]
        # Use all places and a mask, since products over a part of the storage would copy it.
        keys, values = self.storage[layer]
        return attention(parts[:, 0, :, None], keys, values, self.mask).reshape(len(joint), -1)

    def joined(self, other: Cache) -> Cache:
        """The rows of both."""
        capacity = max(self.storage.shape[4], other.storage.shape[4])
        wide = [F.pad(c.storage, (0, 0, 0, capacity - c.storage.shape[4])) for c in (self, other)]
        return Cache(torch.cat(wide, dim=2), torch.cat([self.lengths, other.lengths]))

    def advance(self) -> None:
        """Count the fed token as stored, once all layers have seen it."""
        self.lengths = self.lengths + 1
        self._update_mask()

    def select(self, rows: Tensor, capacity: int) -> None:
        """Keep, drop, repeat or reorder rows: ``rows`` ``(new rows,)`` are old row numbers.

        What lies beyond ``capacity`` places is cut off.
        """
        self.storage = self.storage[..., :capacity, :].index_select(2, rows)
        self.lengths = self.lengths.index_select(0, rows)
        self._update_mask()

"""The routed model. Start here: ``DynamoModel.forward`` is the whole idea.

    ids ──embed──► layers[0:tap] ──► trunk ──► pool ──► router ──► weights (examples, adapters)
                   frozen, no grad     │                               │
                                       └──► layers[tap:L] + adapters mixed by weights ──► hidden ──► heads

One pass serves a batch that mixes tasks of any kind. Only target embeddings and heads, which are few and small, are
looked up by task; nothing else loops over tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dynamo_mtl.model.adapter import AdapterBank, LoraConfig
from dynamo_mtl.model.backbone import Backbone
from dynamo_mtl.model.batch import Batch
from dynamo_mtl.model.encoder import Cache, PackedAttention
from dynamo_mtl.model.heads import Copyable, Head, HeadConfig, LanguageModelHead, build_head
from dynamo_mtl.model.mixing import Mix, mix_adapters
from dynamo_mtl.model.model_config import ModelConfig, check_against_backbone
from dynamo_mtl.model.ood import OutOfDistribution, RouterMemory
from dynamo_mtl.model.quantization import quantize_layers
from dynamo_mtl.model.router import POOLED, Router, RouterConfig, Routing, plan_pooling, pool, top_k_weights


@dataclass(frozen=True)
class Output:
    """Result of one forward pass."""

    hidden: Tensor
    """``(top tokens, hidden)``: deep source tokens, then target tokens, each with padding; see ``Batch``."""
    routing: Routing | None
    """Result of the router; None if the weights were given."""
    weights: Tensor
    """``(examples, adapters)``: the mixture that was used."""
    recorded: list[Tensor]
    """Keys and values of the deep source tokens, ``(tokens, 2 · hidden)`` for each layer; empty without ``record``."""


@dataclass(frozen=True)
class Trunk:
    """Result of the layers below the tap for one batch."""

    hidden: Tensor
    """``(source tokens, hidden)``."""
    features: Tensor
    """``(examples, router.feature_size)``: what the router reads, by default of the embeddings and all these layers."""
    recorded: list[Tensor]
    """Keys and values of all source tokens, ``(tokens, 2 · hidden)``, for target tokens and for the cache."""

    def repeated(self, tokens: Tensor, examples: Tensor) -> Trunk:
        """The trunk of a batch that repeats inputs of this one, given the numbers of its tokens and examples here."""
        recorded = [pairs.index_select(0, tokens) for pairs in self.recorded]
        return Trunk(self.hidden.index_select(0, tokens), self.features.index_select(0, examples), recorded)


@dataclass(frozen=True)
class HeadRows:
    """Rows of a decoding step that write in one head's vocabulary."""

    head: str
    rows: Tensor | None
    """``(n,)`` their numbers; None for all rows."""
    source: Copyable | None
    """What each of these rows may copy; None if the head does not copy."""


class DynamoModel(nn.Module):
    """One frozen backbone, an adapter and a head for every task, and a router over the adapters."""

    def __init__(
        self,
        backbone: Backbone,
        config: ModelConfig,
        loras: dict[str, LoraConfig],
        heads: dict[str, HeadConfig],
        router: RouterConfig,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        shape = backbone.encoder.config
        self.tap_layer = shape.num_layers // 3 if config.tap_layer is None else config.tap_layer
        check_against_backbone(config, backbone)
        self.task_names = list(loras)
        self.config = config
        self.encoder = backbone.encoder.requires_grad_(False)
        self.separator = backbone.tokenizer.separator
        self.bank = AdapterBank(loras, shape, self.tap_layer)
        layers_read = self.tap_layer + 1 if config.router_input == "trunk" else 1
        self.router = Router(router, POOLED * layers_read * shape.hidden_size, len(loras))
        self.ood = OutOfDistribution(self.router.feature_size)
        self.memory: RouterMemory | None = None
        """A part of what the router was trained on; None before it is trained."""
        embeddings, eps = self.encoder.word_embeddings, shape.layer_norm_eps
        self.heads = nn.ModuleList(build_head(heads[n], shape.hidden_size, embeddings, eps) for n in self.task_names)
        if backbone.transform is not None:
            for head in self.heads:
                if isinstance(head, LanguageModelHead) and not head.own_vocabulary:
                    head.load_state_dict(backbone.transform, strict=False)
        self.dtype = dtype
        # Trained parameters stay in fp32, and autocast multiplies them in ``dtype``.
        self.encoder.to(dtype if config.freeze_backbone else torch.float32)
        if config.quantization:
            quantize_layers(self.encoder)

    def head(self, name: str) -> Head:
        """The head of a task."""
        head = self.heads[self.task_names.index(name)]
        assert isinstance(head, Head)
        return head

    def train(self, mode: bool = True) -> DynamoModel:
        """Training mode for adapters, heads and router; the frozen backbone always evaluates."""
        super().train(mode)
        self.encoder.eval()
        return self

    @property
    def trains_backbone(self) -> bool:
        """Whether the backbone is being trained: only in full fine-tuning."""
        return self.encoder.word_embeddings.weight.requires_grad

    @property
    def variable_length(self) -> bool:
        """Whether to plan batches for variable-length attention, which needs a GPU and half precision."""
        return self.encoder.word_embeddings.weight.is_cuda and self.dtype != torch.float32

    def parameter_counts(self) -> dict[str, int]:
        """Number of parameters of each part; embeddings of own target vocabularies are counted apart from the heads."""
        modules = {"backbone": self.encoder, "adapters": self.bank, "router": self.router, "heads": self.heads}
        counts = {part: sum(p.numel() for p in module.parameters()) for part, module in modules.items()}
        tables = [head.embeddings for head in self.heads if isinstance(head, LanguageModelHead)]
        vocabularies = sum(table.numel() for table in tables if table is not None)
        return {**counts, "heads": counts["heads"] - vocabularies, "target_vocabularies": vocabularies}

    def trainable_parameters(self) -> int:
        """Number of parameters that training changes."""
        trained = ["heads", "target_vocabularies"]
        trained += ["adapters"] if self.config.adapters != "none" else []
        trained += ["router"] if self.config.adapters == "routed" else []
        trained += ["backbone"] if not self.config.freeze_backbone else []
        counts = self.parameter_counts()
        return sum(counts[part] for part in trained)

    def _precision(self) -> AbstractContextManager[object]:
        weight = self.encoder.embedding_norm.weight
        return nullcontext() if weight.dtype == self.dtype else torch.autocast(weight.device.type, self.dtype)

    def oracle_weights(self, routes: Tensor) -> Tensor:
        """Mixing weights of examples whose task is known: ``(examples,)`` → ``(examples, adapters)``."""
        if self.config.adapters == "routed":
            return torch.nn.functional.one_hot(routes, len(self.task_names)).float()
        value = 1.0 if self.config.adapters == "shared" else 0.0
        return torch.full((len(routes), len(self.task_names)), value, device=routes.device)

    def trunk(self, batch: Batch, record: bool = False) -> Trunk:
        """Run the layers below the tap over all source tokens, once, and without gradient where they are frozen."""
        recorded: list[Tensor] = []
        attention = PackedAttention(
            batch.trunk_plan, self.encoder.config.num_heads, recorded if record or batch.target_plan else None
        )
        with nullcontext() if self.trains_backbone else torch.no_grad(), self._precision():
            hidden = self.encoder.embed(self.encoder.word_embeddings(batch.ids), batch.positions)
            plan = plan_pooling(batch, self.separator)
            pooled = [pool(hidden, plan)]
            for layer in range(self.tap_layer):
                hidden = self.encoder.run(hidden, attention, layer, layer + 1)
                pooled.append(pool(hidden, plan))
            if self.config.router_input == "last_hidden":
                plain = PackedAttention(batch.trunk_plan, self.encoder.config.num_heads)
                last = self.encoder.run(hidden, plain, self.tap_layer, self.encoder.config.num_layers)
                pooled = [pool(last, plan)]
        return Trunk(hidden, torch.cat(pooled, dim=1), recorded)

    def forward(
        self,
        batch: Batch,
        weights: Tensor | None = None,
        active: Sequence[int] | None = None,
        top_k: int | None = None,
        record: bool = False,
        trunk: Trunk | None = None,
    ) -> Output:
        """Route and answer a mixed batch in one pass.

        Args:
            batch: packed inputs.
            weights: mixing weights ``(examples, adapters)``; the router's own top-k if None.
            active: adapters that may have a non-zero weight (all if None).
            top_k: largest number of non-zero weights in a row, if known.
            record: keep keys and values of the source for generation.
            trunk: the trunk of this batch, if it was run before (to choose which windows go deeper).
        """
        trunk = trunk or self.trunk(batch, record)
        routing = None
        if weights is None:
            routing = self.router(trunk.features)
            top_k = self.router.config.top_k
            weights = top_k_weights(routing.weights, top_k)
        hidden = trunk.hidden.index_select(0, batch.deep_tokens)
        if batch.target_plan is not None:
            hidden = torch.cat([hidden, self._target_trunk(batch, trunk)])
        if self.config.adapters != "routed":
            top_k, active = None, None if self.config.adapters == "shared" else []
        mix = mix_adapters(self.bank, weights, batch.top_examples, self.dtype, active, top_k)
        recorded: list[Tensor] = []
        if batch.top_plan is not None:
            # While the adapters act, tokens are sorted by adapter; afterwards they return to their places.
            plan = batch.top_plan.reordered(*mix.sorting) if mix.sorting else batch.top_plan
            attention = PackedAttention(plan, self.encoder.config.num_heads, recorded if record else None)
            with self._precision():
                hidden = hidden.index_select(0, mix.sorting[0]) if mix.sorting else hidden
                hidden = self.encoder.run(hidden, attention, self.tap_layer, self.encoder.config.num_layers, mix)
            if mix.sorting:
                hidden, *recorded = (states.index_select(0, mix.sorting[1]) for states in (hidden, *recorded))
        deep = [pairs.index_select(0, batch.deep_tokens) for pairs in trunk.recorded] if record else []
        return Output(hidden, routing, weights, [*deep, *recorded])

    def _target_trunk(self, batch: Batch, trunk: Trunk) -> Tensor:
        """Run target tokens through the trunk; gradient flows to their embeddings where those are trainable."""
        assert batch.target_plan is not None
        words = [self.embed_target(head, ids, batch.target_pieces.get(head)) for head, ids in batch.target_ids.items()]
        trainable = self.trains_backbone or any(word.requires_grad for word in words)
        missing = len(batch.ids) - len(trunk.hidden)  # the trunk of repeated inputs has no padding
        before = [F.pad(pairs, (0, 0, 0, missing)) for pairs in trunk.recorded] if missing else trunk.recorded
        attention = PackedAttention(batch.target_plan, self.encoder.config.num_heads, before=before)
        with nullcontext() if trainable else torch.no_grad(), self._precision():
            padding = len(batch.target_positions) - sum(map(len, words))
            hidden = self.encoder.embed(F.pad(torch.cat(words), (0, 0, 0, padding)), batch.target_positions)
            return self.encoder.run(hidden, attention, 0, self.tap_layer)

    def decode_step(
        self, groups: Sequence[HeadRows], ids: Tensor, positions: Tensor, cache: Cache, mix: Mix
    ) -> list[Tensor]:
        """Feed one target token per row and return the logits of the next one.

        Args:
            groups: each head with the rows whose ids are of its vocabulary; together they have all rows.
            ids: ``(rows,)``.
            positions: ``(rows,)`` rows of the position table.
            cache: keys and values so far.
            mix: adapters of each row.

        Returns:
            For each group ``(its rows, vocabulary)``, or ``(its rows, vocabulary + words)`` where the head copies.
        """
        vectors = [self._embed_rows(group, ids) for group in groups]
        if groups[0].rows is None:
            embedded = vectors[0]
        else:
            embedded = torch.empty(len(ids), vectors[0].shape[1], dtype=self.dtype, device=ids.device)
            for group, own in zip(groups, vectors, strict=True):
                embedded[group.rows] = own
        with self._precision():
            hidden = self.encoder.embed(embedded, positions)
            hidden = self.encoder.run(hidden, cache, 0, self.tap_layer)
            hidden = self.encoder.run(hidden, cache, self.tap_layer, self.encoder.config.num_layers, mix)
        cache.advance()
        return [self.head(g.head)(hidden if g.rows is None else hidden[g.rows], g.source) for g in groups]

    def _embed_rows(self, group: HeadRows, ids: Tensor) -> Tensor:
        own = ids if group.rows is None else ids[group.rows]
        module = self.head(group.head)
        assert isinstance(module, LanguageModelHead)
        pieces = group.source.pieces_of(own - module.vocabulary_size) if group.source is not None else None
        return self.embed_target(group.head, own, pieces)

    def embed_target(self, head: str, ids: Tensor, pieces: Tensor | None = None) -> Tensor:
        """Word vectors ``(tokens, hidden)`` of target tokens, see ``LanguageModelHead.embed``, or of options."""
        module = self.head(head)
        if isinstance(module, LanguageModelHead):
            return module.embed(ids, pieces).to(self.dtype)
        return self.encoder.word_embeddings(ids).to(self.dtype)

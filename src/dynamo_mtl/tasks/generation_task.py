"""The base of all tasks that write text: target vocabulary, prefix language modelling, decoding settings, metrics.

A target follows its source in the same stack, as in a prefix language model. The start token and the target's tokens
are fed. Each predicts the next one, and the last predicts the end.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from dynamo_mtl.errors import ConfigError
from dynamo_mtl.metrics.generation import bleu, bleu_interval, exact_match, rouge
from dynamo_mtl.model.adapter import LoraConfig
from dynamo_mtl.model.heads import Copyable, Head, HeadConfig, LanguageModelHead
from dynamo_mtl.tasks.copying import SourceWords, source_words, split_copied, units
from dynamo_mtl.tasks.encoding import EncodedExample, EncodedSource, TaskView
from dynamo_mtl.tasks.recognition import Guess, Table
from dynamo_mtl.tasks.task import Answer, Example, Task
from dynamo_mtl.tasks.task_config import TaskConfig
from dynamo_mtl.tasks.vocabulary import TargetVocabulary


class GenerationConfig(BaseModel):
    """How answers are decoded."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    max_new_tokens: int = Field(default=64, ge=1)
    """Maximum number of tokens in an answer."""
    min_new_tokens: int = Field(default=0, ge=0)
    """Minimum number of tokens in an answer."""
    num_beams: int = Field(default=1, ge=1)
    """Beams of the search; 1 takes the likeliest token each time."""
    sampling_temperature: float | None = Field(default=None, ge=1e-3, le=100)
    """Draw every token from the distribution at this temperature, not the likeliest one. Needs ``num_beams: 1``."""
    length_penalty: float = Field(default=1.0, ge=-10, le=10)
    """A finished beam's log-probability is divided by its length to this power: above 1 favours longer answers."""
    no_repeat_ngram_size: int = Field(default=0, ge=0)
    """No n-gram of this size occurs twice in an answer; 0 allows all."""

    @model_validator(mode="after")
    def _one_way(self) -> GenerationConfig:
        if self.sampling_temperature is not None and self.num_beams > 1:
            raise ConfigError(
                f"generation: sampling_temperature {self.sampling_temperature} with num_beams {self.num_beams}; "
                "drawing answers needs num_beams: 1"
            )
        if self.min_new_tokens > self.max_new_tokens:
            raise ConfigError(
                f"generation: min_new_tokens {self.min_new_tokens} is more than max_new_tokens {self.max_new_tokens}"
            )
        return self


class GenerationTaskConfig(TaskConfig):
    """Settings of the tasks that write text."""

    target_vocabulary: Annotated[int, Field(ge=258)] | Literal["backbone"] | None = None
    """Size of an own byte-level vocabulary, or ``backbone``; chosen by backbone and task if not given."""
    copy_words: bool | None = None
    """Whether words of the source are copied as wholes; the type's own choice if not given. Needs a vocabulary that
    gives back every text exactly: an own one, or a byte-level backbone's."""
    max_target_length: int = Field(default=64, ge=1)
    """Target tokens that training uses; longer targets are cut."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of each target that is spread over the vocabulary (Szegedy et al. 2016, arXiv 1512.00567)."""
    generation: GenerationConfig = GenerationConfig()


class GenerationTask(Task):
    """Base of the types that write text."""

    Config = GenerationTaskConfig
    lora = LoraConfig(rank=32, alpha=64.0, target_modules="all-linear")
    english_targets = True
    """Whether an English byte-level backbone vocabulary writes the targets well."""
    copies: ClassVar[bool] = False
    """Whether targets repeat names and quotations of their sources."""
    config: GenerationTaskConfig
    vocabulary: TargetVocabulary
    """Set when the model is built or loaded."""

    @classmethod
    def guess_by_names(cls, table: Table, name: str) -> Guess | None:
        """A guess for a table that has all columns of the type under known names, with texts in them."""
        found = {own: table.chosen.get(own) or table.named(known) for own, known in cls.column_names.items()}
        chosen = {own: column for own, column in found.items() if column is not None}
        columns = [table.columns[column] for column in chosen.values()]
        if len(chosen) < len(cls.column_names) or any(
            one.is_number or not (one.is_text or one.words) for one in columns
        ):
            return None
        return cls.guess(table, name, f"it has {' and '.join(chosen.values())}", chosen)

    def vocabulary_size(self, byte_level_backbone: bool) -> int | None:
        """Size of the own target vocabulary, or None for the backbone's."""
        choice = self.config.target_vocabulary
        if choice is None:
            return None if byte_level_backbone and self.english_targets else 8000
        return None if choice == "backbone" else choice

    def vocabulary_texts(self, examples: Iterable[Example]) -> Iterator[str]:
        """The texts to train an own vocabulary on: targets, without the words that are copied."""
        for example in examples:
            if not self.wants_copies:
                yield example.target
                continue
            words = {unit[0]: 0 for text in (example.text, example.context or "") for unit in units(text)}
            yield from (part for part in split_copied(example.target, words) if isinstance(part, str))

    @property
    def wants_copies(self) -> bool:
        """Whether words are copied if the vocabulary allows it."""
        return self.copies if self.config.copy_words is None else self.config.copy_words

    @property
    def copies_words(self) -> bool:
        """Whether this task's targets copy words of their sources."""
        return self.wants_copies and self.vocabulary.is_exact

    def head_config(self) -> HeadConfig:
        vocabulary = self.vocabulary.size if self.vocabulary.own else None
        return HeadConfig("language_model", vocabulary=vocabulary, copies=self.copies_words)

    def _words(self, source: EncodedSource) -> SourceWords | None:
        return source_words(source) if self.copies_words else None

    def unanswered(self, source: EncodedSource, route: int) -> EncodedExample:
        return self._unanswered(source, route, self._words(source))

    def _unanswered(self, source: EncodedSource, route: int, words: SourceWords | None) -> EncodedExample:
        encoded = super().unanswered(source, route)
        return replace(encoded, occurrences=words.occurrences, pieces=words.pieces) if words else encoded

    def encode(self, example: Example, source: EncodedSource, route: int) -> EncodedExample:
        words = self._words(source)
        ids = self.vocabulary.encode(example.target, self.config.max_target_length, words and words.numbers)
        fed = [self.vocabulary.start, *ids]
        size = self.vocabulary.size
        return replace(
            self._unanswered(source, route, words),
            target_ids=fed,
            target_pieces=[words.pieces[i - size] if i >= size else 0 for i in fed] if words else None,
            labels={"next": [*ids, self.vocabulary.end]},
        )

    def lost(self, example: EncodedExample, source: EncodedSource, target: str) -> str | None:
        limit, words = self.config.max_target_length, self._words(source)
        is_cut = len(self.vocabulary.encode(target, limit + 1, words and words.numbers)) > limit
        return f"the target has more than max_target_length ({limit}) tokens" if is_cut else None

    def copyable(self, head: LanguageModelHead, hidden: Tensor, view: TaskView) -> Copyable | None:
        """What each of this task's examples may copy, from the whole top run ``(tokens, hidden)``; None if nothing."""
        if view.copying is None:
            return None
        return head.copyable(hidden[view.copying.tokens], view.copying.words, view.copying.pieces)

    def losses(self, head: Head, hidden: Tensor, view: TaskView) -> Tensor:
        assert isinstance(head, LanguageModelHead)
        source = self.copyable(head, hidden, view)
        source = source and source.select(view.label_rows)
        logits = head(hidden[view.target[0] : view.target[1]], source)
        losses = F.cross_entropy(logits, view.labels["next"], reduction="none")
        smoothing = self.config.label_smoothing if head.training else 0.0
        if not smoothing:
            return losses
        # Smooth over the vocabulary only, since the words that may be copied differ from row to row.
        spread = logits.logsumexp(dim=1) - logits[:, : head.vocabulary_size].mean(dim=1)
        return (1 - smoothing) * losses + smoothing * spread

    def answer(self, ids: list[int], score: float, source: EncodedSource) -> Answer:
        """An answer from decoded ids; ``score`` is the mean log-probability of its tokens."""
        words = self._words(source)
        return {self.answer_key: self.vocabulary.decode(ids, words and words.numbers), "score": score}

    def is_well_formed(self, text: str) -> bool:
        """Whether a text can be an answer at all."""
        return True

    def choose(self, found: Iterable[Answer]) -> Answer:
        """Choose the best well-formed answer to one input, or the best of all if none is well-formed.

        Args:
            found: at least one answer, best first; read only as far as needed.
        """
        remaining = iter(found)
        best = next(remaining)
        answers = itertools.chain([best], remaining)
        return next((answer for answer in answers if self.is_well_formed(str(answer[self.answer_key]))), best)

    def texts(self, answers: Sequence[Answer | None]) -> list[str]:
        """The answers' texts; empty for an answer of another type."""
        return ["" if a is None else str(a[self.answer_key]) for a in answers]

    def text_scores(self, predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
        """The metrics that all generation tasks report."""
        return {
            **rouge(predictions, references),
            "bleu": bleu(predictions, references),
            "exact_match": exact_match(predictions, references),
        }

    def score(self, answers: Sequence[Answer | None], examples: Sequence[Example]) -> dict[str, float]:
        return self.text_scores(*self.compared(answers, examples))

    def interval(self, answers: Sequence[Answer | None], examples: Sequence[Example]) -> tuple[float, float]:
        if self.main_metric != "bleu":
            return super().interval(answers, examples)
        return bleu_interval(*self.compared(answers, examples))

    def compared(self, answers: Sequence[Answer | None], examples: Sequence[Example]) -> tuple[list[str], list[str]]:
        """Predictions and references as the metrics read them."""
        return self.texts(answers), [e.target for e in examples]

    def trivial_answers(self, train: Sequence[Example], examples: Sequence[Example]) -> list[Answer]:
        return [{self.answer_key: example.target, "score": 0.0} for example in nearest_examples(train, examples)]


def nearest_examples(train: Sequence[Example], examples: Sequence[Example]) -> list[Example]:
    """Find for each example the training example with the most similar words (Jaccard index), the first in a tie.

    Candidates are the training examples that share a word with it, rarest words first, until there are over 2,000.
    """
    index: dict[str, list[int]] = {}
    bags = [frozenset(example.text.lower().split()) for example in train]
    for number, bag in enumerate(bags):
        for word in bag:
            index.setdefault(word, []).append(number)
    nearest: list[Example] = []
    for example in examples:
        bag = frozenset(example.text.lower().split())
        candidates: set[int] = set()
        for word in sorted(bag & index.keys(), key=lambda w: (len(index[w]), w)):
            if len(candidates) > 2000:
                break
            candidates.update(index[word])
        ranked = ((len(bag & bags[c]) / len(bag | bags[c]), -c) for c in candidates)
        nearest.append(train[-max(ranked, default=(0.0, 0))[1]])
    return nearest

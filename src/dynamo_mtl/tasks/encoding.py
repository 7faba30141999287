"""Encodes texts as token ids, in the same way for every task, and collates encoded examples.

A source is a text with an optional context and an optional instruction. The instruction is put in front of the text as
if the user had typed it there, so that the router cannot tell the task from the fields alone. A long input becomes
overlapping windows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from dynamo_mtl.model.backbone import SourceTokenizer
from dynamo_mtl.model.batch import Batch, Target, Window, build_batch

CHOICE_TOKENS = 1024
"""Most tokens of options that are read together without labels. More are read in several rows, with the same result."""
CHARACTERS_PER_TOKEN = 12
"""Assumed characters per token when a text is cut before tokenisation; far above the mean of any language."""

_SURROGATES = re.compile("[\ud800-\udfff]")


def clean(text: str) -> str:
    """Replace lone surrogates, which no tokenizer accepts, one character for one, so that offsets stay right."""
    return _SURROGATES.sub("\ufffd", text)


@dataclass(frozen=True)
class EncodedWindow:
    """One framed window and where its tokens lie in ``EncodedSource.body``."""

    ids: list[int]
    body_start: int
    """First token that belongs to the body."""
    offsets: list[tuple[int, int]]
    """Character span in the body of each body token."""


@dataclass(frozen=True)
class EncodedSource:
    """A source as windows; ``body`` is the text that was windowed: the context if there is one, else the text."""

    windows: list[EncodedWindow]
    body: str
    cut: bool = False
    """Whether something did not fit into the windows."""
    instruction_length: int = 0
    """Characters of an instruction, and the blank behind it, in front of the text in ``body``."""
    question_cut: bool = False
    """Whether a question with a context was cut."""
    has_context: bool = False
    characters: int = 0
    """Length of the windowed text before anything was cut."""
    choices: Sequence[str] = ()
    """The options that came with the input."""
    choice_ids: Sequence[Sequence[int]] = ()
    """The tokens of each option, with a marker in front and a separator behind."""


class SourceEncoder:
    """Encodes sources into windows of at most ``max_length`` tokens that overlap by ``overlap`` tokens."""

    def __init__(
        self, tokenizer: SourceTokenizer, max_length: int, overlap: int, max_windows: int, max_choice: int = 64
    ) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length
        self.overlap, self.max_windows, self.max_choice = overlap, max_windows, max_choice

    def encode(
        self,
        text: str,
        context: str | None = None,
        instruction: str | None = None,
        choices: Sequence[str] | None = None,
    ) -> EncodedSource:
        """Encode any text, also an empty one.

        What does not fit into ``max_windows`` is cut off, and so is what an option has beyond ``max_choice`` tokens.
        """
        limit = self.max_length * self.max_windows * CHARACTERS_PER_TOKEN
        whole = clean(f"{instruction} {text}" if instruction else text)
        text = whole[:limit]
        special = self.tokenizer
        question_cut = False
        prefix, body = [special.first], text
        if context is not None:
            whole = clean(context)
            body = whole[:limit]
        encoding = special.backend.encode(body, add_special_tokens=False)
        if context is not None:
            question = special.backend.encode(text, add_special_tokens=False).ids
            # A third of the window, or what a short context leaves free.
            free = self.max_length - len(encoding.ids) - 2 - special.separators_between
            room = max(self.max_length // 3, free)
            question_cut = len(question) > room
            prefix = [special.first, *question[:room], *[special.separator] * special.separators_between]
        capacity = self.max_length - len(prefix) - 1
        windows: list[EncodedWindow] = []
        start = end = 0
        while len(windows) < self.max_windows:
            end = start + capacity
            ids = [*prefix, *encoding.ids[start:end], special.separator]
            windows.append(EncodedWindow(ids, len(prefix), encoding.offsets[start:end]))
            if end >= len(encoding.ids):
                break
            start += capacity - min(self.overlap, capacity // 2)
        instruction_length = len(clean(instruction)) + 1 if instruction and context is None else 0
        cut = end < len(encoding.ids) or len(body) < len(whole)
        options = tuple(clean(choice) for choice in choices or ())
        encoded = [self._choice(option) for option in options]
        cut = cut or any(is_cut for _, is_cut in encoded)
        return EncodedSource(
            windows, body, cut, instruction_length, question_cut, context is not None, len(whole), options,
            [ids for ids, _ in encoded],
        )  # fmt: skip

    def _choice(self, text: str) -> tuple[list[int], bool]:
        """An option, and whether it was cut: a marker (the token that begins a text), its tokens, a separator."""
        special, room = self.tokenizer, self.max_choice - 2
        limit = self.max_choice * CHARACTERS_PER_TOKEN
        ids = special.backend.encode(text[:limit], add_special_tokens=False).ids
        return [special.first, *ids[:room], special.separator], len(ids) > room or len(text) > limit


@dataclass(frozen=True)
class EncodedExample:
    """One training or evaluation example, ready to be packed."""

    route: int
    """The adapter that it belongs to."""
    windows: list[list[int]]
    task: str | None = None
    """Whose head answers; None for inputs that only the router reads."""
    deep: int = 0
    """How many of the windows run through the top."""
    target_ids: list[int] | None = None
    """Target tokens that are fed, in the task's vocabulary."""
    target_pieces: list[int] | None = None
    """For a task that copies: backbone token that stands for each copied word in ``target_ids``, 0 for other ids."""
    occurrences: list[tuple[int, int]] | None = None
    """For a task that copies: each token of the first window where a word begins, and the number of the word."""
    pieces: list[int] = field(default_factory=list)
    """The backbone token that stands for each word, by its number."""
    choices: Sequence[Sequence[int]] = ()
    """Tokens of the options, which are read after each deep window, each by itself."""
    labels: dict[str, list[Any]] = field(default_factory=dict)
    """By name, the same number of labels under each: whole numbers, fractions, or lists of fractions."""

    @property
    def tokens(self) -> int:
        """Real tokens, source and target."""
        return sum(map(len, self.windows)) + len(self.target_ids or []) + self.deep * sum(map(len, self.choices))

    def without_shallow_windows(self) -> EncodedExample:
        """The example without the windows that only a router reads."""
        return replace(self, windows=self.windows[: self.deep])


@dataclass(frozen=True)
class CopyView:
    """What the examples of a task may copy."""

    tokens: Tensor
    """``(n, occurrences)`` place in the top run of each token where a word begins; padding is the first token."""
    words: Tensor
    """``(n, occurrences)`` number of the word; -1 where there is none."""
    pieces: Tensor
    """``(n, words)`` backbone token that stands for each word."""


@dataclass(frozen=True)
class TaskView:
    """One task's share of a batch: where its tokens are in the top run, and its labels."""

    task: str
    examples: Tensor
    """``(n,)`` numbers of its examples in the batch."""
    window_rows: Tensor
    """``(deep windows,)`` which of its n examples each of its deep windows belongs to."""
    tokens: Tensor
    """``(deep windows, longest)`` place of each source token in the top run; 0 where there is none."""
    mask: Tensor
    """``(deep windows, longest)`` true where there is a token."""
    target: tuple[int, int]
    """Slice of its target tokens in the top run."""
    labels: dict[str, Tensor]
    label_rows: Tensor
    """``(labels,)`` which of its n examples each label belongs to."""
    copying: CopyView | None
    """None if the task does not copy."""
    markers: Tensor
    """``(options over all deep windows,)`` place in the top run of the first token of each option."""
    marker_windows: Tensor
    """``(options over all deep windows,)`` which of the deep windows each of them follows."""

    def averaged(self, found: Tensor) -> Tensor:
        """Values of the deep windows ``(deep windows, n)``, averaged over those of each example: ``(examples, n)``."""
        if len(found) == len(self.examples):
            return found
        counts = torch.bincount(self.window_rows, minlength=len(self.examples))
        sums = found.new_zeros(len(self.examples), found.shape[1]).index_add(0, self.window_rows, found)
        return sums / counts[:, None]


@dataclass(frozen=True)
class PackedExamples:
    """A collated batch: what the model reads, and each task's view of what it returns."""

    batch: Batch
    routes: Tensor
    """``(examples,)`` the adapter each example belongs to."""
    views: list[TaskView]


def collate(examples: Sequence[EncodedExample], first_position: int, variable_length: bool = False) -> PackedExamples:
    """Pack examples, in the given order, with the targets of each task next to each other. See ``build_batch``."""
    windows: list[Window] = []
    first_window: list[int] = []
    for index, example in enumerate(examples):
        first_window.append(len(windows))
        windows += [Window(ids, index, deep=w < example.deep) for w, ids in enumerate(example.windows)]
    tasks = list(dict.fromkeys(e.task for e in examples if e.task is not None))
    members = {task: [i for i, e in enumerate(examples) if e.task == task] for task in tasks}
    targets = [
        target for task in tasks for i in members[task] for target in _targets(examples[i], first_window[i], task)
    ]
    batch = build_batch(windows, targets, first_position, variable_length)
    views = [_view(task, members[task], examples, first_window, batch) for task in tasks]
    return PackedExamples(batch, torch.tensor([e.route for e in examples]), views)


def _targets(example: EncodedExample, first_window: int, task: str) -> Iterator[Target]:
    """What is read or written after the windows of an example: a target after the first, or options after each."""
    if example.target_ids is not None:
        yield Target(first_window, task, example.target_ids, example.target_pieces)
    sizes = [len(ids) for ids in example.choices]
    # The gradient of a question that several rows see would be that of one of them, so nothing labelled is split.
    groups = [list(range(len(sizes)))] if example.labels else split_by_size(sizes, CHOICE_TOKENS)
    for window in range(example.deep if sizes else 0):
        for group in groups:
            chosen = [example.choices[number] for number in group]
            yield Target(first_window + window, task, [i for ids in chosen for i in ids], parts=list(map(len, chosen)))


def split_by_size(sizes: Sequence[int], most: int) -> list[list[int]]:
    """Split numbers 0, 1, … into stretches whose sizes sum to at most ``most``, or that have a single member."""
    groups: list[list[int]] = []
    total = 0
    for number, size in enumerate(sizes):
        if not groups or total + size > most:
            groups.append([])
            total = 0
        groups[-1].append(number)
        total += size
    return groups


def _view(
    task: str, members: list[int], examples: Sequence[EncodedExample], first_window: list[int], batch: Batch
) -> TaskView:
    deep = [(row, first_window[i] + w) for row, i in enumerate(members) for w in range(examples[i].deep)]
    numbers = torch.tensor([window for _, window in deep])
    starts, lengths = batch.top_starts[numbers], batch.top_lengths[numbers]
    places = torch.arange(int(lengths.max()))
    mask = places[None, :] < lengths[:, None]
    options = [(window, len(ids)) for window, (row, _) in enumerate(deep) for ids in examples[members[row]].choices]
    lengths_of = torch.tensor([length for _, length in options], dtype=torch.long)
    markers = batch.target_slices.get(task, (0, 0))[0] + lengths_of.cumsum(0) - lengths_of
    marker_windows = torch.tensor([window for window, _ in options], dtype=torch.long)
    names = sorted({name for i in members for name in examples[i].labels})
    counts = [len(examples[i].labels[names[0]]) if names else 0 for i in members]
    return TaskView(
        task=task,
        examples=torch.tensor(members),
        window_rows=torch.tensor([row for row, _ in deep]),
        tokens=(starts[:, None] + places) * mask,
        mask=mask,
        target=batch.target_slices.get(task, (0, 0)),
        labels={name: _tensor([v for i in members for v in examples[i].labels[name]]) for name in names},
        label_rows=torch.arange(len(members)).repeat_interleave(torch.tensor(counts)),
        markers=markers,
        marker_windows=marker_windows,
        copying=_copy_view([examples[i] for i in members], batch.top_starts[[first_window[i] for i in members]]),
    )


def _tensor(labels: list[Any]) -> Tensor:
    """``(labels,)`` whole numbers, ``(labels,)`` fractions, or ``(labels, n)`` fractions."""
    found = torch.tensor(labels) if labels else torch.empty(0, dtype=torch.long)
    return found.long() if found.dtype == torch.bool else found


def _copy_view(examples: Sequence[EncodedExample], starts: Tensor) -> CopyView | None:
    if any(e.occurrences is None for e in examples):
        return None
    occurrences = [torch.tensor(e.occurrences or [(0, -1)]) for e in examples]
    padded = pad_sequence(occurrences, batch_first=True, padding_value=-1)
    pieces = [torch.tensor(e.pieces or [0]) for e in examples]
    return CopyView(
        tokens=starts[:, None] + padded[..., 0].clamp_min(0),
        words=padded[..., 1],
        pieces=pad_sequence(pieces, batch_first=True),
    )

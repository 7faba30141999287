"""Check the data before training: unusable rows, leaks between splits, labels, lengths and cuts."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from dynamo_mtl.config.system_config import SystemConfig
from dynamo_mtl.data.readers import read_rows
from dynamo_mtl.errors import DataError
from dynamo_mtl.model.backbone import SourceTokenizer, find_backbone, load_tokenizer, read_encoder_config
from dynamo_mtl.setup.confusable import look_alike
from dynamo_mtl.system import BYTE_LEVEL, choose_vocabulary
from dynamo_mtl.tasks.encoding import SourceEncoder
from dynamo_mtl.tasks.generation_task import GenerationTask
from dynamo_mtl.tasks.registry import make_tasks, same_group
from dynamo_mtl.tasks.tables import TRAIN, check_splits, source_split, split_of_file, task_location
from dynamo_mtl.tasks.task import Example, Task

SPLITS = (TRAIN, "validation")


@dataclass
class Fault:
    """A kind of row that cannot be used."""

    rows: int
    first: str
    """Error message of the first such row."""


@dataclass
class SplitProfile:
    """What one split of a task holds."""

    rows: int = 0
    faults: dict[str, Fault] = field(default_factory=dict)
    """Kind → rows that training would refuse."""
    empty_texts: int = 0
    """Usable rows whose text is empty or blank."""
    duplicates: int = 0
    """Usable rows whose input occurs earlier in the split."""
    contradictions: int = 0
    """Duplicates whose target differs from that of the first occurrence."""
    seen_in_train: int = 0
    """Rows of the validation data whose input is in the training data too."""
    labels: dict[str, int] = field(default_factory=dict)
    """Rows of each label, for tasks with labels."""
    labels_never_trained: list[str] = field(default_factory=list)
    """Labels of the validation data that the training data lacks."""
    source_tokens: dict[str, float] = field(default_factory=dict)
    """Tokens that the model reads of an input, special tokens included: median, 95th percentile and maximum of a
    sample."""
    cut_sources: float = 0.0
    """Share of the sample whose source does not fit into the windows."""
    cut_questions: float = 0.0
    """Share of the sample whose question is longer than the third of a window that it gets."""
    lost_targets: float = 0.0
    """Share of the sample whose target cannot be learned as it stands."""
    lost_reasons: dict[str, int] = field(default_factory=dict)
    """Why → how many of the sample."""
    reading_notes: dict[str, int] = field(default_factory=dict)
    """What was changed or assumed as rows were read → how many rows."""
    contexts_in_train: int = 0
    """Passages of the validation data that are in the training data too."""
    looks_like: dict[str, float] = field(default_factory=dict)
    """Of the validation data: other task → share of a sample of the inputs whose words are rather the other's."""

    @property
    def usable(self) -> int:
        """Rows that can be trained on."""
        return self.rows - sum(fault.rows for fault in self.faults.values())


Profile = dict[str, dict[str, SplitProfile]]
"""Task → split → what is in it."""


def check_data(config: SystemConfig, sample: int = 2000, tell: Callable[[str], None] = lambda _: None) -> Profile:
    """Read all rows of all tasks and tokenise a sample of them.

    Args:
        config: tasks, data and backbone; only the backbone's tokenizer is loaded.
        sample: examples of each split that are tokenised.
        tell: is called with what is being read.

    Raises:
        DynamoError: no such file, no backbone, or a file that cannot be read at all.
    """
    folder = find_backbone(config.model.base_model_name, config.model.revision)
    tokenizer = load_tokenizer(folder)
    byte_level = read_encoder_config(folder).model_type in BYTE_LEVEL
    profile: Profile = {}
    tasks = make_tasks(config.tasks)
    for task in tasks.values():
        check_splits(task, config.data)
    samples: dict[str, dict[str, Sequence[Example]]] = {split: {} for split in SPLITS}
    for name, task in tasks.items():
        profile[name] = {}
        inputs: dict[str, dict[bytes, str]] = {}
        contexts: dict[str, set[bytes]] = {}
        kept: dict[str, list[Example]] = {}
        for split in SPLITS:
            tell(f"{name}: reading {split}")
            contexts[split] = set()
            profile[name][split], inputs[split], kept[split] = _read_split(task, split, config, sample, contexts[split])
        validation = profile[name]["validation"]
        validation.seen_in_train = len(inputs[TRAIN].keys() & inputs["validation"].keys())
        validation.contexts_in_train = len(contexts[TRAIN] & contexts["validation"])
        validation.labels_never_trained = sorted(validation.labels.keys() - profile[name][TRAIN].labels.keys())
        if isinstance(task, GenerationTask) and kept[TRAIN]:
            choose_vocabulary(task, tokenizer, byte_level, lambda _, rows=kept[TRAIN]: rows)
        for split in SPLITS:
            samples[split][name] = kept[split]
            if kept[TRAIN]:
                _measure(profile[name][split], task, kept[split], tokenizer, config)
    together = same_group(config.tasks)
    plain = {name for name, own in config.tasks.items() if not own.requires_instruction}
    train, validation = ({name: rows for name, rows in samples[split].items() if name in plain} for split in SPLITS)
    for name, others in look_alike(train, validation, tokenizer).items():
        profile[name]["validation"].looks_like = {
            other: share for other, share in others.items() if not {(name, other), (other, name)} & together
        }
    return profile


def _read_split(
    task: Task, split: str, config: SystemConfig, sample: int, contexts: set[bytes]
) -> tuple[SplitProfile, dict[bytes, str], list[Example]]:
    """Read a split. Returns its profile without lengths, its inputs (hash → target), and a sample of its examples.

    Adds the hashes of its passages to ``contexts``.
    """
    found = SplitProfile()
    inputs: dict[bytes, str] = {}
    kept: list[Example] = []
    rng = np.random.default_rng([0, len(task.name)])
    parts = split_of_file(task, config.data)

    def refuse(error: DataError) -> None:
        fault = found.faults.setdefault(error.kind, Fault(0, str(error)))
        fault.rows += 1

    def refuse_row(error: DataError) -> None:
        found.rows += 1
        refuse(error)

    location, files_of = task_location(task, split, config.data), source_split(task, split, config.data)
    for row, where in read_rows(location, files_of, config.data, refuse_row, task.config.reading):
        found.rows += 1
        try:
            example = task.read(row, where)
        except DataError as error:
            refuse(error)
            continue
        if parts is not None and parts.is_held_out(example) == (split == TRAIN):
            found.rows -= 1  # of the other split
            continue
        note = task.reading_note(row, example)
        if note is not None:
            found.reading_notes[note] = found.reading_notes.get(note, 0) + 1
        found.empty_texts += not example.text.strip()
        key = _digest((example.text, example.context, example.choices))
        if example.context is not None:
            contexts.add(_digest(example.context))
        if key in inputs:
            found.duplicates += 1
            found.contradictions += inputs[key] != example.target
        else:
            inputs[key] = example.target
        for label in task.labels_of(example):
            found.labels[label] = found.labels.get(label, 0) + 1
        # Reservoir sampling (Vitter 1985, algorithm R): every usable row is as likely as any other.
        if len(kept) < sample:
            kept.append(example)
        elif (place := int(rng.integers(found.usable))) < sample:
            kept[place] = example
    return found, inputs, kept


def _digest(value: Any) -> bytes:
    return hashlib.sha256(repr(value).encode()).digest()[:16]


def _measure(
    found: SplitProfile, task: Task, examples: Sequence[Example], tokenizer: SourceTokenizer, config: SystemConfig
) -> None:
    """Measure lengths and cuts over a sample."""
    if not examples:
        return
    data = config.data
    encoder = SourceEncoder(tokenizer, data.max_source_length, data.window_overlap, data.max_windows)
    lengths: list[int] = []
    counts: Counter[str] = Counter()
    for example in examples:
        source = encoder.encode(example.text, example.context, None, example.choices)
        lengths.append(sum(len(window.ids) for window in source.windows))
        counts["cut"] += source.cut or (not task.all_windows and len(source.windows) > 1)
        counts["cut question"] += source.question_cut
        reason = task.lost(task.encode(example, source, 0), source, example.target)
        if reason is not None:
            found.lost_reasons[reason] = found.lost_reasons.get(reason, 0) + 1
    found.source_tokens = {
        "median": float(np.median(lengths)),
        "p95": float(np.percentile(lengths, 95)),
        "max": float(max(lengths)),
    }
    found.cut_sources = counts["cut"] / len(examples)
    found.cut_questions = counts["cut question"] / len(examples)
    found.lost_targets = sum(found.lost_reasons.values()) / len(examples)


def refuse_faults(profile: Profile, bad_rows: str) -> None:
    """Raise ``DataError`` if there is a row that training would refuse, or a split without a usable row."""
    for name, splits in profile.items():
        for split, found in splits.items():
            if found.faults and (bad_rows == "refuse" or not found.usable):
                rows = found.rows - found.usable
                first = next(iter(found.faults.values())).first
                raise DataError(f"{name}, {split}: {rows} of {found.rows} rows cannot be used; {first}")
            if not found.rows:
                raise DataError(f"{name}, {split}: no row; it needs at least one")


def profile_rows(profile: Profile) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table, one row a split.

    Columns: unusable rows, repeated inputs, validation rows that are also in the training data, tokens that the model
    reads (median/95th percentile/maximum), sources that do not fit, targets that are cut or outside all windows.
    """
    header = ["task", "split", "rows", "bad", "twice", "leaked", "tokens", "cut", "lost"]
    rows: list[list[str]] = []
    for name, splits in profile.items():
        for split, found in splits.items():
            lengths = "/".join(f"{length:.0f}" for length in found.source_tokens.values()) or "-"
            counts = (found.rows, found.rows - found.usable, found.duplicates, found.seen_in_train)
            shares = [f"{100 * share:.1f} %" for share in (found.cut_sources, found.lost_targets)]
            rows.append([name, split, *map(str, counts), lengths, *shares])
    return header, rows


def profile_json(profile: Profile) -> dict[str, Any]:
    """The profile as plain values."""
    return {name: {split: asdict(found) for split, found in splits.items()} for name, splits in profile.items()}

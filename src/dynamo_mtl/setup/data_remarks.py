"""List what a user should know about the data before training, one sentence each."""

from __future__ import annotations

from collections.abc import Iterator

from dynamo_mtl.messages import shortened
from dynamo_mtl.metrics.routing import remedy
from dynamo_mtl.setup.data_check import Profile, SplitProfile
from dynamo_mtl.tasks.tables import TRAIN

LOST = 0.02
"""Share of lost targets, or of cut inputs, that is worth a remark."""
ALIKE = 0.1
"""Share of inputs taken for another task's that is worth a remark."""
FEW = 50
"""Validation rows below which a figure says little."""


def remarks(profile: Profile) -> list[str]:
    """Return the remarks on all splits of all tasks, and on tasks that look alike."""
    of_splits = [
        sentence
        for name, splits in profile.items()
        for split, found in splits.items()
        for sentence in (
            *_of_rows(found, name, split),
            *_of_labels(found, name, split),
            *_of_lengths(found, name, split),
        )
    ]
    return of_splits + list(_of_likeness(profile))


def _of_likeness(profile: Profile) -> Iterator[str]:
    """The pairs of tasks whose inputs look alike, the worst first."""
    shares: dict[tuple[str, str], float] = {}
    for name, splits in profile.items():
        for other, share in splits["validation"].looks_like.items():
            pair = (name, other) if list(profile).index(name) < list(profile).index(other) else (other, name)
            shares[pair] = max(shares.get(pair, 0.0), share)
    for (one, other), share in sorted(shares.items(), key=lambda pair: -pair[1]):
        if share >= ALIKE:
            yield (
                f"{one} and {other} look alike: by its words alone, {100 * share:.0f} % of the inputs of one are taken "
                f"for the other's. {remedy(one, other)}"
            )


def _of_rows(found: SplitProfile, name: str, split: str) -> Iterator[str]:
    where = f"{name}, {split}"
    for kind, fault in found.faults.items():
        yield f"{where}: {fault.rows} rows: {kind}; {fault.first}"
    for note, rows in found.reading_notes.items():
        yield f"{where}: {rows} rows: {note}"
    if found.seen_in_train:
        share = 100 * found.seen_in_train / max(1, found.usable)
        yield f"{name}: {found.seen_in_train} inputs ({share:.1f} %) of {split} are in train too"
    if found.contexts_in_train:
        yield f"{name}: {found.contexts_in_train} passages of {split} are in train too"
    if found.empty_texts:
        yield f"{where}: {found.empty_texts} texts are empty or blank"
    if found.contradictions:
        yield f"{where}: {found.contradictions} repeated inputs expect another target than before"
    if split != TRAIN and 0 < found.usable < FEW:
        error = 100 * 1.96 * (0.25 / found.usable) ** 0.5
        yield (
            f"{where}: {found.usable} rows; a share that is measured on so few may be off by {error:.0f} points, and "
            f"the best state is chosen by them; {FEW} or more are better (validation_share, or a file of their own)"
        )


def _of_labels(found: SplitProfile, name: str, split: str) -> Iterator[str]:
    where = f"{name}, {split}"
    if found.labels_never_trained:
        yield f"{where}: labels that train does not have: {shortened(found.labels_never_trained)}"
    if len(found.labels) == 1 and found.usable > 1:
        yield f"{where}: every row has the label {next(iter(found.labels))}"
    if found.labels:
        most_first = sorted(found.labels.items(), key=lambda one: -one[1])
        yield f"{where}: labels {shortened(f'{label} {100 * n / found.usable:.1f} %' for label, n in most_first)}"


def _of_lengths(found: SplitProfile, name: str, split: str) -> Iterator[str]:
    where = f"{name}, {split}"
    if found.cut_sources > LOST:
        yield (
            f"{where}: {100 * found.cut_sources:.1f} % of sources are longer than what is read; raise data.max_windows "
            "or data.max_source_length"
        )
    if found.cut_questions > LOST:
        yield f"{where}: {100 * found.cut_questions:.1f} % of questions are cut at a third of data.max_source_length"
    if found.lost_targets > (0.0 if split == TRAIN else LOST):
        reasons = "; ".join(f"{count} where {reason}" for reason, count in found.lost_reasons.items())
        yield f"{where}: {100 * found.lost_targets:.1f} % of targets cannot be learned as they stand: {reasons}"

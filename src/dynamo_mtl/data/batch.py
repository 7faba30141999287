"""Splitting a step's examples into micro-batches that fit a token budget. Knows no task."""

from __future__ import annotations

from collections.abc import Sequence


def split_by_tokens(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Split examples into groups of similar length, each of at most ``budget`` tokens (one example may exceed it).

    Args:
        lengths: tokens of each example.
        budget: most tokens in a group.

    Returns:
        Example numbers, group by group, longest first.
    """
    groups: list[list[int]] = []
    used = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if not groups or used + lengths[index] > budget:
            groups.append([])
            used = 0
        groups[-1].append(index)
        used += lengths[index]
    return groups

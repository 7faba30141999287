"""Runs work in groups that fit a token budget, and recovers when memory runs out.

A pass without gradients splits a group that does not fit into two halves. A training update is repeated in smaller
micro-batches, by all processes of the job alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from dynamo_mtl.distributed import all_reduce_max
from dynamo_mtl.errors import MemoryShortage


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


def run_in_groups(lengths: Sequence[int], budget: int, run: Callable[[Sequence[int]], None]) -> None:
    """Run groups of examples one after the other. A group that does not fit into memory is run in two halves.

    Args:
        lengths: tokens of each example.
        budget: most tokens in a group.
        run: processes the examples with the given indices; it can be called again after it failed.

    Raises:
        MemoryShortage: not even one example alone fits into memory.
    """
    waiting = split_by_tokens(lengths, budget)[::-1]
    while waiting:
        group = waiting.pop()
        try:
            run(group)
            continue
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if len(group) == 1:
                raise MemoryShortage(f"one example of {lengths[group[0]]} tokens does not fit into memory") from error
        free_memory()  # outside of the handler, which keeps the failed run's tensors alive
        middle = len(group) // 2
        waiting += [group[middle:], group[:middle]]


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that a device or the host has no memory left."""
    from accelerate.utils.memory import should_reduce_batch_size

    return should_reduce_batch_size(error)


def free_memory() -> None:
    """Release cached memory."""
    from accelerate.utils.memory import clear_device_cache

    clear_device_cache(garbage_collection=True)


class OutOfMemory(Exception):  # noqa: N818 (a state that is dealt with)
    """A process of the job ran out of memory; raised in all of them. ``own`` says whether it was this one."""

    def __init__(self, own: bool) -> None:
        super().__init__("out of memory")
        self.own = own


@contextmanager
def agreed() -> Iterator[None]:
    """Run the block in all processes; if memory ran out in one of them, raise ``OutOfMemory`` in all.

    Otherwise the other processes would wait at their next exchange, while the failed one restarts the update.
    """
    failed = False
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        failed = True
    if all_reduce_max(failed):
        raise OutOfMemory(failed)

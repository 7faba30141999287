"""What an update does when memory runs out: all processes learn of it, and try again with smaller micro-batches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dynamo_mtl.data.batch import is_out_of_memory
from dynamo_mtl.processes import highest


class OutOfMemory(Exception):  # noqa: N818 (a state that is dealt with)
    """A process of the job ran out of memory; raised in all of them. ``own`` says whether it was this one."""

    def __init__(self, own: bool) -> None:
        super().__init__("out of memory")
        self.own = own


@contextmanager
def agreed() -> Iterator[None]:
    """Run the block in all processes; if memory ran out in one of them, raise ``OutOfMemory`` in all.

    Without it, the others would wait at their next exchange for the one that starts the update again.
    """
    failed = False
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        failed = True
    if highest(failed):
        raise OutOfMemory(failed)

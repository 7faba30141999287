"""Divides work between the processes of a job, and combines their results.

``accelerate launch`` and ``torchrun`` start one process for every GPU; ``accelerate.Accelerator`` connects them. In a
job with a single process, nothing is exchanged and every value stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, distributed

from dynamo_mtl.errors import DynamoError, ProcessError

# Import this before there is a process group. Its default arguments hold the group that exists at import, and otherwise
# an optimizer's first step imports it. `destroy_process_group` could not end the threads of a group that is held, and
# these can abort the interpreter at exit, after a successful run.
if distributed.is_available():
    import torch.distributed.nn.functional

T = TypeVar("T")


@dataclass(frozen=True)
class Rank:
    """The number of a process and how many there are."""

    number: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks to the user."""
        return self.number == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This process's part: every ``size``-th item. The parts of all processes hold each item once."""
        return items[self.number :: self.size]


def world() -> Rank:
    """The rank of the running process, and the size of its job."""
    if not distributed.is_available() or not distributed.is_initialized():
        return Rank()
    return Rank(distributed.get_rank(), distributed.get_world_size())


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum a tensor over all processes. The result is bit-identical on all of them."""
    if world().size == 1:
        return tensor
    total = tensor.to(_device())
    with _exchange():
        distributed.all_reduce(total)
    return total.to(tensor.device)


def all_reduce_gradients(parameters: Sequence[torch.nn.Parameter]) -> None:
    """Replace each gradient by its sum over all processes, in one exchange; a missing one counts as zero."""
    if world().size == 1:
        return
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
    for parameter, total in zip(parameters, all_reduce_sum(flat).split([p.numel() for p in parameters]), strict=True):
        parameter.grad = total.view_as(parameter)


def broadcast(tensors: Sequence[Tensor]) -> None:
    """Give every process the values that the first one has."""
    if world().size > 1:
        for tensor in tensors:
            moved = tensor.detach().to(_device())
            with _exchange():
                distributed.broadcast(moved, src=0)
            tensor.detach().copy_(moved)


def all_reduce_max(number: float) -> float:
    """The highest of the numbers that the processes have."""
    if world().size == 1:
        return number
    found = torch.tensor(number, dtype=torch.float64, device=_device())
    with _exchange():
        distributed.all_reduce(found, op=distributed.ReduceOp.MAX)
    return float(found)


def gather(value: T) -> list[T]:
    """Collect the values of all processes, in the order of their ranks."""
    rank = world()
    if rank.size == 1:
        return [value]
    values: list[T | None] = [None] * rank.size
    with _exchange():
        distributed.all_gather_object(values, value)
    return values  # pyright: ignore[reportReturnType] (all are filled)


def join_shares(share: Sequence[T]) -> list[T]:
    """Join the results of all processes for their ``Rank.share``, in the original order of the items."""
    shares = gather(list(share))
    joined: list[T] = [shares[0][0]] * sum(map(len, shares)) if shares[0] else []
    for number, part in enumerate(shares):
        joined[number :: len(shares)] = part
    return joined


def on_main_process(action: Callable[[], T]) -> T:
    """Run ``action`` in the main process. All processes get its result, or raise its ``DynamoError``.

    Raises:
        DynamoError: raised by ``action``. ``is_reported`` is set in the other processes, as the main one reports it.
    """
    rank = world()
    if rank.size == 1:
        return action()
    outcome: tuple[T | None, DynamoError | None] = (None, None)
    if rank.is_main:
        try:
            outcome = (action(), None)
        except DynamoError as error:
            outcome = (None, error)
    value, error = gather(outcome)[0]
    if error is not None:
        error.is_reported = not rank.is_main
        raise error
    return value  # pyright: ignore[reportReturnType] (the first process's own)


def _device() -> torch.device:
    """Where tensors must lie for an exchange."""
    return torch.device("cuda") if distributed.get_backend() == "nccl" else torch.device("cpu")


@contextmanager
def _exchange() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # torch's own and those of its transports are all of this kind
        reason = str(error).split("\n", maxsplit=1)[0]
        raise ProcessError(
            f"a process of this job ended or cannot be reached ({reason}); a training run goes on from its newest "
            "state when the job is started again with --resume latest"
        ) from error

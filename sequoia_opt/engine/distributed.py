"""Several processes that run one pair together, started by torchrun.

The target is spread over them, tensor-parallel, as transformers does it; each has a whole draft.
What decides is computed everywhere but taken from the first process, so that rounding can never
make them part. Knows nothing of models.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import TCPStore

from sequoia_opt.errors import SequoiaError, one_line
from sequoia_opt.processes import is_one_of_several

BACKENDS = {"cuda": "nccl", "cpu": "gloo"}
# One process waits for another, which loads longer, or has a share of the work that takes longer:
# a process that dies ends the run, whatever the others wait for.
PATIENCE, SHARE_PATIENCE = timedelta(minutes=30), timedelta(days=1)
MEETING = ("RANK", "MASTER_ADDR", "MASTER_PORT")  # what torchrun tells each process besides


@dataclass(frozen=True)
class World:
    """The processes that run together, and which of them this is.

    Attributes:
        rank: from 0.
        size: 1 where this one is alone.
    """

    rank: int = 0
    size: int = 1

    def agree(self, tensor: Tensor) -> Tensor:
        """The first process's values."""
        if self.size > 1:
            tensor = tensor.contiguous()
            dist.broadcast(tensor, 0)
        return tensor

    def agree_on(self, value: Any) -> Any:
        """The first process's value, of any plain kind."""
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values, 0)
        return values[0]

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, in order, for all of them."""
        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values


ALONE = World()


def launched() -> int:
    """How many processes torchrun has started; 1 without it.

    Raises:
        SequoiaError: there should be several, but where they meet is not said.
    """
    if not is_one_of_several():
        return 1
    if missing := [name for name in MEETING if not os.environ.get(name)]:
        raise SequoiaError(
            f"LOCAL_RANK and WORLD_SIZE are set, as for one of several processes, but {missing[0]} "
            "is not; start them with torchrun, or unset the two"
        )
    return int(os.environ["WORLD_SIZE"])


def is_first_to_fail() -> bool:
    """Whether none of the processes has asked this before: one of them says what was wrong."""
    host, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if not host or not port:
        return True  # there is nobody to ask
    try:
        store = TCPStore(host, int(port), timeout=timedelta(seconds=10))
        return bool(store.add("sequoia_opt/failed", 1) == 1)
    except (RuntimeError, ValueError):
        return True


def own_device(kind: str) -> str:
    """This process's device of a kind: of several, the one with its number.

    Raises:
        SequoiaError: there are fewer than processes, or all would take the same.
    """
    if launched() == 1 or not kind.startswith("cuda"):
        return kind
    if kind != "cuda":
        raise SequoiaError(
            f"device: found {kind} for each of {launched()} processes; use --device cuda, of which "
            "each takes its own"
        )
    place, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if not count:
        raise SequoiaError("this machine has no GPU for its processes; use --device cpu")
    if place >= count:
        raise SequoiaError(
            f"process {place} of this machine has no GPU: there are {count}; start as many "
            f"processes (--nproc-per-node {count})"
        )
    return f"cuda:{place}"


def join(device: torch.device, patience: timedelta = PATIENCE) -> World:
    """Meet the other processes, if there are any.

    Args:
        patience: how long one waits for another, now and later.

    Raises:
        SequoiaError: they do not meet.
    """
    if launched() == 1:
        return ALONE
    if not dist.is_initialized():
        if device.type not in BACKENDS:
            raise SequoiaError(f"several processes run on cuda or cpu, not on {device.type}")
        if device.type == "cuda":
            torch.cuda.set_device(device)
        try:
            dist.init_process_group(BACKENDS[device.type], timeout=patience)
        except (RuntimeError, ValueError) as error:
            raise SequoiaError(
                f"the {launched()} processes do not meet ({one_line(error)[:200]})"
            ) from None
    return World(dist.get_rank(), dist.get_world_size())

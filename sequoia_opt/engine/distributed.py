"""Several processes that run one pair together, started by torchrun.

transformers spreads the target over them, tensor-parallel; each process has a whole draft. All
processes compute every decision and take the first process's result, so that rounding cannot make
them diverge. Knows nothing of models.
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
# How long a process waits for another that takes longer to load, or to do its share of the work.
# The others do not wait for a process that died: torchrun ends the run.
PATIENCE, SHARE_PATIENCE = timedelta(minutes=30), timedelta(days=1)
MEETING = (
    "RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
)  # set by torchrun, like LOCAL_RANK and WORLD_SIZE


@dataclass(frozen=True)
class World:
    """The processes that run together, and this process's number among them.

    Attributes:
        rank: this process's number, from 0.
        size: number of processes; 1 for a process on its own.
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
        """The first process's value; any value that can be pickled."""
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values, 0)
        return values[0]

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in order; every process gets them."""
        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values


ALONE = World()


def launched() -> int:
    """The number of processes that torchrun has started; 1 without it.

    Raises:
        SequoiaError: there should be several, but the environment does not say where they meet.
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
    """Whether this is the first process to call this, and so the one to report what failed."""
    host, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if not host or not port:
        return True  # it runs on its own
    try:
        store = TCPStore(host, int(port), timeout=timedelta(seconds=10))
        return bool(store.add("sequoia_opt/failed", 1) == 1)
    except (RuntimeError, ValueError):
        return True


def own_device(kind: str) -> str:
    """This process's device of a kind: if several processes run, the GPU with its number.

    Raises:
        SequoiaError: there are fewer GPUs than processes, or all processes would take the same.
    """
    if launched() == 1 or not kind.startswith("cuda"):
        return kind
    if kind != "cuda":
        raise SequoiaError(
            f"device: found {kind} for each of {launched()} processes, expected cuda; with "
            "--device cuda each process takes a GPU of its own"
        )
    number, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if not count:
        raise SequoiaError("this machine has no GPU for its processes; use --device cpu")
    if number >= count:
        raise SequoiaError(
            f"process {number} of this machine has no GPU, since there are only {count}; start as "
            f"many processes (--nproc-per-node {count})"
        )
    return f"cuda:{number}"


def join(device: torch.device, patience: timedelta = PATIENCE) -> World:
    """Meet the other processes, if there are any.

    Args:
        patience: how long a process waits for another, now and later.

    Raises:
        SequoiaError: the processes do not meet.
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

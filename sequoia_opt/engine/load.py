"""Loads a pair with the engine that runs its models.

There is one engine so far, `torch`; which one runs a pair is decided here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sequoia_opt.engine.pair import Pair
from sequoia_opt.engine.torch.load_pair import Request, load


def load_pair(
    target: str | Path,
    draft: str | Path,
    device: str | None = None,
    dtype: str | None = None,
    graphs: bool | None = None,
    random_weights: bool = False,
    offload: str = "none",
    memory_budget: int | None = None,
    spread: bool = True,
    names: Mapping[str, str] | None = None,
) -> Pair:
    """Load two models by hub id or local folder.

    Args:
        device: "cpu", "cuda", "cuda:1", …; by default CUDA if it is available.
        dtype: a name in DTYPES; by default bfloat16 on CUDA and float32 elsewhere.
        graphs: whether to record steps as CUDA graphs; by default on CUDA.
        random_weights: make up the weights from config.json alone: the models are as fast.
        offload: where layers of the target stay that do not fit the device: "cpu" for host
            memory, or "disk".
        memory_budget: bytes that an offloaded target may take on the device, with the cache of a
            short text but without the buffers of two layers; by default most of the free memory.
        spread: under torchrun, spread the target over the processes; else each has all of it.
        names: short names of the models, by role; by default a hub id, or the folder's name.

    Raises:
        SequoiaError: a model cannot be loaded or run, or the two do not fit together.
    """
    return load(
        Request(
            {"target": str(target), "draft": str(draft)},
            device,
            dtype,
            graphs,
            random_weights,
            offload,
            memory_budget,
            spread,
            dict(names or {}),
        )
    )

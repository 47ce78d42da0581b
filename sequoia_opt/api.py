"""The functions of the package's front door that know the bundled pair.

Everything else of `sequoia_opt` is imported from the module that it lives in.
"""

from __future__ import annotations

from pathlib import Path

from sequoia_opt import demo
from sequoia_opt.engine.pair import Pair
from sequoia_opt.engine.pair import load_pair as load_named_pair


def load_pair(
    target: str | Path | None = None,
    draft: str | Path | None = None,
    device: str | None = None,
    dtype: str | None = None,
    graphs: bool | None = None,
    random_weights: bool = False,
    offload: str = "none",
    memory_budget: int | None = None,
    spread: bool = True,
) -> Pair:
    """Load a target and a draft model by hub id or local folder; by default the bundled pair.

    Args:
        device: "cpu", "cuda", "cuda:1", …; by default CUDA where there is one.
        dtype: float64, float32, bfloat16 or float16; by default bfloat16 on CUDA, else float32.
        graphs: whether to record steps as CUDA graphs; by default on CUDA.
        random_weights: make up the weights from config.json alone: the models are as fast.
        offload: where layers of the target stay that do not fit the device: "cpu" for host
            memory, or "disk".
        memory_budget: bytes that an offloaded target may take on the device, with the cache of a
            short text but without the buffers of two layers; by default most of what is free.
        spread: under torchrun, spread the target over the processes; else each has all of it.

    Raises:
        SequoiaError: a model cannot be loaded or run, or the two do not fit together.
    """
    asked = {"target": str(target or demo.TARGET_NAME), "draft": str(draft or demo.DRAFT_NAME)}
    folders = {role: demo.resolve(name) for role, name in asked.items()}
    return load_named_pair(
        folders["target"],
        folders["draft"],
        device,
        dtype,
        graphs,
        random_weights,
        offload,
        memory_budget,
        spread,
        {role: name for role, name in asked.items() if folders[role] != name},
    )

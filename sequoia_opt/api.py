"""The public functions that take the bundled models and the bundled dataset by default.

Knows the bundled names. The rooms below take folders, files and hub ids alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sequoia_opt import demo
from sequoia_opt.measure import dataset

if TYPE_CHECKING:  # the engine loads torch, which `load_dataset` does not need
    from sequoia_opt.engine.pair import Pair
    from sequoia_opt.measure.records import Document


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
    engine: str | None = None,
    engine_options: Mapping[str, Any] | None = None,
    corpus: str | Path | None = None,
) -> Pair:
    """Load a target and a draft model by hub id, local folder or GGUF file.

    By default it is the bundled pair, which either engine runs.

    Args:
        draft: a model, "lookup" for what followed the text's end where that occurred before, or
            "lookup+" and a model, which drafts where the lookup has nothing better. "lookup+" alone
            stands for the bundled draft with the bundled target.
        device: "cpu", "cuda", "cuda:1", …; by default CUDA if it is available.
        dtype: float64, float32, bfloat16 or float16; by default bfloat16 on CUDA, else float32.
        graphs: whether to record steps as CUDA graphs; by default on CUDA.
        random_weights: make up the weights from config.json alone: the models are as fast.
        offload: where layers of the target stay that do not fit the device: "cpu" for host
            memory, or "disk".
        memory_budget: bytes that an offloaded target may take on the device, with the cache of a
            short text but without the buffers of two layers; by default most of the free memory.
        spread: under torchrun, spread the target over the processes; else each has all of it.
        engine: "torch" or "llama.cpp"; by default llama.cpp for GGUF files, else torch.
        engine_options: the engine's own settings: `threads`, and on llama.cpp `gpu_layers`,
            `flash_attention`, `cache_type_k`, `cache_type_v` and `context_size`.
        corpus: a text file, or a folder of such, that a lookup looks into besides the text.

    Raises:
        SequoiaError: a model cannot be loaded or run, the two do not fit together, or the engine
            does not have an option.
    """
    from sequoia_opt.engine.load import load_pair as load_named_pair
    from sequoia_opt.engine.names import engine_for
    from sequoia_opt.plan.draft_names import LOOKUP_FIRST, model_of

    named = str(draft or demo.DRAFT_NAME)
    if named == LOOKUP_FIRST and target in (None, demo.TARGET_NAME):
        named += demo.DRAFT_NAME
    prefix = LOOKUP_FIRST if named.startswith(LOOKUP_FIRST) else ""
    asked = {"target": str(target or demo.TARGET_NAME), "draft": model_of(named)}
    engine = engine or engine_for(asked.values())
    folders = {role: demo.resolve(name, engine) for role, name in asked.items()}
    return load_named_pair(
        folders["target"],
        prefix + folders["draft"],
        device,
        dtype,
        graphs,
        random_weights,
        offload,
        memory_budget,
        spread,
        {role: name for role, name in asked.items() if folders[role] != name},
        engine,
        engine_options,
        corpus,
    )


def load_dataset(
    name: str | Path | None = None, note: Callable[[str], None] = lambda message: None
) -> tuple[str, list[Document]]:
    """A dataset's short name and its documents; by default the bundled one.

    Args:
        name: "demo" for the bundled dataset; else see `sequoia_opt.measure.dataset.load_dataset`.
        note: called with a line for each record that is left out.

    Raises:
        SequoiaError: the dataset is missing, unreadable or has no document that can be used, or a
            package to read it is missing.
    """
    if name is None or str(name) == demo.DATASET_NAME:
        _, documents = dataset.load_dataset(demo.DATASET, note)
        return demo.DATASET_NAME, documents
    return dataset.load_dataset(name, note)

"""Loads a pair with the engine that runs its models.

Knows which engine runs what, and which options each has.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sequoia_opt.engine.corpus import read_corpus
from sequoia_opt.engine.lookup_pair import with_lookup
from sequoia_opt.engine.names import ENGINES, LLAMA_CPP, engine_for
from sequoia_opt.engine.pair import Pair
from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan.draft_names import LOOKUP, looks_up, model_of


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
    engine: str | None = None,
    engine_options: Mapping[str, Any] | None = None,
    corpus: str | Path | None = None,
) -> Pair:
    """Load two models by hub id, local folder or GGUF file; or one, and a lookup that drafts.

    Args:
        draft: a model, "lookup", or "lookup+" and a model.
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
        engine: "torch" or "llama.cpp"; by default llama.cpp for GGUF files, else torch.
        engine_options: the engine's own settings: threads, and on llama.cpp the other fields of
            `llama_cpp.settings.Settings`.
        corpus: a text file, or a folder of such, that a lookup looks into besides the text.

    Raises:
        SequoiaError: a model cannot be loaded or run, the two do not fit together, the engine
            does not have an option, or the corpus is no text.
    """
    draft = str(draft)
    sources = {"target": str(target)} | ({} if draft == LOOKUP else {"draft": model_of(draft)})
    if corpus is not None and not looks_up(draft):
        raise SequoiaError(f"corpus: found one with the draft {draft}, expected {LOOKUP}; drop it")
    if draft != LOOKUP and looks_up(model_of(draft)):
        raise SequoiaError(f"draft: found {draft}, expected one lookup before a draft model")
    if sources.get("draft") == "":
        raise SequoiaError(f"draft: found {draft}, expected a draft model behind it; name one")
    texts = None if corpus is None else read_corpus(corpus)
    engine = engine or engine_for(sources.values())
    options = {name: value for name, value in (engine_options or {}).items() if value is not None}
    if engine not in ENGINES:
        raise SequoiaError(f"engine: found {engine!r}, expected one of {', '.join(ENGINES)}")
    if engine == LLAMA_CPP:
        refuse = {
            "--device": device not in (None, "cpu"),
            "--dtype": dtype is not None,
            "--graphs": bool(graphs),
            "--random-weights": random_weights,
            "--offload": offload != "none",
            "--memory-budget": memory_budget is not None,
        }
        for option, is_set in refuse.items():
            if is_set:
                raise SequoiaError(f"{option}: {_INSTEAD[option]}; drop it, or use --engine torch")
        if "draft" in sources:
            _refuse_head(sources["draft"])
        from sequoia_opt.engine.llama_cpp.load_pair import load as load_gguf

        if device == "cpu":
            options.setdefault("gpu_layers", 0)
        return with_lookup(load_gguf(sources, options, names or {}), draft, texts)
    from sequoia_opt.engine.torch.load_pair import Request, load

    threads = options.pop("threads", None)
    if options:
        option = next(iter(options)).replace("_", "-")
        raise SequoiaError(
            f"{option}: is an option of llama.cpp; drop it, or add --engine llama.cpp"
        )
    if threads is not None:
        if threads < 1:
            raise SequoiaError(f"threads: found {threads}, expected at least 1")
        torch.set_num_threads(threads)
    request = Request(
        sources,
        device,
        dtype,
        graphs,
        random_weights,
        offload,
        memory_budget,
        spread,
        dict(names or {}),
    )
    return with_lookup(load(request), draft, texts)


def _refuse_head(draft: str) -> None:
    """Refuse an EAGLE-3 head, which llama.cpp's library cannot run step by step."""
    from sequoia_opt.engine.torch.eagle.config import head_config

    if head_config(draft) is not None:
        raise SequoiaError(
            f"{draft}: is an EAGLE-3 head, which reads hidden states that llama.cpp's library does "
            "not give away; use --engine torch or a GGUF draft model, or let llama-server run the "
            "head as a GGUF file (--spec-type draft-eagle3)"
        )


_INSTEAD = {
    "--device": "llama.cpp runs on the device that it was built for; --gpu-layers says how much",
    "--dtype": "a GGUF file has its number type",
    "--graphs": "llama.cpp keeps its own graphs",
    "--random-weights": "llama.cpp reads weights from a file",
    "--offload": "llama.cpp keeps layers in host memory with --gpu-layers",
    "--memory-budget": "llama.cpp keeps layers in host memory with --gpu-layers",
}

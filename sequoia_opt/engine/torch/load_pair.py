"""Loads a target and a draft model of transformers, and checks that the two fit together.

Knows names, dtypes, devices and tokenizers; loading.py brings each model in. Knows nothing of
trees.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from transformers import PreTrainedTokenizerBase

from sequoia_opt.engine.devices import DTYPES, usable_device
from sequoia_opt.engine.distributed import (
    ALONE,
    PATIENCE,
    SHARE_PATIENCE,
    join,
)
from sequoia_opt.engine.drafters import FINGERPRINT, Drafter, LookupDrafter, ModelDrafter
from sequoia_opt.engine.gguf_file import is_gguf, stem
from sequoia_opt.engine.pair import Pair, short_name
from sequoia_opt.engine.text import Tokenizer
from sequoia_opt.engine.torch.eagle.config import HeadConfig, head_config
from sequoia_opt.engine.torch.eagle.loading import head_bytes, load_head
from sequoia_opt.engine.torch.library import TransformersLibrary
from sequoia_opt.engine.torch.loading import (
    Loading,
    end_tokens,
    fingerprint,
    load_config,
    load_tokenizer,
)
from sequoia_opt.engine.torch.machine import TorchMachine
from sequoia_opt.engine.torch.memory import check_fits, weight_bytes
from sequoia_opt.engine.torch.offload import PLACES, Offload
from sequoia_opt.errors import SequoiaError, one_line
from sequoia_opt.plan.draft_names import LOOKUP

SAME_TOKENS = 0.05  # share of two vocabularies that may differ, if no ordinary text has them


@dataclass(frozen=True)
class Request:
    """What to load, and how; see `load_pair`.

    Attributes:
        sources: hub id, folder or GGUF file, by role; without a draft, a lookup drafts.
        names: short names, by role, where they are not to follow from the sources.
    """

    sources: dict[str, str]
    device: str | None = None
    dtype: str | None = None
    graphs: bool | None = None
    random_weights: bool = False
    offload: str = "none"
    memory_budget: int | None = None
    spread: bool = True
    names: dict[str, str] = field(default_factory=dict)

    @property
    def has_weights(self) -> bool:
        """Whether the models' weights are read."""
        return not self.random_weights


def load(request: Request) -> Pair:
    """Load a pair.

    Raises:
        SequoiaError: a model cannot be loaded or run, or the two do not fit together.
    """
    device, dtype = usable_device(request.device), _dtype(request)
    _check_offload(request, device)
    world = join(device, PATIENCE if request.spread else SHARE_PATIENCE)
    parts = world.size if request.spread else 1
    graphs = _graphs(request.graphs, device, request.offload, parts)
    if parts > 1:
        _check_spread(device, request.offload, request.random_weights)
    if device.type == "cuda":
        # Where cuDNN is preferred for attention (from torch 2.11 on, on Hopper and later), it
        # plans again for every shape, and a tree's changes with the text's length.
        torch.backends.cuda.enable_cudnn_sdp(False)
    sources = request.sources
    head = head_config(sources["draft"]) if "draft" in sources else None
    if head is not None:
        _check_head_runs(head, request, parts)
    configs = {
        role: head if head and role == "draft" else load_config(source, request.has_weights)
        for role, source in sources.items()
    }
    tokenizers: dict[str, Any] = {role: load_tokenizer(sources[role]) for role in sources}
    for tokenizer in tokenizers.values():
        if tokenizer is not None:  # a text is what its tokens say, spaces before commas included
            tokenizer.clean_up_tokenization_spaces = False
    if "draft" in sources and (head is None or None not in tokenizers.values()):
        _check_fit(sources, configs, tokenizers)
    sizes = {
        role: head_bytes(head)
        if head and role == "draft"
        else _weight_bytes(source, configs[role], dtype)
        for role, source in sources.items()
    }
    _check_memory(sources, sizes, device, request.offload, parts)
    plain = Loading(device, dtype, request.random_weights)
    offload = Offload(request.offload, request.memory_budget)
    ways = {
        "draft": plain,
        "target": replace(
            plain, offload=None if request.offload == "none" else offload, parts=parts
        ),
    }
    # The draft first: the target may take all memory that is left.
    loaded = load_head(head, configs["target"], dtype, device) if head else None
    runners = {
        role: way.runner(sources[role], configs[role])
        for role, way in ways.items()
        if role in sources and (role == "target" or loaded is None)
    }
    target = runners["target"]
    if loaded is not None:
        drafter: Drafter = loaded.on(target)
    elif "draft" in runners:
        drafter = ModelDrafter(runners["draft"], target.vocabulary)
    else:
        drafter = LookupDrafter()
    machine = TorchMachine(device, graphs)
    if graphs:
        for runner in runners.values():
            runner.record = machine.recorder
    names = {"draft": LOOKUP} | {
        role: stem(source) if is_gguf(source) else short_name(source)
        for role, source in sources.items()
    }
    names |= request.names
    return Pair(
        target=target,
        drafter=drafter,
        machine=machine,
        library=TransformersLibrary(runners),
        target_name=names["target"],
        draft_name=names["draft"],
        fingerprints={"draft": FINGERPRINT}
        | {
            role: fingerprint(sources[role], configs[role], request.has_weights) for role in sources
        },
        tokenizer=cast("Tokenizer | None", tokenizers["target"] or tokenizers.get("draft")),
        end_tokens=end_tokens(target.model, tokenizers["target"]),
        random_weights=request.random_weights,
        offload=request.offload,
        memory_budget=None if target.stream is None else target.stream.budget,
        world=world if request.spread else ALONE,
        peers=ALONE if request.spread else world,
    )


def _check_head_runs(head: HeadConfig, request: Request, parts: int) -> None:
    """Refuse ways of running a pair that a head does not have."""
    if request.random_weights:
        raise SequoiaError(
            f"{head.source}: the weights of an EAGLE-3 head are not made up; drop --random-weights"
        )
    if parts > 1:
        raise SequoiaError(
            f"{head.source}: an EAGLE-3 head drafts for a target in one process; run one process"
        )


def _dtype(request: Request) -> torch.dtype:
    """The dtype that a request names; by default bfloat16 on CUDA and float32 elsewhere."""
    if request.dtype is None:
        is_cuda = usable_device(request.device).type == "cuda"
        return torch.bfloat16 if is_cuda else torch.float32
    if request.dtype not in DTYPES:
        raise SequoiaError(f"dtype: found {request.dtype!r}, expected one of {', '.join(DTYPES)}")
    return DTYPES[request.dtype]


def _weight_bytes(source: str, config: Any, dtype: torch.dtype) -> int:
    """Bytes of a model's weights; 0 for quantised ones, whose size is not in the configuration.

    Raises:
        SequoiaError: its configuration describes no model.
    """
    try:
        return weight_bytes(config, dtype) or 0
    except ImportError as error:
        raise SequoiaError(
            f"{source}: cannot be loaded, since a package is missing ({one_line(error)[:200]})"
        ) from None
    except Exception as error:  # of many kinds: sizes that do not go together
        reason = f"{type(error).__name__}: {one_line(error)[:160]}"
        holder = "metadata" if is_gguf(source) else "config.json"
        raise SequoiaError(f"{source}: its {holder} describes no model ({reason})") from None


def _check_fit(
    sources: dict[str, str],
    configs: dict[str, Any],
    tokenizers: dict[str, PreTrainedTokenizerBase | None],
) -> None:
    """Refuse a draft whose token ids mean other tokens than the target's.

    Ids that only one model has may differ, and so may special or reserved ones, which ordinary
    text does not contain: such a token costs at most a guess, since the text is always the
    target's.
    """
    names = f"target {sources['target']} and draft {sources['draft']}"
    first, second = tokenizers["target"], tokenizers["draft"]
    if first is not None and second is not None:
        special = set(first.added_tokens_decoder) | set(second.added_tokens_decoder)
        texts = [
            {i: text for text, i in tokenizer.get_vocab().items()} for tokenizer in (first, second)
        ]
        differing = sorted(i for i, text in texts[0].items() if texts[1].get(i, text) != text)
        ordinary = [i for i in differing if i not in special]
        common = len(texts[0].keys() & texts[1].keys())
        if ordinary or len(differing) > SAME_TOKENS * common:
            token = (ordinary or differing)[0]
            raise SequoiaError(
                f"{names} have different tokenizers: {len(differing)} of {common} tokens differ, "
                f"like token {token}, {texts[0][token]!r} and {texts[1][token]!r}; a draft must "
                "share its target's"
            )
        return
    sizes = [configs[role].get_text_config().vocab_size for role in ("target", "draft")]
    if sizes[0] != sizes[1]:
        raise SequoiaError(
            f"{names} have different vocabularies ({sizes[0]} and {sizes[1]} tokens); "
            "a draft must share its target's"
        )


def _check_memory(
    sources: dict[str, str], sizes: dict[str, int], device: torch.device, offload: str, parts: int
) -> None:
    """Refuse weights that do not fit into the memory that they are for.

    Args:
        sizes: bytes of each model, by role.
        parts: number of processes that the target is spread over: on GPUs each has its own memory.
    """
    target = sizes["target"] // (parts if device.type == "cuda" else 1)
    needed, names = sizes.get("draft", 0), sources.get("draft", "")
    if offload == "none":
        names = f"{sources['target']} and {names}" if names else sources["target"]
        needed += target
    spread = f", the first spread over {parts} processes," if parts > 1 else ""
    check_fits(
        needed,
        device,
        f"the weights of {names}{spread}",
        "use a smaller dtype, another device or smaller models, or --offload",
    )
    if offload == "cpu":
        check_fits(
            target,
            torch.device("cpu"),
            f"the weights of {sources['target']}",
            "use a smaller dtype or a smaller target, or --offload disk",
        )


def _check_spread(device: torch.device, offload: str, random_weights: bool) -> None:
    """Refuse a target that cannot be spread over processes."""
    if offload != "none" or random_weights:
        option = "--random-weights" if random_weights else "--offload"
        raise SequoiaError(
            f"several processes share a checkpoint's weights; drop {option}, or run one process"
        )
    if device.type == "cpu" and torch.cuda.is_available():
        raise SequoiaError(
            "several processes on the cpu: transformers takes a GPU where it sees one; hide the "
            "GPUs (CUDA_VISIBLE_DEVICES= torchrun …)"
        )


def _check_offload(request: Request, device: torch.device) -> None:
    """Refuse what cannot be offloaded."""
    offload = request.offload
    if offload not in PLACES:
        raise SequoiaError(f"offload: found {offload!r}, expected one of {', '.join(PLACES)}")
    if offload == "none":
        if request.memory_budget is not None:
            raise SequoiaError("memory budget: nothing is offloaded; add --offload cpu or disk")
        return
    if offload == "cpu" and device.type == "cpu":
        raise SequoiaError(
            "offload: the models run on the cpu, so --offload cpu would change nothing; "
            "--offload disk reads the weights as they are used"
        )
    if offload == "disk" and request.random_weights:
        raise SequoiaError("offload: random weights are not on disk; use --offload cpu on a GPU")


def _graphs(asked: bool | None, device: torch.device, offload: str, parts: int) -> bool:
    """Whether to record steps; by default wherever it is possible."""
    reason = ""
    if device.type != "cuda":
        reason = f"steps on {device.type} cannot be recorded, only on cuda"
    elif offload != "none" or parts > 1:
        reason = "steps with an offloaded target, or one on several processes, are not recorded"
    if asked and reason:
        raise SequoiaError(f"graphs: {reason}")
    return not reason if asked is None else asked

"""Where the weights of a model stay that is larger than its device.

Embeddings, head and norms stay on the device, and as many decoder layers as a budget holds; the
others stay in host memory or on disk, and streaming.py brings them in. Knows names, sizes and
budgets; knows nothing of when layers run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from sequoia_opt.engine.torch.checkpoint import Checkpoint
from sequoia_opt.engine.torch.layer_stream import (
    LANES,
    DiskStore,
    HostStore,
    LayerStream,
    Layout,
    Store,
    parts_of,
    put,
    weights_of,
)
from sequoia_opt.engine.torch.memory import GIGABYTE, check_fits, free_bytes
from sequoia_opt.errors import SequoiaError

PLACES = ("none", "cpu", "disk")
FREE_SHARE = 0.8  # of the free memory, if no budget is given
KEPT_TOKENS = 512  # whose keys and values a budget holds beside the weights
# Tokens of a prompt that are read together. Each time all layers are brought in, and what a
# forward computes with takes memory: as many as a share of the budget holds. Of so few as the
# least it takes less than the keys and values above, which a prompt may still need.
LEAST_READ, MOST_READ, READ_SHARE = 256, 2048, 0.02


@dataclass(frozen=True)
class Offload:
    """What is wanted.

    Attributes:
        place: where layers stay that do not fit: "cpu" (host memory) or "disk".
        budget: bytes that the model may take on the device, with the keys and values of a short
            text, the buffers of two layers apart; by default most of what is free.
    """

    place: str
    budget: int | None = None


def experts_of(dtype: torch.dtype) -> dict[str, str]:
    """What transformers is told of a mixture's experts: its kernels know no float64, so there it
    computes them one by one."""
    return {"experts_implementation": "eager"} if dtype == torch.float64 else {}


def empty_model(config: Any, dtype: torch.dtype) -> nn.Module:
    """A model whose weights are on meta and take no memory; what is computed from its
    configuration alone, like rotary frequencies, is there."""
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype, **experts_of(dtype))
    _initialize(model, dict(model.named_buffers()))
    return model.eval()


def random_model(config: Any, dtype: torch.dtype) -> nn.Module:
    """A model of random weights in host memory, for its speed alone. Layers of one shape share
    their weights: making billions of random numbers takes minutes."""
    model: Any = empty_model(config, dtype)
    first: dict[Any, nn.Module] = {}
    twins = []
    for layer in decoder_layers(model)[1]:
        shapes = tuple((name, tensor.shape) for name, tensor in weights_of(layer).items())
        twin = first.setdefault(shapes, layer)
        if twin is not layer:
            twins.append((layer, twin))
    skipped = {id(tensor) for layer, _ in twins for tensor in weights_of(layer).values()}
    made = {name: t for name, t in weights_of(model).items() if id(t) not in skipped}
    _initialize(model, made)
    for layer, twin in twins:
        for name, tensor in weights_of(twin).items():
            put(layer, name, tensor.detach())
    return model


def place(
    model: nn.Module, device: torch.device, offload: Offload, checkpoint: Checkpoint | None = None
) -> LayerStream | None:
    """Put a model onto its device, but for the layers that do not fit.

    Args:
        model: with its weights in host memory, or with none.
        checkpoint: where the weights are that it has not.

    Returns:
        What brings the other layers in; None where all fit.

    Raises:
        SequoiaError: it has no layers to tell apart, the budget is too small, or the checkpoint
            does not have its weights.
    """
    prefix, layers = decoder_layers(model)
    names: dict[str, str] = {}
    if checkpoint is not None:
        names = names_in(checkpoint, model)
        _untie(model, checkpoint, names)
    layouts = [Layout(layer) for layer in layers]
    sizes = [layout.size for layout in layouts]
    within = {id(tensor) for layer in layers for tensor in weights_of(layer).values()}
    outside = {name: t for name, t in weights_of(model).items() if id(t) not in within}
    distinct = {id(tensor): tensor for tensor in outside.values()}
    fixed = sum(part.nbytes for t in distinct.values() for part in parts_of(t, "").values())
    fixed += cache_bytes(model)
    budget = _budget(offload, fixed, sizes, device)
    chunk, reading = read_together(model, min(int(READ_SHARE * budget), budget - fixed))
    streamed = choose_streamed(sizes, budget - fixed)
    if streamed:  # else they are read as of any model
        streamed = choose_streamed(sizes, budget - fixed - reading)
    staying = [
        f"{prefix}{i}.{name}"
        for i, layout in enumerate(layouts)
        if i not in streamed
        for name in layout.names
    ]
    _settle(model, [*outside, *staying], device, checkpoint, names)
    weights = weights_of(model)
    for name, buffer in list(model.named_buffers()):
        if name not in weights:  # what every layer computes with, and no file has
            put(model, name, buffer.to(device))
    if not streamed:
        return None
    store: Store
    if checkpoint is not None:
        called = [
            {name: names[f"{prefix}{i}.{name}"] for name in layout.names}
            for i, layout in enumerate(layouts)
        ]
        store = DiskStore(checkpoint, layouts, called)
    else:
        store = HostStore(device)
        for i in streamed:
            memory = store.add(i, layouts[i].size)
            layouts[i].fill(memory, layers[i])
            layouts[i].bind(layers[i], memory)  # what it was loaded into is free again
    return LayerStream(list(layers), layouts, streamed, store, device, budget, chunk)


def decoder_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """What the names of a model's layers begin with, and the layers.

    Raises:
        SequoiaError: it has none.
    """
    config: Any = model.config
    count = config.get_text_config().num_hidden_layers
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return f"{name}.", module
    raise SequoiaError(f"architecture {config.model_type!r} has no list of layers to offload")


def choose_streamed(sizes: Sequence[int], room: int) -> list[int]:
    """The layers that cannot stay, as few as `room` bytes allow, spread evenly: what the others
    compute hides some of their way."""
    count = len(sizes)
    for streamed in range(count + 1):
        chosen = [i * count // streamed for i in range(streamed)]
        if sum(sizes) - sum(sizes[i] for i in chosen) <= room:
            break
    return chosen


def cache_bytes(model: Any) -> int:
    """What the keys and values of KEPT_TOKENS take, or of as many as the model can read."""
    text = model.config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    tokens = min(KEPT_TOKENS, getattr(text, "max_position_embeddings", None) or KEPT_TOKENS)
    each: int = 2 * text.num_hidden_layers * heads * width * model.dtype.itemsize
    return tokens * each


def read_together(model: Any, room: int) -> tuple[int, int]:
    """How many tokens of a prompt to read at once, and the bytes of `room` that takes."""
    text = model.config.get_text_config()
    inner = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    # Of each token at a time: six vectors of the model's width, four of its feed-forward's.
    each = (6 * text.hidden_size + 4 * inner) * model.dtype.itemsize
    tokens = min(MOST_READ, room // each)
    return (tokens, tokens * each) if tokens > LEAST_READ else (LEAST_READ, 0)


def names_in(checkpoint: Checkpoint, model: Any) -> dict[str, str]:
    """What a checkpoint calls each of a model's weights, as transformers would find them; of tied
    ones it may have one, which is then all of theirs.

    Raises:
        SequoiaError: it has not all of them, or transformers would make them of what is there in a
            way that is not known here.
    """
    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    weights = weights_of(model)
    found: dict[str, str] = {}
    unfit: set[str] = set()
    converted: dict[str, dict[str, list[str]]] = {}
    for own in sorted(checkpoint.names, key=dot_natural_key):
        name, pattern = rename_source_key(
            own, renamings, converters, model.base_model_prefix, weights
        )
        if name not in weights:
            continue
        if pattern is not None:
            converted.setdefault(name, {}).setdefault(pattern, []).append(own)
        elif checkpoint.shape(own) != weights[name].shape:
            unfit.add(name)
        else:
            found[name] = own
    for name, sources in converted.items():
        _join(checkpoint, name, sources, converters, weights[name])
        found[name] = name
    tied = {id(weights[name]): own for name, own in found.items()}
    missing = [name for name, t in weights.items() if id(t) not in tied or name in unfit]
    if missing:
        raise SequoiaError(
            f"{checkpoint.source}: its files have no {missing[0]} of the right shape, nor "
            f"{len(missing) - 1} others; layers that are read from disk must be there as the model "
            "has them (save it anew with save_pretrained, or use --offload cpu on a GPU)"
        )
    return {name: found.get(name) or tied[id(tensor)] for name, tensor in weights.items()}


def _join(
    checkpoint: Checkpoint,
    name: str,
    sources: Mapping[str, Sequence[str]],
    converters: Sequence[WeightConverter],
    tensor: Tensor,
) -> None:
    """Have the checkpoint read a weight that transformers makes of several as it loads: a
    mixture's experts, saved one by one.

    Args:
        sources: for each of a converter's patterns, the tensors that match it in their order.
        tensor: as the model has it.

    Raises:
        SequoiaError: it is made in another way.
    """
    converter = next(rule for rule in converters if set(sources) <= set(rule.source_patterns))
    ways = [(type(step), getattr(step, "dim", None)) for step in converter.operations]
    patterns = [pattern for pattern in converter.source_patterns if pattern in sources]
    experts = [list(parts) for parts in zip(*(sources[p] for p in patterns), strict=False)]
    try:
        if ways[:1] != [(MergeModulelist, 0)] or ways[1:] not in ([], [(Concatenate, 1)]):
            raise ValueError("another way of joining or splitting")
        if len({len(parts) for parts in sources.values()}) != 1:
            raise ValueError("parts are missing")
        checkpoint.join(name, experts)
        if checkpoint.shape(name) != tensor.shape:
            raise ValueError("another shape")
    except ValueError as error:
        raise SequoiaError(
            f"{checkpoint.source}: {name} is not in its files as it is: transformers makes it of "
            f"{len(experts) * len(patterns)} tensors as it loads, which layers that are read from "
            f"disk cannot be ({error}); load the model whole, or use --offload cpu on a GPU"
        ) from None


def _untie(model: nn.Module, checkpoint: Checkpoint, names: Mapping[str, str]) -> None:
    """Part weights that are tied by the configuration but differ in the checkpoint, as
    transformers does.

    Args:
        names: what the checkpoint calls each weight.
    """
    first: dict[int, str] = {}
    for name, tensor in weights_of(model).items():
        other = first.setdefault(id(tensor), name)
        if not checkpoint.same(names[name], names[other]):
            put(model, name, torch.empty_like(tensor))


def _settle(
    model: Any,
    names: Iterable[str],
    device: torch.device,
    checkpoint: Checkpoint | None,
    called: dict[str, str],
) -> None:
    """Put these weights onto the device for good: each once, under all names that it has."""
    weights = weights_of(model)
    settled: dict[int, Tensor] = {}
    for name in names:
        tensor = weights[name]
        if id(tensor) in settled:
            put(model, name, settled[id(tensor)])
            continue
        found = tensor.detach()
        if checkpoint is not None:
            found = torch.empty(tensor.shape, dtype=tensor.dtype)
            checkpoint.read(called[name], found)
        settled[id(tensor)] = put(model, name, found.to(device))


def _initialize(model: Any, tensors: dict[str, Tensor]) -> None:
    """Give these weights and buffers memory, and the values that a new model has.

    Drawn in float32, which a processor draws faster than half-precision numbers.
    """
    done = set()
    halves: dict[str, torch.dtype] = {}
    for name, tensor in tensors.items():
        if id(tensor) not in done:
            is_half = tensor.dtype in (torch.bfloat16, torch.float16)
            if is_half:
                halves[name] = tensor.dtype
            drawn = torch.float32 if is_half else tensor.dtype
            put(model, name, torch.empty_like(tensor, dtype=drawn, device="cpu"))
        done.add(id(tensor))
    for module in model.modules():
        vars(module).pop("_is_hf_initialized", None)
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    model.initialize_weights()
    torch.random.set_rng_state(state)
    values = weights_of(model) | dict(model.named_buffers())
    for name, dtype in halves.items():
        put(model, name, values[name].detach().to(dtype))
    model.tie_weights()


def _budget(offload: Offload, fixed: int, sizes: Sequence[int], device: torch.device) -> int:
    """Bytes of weights that may stay.

    Raises:
        SequoiaError: less than has to.
    """
    largest = max(sizes)
    buffers = LANES * largest
    budget = offload.budget
    if budget is None:
        budget = max(0, int(FREE_SHARE * (free_bytes(device) or 0)) - buffers)
    least = max(fixed, largest)
    if budget < least:
        raise SequoiaError(
            f"memory budget: found {budget / GIGABYTE:.3g} GB, expected at least "
            f"{least / GIGABYTE:.3g} GB; embeddings, head and a short text's keys and values take "
            f"{fixed / GIGABYTE:.3g} GB, a layer {largest / GIGABYTE:.3g} GB"
        )
    check_fits(
        min(budget, fixed + sum(sizes)) + buffers,
        device,
        "the weights that stay, and buffers for two layers,",
        "lower --memory-budget",
    )
    return budget

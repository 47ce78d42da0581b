"""Which tensor of a checkpoint is which weight of a model, by transformers' own conversion rules.

Knows names and shapes. Reads no weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
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
from sequoia_opt.engine.torch.layer_weights import named_weights
from sequoia_opt.errors import SequoiaError


def checkpoint_names(checkpoint: Checkpoint, model: Any) -> dict[str, str]:
    """The checkpoint's name of each of a model's weights, as transformers would map them.

    Of tied weights the checkpoint may have only one, which is then used for all.

    Raises:
        SequoiaError: weights are missing, or transformers would make them from the checkpoint's
            tensors in a way that this program does not know.
    """
    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    weights = named_weights(model)
    names: dict[str, str] = {}
    wrong_shape: set[str] = set()
    # For each weight that is joined of several tensors: these, by the converter's pattern.
    parts: dict[str, dict[str, list[str]]] = {}
    for source in sorted(checkpoint.names, key=dot_natural_key):
        name, pattern = rename_source_key(
            source, renamings, converters, model.base_model_prefix, weights
        )
        if name not in weights:
            continue
        if pattern is not None:
            parts.setdefault(name, {}).setdefault(pattern, []).append(source)
        elif checkpoint.shape(source) != weights[name].shape:
            wrong_shape.add(name)
        else:
            names[name] = source
    for name, by_pattern in parts.items():
        _join(checkpoint, name, by_pattern, converters, weights[name])
        names[name] = name
    by_tensor = {id(weights[name]): source for name, source in names.items()}
    missing = [name for name, t in weights.items() if id(t) not in by_tensor or name in wrong_shape]
    if missing:
        raise SequoiaError(
            f"{checkpoint.source}: its files have no {missing[0]} of the right shape, nor "
            f"{len(missing) - 1} others; layers can be read from disk only if the files have them "
            "as the model does (save it again with save_pretrained, or use --offload cpu on a GPU)"
        )
    return {name: names.get(name) or by_tensor[id(tensor)] for name, tensor in weights.items()}


def _join(
    checkpoint: Checkpoint,
    name: str,
    parts: Mapping[str, Sequence[str]],
    converters: Sequence[WeightConverter],
    tensor: Tensor,
) -> None:
    """Make the checkpoint join a weight of several tensors, like a mixture's experts.

    Args:
        parts: for each of a converter's patterns, the tensors that match it, in their order.
        tensor: the weight in the model.

    Raises:
        SequoiaError: transformers makes it in another way.
    """
    converter = next(rule for rule in converters if set(parts) <= set(rule.source_patterns))
    operations = [(type(step), getattr(step, "dim", None)) for step in converter.operations]
    patterns = [pattern for pattern in converter.source_patterns if pattern in parts]
    experts = [list(matrices) for matrices in zip(*(parts[p] for p in patterns), strict=False)]
    try:
        if operations[:1] != [(MergeModulelist, 0)] or operations[1:] not in (
            [],
            [(Concatenate, 1)],
        ):
            raise ValueError("another way of joining or splitting")
        if len({len(sources) for sources in parts.values()}) != 1:
            raise ValueError("parts are missing")
        checkpoint.join(name, experts)
        if checkpoint.shape(name) != tensor.shape:
            raise ValueError("another shape")
    except ValueError as error:
        raise SequoiaError(
            f"{checkpoint.source}: its files do not have {name} as the model does: transformers "
            f"makes it from {len(experts) * len(patterns)} tensors as it loads the model, in a way "
            f"in which layers cannot be read from disk ({error}); load the whole model, or use "
            "--offload cpu on a GPU"
        ) from None

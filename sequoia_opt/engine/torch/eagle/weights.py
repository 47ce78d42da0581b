"""Reads the weights of an EAGLE-3 head and checks that they are complete and fit the target.

Knows the names of both formats. Knows nothing of what is computed with them.
"""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sequoia_opt.engine.devices import advice_for, dtype_name
from sequoia_opt.engine.torch.eagle.config import HeadConfig
from sequoia_opt.engine.torch.eagle.head import EagleHead
from sequoia_opt.engine.torch.weight_files import weight_files
from sequoia_opt.errors import SequoiaError, one_line

EMBEDDINGS, PROJECTION, OFFSETS = "embed_tokens.weight", "fc.weight", "d2t"
# What reading a damaged file raises; torch's unpickler raises almost anything.
DAMAGED = (
    SafetensorError,
    UnpicklingError,
    OSError,
    RuntimeError,
    AttributeError,
    EOFError,
    LookupError,
    TypeError,
    ValueError,
)
# Modules that only some heads have; weights of one that config.json does not ask for.
OPTIONAL_MODULES = "input_norm", "fc_norm"


def read_weights(config: HeadConfig) -> dict[str, Tensor]:
    """A head's tensors by the names of `EagleHead`, the vocabulary maps besides.

    Raises:
        SequoiaError: a file is missing or damaged.
    """
    tensors: dict[str, Tensor] = {}
    for path in weight_files(config.source):
        tensors |= _read_file(path)
    first = config.first_layer
    return {
        f"layers.0.{name.removeprefix(first)}" if name.startswith(first) else name: tensor
        for name, tensor in tensors.items()
    }


def filled_head(
    config: HeadConfig,
    tensors: dict[str, Tensor],
    states: int,
    state_size: int,
    dtype: torch.dtype,
    device: torch.device,
) -> EagleHead:
    """A head with its weights; without embeddings of its own, these are still empty.

    Args:
        states, state_size: see `EagleHead`.

    Raises:
        SequoiaError: weights are missing or not finite, or have other shapes than config.json and
            the target ask for.
    """
    with torch.device("meta"):
        head = EagleHead(config, states, state_size)
    expected = {name: tuple(tensor.shape) for name, tensor in head.state_dict().items()}
    if EMBEDDINGS not in tensors:
        del expected[EMBEDDINGS]
    missing = [name for name in expected if name not in tensors]
    if missing:
        others = f" and {len(missing) - 1} others" if missing[1:] else ""
        raise SequoiaError(
            f"{config.source}: weights are missing for {missing[0]}{others}; config.json and the "
            "weights do not belong together"
        )
    unused = sorted(name for name in tensors.keys() - expected.keys() if _is_computed(head, name))
    if unused:
        raise SequoiaError(
            f"{config.source}: has weights that its config.json does not use: {unused[0]}"
            + (f" and {len(unused) - 1} others" if unused[1:] else "")
            + "; the head would guess wrongly"
        )
    for name, shape in expected.items():
        _check_shape(config, name, tuple(tensors[name].shape), shape)
    given = {name: tensors[name].to(device, dtype) for name in expected}
    for name, values in given.items():
        if not bool(values.isfinite().all()):
            advice = advice_for(dtype) if bool(tensors[name].isfinite().all()) else "it is damaged"
            raise SequoiaError(
                f"{config.source}: {name} is not finite in {dtype_name(dtype)}; {advice}"
            )
    head.load_state_dict(given, strict=False, assign=True)
    head.rotary_emb.to(device)
    return head.eval().requires_grad_(False)


def share_embeddings(head: EagleHead, embeddings: nn.Module, target_name: str) -> None:
    """Let a head without embeddings of its own use the target's.

    Raises:
        SequoiaError: they are of another size.
    """
    weight = embeddings.weight
    hidden = head.config.layer.hidden_size
    if not isinstance(weight, Tensor) or weight.shape[1:] != (hidden,):
        raise SequoiaError(
            f"{head.config.source}: has no {EMBEDDINGS}, and the embeddings of {target_name} have "
            f"another size than {hidden}; use the target that the head was trained for"
        )
    head.embed_tokens.weight = nn.Parameter(weight.detach(), requires_grad=False)


def token_ids(config: HeadConfig, tensors: dict[str, Tensor], vocabulary: int) -> Tensor:
    """The target's token of each of the head's, [draft vocabulary].

    `d2t` holds how far each of the head's tokens is from the target's.

    Raises:
        SequoiaError: it is missing, has another length, or leads out of the vocabulary.
    """
    count = config.draft_vocabulary
    offsets = tensors.get(OFFSETS)
    if offsets is None:
        if count == config.vocabulary:
            return torch.arange(count)
        raise SequoiaError(
            f"{config.source}: {OFFSETS} is missing, which says what the head's {count} tokens "
            f"are among the target's {config.vocabulary}"
        )
    if tuple(offsets.shape) != (count,) or offsets.is_floating_point():
        raise SequoiaError(
            f"{config.source}: {OFFSETS}: found shape {list(offsets.shape)} of {offsets.dtype}, "
            f"expected {count} whole numbers, as many as draft_vocab_size"
        )
    ids = torch.arange(count) + offsets.long()
    outside = (ids < 0) | (ids >= vocabulary)
    if bool(outside.any()):
        token = int(outside.nonzero()[0])
        raise SequoiaError(
            f"{config.source}: {OFFSETS}: token {token} leads to the target's token "
            f"{int(ids[token])}, expected one of 0 to {vocabulary - 1}"
        )
    if len(ids.unique()) < count:
        raise SequoiaError(
            f"{config.source}: {OFFSETS}: found two tokens that lead to the same one of the "
            "target's, expected different ones"
        )
    return ids


def _read_file(path: Path) -> dict[str, Tensor]:
    """The tensors of one file."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        tensors = torch.load(path, map_location="cpu", weights_only=True)
        return {name: tensor for name, tensor in tensors.items() if isinstance(tensor, Tensor)}
    except DAMAGED as error:
        raise SequoiaError(
            f"{path}: damaged weights ({one_line(error)[:100]}); download the file again"
        ) from None


def _is_computed(head: EagleHead, name: str) -> bool:
    """Whether a weight belongs to a module of such heads, embeddings apart."""
    module = name.split(".")[0]
    modules = {name for name, _ in head.named_children()} - {"embed_tokens", "rotary_emb"}
    return module in modules or module in OPTIONAL_MODULES


def _check_shape(
    config: HeadConfig, name: str, found: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    """Refuse a weight of another shape."""
    if found == expected:
        return
    if name == PROJECTION and found[:1] == expected[:1]:
        raise SequoiaError(
            f"{config.source}: reads {found[1]} elements of the target's hidden states at a "
            f"token, but the target has {expected[1]}; use the target that the head was trained "
            "for"
        )
    raise SequoiaError(
        f"{config.source}: {name}: found shape {list(found)}, expected {list(expected)}; "
        "config.json and the weights do not belong together"
    )

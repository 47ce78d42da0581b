"""Lets transformers read a GGUF file in a tenth of the time.

It reads most architectures with the gguf package's reader, which makes an array of every token
and merge: 2 s for SmolLM2 and 20 s for the largest vocabularies, several times a model. Knows the
part of that reader's interface that transformers uses. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import gguf
import numpy as np
from gguf.constants import GGMLQuantizationType, GGUFValueType
from gguf.quants import quant_shape_to_byte_shape
from numpy.typing import NDArray
from transformers import modeling_gguf_pytorch_utils

from sequoia_opt.engine.gguf_file import GgufHeader
from sequoia_opt.engine.gguf_layout import ARRAY, NUMBERS, STRING, Field, Tensor

NUMPY = {kind: np.dtype(f"<{letter}") for kind, letter in NUMBERS.items()}
TOKENS = "tokenizer.ggml.tokens"


@dataclass(frozen=True)
class _Field:
    """A value of the metadata as the gguf package's reader gives it: `parts[i]` for i in `data`."""

    parts: Sequence[NDArray[Any]]
    data: Sequence[int]
    types: list[GGUFValueType]


@dataclass(frozen=True)
class _Tensor:
    """A tensor as the gguf package's reader gives it: rows of bytes, or of numbers."""

    name: str
    tensor_type: GGMLQuantizationType
    data: NDArray[Any]


class _Reader:
    """What transformers uses of `gguf.GGUFReader`, of a file whose header has been read.

    Of the tokenizer it gives the number of tokens alone: transformers reads the rest itself.
    """

    def __init__(self, header: GgufHeader) -> None:
        self.fields = {key: _field(header, key, value) for key, value in header.fields.items()}
        content = np.memmap(header.path, np.uint8, "r")
        self.tensors = [_tensor(content, tensor) for tensor in header.tensors]


@contextmanager
def quickly_read(header: GgufHeader) -> Iterator[None]:
    """Have transformers read this file with the header that is there, and without a progress bar.

    It also asks the gguf package for the same table of names once a module, 18 ms each time.
    """
    replaced = (
        (gguf, "GGUFReader", lambda *_: _Reader(header)),
        (gguf, "get_tensor_name_map", cache(gguf.get_tensor_name_map)),
        (modeling_gguf_pytorch_utils, "tqdm", lambda tensors, **_: tensors),
    )
    originals = [getattr(module, name) for module, name, _ in replaced]
    for module, name, value in replaced:
        setattr(module, name, value)
    try:
        yield
    finally:
        for (module, name, _), original in zip(replaced, originals, strict=True):
            setattr(module, name, original)


def _field(header: GgufHeader, key: str, field: Field) -> _Field:
    """A value of the metadata."""
    kind = GGUFValueType(field.kind)
    if field.kind == STRING:
        return _Field([_bytes(field.value)], [0], [kind])
    if field.kind != ARRAY:
        return _Field([np.array([field.value], NUMPY[field.kind])], [0], [kind])
    kinds = [kind, GGUFValueType(field.item_kind)]
    if key.startswith("tokenizer.") or field.item_kind not in NUMBERS:
        return _Field([_bytes("")], [0] * field.count if key == TOKENS else [], kinds)
    items = np.array(header.array(key), NUMPY[field.item_kind]).reshape(-1, 1)
    return _Field(list(items), range(field.count), kinds)


def _tensor(content: NDArray[np.uint8], tensor: Tensor) -> _Tensor:
    """A tensor, whose bytes are read as they are used."""
    kind = GGMLQuantizationType(tensor.type)
    shape = tensor.shape[::-1]
    size = tensor.size or 0
    values: NDArray[Any] = content[tensor.start : tensor.start + size]
    if kind == GGMLQuantizationType.F32:
        values = values.view("<f4")
    elif kind == GGMLQuantizationType.F16:
        values = values.view("<f2")
    else:
        shape = quant_shape_to_byte_shape(shape, kind)
    return _Tensor(tensor.name, kind, values.reshape(shape))


def _bytes(text: str) -> NDArray[np.uint8]:
    return np.frombuffer(text.encode(), np.uint8)

"""Makes a smaller model of a GGUF file: its first layers, which can draft for all of them.

Copies bytes and changes what the header says. Knows no number type.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import BinaryIO

from sequoia_opt.engine.gguf_file import GgufHeader, check_model, read_header
from sequoia_opt.engine.gguf_layout import (
    ALIGNMENT,
    ARRAY,
    MAGIC,
    NUMBERS,
    VERSIONS,
    Field,
    Layout,
    Tensor,
    opened,
)
from sequoia_opt.errors import SequoiaError, reason_of
from sequoia_opt.files.atomic import replaced

BLOCK = re.compile(r"blk\.(\d+)\.")
PIECE = 2**24  # bytes that are copied at a time
PREDICTORS = "nextn_predict_layers"  # layers behind the others that predict tokens further ahead


def first_layers(path: str | Path, count: int, output: str | Path) -> Path:
    """Write a GGUF file with the first layers of a model, and all that is not in a layer.

    The embedding, the last norm, the output and the tokenizer stay as they are, and so do number
    types. A split model becomes one file.

    Args:
        count: layers to keep; at least 1, and fewer than the model has.

    Returns:
        The path written.

    Raises:
        SequoiaError: the file is no model that can be cut, or cannot be read or written.
    """
    header, output = read_header(path), Path(output)
    check_model(header)
    _check_count(header, count)
    if output.exists() and any(output.samefile(part) for part in header.parts):
        raise SequoiaError(f"{output}: is the model itself; name another file to write")
    kept = [
        (layout, tensor)
        for layout in header.layouts
        for tensor in layout.tensors
        if (block := BLOCK.match(tensor.name)) is None or int(block[1]) < count
    ]
    metadata = _metadata(header, count)
    try:
        with replaced(output) as temporary, open(temporary, "wb") as stream:
            _write(stream, metadata, kept)
    except OSError as error:
        raise SequoiaError(f"{output}: cannot be written ({reason_of(error)})") from None
    return output


def _check_count(header: GgufHeader, count: int) -> None:
    """Refuse a number of layers that the model does not have, and layers that are not alike."""
    if not 1 <= count < header.layers:
        most = header.layers - 1
        expected = f"1 to {most}" if most > 1 else "1" if most == 1 else "a model with more layers"
        raise SequoiaError(f"{header.path}: layers: found {count}, expected {expected}")
    if header.number(f"{header.architecture}.{PREDICTORS}"):
        raise SequoiaError(
            f"{header.path}: has layers that predict further tokens behind its others, and cannot "
            "be cut; choose another model"
        )
    if unknown := [tensor.name for tensor in header.tensors if tensor.size is None]:
        raise SequoiaError(
            f"{header.path}: {unknown[0]!r} has a number type whose size is not known here; update "
            "the gguf package"
        )


def _metadata(header: GgufHeader, count: int) -> list[bytes]:
    """The metadata's entries as they are written, with `count` layers."""
    prefix = f"{header.architecture}."
    entries = []
    with opened(header.path) as content:
        for key, field in header.fields.items():
            if key.startswith("split."):
                continue
            value = content[field.start : field.end]
            if key == f"{prefix}block_count":
                value = struct.pack(f"<{NUMBERS[field.kind]}", count)
            elif key.startswith(prefix) and _is_by_layer(field, header.layers):
                width = struct.calcsize(NUMBERS[field.item_kind])
                value = struct.pack("<IQ", field.item_kind, count) + value[12 : 12 + count * width]
            entries.append(_text(key) + struct.pack("<I", field.kind) + value)
    return entries


def _is_by_layer(field: Field, layers: int) -> bool:
    """Whether a value of an architecture is an array with a number for each layer."""
    return field.kind == ARRAY and field.count == layers and field.item_kind in NUMBERS


def _write(stream: BinaryIO, metadata: list[bytes], kept: list[tuple[Layout, Tensor]]) -> None:
    """Write header and tensors."""
    alignment = kept[0][0].alignment if kept else ALIGNMENT
    stream.write(MAGIC + struct.pack("<IQQ", VERSIONS[-1], len(kept), len(metadata)))
    stream.writelines(metadata)
    offset = 0
    for _, tensor in kept:
        shape = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
        stream.write(_text(tensor.name) + shape + struct.pack("<IQ", tensor.type, offset))
        size = tensor.size or 0
        offset += size + -size % alignment
    for layout, tensor in kept:
        stream.write(bytes(-stream.tell() % alignment))
        end = tensor.start + (tensor.size or 0)
        with opened(layout.path) as content:
            for start in range(tensor.start, end, PIECE):
                stream.write(content[start : min(start + PIECE, end)])
    stream.write(bytes(-stream.tell() % alignment))


def _text(text: str) -> bytes:
    """A text as it is written: its length, then its bytes."""
    content = text.encode()
    return struct.pack("<Q", len(content)) + content

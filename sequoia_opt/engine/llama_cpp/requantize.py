"""Writes a GGUF file's weights in another number type, with llama.cpp's own conversion.

Knows the number types' words and codes. Knows nothing of how a model is run.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

from sequoia_opt.engine.gguf_file import check_model, file_type_of, read_header
from sequoia_opt.engine.llama_cpp.library import bindings, logged, reason
from sequoia_opt.errors import SequoiaError, reason_of
from sequoia_opt.files.atomic import replaced

TYPES = ("float32", "float16", "bfloat16", "q8_0", "q4_0", "q4_1", "q4_k_m")


def requantized(path: str | Path, number_type: str, output: str | Path, threads: int = 1) -> Path:
    """Write a model with another number type for its matrices; vectors keep float32.

    A four-bit file's weights can become float32, which changes no value. As llama.cpp does it, the
    output matrix keeps more bits than the others, and so do matrices whose rows do not divide
    into the type's blocks.

    Args:
        number_type: one of `TYPES`.

    Returns:
        The path written.

    Raises:
        SequoiaError: llama.cpp is not there or refuses, or a file cannot be read or written.
    """
    output = Path(output)
    if number_type not in TYPES:
        raise SequoiaError(
            f"number type: found {number_type!r}, expected one of {', '.join(TYPES)}"
        )
    header = read_header(path)
    check_model(header)
    if output.exists() and any(output.samefile(part) for part in header.parts):
        raise SequoiaError(f"{output}: is the model itself; name another file to write")
    lib = bindings()
    options = lib.llama_model_quantize_default_params()
    options.ftype = int(file_type_of(number_type))
    options.nthread = threads
    options.allow_requantize = True
    try:
        with replaced(output) as temporary, logged() as lines:
            source, written = str(path).encode(), str(temporary).encode()
            if lib.llama_model_quantize(source, written, ctypes.byref(options)):
                why = reason(lines, "it does not say why")
                raise SequoiaError(f"{path}: llama.cpp cannot write it as {number_type} ({why})")
    except OSError as error:
        raise SequoiaError(f"{output}: cannot be written ({reason_of(error)})") from None
    return output

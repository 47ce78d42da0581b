"""Run two tokens through a GGUF file with llama.cpp, in a process of its own that may die of it.

Run as a script, with the file as its argument. The exit status is 0 where the pass succeeds. Knows
the bindings of llama-cpp-python, and nothing of this program.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any


def main() -> int:
    """Load the file and decode; the status of llama.cpp's call."""
    lib: Any = importlib.import_module("llama_cpp.llama_cpp")
    lib.llama_backend_init()
    path, options = sys.argv[1].encode(), lib.llama_model_default_params()
    model = lib.llama_model_load_from_file(path, options)
    if not model:
        return 1
    context = lib.llama_init_from_model(model, lib.llama_context_default_params())
    tokens = (lib.llama_token * 2)(0, 1)
    return int(lib.llama_decode(context, lib.llama_batch_get_one(tokens, 2)))


if __name__ == "__main__":
    sys.exit(main())

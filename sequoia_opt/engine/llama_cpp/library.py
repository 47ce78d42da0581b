"""llama.cpp's shared library, through the bindings of llama-cpp-python.

Loads it once, checks that the bindings describe the library that was found, and keeps what it
logs for error messages. Knows nothing of models or trees.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import math
import re
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from sequoia_opt.errors import SequoiaError, one_line

INSTALL = "pip install 'llama-cpp-python>=0.3.36'"  # what the extra llama-cpp asks for
WARNING, CONTINUED = 3, 5  # of llama.cpp's log levels: 4 is an error, 5 continues a line
# What the library's messages begin with: the function's name, and the parts that failed.
PREFIXES = re.compile(r"^(?:\w+: )?(?:error loading model(?: [a-z]+)*: )*")
GPU_KINDS = (1, 2)  # of ggml's kinds of devices: a card, and a part of the processor
KEPT_LINES = 20
NEEDED = (
    "llama_batch_init", "llama_decode", "llama_get_logits", "llama_get_memory",
    "llama_init_from_model", "llama_memory_clear", "llama_memory_seq_cp", "llama_memory_seq_rm",
    "llama_model_load_from_file", "llama_model_meta_val_str", "llama_vocab_n_tokens",
)  # fmt: skip
"""Functions whose absence means that the bindings are too old."""

# The library's own defaults, which it fills into structs that the bindings describe. A field that
# one has and the other lacks shifts all fields behind it, and the values no longer agree.
CONTEXT_DEFAULTS: dict[str, Any] = {
    "n_ctx": 512, "n_batch": 2048, "n_ubatch": 512, "n_seq_max": 1, "n_threads": 4,
    "n_threads_batch": 4, "pooling_type": -1, "attention_type": -1, "rope_freq_base": 0.0,
    "yarn_ext_factor": -1.0, "type_k": 1, "type_v": 1, "embeddings": False, "offload_kqv": True,
    "kv_unified": False,
}  # fmt: skip
MODEL_DEFAULTS: dict[str, Any] = {
    "split_mode": 1, "main_gpu": 0, "vocab_only": False, "check_tensors": False,
    "use_extra_bufts": True,
}  # fmt: skip


class Log:
    """The last warnings and errors that the library logged."""

    def __init__(self) -> None:
        self.lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._level = 0
        self.callback: Any = None  # kept as long as the library may call it

    def add(self, level: int, text: bytes, _: Any) -> None:
        """Take a piece of the log; the library calls this."""
        if level != CONTINUED:
            self._level = level
        if self._level >= WARNING and (line := text.decode(errors="replace").strip()):
            self.lines.append(line)


LOG = Log()


@cache
def bindings() -> Any:
    """The module of the bindings, its library initialised.

    Raises:
        SequoiaError: either is missing, too old, or they do not fit together.
    """
    try:
        module = importlib.import_module("llama_cpp.llama_cpp")
    except ModuleNotFoundError as error:
        if error.name != "llama_cpp":
            raise SequoiaError(f"llama.cpp: its bindings need {error.name}; {INSTALL}") from None
        raise SequoiaError(f"llama.cpp is not installed; {INSTALL}") from None
    except (AttributeError, OSError, RuntimeError) as error:
        # A function that the library lacks, or a library that cannot be found or loaded.
        raise SequoiaError(
            f"llama.cpp: its library does not fit the bindings of llama-cpp-python "
            f"({one_line(error)[:160]}); unset LLAMA_CPP_LIB_PATH, or {INSTALL}"
        ) from None
    _check_functions(module)
    _check_layout(module)
    callback = module.llama_log_callback(LOG.add)
    module.llama_log_set(callback, ctypes.c_void_p(0))
    LOG.callback = callback
    module.llama_backend_init()
    return module


def _check_functions(module: Any) -> None:
    """Refuse bindings without the functions that the engine calls."""
    missing = [name for name in NEEDED if not hasattr(module, name)]
    if missing:
        raise SequoiaError(
            f"llama.cpp: the bindings are too old, they have no {missing[0]}; {INSTALL} --upgrade"
        )


def _check_layout(module: Any) -> None:
    """Refuse bindings whose structs are laid out otherwise than the library's."""
    parts = (
        ("llama_context_params", module.llama_context_default_params(), CONTEXT_DEFAULTS),
        ("llama_model_params", module.llama_model_default_params(), MODEL_DEFAULTS),
    )
    for name, defaults, expected in parts:
        for field, value in expected.items():
            found = getattr(defaults, field, None)
            if found is None or not math.isclose(float(found), float(value)):
                raise _other_layout(f"{name}.{field}: found {found}, expected {value}")
    batch = module.llama_batch_init(1, 0, 1)
    is_whole = batch.n_tokens == 0 and bool(batch.token) and not batch.embd and bool(batch.logits)
    module.llama_batch_free(batch)
    if not is_whole:
        raise _other_layout("llama_batch")


def _other_layout(what: str) -> SequoiaError:
    return SequoiaError(
        f"llama.cpp: the bindings of llama-cpp-python describe another version of the library "
        f"({what}); unset LLAMA_CPP_LIB_PATH, or {INSTALL} --upgrade"
    )


@contextmanager
def logged() -> Iterator[deque[str]]:
    """What the library logs meanwhile."""
    LOG.lines.clear()
    yield LOG.lines


def reason(lines: deque[str], otherwise: str) -> str:
    """Why a call failed: the first error that was logged, without what it begins with.

    Later lines only say that what depends on it failed too.
    """
    for line in lines:
        return " ".join(PREFIXES.sub("", line).split())[:200]
    return otherwise


def versions() -> dict[str, str]:
    """The versions of the bindings and of the library, and what it was built for."""
    module = bindings()
    found = {"llama_cpp_python": str(importlib.import_module("llama_cpp").__version__)}
    for field, function in (("ggml", "ggml_version"), ("ggml_commit", "ggml_commit")):
        with contextlib.suppress(AttributeError):
            call = getattr(module._lib, function)
            call.restype = ctypes.c_char_p
            found[field] = call().decode()
    found["llama_cpp_build"] = features()
    return found


def features() -> str:
    """What the library was built for and found on this machine: instruction sets, OpenMP, GPUs."""
    text = bindings().llama_print_system_info().decode()
    return " ".join(text.replace(" = 1", "").replace("|", " ").split())


def has_gpu() -> bool:
    """Whether the library was built for a GPU."""
    return bool(bindings().llama_supports_gpu_offload())


def gpu() -> tuple[str, float]:
    """The name of the first GPU that the library uses, and its memory in GiB."""
    backends = importlib.import_module("llama_cpp._ggml").libggml
    backends.ggml_backend_dev_get.restype = ctypes.c_void_p
    backends.ggml_backend_dev_get.argtypes = [ctypes.c_size_t]
    backends.ggml_backend_dev_count.restype = ctypes.c_size_t
    backends.ggml_backend_dev_description.restype = ctypes.c_char_p
    backends.ggml_backend_dev_description.argtypes = [ctypes.c_void_p]
    backends.ggml_backend_dev_type.argtypes = [ctypes.c_void_p]
    backends.ggml_backend_dev_memory.argtypes = [ctypes.c_void_p] + 2 * [
        ctypes.POINTER(ctypes.c_size_t)
    ]
    for number in range(backends.ggml_backend_dev_count()):
        device = backends.ggml_backend_dev_get(number)
        if backends.ggml_backend_dev_type(device) in GPU_KINDS:
            free, total = ctypes.c_size_t(), ctypes.c_size_t()
            backends.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
            name = backends.ggml_backend_dev_description(device).decode(errors="replace")
            return name, round(total.value / 2**30, 1)
    return "unknown GPU", 0.0


def most_sequences() -> int:
    """The most sequences that a cache tells apart, and so the most leaves of a tree."""
    return int(bindings().llama_max_parallel_sequences())

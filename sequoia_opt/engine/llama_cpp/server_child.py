"""llama.cpp's server out of the wheel `xllamacpp`, in a process of its own.

Run as a script, with JSON as its argument: `{}` prints what the wheel is; settings start a server,
which ends when standard input does. Knows the wheel, and nothing of this program.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Mapping
from typing import Any

KIND = "COMMON_SPECULATIVE_TYPE_"


def main() -> None:
    """Describe the wheel, or serve until standard input ends."""
    wheel: Any = importlib.import_module("xllamacpp")
    settings = json.loads(sys.argv[1])
    if not settings:
        kinds = list(wheel.common_speculative_type.__members__)
        draft = wheel.CommonParams().speculative.draft
        description = {
            "version": wheel.__version__,
            "system": wheel.get_system_info(),
            "default_chain": [draft.n_max, round(draft.p_min, 4)],
            "speculations": [_plain_name(kind) for kind in kinds if kind.startswith(KIND)],
        }
        print(json.dumps(description))
        return
    server = wheel.Server(parameters(wheel, settings))
    sys.stdin.read()
    del server


def parameters(wheel: Any, settings: Mapping[str, Any]) -> Any:
    """The wheel's parameters for the settings; see `server.WheelProgram.command`."""
    chosen = wheel.CommonParams()
    chosen.hostnames, chosen.port = ["127.0.0.1"], settings["port"]
    chosen.model.path = settings["target"]
    chosen.n_ctx, chosen.n_parallel = settings["context"], 1
    chosen.fit_params = chosen.ui = False
    chosen.n_gpu_layers = settings["gpu_layers"]
    chosen.cpuparams.n_threads = chosen.cpuparams_batch.n_threads = settings["threads"]
    flash = {"auto": "AUTO", "off": "DISABLED", "on": "ENABLED"}[settings["flash_attention"]]
    chosen.flash_attn_type = getattr(wheel.llama_flash_attn_type, f"LLAMA_FLASH_ATTN_TYPE_{flash}")
    chosen.cache_type_k = cache_k = _number_type(wheel, settings["cache_type_k"])
    chosen.cache_type_v = cache_v = _number_type(wheel, settings["cache_type_v"])
    kind = settings["speculation"].upper().replace("-", "_")
    chosen.speculative.types = [getattr(wheel.common_speculative_type, KIND + kind)]
    if settings["draft"] is not None:
        draft = chosen.speculative.draft
        draft.mparams.path = settings["draft"]
        draft.n_gpu_layers = settings["gpu_layers"]
        draft.cpuparams.n_threads = draft.cpuparams_batch.n_threads = settings["threads"]
        draft.cache_type_k, draft.cache_type_v = cache_k, cache_v
        if settings["guesses"] is not None:
            draft.n_max, draft.n_min = settings["guesses"], 0
            draft.p_min = settings["threshold"]
    return chosen


def _number_type(wheel: Any, name: str) -> Any:
    return getattr(wheel.ggml_type, f"GGML_TYPE_{name.upper()}")


def _plain_name(kind: str) -> str:
    return kind.removeprefix(KIND).lower().replace("_", "-")


if __name__ == "__main__":
    main()

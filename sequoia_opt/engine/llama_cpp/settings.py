"""How llama.cpp is to run the models: the settings that decide how fast it is.

Knows their names, defaults and ranges. Knows nothing of models.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from sequoia_opt.errors import SequoiaError

ALL_LAYERS = -1
FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}
"""llama.cpp's `llama_flash_attn_type`, by name."""

CACHE_TYPES = {
    "f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "iq4_nl": 20,
    "bf16": 30,
}  # fmt: skip
"""llama.cpp's `ggml_type` of keys and values, by name."""


@dataclass(frozen=True)
class Settings:
    """What changes llama.cpp's speed.

    Attributes:
        threads: processors that compute.
        gpu_layers: layers that the GPU holds; -1 for all.
        flash_attention: "auto", "on" or "off".
        cache_type_k, cache_type_v: number types of keys and values, of CACHE_TYPES.
        context_size: tokens that a cache holds; 0 for as many as each text needs.
    """

    threads: int
    gpu_layers: int = 0
    flash_attention: str = "auto"
    cache_type_k: str = "f16"
    cache_type_v: str = "f16"
    context_size: int = 0

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            SequoiaError: a value is out of range.
        """
        least = {"threads": 1, "gpu_layers": ALL_LAYERS, "context_size": 0}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise _unexpected(name, getattr(self, name), f"at least {smallest}")
        if self.flash_attention not in FLASH_ATTENTION:
            raise _unexpected(
                "flash_attention", self.flash_attention, f"one of {', '.join(FLASH_ATTENTION)}"
            )
        for name in ("cache_type_k", "cache_type_v"):
            if getattr(self, name) not in CACHE_TYPES:
                raise _unexpected(name, getattr(self, name), f"one of {', '.join(CACHE_TYPES)}")
        if self.flash_attention == "off" and self.cache_type_v not in ("f32", "f16", "bf16"):
            raise _unexpected(
                "cache_type_v", self.cache_type_v, "f32, f16 or bf16 without flash attention"
            )

    def document(self) -> dict[str, Any]:
        """The settings as files have them."""
        return asdict(self)


def _unexpected(name: str, value: object, expected: str) -> SequoiaError:
    option = name.replace("_", "-")
    return SequoiaError(f"{option}: found {value}, expected {expected}")

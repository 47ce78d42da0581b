from __future__ import annotations

from typing import Any

import pytest

from sequoia_opt.engine.llama_cpp.settings import Settings
from sequoia_opt.errors import SequoiaError


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threads": 0}, "threads: found 0, expected at least 1"),
        ({"gpu_layers": -2}, "gpu-layers: found -2, expected at least -1"),
        ({"context_size": -1}, "context-size: found -1, expected at least 0"),
        ({"flash_attention": "yes"}, "flash-attention: found yes, expected one of auto, off, on"),
        ({"cache_type_k": "q3"}, "cache-type-k: found q3, expected one of f32, f16"),
        (
            {"cache_type_v": "q8_0", "flash_attention": "off"},
            "cache-type-v: found q8_0, expected f32, f16 or bf16 without flash attention",
        ),
    ],
)
def test_values_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SequoiaError, match=message):
        Settings(**{"threads": 2} | changes)


def test_the_document_makes_the_same_settings() -> None:
    settings = Settings(3, 4, "on", "q8_0", "q4_0", 512)
    assert Settings(**settings.document()) == settings

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

EXACT = {"threads": 1, "flash_attention": "off", "cache_type_k": "f32", "cache_type_v": "f32"}
"""Settings without an approximation, and without threads that would wait for one another."""


@pytest.fixture(scope="session")
def bundled_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The bundled pair's GGUF files by role, in a cache of their own."""
    from sequoia_opt.demo.gguf import gguf_of

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield {role: str(gguf_of(role)) for role in ("target", "draft")}


@pytest.fixture(scope="session")
def pair(bundled_files: dict[str, str]) -> Any:
    """The bundled pair on llama.cpp."""
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    from sequoia_opt.engine.load import load_pair

    return load_pair(bundled_files["target"], bundled_files["draft"], engine_options=EXACT)


@pytest.fixture(scope="session")
def prompts(pair: Any) -> list[list[int]]:
    """The beginnings of the bundled prompts."""
    from sequoia_opt import demo

    return [pair.encode(text)[:40] for text in demo.prompts()[:4]]

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sequoia_opt.engine.gguf_file import read_header
from sequoia_opt.engine.model import reserved
from sequoia_opt.errors import SequoiaError


def test_logits_are_those_of_torch(pair: Any, prompts: list[list[int]]) -> None:
    """The same weights, two implementations."""
    from sequoia_opt import demo
    from sequoia_opt.engine.load import load_pair

    folders = [demo.resolve(name) for name in (demo.TARGET_NAME, demo.DRAFT_NAME)]
    other = load_pair(*folders, device="cpu", dtype="float32")
    for role in ("target", "draft"):
        for prompt in prompts[:2]:
            tokens = torch.tensor([prompt])
            logits = []
            for models in (pair.models, other.models):
                with reserved(models[role], len(prompt)) as cache, torch.inference_mode():
                    logits.append(models[role].prefill(cache, tokens)[0])
            assert torch.allclose(logits[0], logits[1], atol=1e-2, rtol=0)


def test_texts_of_different_lengths_are_read_together(pair: Any, prompts: list[list[int]]) -> None:
    """Padded on the left, each text has the logits that it has alone."""
    model = pair.draft
    texts = [prompts[0][:31], prompts[1][:12], prompts[2][:20]]
    longest = max(map(len, texts))
    pad = torch.tensor([longest - len(text) for text in texts])
    rows = torch.tensor([[0] * (longest - len(text)) + text for text in texts])
    with reserved(model, longest + 4, batch=len(texts)) as cache:
        together = model.prefill(cache, rows, pad)
        more = torch.tensor([[5], [6], [7]])
        extended = model.extend(cache, more, longest, pad)[:, 0]
        again = model.extend(cache, more + 1, longest, pad)[:, 0]  # in the place of the other
    for number, text in enumerate(texts):
        for logits, after in (
            (together, []),
            (extended, more[number].tolist()),
            (again, (more[number] + 1).tolist()),
        ):
            with reserved(model, 64) as cache:
                alone = model.prefill(cache, torch.tensor([text + after]))[0]
            assert torch.allclose(logits[number], alone, atol=1e-2, rtol=0)


@pytest.mark.parametrize("chunk", [1, 7, 40])
def test_a_text_is_read_in_chunks(pair: Any, prompts: list[list[int]], chunk: int) -> None:
    model, text = pair.draft, prompts[0]
    with reserved(model, len(text)) as cache:
        parts = [
            logits for _, logits in model.read(cache, torch.tensor([text]), keep=0, chunk=chunk)
        ]
    whole = torch.cat(parts, dim=1)[0]
    for length in (1, 8, len(text)):
        with reserved(model, 64) as cache:
            alone = model.prefill(cache, torch.tensor([text[:length]]))[0]
        assert torch.allclose(whole[length - 1], alone, atol=1e-2, rtol=0)


def test_a_cache_serves_the_next_text(pair: Any) -> None:
    model = pair.draft
    cache = model.reserve(100)
    model.release(cache)
    assert model.reserve(80) is cache
    other = model.reserve(80)  # the first is in use
    assert other is not cache
    for used in (cache, other):
        model.release(used)
    wider = model.reserve(80, branches=5)
    assert wider is not other
    model.release(wider)


def test_a_text_longer_than_its_cache_is_an_error(pair: Any) -> None:
    model = pair.draft
    with reserved(model, 10) as cache:  # llama.cpp rounds it up to 256
        model.prefill(cache, torch.zeros(1, 256, dtype=torch.long))
        with pytest.raises(SequoiaError, match=r"has no room for 3 more; raise --context-size"):
            model.extend(cache, torch.zeros(1, 3, dtype=torch.long), 256)


def test_layers_on_a_gpu_need_a_build_with_one(bundled_files: dict[str, str]) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    from sequoia_opt.engine.llama_cpp.library import has_gpu
    from sequoia_opt.engine.llama_cpp.model import LlamaModel
    from sequoia_opt.engine.llama_cpp.settings import Settings

    if has_gpu():
        pytest.skip("this llama.cpp has a GPU")
    path = Path(bundled_files["draft"])
    with pytest.raises(SequoiaError, match=r"gpu-layers: found 4, but this llama.cpp was built wi"):
        LlamaModel(path, read_header(path), Settings(threads=1, gpu_layers=4))


def test_compiling_is_refused(pair: Any) -> None:
    with pytest.raises(SequoiaError, match="drop --compile"):
        pair.compile()

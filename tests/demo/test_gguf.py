"""The bundled pair as GGUF files: what llama.cpp makes of them, against transformers."""

from __future__ import annotations

import json
import random
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sequoia_opt import demo
from sequoia_opt.demo import gguf
from sequoia_opt.demo.gguf import gguf_of
from sequoia_opt.engine.gguf_file import check_model, read_header
from sequoia_opt.errors import SequoiaError

# ggml looks GELU up in a table of half-precision numbers, which only the draft has.
NEAR = {"target": 1e-3, "draft": 2e-2}
PIECES = [
    *("a", "B", "'s", "'S", "'re", " ", "  ", "\t", "\n", "\r\n", "\u00a0", "\u3000", "é", "中文"),
    *("😀", "1", "23", "½", "٣", "_", "...", "don't", "<|endoftext|>", "\u200d", "ß"),
    *("\ufeff", "\x1c", "\x85", "\u2028", "__init__", "def f(x):", " == ", "#"),
]


@pytest.fixture(autouse=True)
def _cache(bundled_gguf: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test finds the files that the session wrote."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(bundled_gguf["target"].parents[1]))


class TestFiles:
    def test_headers(self, bundled_gguf: dict[str, Path]) -> None:
        for role, architecture, layers in (("target", "llama", 12), ("draft", "gptneox", 2)):
            header = read_header(bundled_gguf[role])
            check_model(header)
            assert (header.architecture, header.layers) == (architecture, layers)
            assert (header.name, header.dtype) == (f"demo-{role}", "float32")
            assert (header.vocabulary, header.positions) == (2048, 8192)
            assert header.value("tokenizer.ggml.eos_token_id") == 0

    def test_a_file_is_written_once_and_named_after_its_source(
        self, bundled_gguf: dict[str, Path]
    ) -> None:
        path = gguf_of("target")
        assert path == bundled_gguf["target"] == gguf_of(demo.TARGET_NAME)
        assert path.parent.name == "sequoia-opt"
        before = path.stat().st_mtime_ns
        assert gguf_of("target").stat().st_mtime_ns == before
        assert [file.name for file in path.parent.iterdir() if file.name.startswith(".")] == []

    def test_another_model_gets_another_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = tmp_path / "draft"
        folder.mkdir()
        for file in Path(demo.resolve("demo-draft")).iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        config = folder / "config.json"
        config.write_text(config.read_text().replace("1e-05", "1e-06"))
        before = gguf_of("draft").name
        monkeypatch.setitem(gguf.FOLDERS, demo.DRAFT_NAME, folder)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert gguf_of("draft").name != before
        epsilon = read_header(gguf_of("draft")).value("gptneox.attention.layer_norm_epsilon")
        assert epsilon == pytest.approx(1e-6)

    def test_a_cache_that_cannot_be_written(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        occupied = tmp_path / "file"
        occupied.write_text("")
        monkeypatch.setenv("XDG_CACHE_HOME", str(occupied))
        monkeypatch.setattr(gguf, "_temporary_folder", lambda: tmp_path / "temporary")
        path = gguf_of("draft")
        assert path.parent == tmp_path / "temporary"
        assert read_header(path).name == "demo-draft"
        monkeypatch.setattr(gguf, "_temporary_folder", lambda: occupied / "folder")
        with pytest.raises(SequoiaError, match=r"demo-draft-.*cannot be written .*XDG_CACHE_HOME"):
            gguf_of("draft")

    def test_the_temporary_folder_is_private(self) -> None:
        folder = gguf._temporary_folder()
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert folder == gguf._temporary_folder()

    @pytest.mark.parametrize("name", ["tokenizer", "/some/folder", ""])
    def test_only_bundled_models(self, name: str) -> None:
        with pytest.raises(SequoiaError, match="no bundled model; expected target or draft"):
            gguf_of(name)


@pytest.fixture(scope="module", params=["target", "draft"])
def role(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def reference(role: str, bundled_gguf: dict[str, Path]) -> Iterator[Any]:
    pytest.importorskip("llama_cpp")
    from llama_cpp_reference import Reference

    model = Reference(bundled_gguf[role])
    yield model
    model.close()


@pytest.fixture(scope="module")
def model(role: str) -> Any:
    folder = demo.resolve(f"demo-{role}")
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def tokenizer(role: str) -> Any:
    return AutoTokenizer.from_pretrained(demo.resolve(f"demo-{role}"))


class TestAgainstTransformers:
    def test_logits(self, role: str, reference: Any, model: Any, tokenizer: Any) -> None:
        for prompt in demo.prompts()[:2]:
            tokens = tokenizer(prompt)["input_ids"][:250]
            with torch.no_grad():
                expected = model(torch.tensor([tokens])).logits[0].numpy()
            logits = reference.logits(tokens)
            assert np.abs(logits - expected).max() < NEAR[role]
            # A wrong layout of heads or of positions would be hundreds of times as far away.
            assert np.abs(expected).max() > 10

    def test_greedy_text(self, reference: Any, model: Any, tokenizer: Any) -> None:
        prompt = tokenizer(demo.prompts()[1])["input_ids"]
        with torch.no_grad():
            text = model.generate(
                torch.tensor([prompt]), max_new_tokens=48, do_sample=False, eos_token_id=None,
                pad_token_id=0,
            )  # fmt: skip
        assert reference.greedy(prompt, 48) == text[0, len(prompt) :].tolist()

    def test_tokens(self, reference: Any, tokenizer: Any) -> None:
        held_out = [json.loads(line) for line in demo.DATASET.read_text("utf-8").splitlines()]
        texts = [*demo.prompts(), *(str(record["prompt"]) for record in held_out)]
        generator = random.Random(0)
        texts += ["".join(generator.choices(PIECES, k=8)) for _ in range(300)]
        for text in texts:
            assert reference.tokens(text) == tokenizer(text)["input_ids"], text

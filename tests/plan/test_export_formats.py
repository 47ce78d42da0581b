"""Each exported text, read by the engine's own parser or held against the fields it accepts."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from engine_fields import flags, tensorrt_llm, vllm

from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan import shapes
from sequoia_opt.plan.export import export
from sequoia_opt.plan.tree import TokenTree


def chain(guesses: int, **metadata: Any) -> TokenTree:
    tree = shapes.chain(guesses + 1)
    return TokenTree(tree.parents, tree.ranks, {"draft": "small", **metadata})


def test_vllm_has_every_field() -> None:
    assert vllm(export(chain(4), "vllm")[0]) == {
        "method": "draft_model",
        "model": "small",
        "num_speculative_tokens": 4,
    }


@pytest.mark.parametrize(("verifier", "draws"), [("sequoia", True), ("topk", False)])
def test_vllm_drafts_as_the_acceptance_was_measured(verifier: str, draws: bool) -> None:
    tree = chain(4, temperature=0.6, verifier=verifier)
    text, notes = export(tree, "vllm")
    assert vllm(text).get("draft_sample_method") == ("probabilistic" if draws else None)
    assert any(f"measured for verifier {verifier} holds there" in note for note in notes)


def test_sglang_has_every_flag() -> None:
    settings = flags(export(chain(4), "sglang")[0], "sglang")
    assert settings["--speculative-num-draft-tokens"] == "5"
    flags(export(shapes.k_ary(2, 3), "sglang-dynamic")[0], "sglang")


def test_mlx_lm_has_every_flag() -> None:
    assert flags(export(chain(3), "mlx-lm")[0], "mlx-lm")["--num-draft-tokens"] == "3"


@pytest.mark.parametrize("tree", [chain(3), shapes.k_ary(2, 4), shapes.k_ary(3, 2)])
def test_tensorrt_llm_has_every_field(tree: TokenTree) -> None:
    """Its dynamic trees have at most `dynamic_tree_max_topK` guesses for each level."""
    settings = tensorrt_llm(export(tree, "tensorrt-llm-dynamic")[0])
    assert settings["decoding_type"] == "Eagle3"
    if tree.depth == tree.size - 1:
        assert tensorrt_llm(export(tree, "tensorrt-llm")[0])["max_draft_len"] == 3


@pytest.mark.skipif(not importlib.util.find_spec("xllamacpp"), reason="no xllamacpp")
def test_the_wheel_of_llama_cpp_has_every_flag() -> None:
    """Its argument parser is compiled in: each flag is a string of the library."""
    wheel = Path(importlib.util.find_spec("xllamacpp").origin).parent  # type: ignore[union-attr]
    library = b"".join(file.read_bytes() for file in wheel.glob("*.so"))
    words = shlex.split(export(chain(4), "llama.cpp")[0])
    for word in [*(w for w in words if w.startswith("-")), "draft-simple"]:
        assert b"\0" + word.encode() + b"\0" in library, word


@pytest.mark.skipif(not shutil.which("llama-server"), reason="no llama-server")
def test_llama_server_parses_the_flags() -> None:
    """With a model that is none it ends behind the parser, which names an argument it refuses."""
    words = shlex.split(export(chain(4), "llama.cpp")[0])

    def said(arguments: list[str]) -> str:
        command = ["llama-server", "-m", os.devnull, "--port", "0", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        return done.stdout + done.stderr

    assert "failed to load model" in said(words)
    assert "invalid argument" in said([*words, "--spec-draft-n-most", "4"])


def test_openvino_genai_takes_chains_and_trees() -> None:
    genai = pytest.importorskip("openvino_genai")

    def config(tree: TokenTree, to: str) -> Any:
        made = genai.GenerationConfig(max_new_tokens=8)
        exec(export(tree, to)[0], {"config": made})
        made.validate()
        return made

    assert config(chain(4), "openvino-genai").is_assisting_generation()
    for tree in (shapes.k_ary(2, 3), shapes.k_ary(3, 1), shapes.k_ary(2, 5)):
        assert config(tree, "openvino-genai-dynamic").is_tree_search()


def test_onnxruntime_genai_takes_the_option(tmp_path: Path) -> None:
    """Its configuration has the option by the same name, and is refused past 16."""
    genai = pytest.importorskip("onnxruntime_genai")
    options: dict[str, int] = {}
    params = type("Params", (), {"set_speculative_options": lambda _, **o: options.update(o)})()
    exec(export(chain(16), "onnxruntime-genai")[0], {"params": params})
    written = tmp_path / "genai_config.json"
    model = {"type": "llama", "context_length": 64, "vocab_size": 8}
    written.write_text(json.dumps({"model": model, "speculative": options}))
    genai.Config(str(tmp_path))
    written.write_text(written.read_text().replace("16", "17"))
    with pytest.raises(RuntimeError, match="between 1 and 16"):
        genai.Config(str(tmp_path))


def test_no_more_guesses_than_the_engine_drafts() -> None:
    export(chain(16), "onnxruntime-genai")
    with pytest.raises(SequoiaError, match=r"at most 16: ONNX Runtime GenAI.*--max-size 17"):
        export(chain(17), "onnxruntime-genai")


def test_trees_of_openvino_genai_are_for_temperature_0() -> None:
    warm = TokenTree([-1, 0, 0], [0, 1, 2], {"temperature": 0.6, "verifier": "topk"})
    with pytest.raises(SequoiaError, match=r"found a tree for temperature 0\.6, expected"):
        export(warm, "openvino-genai-dynamic")

from __future__ import annotations

import importlib
import json
import random
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from sequoia_opt import load_pair
from sequoia_opt.engine.gguf_file import read_header
from sequoia_opt.engine.torch.gguf_model import config_of, model_of
from tests.small_gguf import TOKENS, write_llama

FOLDER = Path(__file__).parents[2] / "benchmarks" / "smollm2"
TINY: dict[str, Any] = dict(
    vocab_size=len(TOKENS),
    hidden_size=32,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
    max_position_embeddings=64,
    rms_norm_eps=1e-5,
    rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    tie_word_embeddings=True,
)


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A script of the folder, which imports the others by their names, for one test."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module(name)


def test_an_exported_draft_is_the_trained_one_with_the_targets_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, path = write_llama(tmp_path / "target.gguf"), tmp_path / "draft.gguf"
    torch.manual_seed(0)
    trained = script("draft", monkeypatch).build(TINY).eval()
    weights = {name: values.numpy() for name, values in trained.state_dict().items()}
    script("export", monkeypatch).export(target, TINY, weights, path, "float32", "float32")
    loaded = model_of(str(path), config_of(str(path)), torch.float32)
    tokens = torch.tensor([[2, 3, 5, 4, 2, 5, 1]])
    with torch.no_grad():
        hidden = trained(input_ids=tokens).last_hidden_state
        torch.testing.assert_close(loaded(tokens).logits, hidden @ trained.embed_tokens.weight.T)
    written, original = read_header(path), read_header(target)
    keys = {key for key in original.fields if key.startswith("tokenizer.")}
    assert keys
    for key in keys:
        assert written.value(key) == original.value(key)
        assert written.array(key) == original.array(key)


def test_the_writing_target_in_8_bits_has_about_the_targets_logits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_llama(tmp_path / "target.gguf")
    model = model_of(str(path), config_of(str(path)), torch.float32)
    tokens = torch.tensor([[2, 3, 5, 4, 2, 5, 1], [5, 5, 3, 2, 1, 0, 4]])
    target = script("target", monkeypatch).Target(path, texts=2, length=7)
    begins = torch.tensor([0, 0])
    logits = torch.stack([target.logits(tokens[:, i], i, begins) for i in range(7)], 1)
    with torch.no_grad():
        expected = model(tokens).logits
    correlation = np.corrcoef(logits.flatten(), expected.flatten())[0, 1]
    assert correlation > 0.98  # with weights this large, attention is sharp
    # What lies before a text's beginning is not seen.
    target.logits(tokens[:, 0], 0, begins)
    later = [target.logits(tokens[:, i], i + 1, begins + 1) for i in range(4)]
    assert np.corrcoef(torch.stack(later, 1).flatten(), logits[:, :4].flatten())[0, 1] > 0.98


def test_the_scripts_run_from_a_target_to_a_draft_that_both_engines_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, written = write_llama(tmp_path / "target.gguf"), tmp_path / "data"
    data, train, export = (script(name, monkeypatch) for name in ("data", "train", "export"))
    for module, name, value in (
        (data, "TEXTS", 32), (data, "LENGTH", 48), (data, "LIKELY", 4), (data, "MOST_ANSWER", 9),
        (train, "SIZES", TINY), (train, "COMMON", 4), (train, "OTHERS", 2), (train, "HELD_OUT", 8),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, value)

    def run(module: ModuleType, *arguments: object) -> None:
        monkeypatch.setattr(sys, "argv", [module.__name__, str(target), *map(str, arguments)])
        threads = torch.get_num_threads()
        module.main()
        torch.set_num_threads(threads)

    run(data, written, "--files", 2)
    with np.load(written / "000000.npz") as arrays:
        windows = {name: arrays[name] for name in arrays.files}
    kinds, ids, tokens = windows["kinds"], windows["ids"], windows["tokens"]
    # A greedy answer's token is the one that the target thought likeliest, unless it was cut.
    greedy = (kinds[:, 1:] == data.GREEDY) & (kinds[:, :-1] == data.GREEDY)
    assert greedy.any()
    assert (tokens[:, 1:] == ids[:, :-1, 0])[greedy].mean() > 0.8
    assert (np.diff(windows["starts"].astype(int), axis=1) >= 0).all()
    run(train, written, "-o", tmp_path, "--steps", 30, "--report", 10, "--batch", 4)
    record = json.loads((tmp_path / "training.json").read_text())
    losses = [point["loss"] for point in record["curve"]]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    assert record["steps"] == 30
    draft = tmp_path / "draft.gguf"
    run(export, tmp_path / "draft.pt", "-o", draft, "--matrices", "q8_0", "--embedding", "q5_0")
    assert load_pair(str(target), str(draft), engine="torch").drafter
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    assert load_pair(str(target), str(draft), engine="llama.cpp").drafter


def test_an_orthogonal_step_has_singular_values_near_1(monkeypatch: pytest.MonkeyPatch) -> None:
    orthogonal = script("train", monkeypatch).orthogonal
    for shape in ((24, 64), (64, 24)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(shape)))
        assert values.min() > 0.4
        assert values.max() < 1.4


def test_what_users_ask_differs_and_has_no_holes(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, choice = script("prompts", monkeypatch), random.Random(0)
    asked = [prompts.opening(choice) for _ in range(500)]
    assert len({text for text, _ in asked}) > 350
    assert all(text for text, is_whole in asked if is_whole)
    assert not any("{" in text or "|" in text or "\n" in text for text, _ in asked)

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
from slow_head import SlowHead
from small_gguf import TOKENS, write_llama
from small_heads import HIDDEN, head_weights, specforge_config
from small_models import VOCABULARY

from sequoia_opt import load_pair
from sequoia_opt.engine.decoder import Decoder
from sequoia_opt.engine.gguf_file import read_header
from sequoia_opt.engine.torch.eagle.config import head_config, head_config_of
from sequoia_opt.engine.torch.eagle.head import EagleHead
from sequoia_opt.engine.torch.eagle.weights import filled_head, read_weights, token_ids
from sequoia_opt.engine.torch.gguf_model import config_of, model_of
from sequoia_opt.plan import shapes
from sequoia_opt.plan.tree import AUTOREGRESSIVE

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
    target = script("target", monkeypatch).Target(path, texts=2, length=7, kept_layers=(1, 2))
    begins = torch.tensor([0, 0])
    passes = [target.forward(tokens[:, i], i, begins) for i in range(7)]
    logits = torch.stack([each for each, _ in passes], 1)
    with torch.no_grad():
        output = model(tokens, output_hidden_states=True)
    expected, first_layer = output.logits, output.hidden_states[1]
    kept = torch.stack([kept[0] for _, kept in passes], 1)
    assert np.corrcoef(kept.flatten(), first_layer.flatten())[0, 1] > 0.98
    correlation = np.corrcoef(logits.flatten(), expected.flatten())[0, 1]
    assert correlation > 0.98  # with weights this large, attention is sharp
    # What lies before a text's beginning is not seen.
    target.forward(tokens[:, 0], 0, begins)
    later = [target.forward(tokens[:, i], i + 1, begins + 1)[0] for i in range(4)]
    assert np.corrcoef(torch.stack(later, 1).flatten(), logits[:, :4].flatten())[0, 1] > 0.98


def run(module: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    """Run a script as a command."""
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
    threads = torch.get_num_threads()
    module.main()
    torch.set_num_threads(threads)


def written_windows(
    target: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, *arguments: object
) -> ModuleType:
    """Let `data.py` write small windows; its module."""
    data = script("data", monkeypatch)
    for name, value in dict(TEXTS=32, LENGTH=48, LIKELY=4, MOST_ANSWER=9).items():
        monkeypatch.setattr(data, name, value)
    monkeypatch.setattr(script("windows", monkeypatch), "HELD_OUT", 8)
    run(data, monkeypatch, target, folder, *arguments)
    return data


def losses_of(record_file: Path) -> list[float]:
    """The losses of a run of 30 steps with 3 reports, checked to fall."""
    record = json.loads(record_file.read_text())
    losses = [point["loss"] for point in record["curve"]]
    assert record["steps"] == 30
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    return losses


def test_the_scripts_run_from_a_target_to_a_draft_that_both_engines_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, written = write_llama(tmp_path / "target.gguf"), tmp_path / "data"
    data = written_windows(target, written, monkeypatch, "--files", 2)
    train, export = script("train", monkeypatch), script("export", monkeypatch)
    for name, value in dict(SIZES=TINY, COMMON=4, OTHERS=2).items():
        monkeypatch.setattr(train, name, value)
    with np.load(written / "000000.npz") as arrays:
        windows = {name: arrays[name] for name in arrays.files}
    kinds, ids, tokens = windows["kinds"], windows["ids"], windows["tokens"]
    # A greedy answer's token is the one that the target thought likeliest, unless it was cut.
    greedy = (kinds[:, 1:] == data.GREEDY) & (kinds[:, :-1] == data.GREEDY)
    assert greedy.any()
    assert (tokens[:, 1:] == ids[:, :-1, 0])[greedy].mean() > 0.8
    assert (np.diff(windows["starts"].astype(int), axis=1) >= 0).all()
    options = ("--steps", 30, "--report", 10, "--batch", 4)
    run(train, monkeypatch, target, written, "-o", tmp_path, *options)
    assert losses_of(tmp_path / "draft-training.json")
    draft, numbers = tmp_path / "draft.gguf", ("--matrices", "q8_0", "--embedding", "q5_0")
    run(export, monkeypatch, target, tmp_path / "draft.pt", "-o", draft, *numbers)
    assert load_pair(str(target), str(draft), engine="torch").drafter
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    assert load_pair(str(target), str(draft), engine="llama.cpp").drafter


def test_the_scripts_run_from_a_target_to_a_head_that_drafts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, written = write_llama(tmp_path / "target.gguf", layers=8), tmp_path / "data"
    monkeypatch.setattr(script("data", monkeypatch), "HEAD_LAYERS", (2, 4, 5))
    written_windows(target, written, monkeypatch, "--files", 2, "--states")
    train_head = script("train_head", monkeypatch)
    monkeypatch.setattr(train_head, "DRAFT_VOCABULARY", 5)
    options = ("--steps", 30, "--report", 10, "--batch", 4)
    run(train_head, monkeypatch, target, written, "-o", tmp_path, *options)
    losses = losses_of(tmp_path / "head-training.json")
    further = (*options, "--continue-from", tmp_path / "head.pt")
    run(train_head, monkeypatch, target, written, "-o", tmp_path, *further)
    assert losses_of(tmp_path / "head-training.json")[0] < losses[0]
    pair = load_pair(str(target), str(tmp_path / "head"), engine="torch")
    text = Decoder(pair, shapes.chain(4), 0).generate([2, 3], 12, ignore_eos=True)
    plain = Decoder(pair, AUTOREGRESSIVE, 0).generate([2, 3], 12, ignore_eos=True)
    assert text.tokens == plain.tokens


def test_the_passes_of_training_are_what_a_head_computes_behind_its_own_guesses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = head_config_of("head", specforge_config())
    assert config is not None
    module, slow = script("head", monkeypatch), SlowHead(head_weights())
    torch.manual_seed(0)
    scale = 0.5 + torch.rand(3 * HIDDEN)
    trained = module.TrainedHead(EagleHead(config, 3, HIDDEN), scale)
    weights = {
        name.replace("midlayer.", "layers.0."): values
        for name, values in head_weights().items()
        if name not in ("d2t", "t2d")
    }
    trained.head.load_state_dict(weights | {"fc.weight": weights["fc.weight"] * scale})
    torch.testing.assert_close(trained.folded()["fc.weight"], weights["fc.weight"])
    # Two conversations in one window, the second from position 5 on.
    text, states = torch.randint(VOCABULARY, (12,)), torch.randn(12, 3 * HIDDEN)
    starts = torch.tensor([0] * 5 + [5] * 7)
    with torch.no_grad():
        outputs = trained.outputs(text[None], states[None], starts[None], passes=4)
        logits = torch.stack([trained.head.logits(output[0]) for output in outputs])
    for number in range(4):
        for row in range(12):
            start, end = int(starts[row]), row - number  # the last token that is read with a state
            if end <= start:
                continue
            whole = text[start : row + 1].tolist()
            committed = end - start + 1
            expected = slow.path_logits(
                whole[:committed], states[start:end].double(), whole[committed:]
            )[-1]
            torch.testing.assert_close(logits[number, row].double(), expected, rtol=1e-4, atol=1e-4)


def test_the_kept_weights_are_complete_and_small() -> None:
    kept = FOLDER / "weights"
    config = head_config(str(kept / "head"))
    assert config is not None
    tensors = read_weights(config)
    ids = token_ids(config, tensors, config.vocabulary)
    head = filled_head(config, tensors, 3, 576, torch.float32, torch.device("cpu"))
    assert len(ids) == head.lm_head.out_features == 4096
    draft = config_of(str(kept / "draft.gguf"))
    assert draft.vocab_size == config.vocabulary == 49152
    model = model_of(str(kept / "draft.gguf"), draft, torch.float32)
    with torch.no_grad():
        assert model(torch.tensor([[1, 4093, 198]])).logits.isfinite().all()
    files = [path for path in kept.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 25e6


def test_an_orthogonal_step_has_singular_values_near_1(monkeypatch: pytest.MonkeyPatch) -> None:
    orthogonal = script("training", monkeypatch).orthogonal
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

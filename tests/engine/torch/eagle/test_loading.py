"""Heads that are damaged, incomplete or for another target are refused with one line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_heads import (
    DRAFT_VOCABULARY,
    head_weights,
    save_head,
    specforge_config,
    specforge_head,
    speculators_config,
    speculators_head,
    vocabulary_map,
)
from small_models import VOCABULARY

from sequoia_opt.api import load_pair
from sequoia_opt.engine.torch.eagle.config import head_config
from sequoia_opt.errors import SequoiaError

Change = Callable[[dict[str, Any], dict[str, torch.Tensor]], object]


@pytest.fixture
def target(make_model: Callable[..., Path]) -> Path:
    return make_model("llama")


def refused(target: Path, head: Path) -> str:
    """Why a head is refused, on one line."""
    with pytest.raises(SequoiaError) as refusal:
        load_pair(target, head, "cpu")
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


IN_PART = {"eagle_aux_hidden_state_layer_ids": [0, 2, 1]}
SAME: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "layers": (dict(eagle_config=IN_PART), {}),
    "layers outside": (dict(eagle_aux_hidden_state_layer_ids=[1, 3, 2]), {}),
    "EAGLE-3": (dict(eagle_config=IN_PART, norm_output=False), {}),
    "EAGLE-3.1": (dict(eagle_config=IN_PART, norm_output=True), dict(norm_output=True)),
    "a norm": (dict(eagle_config={**IN_PART, "norm_before_fc": True}), dict(norm_before_fc=True)),
    "a norm outside": (
        dict(eagle_config=IN_PART, norm_before_fc=True),
        dict(norm_before_fc=True),
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_both_formats_say_the_same(name: str, target: Path, tmp_path: Path) -> None:
    """Layer i's output is number i in SpecForge's `eagle_config` and i + 1 in speculators'."""
    weights = head_weights()
    specforge, speculators = SAME[name]
    if speculators.get("norm_before_fc"):
        weights["input_norm.weight"] = torch.linspace(0.5, 2, 96)
    config = specforge_config(**specforge)
    first = load_pair(target, save_head(tmp_path / "specforge", config, weights), "cpu")
    renamed = {name.replace("midlayer.", "layers.0."): value for name, value in weights.items()}
    config = speculators_config(layers=[1, 3, 2], **speculators)
    second = load_pair(target, save_head(tmp_path / "speculators", config, renamed), "cpu")
    logits = []
    for pair in (first, second):
        head, hidden = pair.drafter.model, pair.drafter.hidden
        assert hidden.layers == (1, 3, 2)
        with torch.inference_mode():
            states = torch.ones(1, 4, hidden.width)
            logits.append(head.read(head.reserve(8), torch.tensor([[3, 4, 5, 6]]), states, 1))
        assert head.head.config.feeds_back_normed == speculators.get("norm_output", False)
    assert torch.equal(*logits)
    assert torch.equal(first.drafter.model.token_ids, vocabulary_map(DRAFT_VOCABULARY, VOCABULARY))
    assert first.draft.parameters == sum(
        value.numel() for value in weights.values() if value.is_floating_point()
    )


def test_a_head_without_embeddings_uses_the_targets(target: Path, tmp_path: Path) -> None:
    pair = load_pair(target, specforge_head(tmp_path / "head"), "cpu")
    head: Any = pair.drafter.model
    expected = load_file(target / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(head.head.embed_tokens.weight, expected)


def test_a_head_reads_longer_texts_than_it_was_trained_on(target: Path, tmp_path: Path) -> None:
    """Its positions go on, as with a larger `max_position_embeddings`."""
    logits = []
    for name, positions in (("short", 8), ("long", 512)):
        config = specforge_config(max_position_embeddings=positions)
        pair = load_pair(target, save_head(tmp_path / name, config, head_weights()), "cpu")
        assert pair.positions == pair.target.positions
        head: Any = pair.drafter.model
        generator = torch.Generator().manual_seed(0)
        with torch.inference_mode():
            states = torch.randn(1, 24, pair.drafter.hidden.width, generator=generator)
            logits.append(head.read(head.reserve(32), torch.arange(24)[None], states, 1))
    assert torch.equal(*logits)


def test_a_head_may_have_a_tokenizer_where_its_target_has_none(
    target: Path, tmp_path: Path, make_model: Callable[..., Path]
) -> None:
    """Its vocabulary is compared all the same."""
    head = specforge_head(tmp_path / "head")
    for path in target.glob("token*"):
        (head / path.name).write_bytes(path.read_bytes())
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in target.iterdir():
        if not path.name.startswith("token"):
            (bare / path.name).write_bytes(path.read_bytes())
    assert load_pair(bare, head, "cpu").drafter.model.parameters


@pytest.mark.parametrize("content", [b"", b"\x80\x02", b"no weights"])
def test_a_damaged_pickle_is_named(content: bytes, target: Path, tmp_path: Path) -> None:
    head = specforge_head(tmp_path / "head")
    (head / "model.safetensors").unlink()
    (head / "pytorch_model.bin").write_bytes(content)
    assert "pytorch_model.bin: damaged weights" in refused(target, head)


def test_models_are_no_heads(target: Path, tmp_path: Path) -> None:
    assert head_config(str(target)) is None
    assert head_config(str(tmp_path)) is None
    assert head_config("no/such-model") is None


CHANGES: dict[str, tuple[Change, str]] = {
    "missing": (lambda c, w: w.pop("norm.weight"), "weights are missing for norm.weight;"),
    "missing two": (
        lambda c, w: [w.pop("norm.weight"), w.pop("lm_head.weight")],
        "weights are missing for norm.weight and 1 others;",
    ),
    "shape": (
        lambda c, w: w.update({"norm.weight": torch.ones(31)}),
        r"norm.weight: found shape \[31\], expected \[32\]",
    ),
    "not finite": (
        lambda c, w: w["fc.weight"].__setitem__((0, 0), torch.nan),
        "fc.weight is not finite in float32; it is damaged",
    ),
    "no map": (lambda c, w: w.pop("d2t"), "d2t is missing"),
    "short map": (
        lambda c, w: w.update(d2t=w["d2t"][:-1]),
        r"d2t: found shape \[39\] of torch.int64, expected 40 whole numbers",
    ),
    "no numbers": (lambda c, w: w.update(d2t=w["d2t"].float()), "d2t: found shape"),
    "map out of range": (
        lambda c, w: w["d2t"].__setitem__(39, 40),
        "d2t: token 39 leads to the target's token 79, expected one of 0 to 60",
    ),
    "map below 0": (lambda c, w: w["d2t"].__setitem__(0, -1), "target's token -1"),
    "map twice": (lambda c, w: w["d2t"].zero_().__setitem__(0, 1), "two tokens"),
    "vocabulary": (
        lambda c, w: c.update(vocab_size=64),
        "a head for a vocabulary of 64 tokens, but the target has 61",
    ),
    "state size": (
        lambda c, w: w.update({"fc.weight": torch.ones(32, 3 * 64)}),
        "reads 192 elements of the target's hidden states at a token, but the target has 96",
    ),
    "layers": (
        lambda c, w: c.update(eagle_config={"eagle_aux_hidden_state_layer_ids": [1, 15, 28]}),
        "hidden states 2, 16, 29, but the target has 3 layers",
    ),
    "embeddings": (
        lambda c, w: c.update(hidden_size=16, head_dim=8),
        "expected",
    ),
    "draft vocabulary": (lambda c, w: c.update(draft_vocab_size=0), "draft_vocab_size: found 0"),
    "layer ids": (
        lambda c, w: c.update(eagle_config={"eagle_aux_hidden_state_layer_ids": ["a"]}),
        "expected a list of layers' numbers",
    ),
    "a norm of all states": (
        lambda c, w: w.update({"input_norm.weight": torch.ones(96)}),
        "weights that its config.json does not use: input_norm.weight;",
    ),
    "bias": (
        lambda c, w: w.update({"fc.bias": torch.ones(32), "lm_head.bias": torch.ones(40)}),
        "does not use: fc.bias and 1 others;",
    ),
    "kind": (lambda c, w: c.update(model_type="mamba"), "expected one of llama, qwen3"),
    "a field": (lambda c, w: c.update(num_attention_heads="x"), "its config.json cannot be used"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_heads_that_do_not_fit(name: str, target: Path, tmp_path: Path) -> None:
    change, message = CHANGES[name]
    config, weights = specforge_config(), head_weights(embeddings=False)
    change(config, weights)
    reason = refused(target, save_head(tmp_path / "head", config, weights))
    assert str(tmp_path / "head") in reason
    assert re.search(message, reason), reason


def test_a_target_with_other_layers(make_model: Callable[..., Path], tmp_path: Path) -> None:
    """The usual three are one and the same in a target of four layers."""
    four = make_model("llama", num_hidden_layers=4)
    reason = refused(four, specforge_head(tmp_path / "head"))
    assert "hidden states 2, 2, 1, but the target has 4 layers" in reason


def test_other_kinds_of_heads(target: Path, tmp_path: Path) -> None:
    head = speculators_head(tmp_path / "head", speculators_model_type="dflash")
    assert "found 'dflash', expected 'eagle3'" in refused(target, head)
    config = json.loads((head / "config.json").read_text())
    config |= {"speculators_model_type": "eagle3", "transformer_layer_config": None}
    (head / "config.json").write_text(json.dumps(config))
    assert "transformer_layer_config: found None" in refused(target, head)


def test_damaged_files(target: Path, tmp_path: Path) -> None:
    head = specforge_head(tmp_path / "head")
    file = head / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    assert "damaged weights" in refused(target, head)
    file.unlink()
    assert "no weights" in refused(target, head)
    torch.save(head_weights(embeddings=False), head / "pytorch_model.bin")
    assert load_pair(target, head, "cpu").drafter.width == DRAFT_VOCABULARY


def test_ways_to_run_that_a_head_does_not_have(target: Path, tmp_path: Path) -> None:
    head = specforge_head(tmp_path / "head")
    with pytest.raises(SequoiaError, match="drop --random-weights"):
        load_pair(target, head, "cpu", random_weights=True)
    with pytest.raises(SequoiaError, match=r"use --engine torch .*--spec-type draft-eagle3"):
        load_pair(target, head, engine="llama.cpp")


def test_fingerprints_tell_heads_apart(target: Path, tmp_path: Path) -> None:
    head = specforge_head(tmp_path / "head")
    before = load_pair(target, head, "cpu").fingerprints["draft"]
    weights = load_file(head / "model.safetensors")
    weights["norm.weight"] += 1
    save_file(weights, head / "model.safetensors")
    assert load_pair(target, head, "cpu").fingerprints["draft"] != before

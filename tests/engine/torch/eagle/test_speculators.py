"""Logits agree with those of vLLM's speculators, with its own module and the same weights.

The package asks for an older transformers and for torchvision, so it is no dependency of the
tests. To run these: `pip install --no-deps speculators`, then `pip install datasets hs_connectors
openai pydantic`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_heads import DRAFT_VOCABULARY, HIDDEN, save_head, speculators_config, vocabulary_map
from small_models import VOCABULARY

from sequoia_opt.api import load_pair
from sequoia_opt.engine.drafters import Committed
from sequoia_opt.plan import shapes

STEPS, COUNT = 3, 12  # forward passes behind one another, and tokens of the text
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "norm before residual": dict(norm_before_residual=True),
    "normed outputs fed back": dict(norm_output=True),
    "a norm of all states": dict(norm_before_fc=True),
    "a norm of each state": dict(fc_norm=True),
    "the whole vocabulary": dict(draft_vocabulary=VOCABULARY),
    "qwen3": dict(layer=dict(model_type="qwen3")),
    "two layers": dict(layer=dict(num_hidden_layers=2)),
    "scaled positions": dict(
        layer=dict(
            rope_scaling=dict(
                rope_type="llama3",
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=32,
            )
        )
    ),
}


def their_module(config: dict[str, Any]) -> Any:
    """speculators' module with random weights."""
    eagle3 = pytest.importorskip("speculators.models.eagle3")
    fields = {name: value for name, value in config.items() if value is not None}
    fields["transformer_layer_config"] = dict(config["transformer_layer_config"])
    theirs_config = eagle3.Eagle3SpeculatorConfig(**fields)
    theirs_config.transformer_layer_config._attn_implementation = "eager"
    theirs = eagle3.Eagle3DraftModel(theirs_config).float().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            values = 0.2 * torch.randn(weight.shape, generator=generator)
            weight.copy_(1 + values / 2 if "norm" in name else values)
    if theirs.d2t is not None:
        ids = vocabulary_map(DRAFT_VOCABULARY, VOCABULARY)
        theirs.d2t.copy_(ids - torch.arange(DRAFT_VOCABULARY))
        theirs.t2d.copy_(torch.zeros(VOCABULARY).index_fill(0, ids, 1).bool())
    return theirs


def their_logits(theirs: Any, states: torch.Tensor, tokens: torch.Tensor) -> list[torch.Tensor]:
    """Logits [tokens, draft vocabulary] of each step, which are fed back in the next."""
    logits: list[torch.Tensor] = []
    hook = theirs.lm_head.register_forward_hook(lambda *call: logits.append(call[2][0]))
    with torch.no_grad():
        theirs(
            hidden_states=states[None],
            input_ids=tokens[None],
            document_ids=torch.zeros(1, COUNT, dtype=torch.long),
            ttt_steps=STEPS,
        )
    hook.remove()
    return logits


@torch.inference_mode()
def our_logits(head: Any, states: torch.Tensor, tokens: torch.Tensor) -> list[torch.Tensor]:
    """The same: behind each part of the text a chain whose nodes are the tokens that follow."""
    passes, rows = head.level_passes(shapes.chain(STEPS + 1)), []
    for end in range(1, COUNT + 1 - STEPS):
        cache = head.reserve(4 * COUNT)
        if end > 1:
            head.read(cache, tokens[None, : end - 1], states[None, : end - 1], 1)
        committed = Committed(
            tokens[end - 1 : end + STEPS], states[end - 1 : end + STEPS], torch.tensor([1])
        )
        levels = passes.begin(cache, torch.tensor([end]), end, committed)
        inputs = [committed.tokens, *tokens[end : end + STEPS - 1].split(1)]
        rows.append([passes.run(cache, *level)[0] for level in zip(levels, inputs, strict=True)])
        head.release(cache)
    return [torch.stack(step) for step in zip(*rows, strict=True)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_speculators(variant: str, make_model: Any, tmp_path: Path) -> None:
    config = speculators_config(layers=[0, 2, 3], **VARIANTS[variant])
    theirs = their_module(config)
    weights = {
        name: tensor
        for name, tensor in theirs.state_dict().items()
        if not name.startswith("verifier")
    }
    pair = load_pair(make_model("llama"), save_head(tmp_path / "head", config, weights), "cpu")
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(COUNT, 3 * HIDDEN, generator=generator)
    tokens = torch.randint(VOCABULARY, (COUNT,), generator=generator)
    head = pair.drafter.model
    with torch.inference_mode():
        read = head.read(head.reserve(COUNT), tokens[None], states[None], 1)[0]
    expected = their_logits(theirs, states, tokens)
    torch.testing.assert_close(read, expected[0], rtol=0, atol=1e-4)
    for ours, step_logits in zip(our_logits(head, states, tokens), expected, strict=True):
        torch.testing.assert_close(ours, step_logits[: len(ours)], rtol=0, atol=1e-4)

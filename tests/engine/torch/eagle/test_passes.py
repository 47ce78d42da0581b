"""Every level of every step drafts what a slow head says that recomputes the whole text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from slow_head import SlowHead, target_states

from sequoia_opt.engine.decoder import Decoder
from sequoia_opt.plan import shapes
from sequoia_opt.plan.tree import TokenTree

TREES = {
    "chain": shapes.chain(5),
    "k-ary": shapes.k_ary(3, 3),
    "uneven": TokenTree([-1, 0, 0, 0, 1, 1, 2, 4, 7], [0, 1, 2, 3, 1, 2, 1, 1, 1]),
}
PROMPT = [2, 5, 3, 7, 4, 2, 6]


class Recorder:
    """Records what is drafted in each step: the text, the nodes' tokens, and the logits."""

    def __init__(self, decoder: Decoder, session: Any) -> None:
        self.steps: list[tuple[list[int], list[int], torch.Tensor]] = []
        drafter: Any = decoder.step.drafter
        draft = drafter.draft

        def recording(*arguments: Any) -> Any:
            tokens, logits = draft(*arguments)
            self.steps.append((list(session._text), tokens.tolist(), logits.clone()))
            return tokens, logits

        drafter.draft = recording


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("prompt", [PROMPT, PROMPT[:1]], ids=["prompt", "one token"])
def test_outputs_are_fed_back_level_by_level(
    name: str, prompt: list[int], head_pair: Any, target_folder: Path, slow: SlowHead
) -> None:
    tree = TREES[name]
    decoder = Decoder(head_pair, tree, temperature=0.9, verifier="specinfer", seed=3)
    session = decoder.session()
    recorder = Recorder(decoder, session)
    generation = session.generate(prompt, 30, ignore_eos=True)
    assert generation.tokens_per_step > 1.2  # so that several tokens are read in a step
    whole = [*prompt, *generation.tokens]
    states = target_states(target_folder, whole, (2, 1, 0))  # 2, n // 2 and n - 3 of 3 layers
    ids = head_pair.drafter.model.token_ids
    for text, tokens, logits in recorder.steps:
        assert whole[: len(text)] == text
        for row, node in enumerate(decoder.step.index.internal):
            ancestors = [v for v in range(1, tree.size) if tree.ancestor_mask[node, v]]
            path = [tokens[v] for v in ancestors]
            expected = slow.path_logits(text, states[: len(text) - 1], path)[-1]
            torch.testing.assert_close(logits[row, ids], expected, rtol=0, atol=1e-4)
            others = torch.ones(head_pair.target.vocabulary).index_fill(0, ids, 0).bool()
            assert logits[row, others].isneginf().all()


def test_a_step_writes_to_as_many_slots_as_it_reserves(head_pair: Any) -> None:
    """Decoding up to the last slot of the caches does not fail."""
    for tree in TREES.values():
        session = Decoder(head_pair, tree).session(conversing=False)
        session.reserve(1)
        assert session.generate(PROMPT, 200, ignore_eos=True).tokens

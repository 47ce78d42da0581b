from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from sequoia_opt.engine.decoder import Decoder
from sequoia_opt.engine.model import Caches
from sequoia_opt.measure.repeated_step import RepeatedStep
from sequoia_opt.plan import shapes
from sequoia_opt.plan.tree import TokenTree

TEXT = [5, 6, 7, 0]  # a step without a text's state takes its last token for a 0, and its root


@pytest.mark.parametrize("tree", [shapes.chain(1), shapes.chain(4), shapes.k_ary(2, 2)])
def test_it_is_the_same_step_of_decoding_each_time(
    tree: TokenTree, make_pair: Callable[..., Any]
) -> None:
    pair = make_pair(max_position_embeddings=48)
    target, draft = pair.target, pair.drafter
    with torch.inference_mode():
        caches = Caches(target.reserve(32), draft.reserve(32), None)
        for model, cache in ((target, caches.target), (draft, caches.draft)):
            model.prefill(cache, torch.tensor([TEXT]))
        with target.native() as model:
            text = [*TEXT, 0]
            while len(text) < len(TEXT) + 1 + tree.depth + 1:
                text.append(int(model(torch.tensor([text])).logits[0, -1].argmax()))
    following = text[len(TEXT) + 1 :]
    step = RepeatedStep(Decoder(pair, tree), caches, len(TEXT))
    runs = [step() for _ in range(2 * target.positions)]  # more tokens than a text may have
    assert runs[0] == following[: len(runs[0])]
    assert all(run == runs[0] for run in runs)

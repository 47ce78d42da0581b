from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from number_texts import documents, token_ids
from transformers import AutoModelForCausalLM

from sequoia_opt.measure.estimator import EstimateOptions, estimate


def test_greedy_ranks_are_those_of_a_plain_forward_pass(
    number_pair: Any, make_model: Callable[..., Any]
) -> None:
    """Along the target's continuation, the rank of its token among the draft's."""
    prompts = documents(4)
    options = EstimateOptions(max_new_tokens=20, width=10, batch=3)
    (acceptance,) = estimate(number_pair, prompts, "numbers", options=options)
    target = AutoModelForCausalLM.from_pretrained(make_model("llama"), dtype=torch.float64)
    with torch.no_grad(), number_pair.draft.native() as draft:
        for document, trace in zip(prompts, acceptance.traces, strict=True):
            prompt = torch.tensor([token_ids(document.prompt)])
            text = target.generate(
                prompt, max_new_tokens=21, do_sample=False, pad_token_id=0,
                attention_mask=torch.ones_like(prompt),
            )  # fmt: skip
            order = draft(text[:, :-1], use_cache=False).logits[0].argsort(-1, descending=True)
            # Not of the first new token: decoding takes it from the prompt's forward pass.
            ranks = [
                (order[i - 1] == text[0, i]).nonzero().item() + 1
                for i in range(prompt.shape[1] + 1, text.shape[1])
            ]
            assert trace == [rank if rank <= 10 else 0 for rank in ranks]
    counts = np.bincount([rank for trace in acceptance.traces for rank in trace], minlength=11)[1:]
    measured = acceptance.rates if acceptance.measured is None else acceptance.measured
    assert measured == pytest.approx(counts / acceptance.positions)
    assert acceptance.positions == sum(map(len, acceptance.traces))
    assert acceptance.verifier == "greedy"


def test_a_text_is_not_sampled_past_an_end_token(
    number_pair: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end token's own position is the last one; other texts of the batch go on."""
    prompts = documents(3)
    options = EstimateOptions(max_new_tokens=20, width=4)
    (endless,) = estimate(number_pair, prompts, "numbers", options=options)
    assert [len(trace) for trace in endless.traces] == [20] * 3
    with torch.no_grad(), number_pair.target.native() as target:
        text = torch.tensor([token_ids(prompts[0].prompt)])
        for _ in range(6):
            best = target(text, use_cache=False).logits[:, -1:].argmax(-1)
            text = torch.cat([text, best], dim=1)
    new = text[0, -6:].tolist()
    end = max(new, key=new.index)  # the token that comes latest for the first time
    monkeypatch.setattr(number_pair, "end_tokens", frozenset({end}))
    (ended,) = estimate(number_pair, prompts, "numbers", options=options)
    # The first new token is not sampled.
    assert ended.traces[0] == endless.traces[0][: new.index(end)]
    assert ended.traces[1] == endless.traces[1][: len(ended.traces[1])]

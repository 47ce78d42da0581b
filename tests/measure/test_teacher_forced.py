from __future__ import annotations

from typing import Any

import pytest
import torch
from number_texts import documents, token_ids
from small_models import VOCABULARY

from sequoia_opt.measure.estimator import EstimateOptions, estimate


def test_ranks_follow_the_text(number_pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rank of the target's choice at each position, whatever the chunks."""
    texts = documents(3, text_length=50)
    options = EstimateOptions(max_new_tokens=50, width=6, teacher_forced=True)
    (whole,) = estimate(number_pair, texts, "numbers", options=options)
    monkeypatch.setattr("sequoia_opt.measure.teacher_forced.LOGITS_BUDGET", 7 * 3 * VOCABULARY)
    (in_chunks,) = estimate(number_pair, texts, "numbers", options=options)
    assert whole.traces == in_chunks.traces
    assert [len(trace) for trace in whole.traces] == [50] * 3
    tokens = torch.tensor([token_ids(texts[1].prompt) + token_ids(texts[1].text)])
    with (
        torch.no_grad(),
        number_pair.target.native() as target,
        number_pair.draft.native() as draft,
    ):
        best = target(tokens, use_cache=False).logits[0].argmax(-1)
        order = draft(tokens, use_cache=False).logits[0].argsort(-1, descending=True)
    start = len(token_ids(texts[1].prompt)) - 1
    ranks = [(order[i] == best[i]).nonzero().item() + 1 for i in range(start, start + 50)]
    assert whole.traces[1] == [rank if rank <= 6 else 0 for rank in ranks]

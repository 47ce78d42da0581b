"""The comparison with exact chances notices what is off."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from exact_texts import Next, exact_chances, follows
from transformers import AutoModelForCausalLM

PROMPT = [2, 5, 3]


def test_chances_are_those_of_the_librarys_sampling(make_model: Callable[..., Path]) -> None:
    folder = make_model("llama", vocab_size=8)
    distributions = exact_chances(folder, PROMPT, 3, 0.9, 0.95)
    assert [float(part.chances.sum()) for part in distributions] == pytest.approx([1, 1, 1])
    likely = exact_chances(folder, PROMPT, 3, 0.9, 0.95, least=0.05)
    assert [float(part.chances.sum()) for part in likely] == pytest.approx([1, 1, 1])
    assert 1 < len(likely[2].before) < len(distributions[2].before)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    torch.manual_seed(0)
    texts = model.generate(
        torch.tensor(1000 * [PROMPT]), do_sample=True, temperature=0.9, top_p=0.95, top_k=0,
        min_new_tokens=3, max_new_tokens=3, eos_token_id=None,
    )[:, len(PROMPT) :].tolist()  # fmt: skip
    assert follows(texts, distributions)
    assert follows(texts, likely)


def test_samples_of_other_chances_do_not_follow() -> None:
    random = np.random.default_rng(0)
    chances = np.array([0.5, 0.3, 0.15, 0.05, 0.0])
    others = np.array([0.4, 0.4, 0.15, 0.05, 0.0])
    texts = [
        [[int(token)] for token in random.choice(5, size=250, p=weights)]
        for weights in (chances, others)
    ]
    distribution = Next({()}, chances)
    assert follows(texts[0], [distribution])
    assert not follows(texts[1], [distribution])
    assert not follows([*texts[0], [4]], [distribution])  # it cannot be drawn

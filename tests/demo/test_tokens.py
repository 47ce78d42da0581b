from __future__ import annotations

import numpy as np
import torch

from sequoia_opt.demo.tokens import END_OF_TEXT, encode, train_tokenizer, windows

TEXTS = ["def f():\n    pass\n", "def g(x):\n    return x\n"]


def test_documents_are_encoded_with_a_separator_before_each() -> None:
    tokenizer = train_tokenizer(TEXTS)
    assert tokenizer.token_to_id(END_OF_TEXT) == 0
    tokens = encode(tokenizer, TEXTS, np.random.default_rng(0)).tolist()
    starts = [index for index, token in enumerate(tokens) if token == 0]
    assert starts[0] == 0
    assert len(starts) == 2
    decoded = {tokenizer.decode(tokens[: starts[1]]), tokenizer.decode(tokens[starts[1] :])}
    assert decoded == set(TEXTS)


def test_windows_are_consecutive_tokens_in_another_order_each_pass() -> None:
    batches = windows(torch.arange(100), length=10, count=8, seed=0)
    first, second = next(batches), next(batches)
    for batch in (first, second):
        assert batch.shape == (8, 11)
        assert (batch.diff(dim=1) == 1).all()
    assert first.tolist() != second.tolist()
    assert next(windows(torch.arange(100), 10, 8, seed=0)).tolist() == first.tolist()

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from small_models import VOCABULARY

from sequoia_opt.engine.torch.runner import Runner


@pytest.mark.parametrize("architecture", ["stablelm", "nemotron"])
def test_layers_that_pass_no_keyword_arguments_run_several_sequences(
    make_runner: Callable[..., Runner], architecture: str
) -> None:
    runner = make_runner(architecture)
    texts = torch.randint(2, VOCABULARY, (3, 40), generator=torch.Generator().manual_seed(0))
    pad = torch.tensor([0, 7, 3])
    cache = runner.reserve(64, 3)
    with torch.inference_mode():
        logits = runner.prefill(cache, texts, pad)
        with runner.native() as model:
            for text, padding, row in zip(texts, pad.tolist(), logits, strict=True):
                expected = model(input_ids=text[None, padding:], use_cache=False).logits[0, -1]
                torch.testing.assert_close(row, expected, rtol=0, atol=1e-5)

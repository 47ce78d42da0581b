"""Estimates read texts with a head as decoding does: padded, in chunks, token by token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from slow_head import SlowHead, target_states

from sequoia_opt.engine.torch.eagle.feedback import LONGEST_RUN
from sequoia_opt.measure.pair_reader import PairReader

FIRST, SECOND = [2, 5, 3, 7, 4, 2, 6, 5, 1], [3, 3, 6, 2, 7]


@torch.inference_mode()
def said_by_the_head(pair: Any, text: list[int]) -> torch.Tensor:
    """Logits [tokens, vocabulary] after each token of a text; after the first all are alike."""
    target, head = pair.target, pair.drafter.model
    target.extend(target.reserve(len(text)), torch.tensor([text]), 0)
    states = pair.drafter.hidden.last()[:, :-1]
    logits = head.read(head.reserve(len(text)), torch.tensor([text[1:]]), states, 1)
    return pair.drafter.fitted(torch.cat([torch.zeros_like(logits[:, :1]), logits], dim=1))[0]


@torch.inference_mode()
def test_padding_on_the_left_changes_nothing(head_pair: Any) -> None:
    """Prompts of different lengths, then two tokens more of each."""
    padding = torch.tensor([0, 4])
    prompts = torch.tensor([FIRST[:-2], [0] * 4 + SECOND[:-2]])
    with PairReader(head_pair, batch=2, capacity=9) as reader:
        said = [reader.prefill(prompts, padding).draft]
        for i in (-2, -1):
            tokens = torch.tensor([FIRST[i], SECOND[i]])
            said.append(reader.extend(tokens, 9 + i, padding).draft)
    for row, text in enumerate((FIRST, SECOND)):
        expected = said_by_the_head(head_pair, text)[-3:]
        torch.testing.assert_close(torch.stack([logits[row] for logits in said]), expected)


@torch.inference_mode()
@pytest.mark.parametrize("chunk", [1, 4, 9])
def test_texts_are_read_in_chunks(chunk: int, head_pair: Any) -> None:
    tokens = torch.tensor([FIRST, SECOND + [0] * 4])
    with PairReader(head_pair, batch=2, capacity=9) as reader:
        starts, chunks = zip(*reader.read(tokens, chunk), strict=True)
    assert starts == tuple(range(0, 9, chunk))
    logits = torch.cat([part.draft for part in chunks], dim=1)
    torch.testing.assert_close(logits[0], said_by_the_head(head_pair, FIRST))
    torch.testing.assert_close(logits[1, :5], said_by_the_head(head_pair, SECOND))


@torch.inference_mode()
def test_guesses_are_read_with_the_heads_own_outputs(
    head_pair: Any, target_folder: Path, slow: SlowHead
) -> None:
    """Two texts of different lengths, with guesses at different places; some runs are long."""
    generator = torch.Generator().manual_seed(2)
    texts = [torch.randint(8, (size,), generator=generator).tolist() for size in (40, 37)]
    read, ids = 4, head_pair.drafter.model.token_ids  # tokens of the longer prompt
    padding = torch.tensor([0, 3])
    states = [target_states(target_folder, text, (2, 1, 0)) for text in texts]
    guessed = [i % 7 != 4 for i in range(40)], [not 3 < i < 8 for i in range(40)]
    runs = [0, 0]
    with PairReader(head_pair, batch=2, capacity=40) as reader:
        prompts = [texts[0][:read], [0] * 3 + texts[1][: read - 3]]
        reader.prefill(torch.tensor(prompts), padding)
        for column in range(read, 40):
            runs = [run + 1 if guessed[i][column] else 0 for i, run in enumerate(runs)]
            tokens = torch.tensor([texts[0][column], texts[1][column - 3]])
            said = reader.extend(tokens, column, padding, torch.tensor(runs)).draft
            for row, text in enumerate(texts):
                end = column + 1 - int(padding[row])
                begun = end - (runs[row] if runs[row] <= LONGEST_RUN else 0)
                expected = slow.path_logits(text[:begun], states[row][: begun - 1], text[begun:end])
                torch.testing.assert_close(said[row, ids], expected[-1], rtol=0, atol=1e-4)


def test_a_prompt_is_read_in_chunks(head_pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hidden states at the end of a chunk go with the first token of the next one."""
    whole = said_by_the_head(head_pair, FIRST)[-1]
    monkeypatch.setattr("sequoia_opt.engine.torch.runner.PREFILL_CHUNK", 4)
    monkeypatch.setattr("sequoia_opt.engine.torch.eagle.model.READ_CHUNK", 3)
    with PairReader(head_pair, batch=1, capacity=9) as reader:
        in_chunks = reader.prefill(torch.tensor([FIRST]), torch.tensor([0])).draft[0]
    torch.testing.assert_close(in_chunks, whole)

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from exact_texts import exact_chances, follows
from transformers import (
    LogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

from sequoia_opt.engine.decoder import Decoder
from sequoia_opt.engine.logits_processors import LogitsOptions
from sequoia_opt.engine.torch.cuda_graphs import RecordedStep
from sequoia_opt.engine.verify import TreeIndex
from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan import shapes
from sequoia_opt.plan.tree import TokenTree

CPU, VOCABULARY = torch.device("cpu"), 61
PROMPT = [5, 6, 7, 6, 30]
OPTIONS = LogitsOptions(1.7, {3: 2.5, 11: -4.0})
COUNTED = LogitsOptions(1.2, {7: 1.0}, frequency_penalty=0.7, presence_penalty=1.1)
TREES = [shapes.chain(1), shapes.chain(4), shapes.k_ary(2, 3)]


def process_with_library(
    options: LogitsOptions, text: list[int], logits: torch.Tensor
) -> torch.Tensor:
    """Logits [vocabulary] as transformers processes them."""
    ids, scores = torch.tensor([text]), logits[None]
    if options.bias:
        bias = {(token,): value for token, value in options.bias.items()}
        scores = SequenceBiasLogitsProcessor(bias)(ids, scores)
    return RepetitionPenaltyLogitsProcessor(options.repetition_penalty)(ids, scores)[0]


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: f"{tree.size}-{tree.depth}")
def test_each_nodes_logits_are_processed_with_the_text_of_its_path(tree: TokenTree) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(tree.size, VOCABULARY, generator=generator, dtype=torch.float64)
    tokens = torch.randint(VOCABULARY, (tree.size,), generator=generator)
    tokens[0] = PROMPT[-1]
    processor = OPTIONS.processor(CPU, VOCABULARY)
    ancestors = TreeIndex(tree, CPU).ancestors
    seen = processor.seen(torch.tensor(PROMPT))
    processed = processor.apply_to_tree(logits, seen, tokens, ancestors)
    for node in range(tree.size):
        path = [int(tokens[v]) for v in range(tree.size) if tree.ancestor_mask[node, v]]
        expected = process_with_library(OPTIONS, PROMPT + path[1:], logits[node])
        assert torch.equal(processed[node], expected)


class Counting(LogitsProcessor):
    """Frequency and presence penalties as in OpenAI's documentation and vLLM: they count the
    generated tokens and not the prompt's."""

    def __init__(self, options: LogitsOptions, prompt: int) -> None:
        self.options, self.prompt = options, prompt

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.clone()
        for token, count in Counter(ids[0, self.prompt :].tolist()).items():
            scores[0, token] -= self.options.frequency_penalty * count
            scores[0, token] -= self.options.presence_penalty
        return scores


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: f"{tree.size}-{tree.depth}")
def test_each_node_counts_the_new_text_of_its_path(tree: TokenTree) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(tree.size, VOCABULARY, generator=generator, dtype=torch.float64)
    tokens = torch.randint(3, (tree.size,), generator=generator)  # few, so that they repeat
    new = [9, 1, 1, int(tokens[0])]
    processor = COUNTED.processor(CPU, VOCABULARY)
    seen, counts = processor.seen(torch.tensor(PROMPT + new)), processor.counts(torch.tensor(new))
    ancestors = TreeIndex(tree, CPU).ancestors
    processed = processor.apply_to_tree(logits, seen, tokens, ancestors, counts)
    for node in range(tree.size):
        path = [int(tokens[v]) for v in range(tree.size) if tree.ancestor_mask[node, v]]
        text = [*PROMPT, *new, *path[1:]]
        expected = process_with_library(COUNTED, text, logits[node])
        expected = Counting(COUNTED, len(PROMPT))(torch.tensor([text]), expected[None])[0]
        torch.testing.assert_close(processed[node], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: f"{tree.size}-{tree.depth}")
@pytest.mark.parametrize(
    "options", [COUNTED, LogitsOptions(presence_penalty=4.0), LogitsOptions(frequency_penalty=-0.3)]
)
def test_greedy_tokens_are_those_of_the_penalties_definition(
    make_pair: Callable[..., Any], tree: TokenTree, options: LogitsOptions
) -> None:
    pair = make_pair()
    bias = {(token,): value for token, value in options.bias.items()} or None
    with pair.target.native() as model:
        expected = model.generate(
            torch.tensor([PROMPT]), max_new_tokens=40, do_sample=False, eos_token_id=None,
            repetition_penalty=options.repetition_penalty, sequence_bias=bias,
            logits_processor=[Counting(options, len(PROMPT))],
        )[0, len(PROMPT) :].tolist()  # fmt: skip
    decoder = Decoder(pair, tree, logits_options=options)
    assert decoder.generate(PROMPT, 40, ignore_eos=True).tokens == expected
    assert Decoder(pair, tree).generate(PROMPT, 40, ignore_eos=True).tokens != expected
    decoder.step = RecordedStep(decoder.step, lambda work, device: work)  # type: ignore[arg-type]
    assert decoder.generate(PROMPT, 40, ignore_eos=True).tokens == expected


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: f"{tree.size}-{tree.depth}")
def test_suppressed_tokens_are_never_chosen(make_pair: Callable[..., Any], tree: TokenTree) -> None:
    pair = make_pair()
    plain = Decoder(pair, tree).generate(PROMPT, 30, ignore_eos=True).tokens
    options = LogitsOptions(banned=frozenset(plain[3:5]), banned_first=frozenset(plain[:1]))
    with pair.target.native() as model:
        expected = model.generate(
            torch.tensor([PROMPT]), max_new_tokens=30, do_sample=False, eos_token_id=None,
            suppress_tokens=sorted(options.banned), begin_suppress_tokens=plain[:1],
        )[0, len(PROMPT) :].tolist()  # fmt: skip
    assert (
        Decoder(pair, tree, logits_options=options).generate(PROMPT, 30, ignore_eos=True).tokens
        == expected
    )
    assert expected[0] != plain[0]


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: f"{tree.size}-{tree.depth}")
@pytest.mark.parametrize("options", [OPTIONS, LogitsOptions(1.3), LogitsOptions(bias={7: 6.0})])
def test_greedy_tokens_are_the_librarys(
    make_pair: Callable[..., Any], tree: TokenTree, options: LogitsOptions
) -> None:
    pair = make_pair()
    bias = {(token,): value for token, value in options.bias.items()} or None
    with pair.target.native() as model:
        expected = model.generate(
            torch.tensor([PROMPT]), max_new_tokens=40, do_sample=False, eos_token_id=None,
            repetition_penalty=options.repetition_penalty, sequence_bias=bias,
        )[0, len(PROMPT) :].tolist()  # fmt: skip
    tokens = (
        Decoder(pair, tree, logits_options=options).generate(PROMPT, 40, ignore_eos=True).tokens
    )
    assert tokens == expected
    assert tokens != Decoder(pair, tree).generate(PROMPT, 40, ignore_eos=True).tokens


@pytest.mark.parametrize("tree", [shapes.chain(1), shapes.k_ary(2, 1)], ids=["plain", "tree"])
def test_sampled_tokens_follow_the_processed_target(
    tree: TokenTree, make_pair: Callable[..., Any], make_model: Callable[..., Any]
) -> None:
    options = LogitsOptions(3.0, {9: 3.0})

    def process(texts: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        rows = zip(texts.tolist(), logits, strict=True)
        return torch.stack([process_with_library(options, text, row) for text, row in rows])

    decoder = Decoder(make_pair(), tree, 1.5, seed=1, logits_options=options)
    texts = [decoder.generate(PROMPT, 2, ignore_eos=True).tokens for _ in range(750)]
    assert follows(texts, exact_chances(make_model("llama"), PROMPT, 2, 1.5, process=process))


def test_recorded_steps_process_logits_too(make_pair: Callable[..., Any]) -> None:
    pair, tree = make_pair(), shapes.k_ary(2, 2)
    expected = (
        Decoder(pair, tree, logits_options=OPTIONS).generate(PROMPT, 30, ignore_eos=True).tokens
    )
    decoder = Decoder(pair, tree, logits_options=OPTIONS)
    decoder.step = RecordedStep(decoder.step, lambda work, device: work)  # type: ignore[arg-type]
    assert decoder.generate(PROMPT, 30, ignore_eos=True).tokens == expected


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (LogitsOptions(0.0), "repetition-penalty: found 0"),
        (LogitsOptions(float("nan")), "repetition-penalty: found nan"),
        (LogitsOptions(bias={61: 1.0}), "found token 61, expected 0 to 60"),
        (LogitsOptions(bias={1: float("inf")}), "found inf for token 1"),
        (LogitsOptions(presence_penalty=float("nan")), "presence-penalty: found nan"),
        (LogitsOptions(frequency_penalty=1e9), r"frequency-penalty: found 1e\+09"),
        (LogitsOptions(banned=frozenset([61])), "suppressed tokens: found 1 from 61 to 61"),
        (LogitsOptions(banned=frozenset(range(61))), "found 61 from 0 to 60, expected some"),
    ],
)
def test_options_out_of_range_are_refused(
    make_pair: Callable[..., Any], options: LogitsOptions, complaint: str
) -> None:
    with pytest.raises(SequoiaError, match=complaint):
        Decoder(make_pair(), logits_options=options)


@pytest.mark.parametrize(
    "options",
    [
        LogitsOptions(bias={3: 1e39}),
        LogitsOptions(bias={3: float("nan")}),
        LogitsOptions(repetition_penalty=1e-40),
        LogitsOptions(repetition_penalty=1e40),
    ],
)
def test_values_that_float32_cannot_hold_are_refused(options: LogitsOptions) -> None:
    with pytest.raises(SequoiaError, match=r"found .*, expected"):
        options.check(61)

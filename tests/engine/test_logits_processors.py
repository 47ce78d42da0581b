from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    LogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

from sequoia_opt.engine.decoder import Decoder
from sequoia_opt.engine.logits_processors import Rules
from sequoia_opt.engine.torch.cuda_graphs import RecordedStep
from sequoia_opt.engine.verify import TreeIndex
from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan import shapes
from sequoia_opt.plan.tree import TokenTree

CPU, VOCABULARY = torch.device("cpu"), 61
PROMPT = [5, 6, 7, 6, 30]
RULES = Rules(1.7, {3: 2.5, 11: -4.0})
COUNTED = Rules(1.2, {7: 1.0}, frequency_penalty=0.7, presence_penalty=1.1)
TREES = [shapes.chain(1), shapes.chain(4), shapes.k_ary(2, 3)]


def librarys(rules: Rules, text: list[int], logits: torch.Tensor) -> torch.Tensor:
    """Logits [vocabulary] as transformers makes them."""
    ids, scores = torch.tensor([text]), logits[None]
    if rules.bias:
        bias = {(token,): value for token, value in rules.bias.items()}
        scores = SequenceBiasLogitsProcessor(bias)(ids, scores)
    return RepetitionPenaltyLogitsProcessor(rules.repetition_penalty)(ids, scores)[0]


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: f"{tree.size}-{tree.depth}")
def test_each_node_has_the_rules_of_its_own_text(tree: TokenTree) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(tree.size, VOCABULARY, generator=generator, dtype=torch.float64)
    tokens = torch.randint(VOCABULARY, (tree.size,), generator=generator)
    tokens[0] = PROMPT[-1]
    rules = RULES.on(CPU, VOCABULARY)
    needed = TreeIndex(tree, CPU).needed
    found = rules.apply_to_tree(logits, rules.seen(torch.tensor(PROMPT)), tokens, needed)
    for node in range(tree.size):
        path = [int(tokens[v]) for v in range(tree.size) if tree.ancestor_mask[node, v]]
        assert torch.equal(found[node], librarys(RULES, PROMPT + path[1:], logits[node]))


class Counting(LogitsProcessor):
    """The penalties for frequency and presence as OpenAI's documentation and vLLM have them: of
    the tokens that were generated, not of the prompt's."""

    def __init__(self, rules: Rules, prompt: int) -> None:
        self.rules, self.prompt = rules, prompt

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.clone()
        for token, count in Counter(ids[0, self.prompt :].tolist()).items():
            scores[0, token] -= self.rules.frequency_penalty * count
            scores[0, token] -= self.rules.presence_penalty
        return scores


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: f"{tree.size}-{tree.depth}")
def test_each_node_counts_its_own_new_text(tree: TokenTree) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(tree.size, VOCABULARY, generator=generator, dtype=torch.float64)
    tokens = torch.randint(3, (tree.size,), generator=generator)  # the same ones again and again
    new = [9, 1, 1, int(tokens[0])]
    rules = COUNTED.on(CPU, VOCABULARY)
    seen, counts = rules.seen(torch.tensor(PROMPT + new)), rules.counts(torch.tensor(new))
    needed = TreeIndex(tree, CPU).needed
    found = rules.apply_to_tree(logits, seen, tokens, needed, counts)
    for node in range(tree.size):
        path = [int(tokens[v]) for v in range(tree.size) if tree.ancestor_mask[node, v]]
        text = [*PROMPT, *new, *path[1:]]
        wanted = librarys(COUNTED, text, logits[node])
        wanted = Counting(COUNTED, len(PROMPT))(torch.tensor([text]), wanted[None])[0]
        torch.testing.assert_close(found[node], wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: f"{tree.size}-{tree.depth}")
@pytest.mark.parametrize(
    "rules", [COUNTED, Rules(presence_penalty=4.0), Rules(frequency_penalty=-0.3)]
)
def test_greedy_tokens_are_those_of_the_penalties_definition(
    make_pair: Callable[..., Any], tree: TokenTree, rules: Rules
) -> None:
    pair = make_pair()
    bias = {(token,): value for token, value in rules.bias.items()} or None
    with pair.target.native() as model:
        wanted = model.generate(
            torch.tensor([PROMPT]), max_new_tokens=40, do_sample=False, eos_token_id=None,
            repetition_penalty=rules.repetition_penalty, sequence_bias=bias,
            logits_processor=[Counting(rules, len(PROMPT))],
        )[0, len(PROMPT) :].tolist()  # fmt: skip
    decoder = Decoder(pair, tree, rules=rules)
    assert decoder.generate(PROMPT, 40, ignore_eos=True).tokens == wanted
    assert Decoder(pair, tree).generate(PROMPT, 40, ignore_eos=True).tokens != wanted
    decoder._step = RecordedStep(decoder._step, lambda work, device: work)  # type: ignore[arg-type]
    assert decoder.generate(PROMPT, 40, ignore_eos=True).tokens == wanted


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: f"{tree.size}-{tree.depth}")
def test_suppressed_tokens_are_never_said(make_pair: Callable[..., Any], tree: TokenTree) -> None:
    pair = make_pair()
    plain = Decoder(pair, tree).generate(PROMPT, 30, ignore_eos=True).tokens
    rules = Rules(banned=frozenset(plain[3:5]), banned_first=frozenset(plain[:1]))
    with pair.target.native() as model:
        wanted = model.generate(
            torch.tensor([PROMPT]), max_new_tokens=30, do_sample=False, eos_token_id=None,
            suppress_tokens=sorted(rules.banned), begin_suppress_tokens=plain[:1],
        )[0, len(PROMPT) :].tolist()  # fmt: skip
    assert Decoder(pair, tree, rules=rules).generate(PROMPT, 30, ignore_eos=True).tokens == wanted
    assert wanted[0] != plain[0]


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: f"{tree.size}-{tree.depth}")
@pytest.mark.parametrize("rules", [RULES, Rules(1.3), Rules(bias={7: 6.0})])
def test_greedy_tokens_are_the_librarys(
    make_pair: Callable[..., Any], tree: TokenTree, rules: Rules
) -> None:
    pair = make_pair()
    bias = {(token,): value for token, value in rules.bias.items()} or None
    with pair.target.native() as model:
        wanted = model.generate(
            torch.tensor([PROMPT]), max_new_tokens=40, do_sample=False, eos_token_id=None,
            repetition_penalty=rules.repetition_penalty, sequence_bias=bias,
        )[0, len(PROMPT) :].tolist()  # fmt: skip
    found = Decoder(pair, tree, rules=rules).generate(PROMPT, 40, ignore_eos=True)
    assert found.tokens == wanted
    assert found.tokens != Decoder(pair, tree).generate(PROMPT, 40, ignore_eos=True).tokens


def test_sampled_tokens_are_those_of_the_ruled_target(make_pair: Callable[..., Any]) -> None:
    """Often drawn, the first tokens of a tree's step are distributed as plain decoding's."""
    pair, rules = make_pair(), Rules(3.0, {9: 3.0})
    counts = []
    for tree, seed in ((shapes.chain(1), 1), (shapes.k_ary(2, 1), 2)):
        decoder = Decoder(pair, tree, 1.5, seed=seed, rules=rules)
        texts = [tuple(decoder.generate(PROMPT, 2, ignore_eos=True).tokens) for _ in range(1500)]
        counts.append(torch.bincount(torch.tensor([second for _, second in texts]), minlength=61))
    both = torch.stack(counts).double()
    kept = both.sum(dim=0) >= 10
    both = torch.cat([both[:, kept], both[:, ~kept].sum(dim=1, keepdim=True)], dim=1)
    expected = both.sum(dim=0) / 2
    statistic = float(((both - expected) ** 2 / expected.clamp_min(1)).sum())
    freedom = both.shape[1] - 1
    assert statistic < freedom + 5 * (2 * freedom) ** 0.5


def test_recorded_steps_keep_to_the_rules(make_pair: Callable[..., Any]) -> None:
    pair, tree = make_pair(), shapes.k_ary(2, 2)
    wanted = Decoder(pair, tree, rules=RULES).generate(PROMPT, 30, ignore_eos=True).tokens
    decoder = Decoder(pair, tree, rules=RULES)
    decoder._step = RecordedStep(decoder._step, lambda work, device: work)  # type: ignore[arg-type]
    assert decoder.generate(PROMPT, 30, ignore_eos=True).tokens == wanted


@pytest.mark.parametrize(
    ("rules", "complaint"),
    [
        (Rules(0.0), "repetition-penalty: found 0"),
        (Rules(float("nan")), "repetition-penalty: found nan"),
        (Rules(bias={61: 1.0}), "found token 61, expected 0 to 60"),
        (Rules(bias={1: float("inf")}), "found inf for token 1"),
        (Rules(presence_penalty=float("nan")), "presence-penalty: found nan"),
        (Rules(frequency_penalty=1e9), r"frequency-penalty: found 1e\+09"),
        (Rules(banned=frozenset([61])), "suppressed tokens: found 1 from 61 to 61"),
        (Rules(banned=frozenset(range(61))), "found 61 from 0 to 60, expected some"),
    ],
)
def test_rules_that_cannot_be_are_refused(
    make_pair: Callable[..., Any], rules: Rules, complaint: str
) -> None:
    with pytest.raises(SequoiaError, match=complaint):
        Decoder(make_pair(), rules=rules)


@pytest.mark.parametrize(
    "rules",
    [
        Rules(bias={3: 1e39}),
        Rules(bias={3: float("nan")}),
        Rules(repetition_penalty=1e-40),
        Rules(repetition_penalty=1e40),
    ],
)
def test_what_a_float32_cannot_hold_is_refused(rules: Rules) -> None:
    with pytest.raises(SequoiaError, match=r"found .*, expected"):
        rules.check(61)

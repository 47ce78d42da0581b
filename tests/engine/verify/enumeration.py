"""Exact enumeration of every draft, every decision and every next token of a step.

Knows the definitions of the verification methods, from their papers, and small random language
models. The tests compare the verifiers with them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import permutations, product

import numpy as np
import pytest
import torch

from sequoia_opt.engine.logits_processors import LogitsOptions
from sequoia_opt.engine.sampling import Cuts
from sequoia_opt.engine.verify import (
    TopK,
    Traversal,
    TreeIndex,
    Verifier,
    make_verifier,
    residual,
    traversal,
)
from sequoia_opt.plan import shapes
from sequoia_opt.plan.tree import TokenTree

CPU = torch.device("cpu")


Prefix = tuple[int, ...]


Groups = Iterator[tuple[float, tuple[int, ...]]]


class Language:
    """A random target and draft: logits for every prefix.

    Attributes:
        options: how the target's logits are processed. The prompt is the token 1; the new text
            begins with the token 0, the tree's root.
    """

    def __init__(
        self,
        vocabulary: int,
        seed: int,
        kind: str = "random",
        options: LogitsOptions | None = None,
    ) -> None:
        self.vocabulary, self.kind, self.options = vocabulary, kind, options
        self._random = np.random.default_rng(seed)
        self._known: dict[Prefix, tuple[np.ndarray, np.ndarray]] = {}

    def logits(self, prefix: Prefix) -> tuple[np.ndarray, np.ndarray]:
        if prefix not in self._known:
            target, draft = 2 * self._random.normal(size=(2, self.vocabulary))
            if self.kind == "same":
                draft = target
            if self.kind == "one-hot":
                draft = np.where(np.arange(self.vocabulary) == draft.argmax(), 0.0, -np.inf)
            if self.kind == "disjoint":
                half = np.arange(self.vocabulary) < self.vocabulary // 2
                target, draft = np.where(half, target, -np.inf), np.where(half, -np.inf, draft)
            self._known[prefix] = target, draft
        return self._known[prefix]

    def target(self, prefix: Prefix, temperature: float, cuts: Cuts) -> np.ndarray:
        """The processed and warped distribution, from its definition."""
        probabilities = softmax(self.processed(prefix) / temperature)
        order = np.argsort(-probabilities, kind="stable")
        if cuts.top_k:
            probabilities[order[cuts.top_k :]] = 0
            probabilities /= probabilities.sum()
        before = np.cumsum(probabilities[order]) - probabilities[order]
        nucleus = order[(before < cuts.top_p) | (np.arange(len(order)) == 0) | (cuts.top_p == 1)]
        warped = np.zeros_like(probabilities)
        warped[nucleus] = probabilities[nucleus]
        warped /= warped.sum()
        warped[warped < cuts.min_p * warped.max()] = 0
        return warped / warped.sum()

    def processed(self, prefix: Prefix) -> np.ndarray:
        """The target's processed logits, token by token.

        Frequency and presence penalties are as in OpenAI's and vLLM's documentation, the
        repetition penalty as in CTRL.
        """
        logits = self.logits(prefix)[0].copy()
        if self.options is None:
            return logits
        new = [0, *prefix]
        for token in range(self.vocabulary):
            logits[token] += self.options.bias.get(token, 0.0)
            if token in [1, *new]:
                penalty = self.options.repetition_penalty
                logits[token] *= penalty if logits[token] < 0 else 1 / penalty
            count = new.count(token)
            logits[token] -= self.options.frequency_penalty * count
            logits[token] -= self.options.presence_penalty if count else 0
            if token in self.options.banned:
                logits[token] = -np.inf
        return logits

    def draft(self, prefix: Prefix, temperature: float) -> np.ndarray:
        return softmax(self.logits(prefix)[1] / temperature)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


Drafts = Iterator[tuple[float, list[int]]]


Decisions = Iterator[tuple[float, int, dict[int, float], np.ndarray]]


def drafts(
    tree: TokenTree, language: Language, temperature: float, groups: Callable[..., Groups]
) -> Drafts:
    """Every way to draft the tree: its probability and each node's token (the root's is 0).

    Args:
        groups: yields every way to draft a number of siblings from a distribution, with its
            probability.
    """
    internal = [v for v in range(tree.size) if tree.child_counts[v]]

    def grow(position: int, tokens: dict[int, int], weight: float) -> Drafts:
        if position == len(internal):
            yield weight, [tokens[v] for v in range(tree.size)]
            return
        node = internal[position]
        q = language.draft(prefix_of(tree, tokens, node), temperature)
        children = children_of(tree, node)
        for chance, order in groups(q, len(children)):
            drawn = dict(zip(children, order, strict=True))
            yield from grow(position + 1, tokens | drawn, weight * chance)

    yield from grow(0, {0: 0}, 1.0)


def without_replacement(q: np.ndarray, count: int) -> Groups:
    """Draws one after another; past the support, tokens of probability 0 in a fixed order."""
    for order in permutations(range(len(q)), count):
        chance, left = 1.0, q.copy()
        for position, token in enumerate(order):
            if left.sum() > 0:
                chance *= left[token] / left.sum()
            elif token != min(set(range(len(q))) - set(order[:position])):
                chance = 0.0
            left[token] = 0
        if chance > 0:
            yield chance, order


def with_replacement(q: np.ndarray, count: int) -> Groups:
    for order in product(np.flatnonzero(q).tolist(), repeat=count):
        yield float(np.prod(q[list(order)])), order


def most_likely(q: np.ndarray, count: int) -> Groups:
    yield 1.0, tuple(np.argsort(-q, kind="stable")[:count].tolist())


def children_of(tree: TokenTree, node: int) -> list[int]:
    return [v for v in range(tree.size) if v and tree.parents[v] == node]


def prefix_of(tree: TokenTree, tokens: dict[int, int] | list[int], node: int) -> Prefix:
    prefix: list[int] = []
    while node:
        prefix.insert(0, tokens[node])
        node = tree.parents[node]
    return tuple(prefix)


def one_by_one(
    tree: TokenTree,
    tokens: list[int],
    language: Language,
    temperature: float,
    cuts: Cuts,
    replacement: bool = False,
) -> Decisions:
    """Every course of verification, by Sequoia's and SpecInfer's step-by-step definition.

    Yields its probability, the last accepted node, a uniform for each test (just inside the
    test's outcome), and the distribution of the next token.
    """

    def at(node: int, weight: float, uniforms: dict[int, float]) -> Decisions:
        prefix = prefix_of(tree, tokens, node)
        rest = language.target(prefix, temperature, cuts)
        children = children_of(tree, node)
        left = language.draft(prefix, temperature) if children else np.ones(1)
        for child in children:
            token = tokens[child]
            if left.sum() == 0 or left[token] == 0:
                uniforms = uniforms | {child: 0.0}  # a void draw: not even a uniform of 0 passes
                continue
            q = left / left.sum()
            chance = min(1.0, rest[token] / q[token])
            if chance > 0:
                yield from at(child, weight * chance, uniforms | {child: max(0.0, chance - 1e-9)})
            if chance >= 1 - 1e-12:
                return
            uniforms = uniforms | {child: min(chance + 1e-9, 1 - 1e-12)}
            weight *= 1 - chance
            rest = np.maximum(rest - q, 0)
            rest /= rest.sum()
            if not replacement:
                left[token] = 0
        yield weight, node, uniforms, rest

    yield from at(0, 1.0, {})


def by_the_targets_draws(
    tree: TokenTree, tokens: list[int], language: Language, temperature: float, cuts: Cuts
) -> Decisions:
    """The target draws at each node that is reached; a child with that token is accepted."""

    def at(node: int, weight: float, uniforms: dict[int, float]) -> Decisions:
        target = language.target(prefix_of(tree, tokens, node), temperature, cuts)
        sums = np.cumsum(target)
        for token in np.flatnonzero(target > 1e-12):  # smaller ones contain no float
            with_draw = uniforms | {node: sums[token] - target[token] / 2}
            children = [v for v in children_of(tree, node) if tokens[v] == token]
            if children:
                yield from at(children[0], weight * target[token], with_draw)
            else:
                rest = (np.arange(len(target)) == token).astype(float)
                yield weight * target[token], node, with_draw, rest

    yield from at(0, 1.0, {})


def whole_paths(
    tree: TokenTree, tokens: list[int], language: Language, temperature: float, cuts: Cuts
) -> Decisions:
    """Traversal verification as its paper defines it, leaf by leaf."""
    weight, uniforms = 1.0, {}

    def at(node: int, chance: float) -> Decisions:
        """Every course of verification below and at `node`; its path passes with `chance`."""
        nonlocal weight
        prefix = prefix_of(tree, tokens, node)
        target = language.target(prefix, temperature, cuts)
        children = children_of(tree, node)
        left = language.draft(prefix, temperature) if children else np.ones(1)
        for child in children:
            token = tokens[child]
            if left.sum() == 0 or left[token] == 0:
                uniforms.update(dict.fromkeys(descendants(tree, child), 0.0))
                continue
            q = left / left.sum()
            yield from at(child, min(1.0, chance * target[token] / q[token]))
            if weight < 1e-12:
                return
            rest = np.maximum(chance * target - q, 0)
            if rest.sum() > 0:
                target = rest / rest.sum()
            chance = rest.sum() / (rest.sum() + 1 - chance)
            left[token] = 0
        if chance > 0:
            inside = {node: max(0.0, chance - 1e-9)}
            yield weight * chance, node, uniforms | inside, target
        uniforms[node] = min(chance + 1e-9, 1 - 1e-12)
        weight *= 1 - chance

    yield from at(0, 1.0)


def descendants(tree: TokenTree, node: int) -> list[int]:
    return np.flatnonzero(tree.ancestor_mask[:, node]).tolist()


METHODS: dict[str, tuple[Callable[..., Groups], Callable[..., Decisions]]] = {
    "sequoia": (without_replacement, one_by_one),
    "specinfer": (with_replacement, partial(one_by_one, replacement=True)),
    "topk": (most_likely, by_the_targets_draws),
    "traversal": (without_replacement, whole_paths),
}


def step_uniforms(
    verifier: Verifier, index: TreeIndex, vocabulary: int, decided: dict[int, float]
) -> torch.Tensor:
    """A step's uniforms, with those of the decided nodes where the verifier reads them."""
    count = verifier.uniform_count(index, vocabulary)
    uniforms = torch.full((count,), 0.5).double()
    tested: list[int] = list(range(index.size))
    if not isinstance(verifier, TopK):  # the root has no test; the last uniform draws the token
        tested = index.post_order.tolist()[:-1] if isinstance(verifier, Traversal) else tested[1:]
        tested.append(0)
    for position, node in enumerate(tested, start=count - index.size):
        uniforms[position] = decided.get(node, 0.5)
    return uniforms


TREES = {
    "plain": shapes.chain(1),
    "chain": shapes.chain(3),
    "wide": shapes.k_ary(3, 1),
    "binary": TokenTree([-1, 0, 0, 1, 1], [0, 1, 2, 1, 2]),
    "uneven": TokenTree([-1, 0, 0, 0, 2], [0, 1, 2, 3, 1]),
}


def check_lossless(
    name: str,
    tree: TokenTree,
    language: Language,
    temperature: float,
    cuts: Cuts,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Check that a step's tokens, continued by the target to D + 1 tokens, follow the target."""
    vocabulary = language.vocabulary
    weights_seen: list[np.ndarray] = []

    def seen_draw(weights: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
        weights_seen.append(weights[0].numpy())
        return weights.argmax(dim=-1)

    for module in (residual, traversal):
        monkeypatch.setattr(module, "draw", seen_draw)
    groups, decisions = METHODS[name]
    verifier, index = make_verifier(name, temperature, *cuts), TreeIndex(tree, CPU)
    probabilities: dict[Prefix, float] = {}
    for weight, tokens in drafts(tree, language, temperature, groups):
        prefixes = [prefix_of(tree, tokens, v) for v in range(tree.size)]
        target_logits = torch.tensor(np.stack([language.logits(p)[0] for p in prefixes]))
        if language.options is not None:
            processor, root = language.options.processor(CPU, vocabulary), torch.tensor([0])
            seen = processor.seen(torch.tensor([1, 0]))
            target_logits = processor.apply_to_tree(
                target_logits, seen, torch.tensor(tokens), index.ancestors, processor.counts(root)
            )
        draft_logits = torch.tensor(
            np.array([language.logits(prefixes[v])[1] for v in index.internal]).reshape(
                -1, vocabulary
            )
        )
        for chance, last, decided, rest in decisions(tree, tokens, language, temperature, cuts):
            uniforms = step_uniforms(verifier, index, vocabulary, decided)
            verdict = verifier.verify(
                index, torch.tensor(tokens), target_logits, draft_logits, uniforms
            )
            assert int(verdict.last) == last
            if name == "topk":
                assert rest[int(verdict.next)] == 1
            else:
                weights = weights_seen.pop()
                assert np.abs(weights / weights.sum() - rest).max() < 1e-9
            for token in np.flatnonzero(rest):
                emitted = (*prefixes[last], int(token))
                probabilities[emitted] = (
                    probabilities.get(emitted, 0) + weight * chance * rest[token]
                )
    for text in product(range(vocabulary), repeat=tree.depth + 1):
        expected = np.prod(
            [language.target(text[:i], temperature, cuts)[t] for i, t in enumerate(text)]
        )
        total = sum(
            probabilities.get(text[:length], 0)
            * np.prod(
                [
                    language.target(text[:i], temperature, cuts)[text[i]]
                    for i in range(length, len(text))
                ]
            )
            for length in range(1, len(text) + 1)
        )
        assert total == pytest.approx(expected, abs=1e-9)

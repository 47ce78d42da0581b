"""Drafting and verification of a tree that grows while it is drafted, one node at a time.

Each rule is that of one verifier, at a single node: how the node's guesses are made, and which of
those that were offered is accepted. Whether a guess is offered may depend on the distributions and
on whatever was decided or drawn before, but neither on the guess itself, if it is a draw, nor on
what is drawn below it. Then each node's decision leaves the target's distribution as it is, and so
does a walk from the root down. Knows nothing of policies, models or text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from sequoia_opt.engine.sampling import draw, draw_with_replacement, largest, likeliest, warp
from sequoia_opt.engine.verify.base import Verifier
from sequoia_opt.engine.verify.exact_match import Greedy, TopK
from sequoia_opt.engine.verify.residual import (
    Sequoia,
    gather_draws,
    residual,
    residual_tests,
)
from sequoia_opt.engine.verify.synthetic import Synthetic
from sequoia_opt.engine.verify.traversal import Traversal
from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan.verifiers import VERIFIERS

Uniforms = Callable[[int], Tensor]
"""Random numbers in [0, 1): as many as it is asked for, on the models' device, new in each call."""


class Guesses(NamedTuple):
    """The guesses at some nodes.

    Attributes:
        probabilities: [nodes, ranks], the largest of the draft's, in order; growth decides by them.
        tokens: [nodes, ranks].
        draft: of each node, the distribution that its guesses were drawn from, as `decide` takes
            it; None where guesses are not drawn.
    """

    probabilities: Any
    tokens: Any
    draft: Sequence[Any] | None


class NodeRule(Protocol):
    """A verifier at a single node.

    A model whose logits the host has is decided about in numpy; see `host_rules`.

    Attributes:
        draws: whether guesses are drawn at random.
    """

    draws: bool

    def guess(self, logits: Tensor, ranks: int, uniforms: Uniforms) -> Guesses:
        """Guesses at some nodes, from the draft's logits [nodes, vocabulary]."""
        ...

    def uniform_count(self, ranks: int) -> int:
        """How many uniforms a decision takes at a node of at most `ranks` guesses."""
        ...

    def decide(
        self, logits: Tensor, tokens: Sequence[int], draft: Any, uniforms: Any
    ) -> tuple[int, int]:
        """Accept one of a node's guesses, or choose another token.

        Args:
            logits: [1, vocabulary], the target's after the node.
            tokens: of the guesses that were offered, by rank; may be none.
            draft: the distribution that they were drawn from; None where they were not drawn.
            uniforms: [uniform_count], a tensor; a list where the host has the logits.

        Returns:
            The accepted guess's rank, 0 for none; and the token, the guess's or the other one.
        """
        ...


class MatchRule:
    """`Greedy` and `TopK`: a guess is accepted if its token is the one that the target chooses.

    Attributes:
        verifier: as given.
    """

    draws = False

    def __init__(self, verifier: Greedy) -> None:
        self.verifier = verifier
        self._sampler = verifier if isinstance(verifier, TopK) else None

    def guess(self, logits: Tensor, ranks: int, uniforms: Uniforms) -> Guesses:
        """The draft's most likely tokens."""
        return Guesses(*likeliest(logits.softmax(dim=-1), ranks), None)

    def uniform_count(self, ranks: int) -> int:
        """One for the target's draw, if it draws."""
        return 0 if self._sampler is None else 1

    def decide(
        self, logits: Tensor, tokens: Sequence[int], draft: Tensor | None, uniforms: Tensor
    ) -> tuple[int, int]:
        """Look for the target's choice among the guesses."""
        token = int(self._choice(logits, uniforms))
        return (tokens.index(token) + 1 if token in tokens else 0), token

    def _choice(self, logits: Tensor, uniforms: Tensor) -> Tensor:
        """The target's most likely token, or its draw: [1]."""
        if self._sampler is None:
            return largest(logits)
        target = warp(logits, self._sampler.temperature, *self._sampler.cuts)
        return draw_with_replacement(target, uniforms[:, None])[:, 0]


class ResidualRule:
    """`Sequoia` and `SpecInfer`: draws are tested one by one against the residual target.

    Attributes:
        verifier: as given.
    """

    draws = True

    def __init__(self, verifier: Sequoia) -> None:
        self.verifier = verifier

    def guess(self, logits: Tensor, ranks: int, uniforms: Uniforms) -> Guesses:
        """Draws from the draft at the temperature."""
        verifier, (nodes, vocabulary) = self.verifier, logits.shape
        draft = warp(logits, verifier.temperature)
        count = verifier.node_uniforms(ranks, vocabulary, logits.device)
        noise = verifier.node_noise(uniforms(nodes * count).view(nodes, count))
        tokens = verifier.draft(logits, ranks, noise)
        return Guesses(likeliest(draft, ranks)[0], tokens, draft.split(1))

    def uniform_count(self, ranks: int) -> int:
        """One for each guess's test, and one for the next token."""
        return ranks + 1

    def decide(
        self, logits: Tensor, tokens: Sequence[int], draft: Tensor | None, uniforms: Tensor
    ) -> tuple[int, int]:
        """Test the guesses in order, and draw from what remains if all of them fail."""
        verifier = self.verifier
        target = warp(logits, verifier.temperature, *verifier.cuts)
        if draft is None or not tokens:
            return 0, int(draw(target, uniforms[-1:]))
        guesses = torch.tensor([list(tokens)], device=target.device)
        draws = gather_draws(target, draft, guesses, None, verifier.with_replacement)
        tests = residual_tests(target, draft, draws, [1] * len(tokens))
        rank = first_passing(tests.passes[0], uniforms)
        if rank:
            return rank, tokens[rank - 1]
        return 0, int(draw(residual(target, tests.scale, draft), uniforms[-1:]))


def first_passing(chances: Tensor, uniforms: Tensor) -> int:
    """The rank of the first guess whose test passes with its chance [guesses]; 0 for none."""
    passed: list[bool] = (uniforms[: len(chances)] < chances).tolist()
    return passed.index(True) + 1 if True in passed else 0


def node_rule(verifier: Verifier) -> NodeRule:
    """The verifier's rule at a single node.

    Raises:
        SequoiaError: it has none: it decides on whole paths, or what it accepts is simulated.
    """
    if isinstance(verifier, Synthetic):
        raise SequoiaError(
            "acceptance cannot be simulated for an adaptive plan, whose trees grow by the "
            "draft's probabilities; use a plan of `solve --static`"
        )
    if isinstance(verifier, Greedy):
        return MatchRule(verifier)
    if isinstance(verifier, Sequoia) and not isinstance(verifier, Traversal):
        return ResidualRule(verifier)
    names = " or ".join(name for name, spec in VERIFIERS.items() if spec.has_rates)
    raise SequoiaError(
        f"verifier: found {verifier.name}, which decides on whole paths, but an adaptive plan is "
        f"verified node by node; use --verifier {names}"
    )


def matching(verifier: Verifier) -> Verifier:
    """The verifier of guesses that are not drawn, for the same distribution of the target: itself
    if it tests no draws, else `TopK`."""
    if not isinstance(verifier, Sequoia):
        return verifier
    cuts = verifier.cuts
    return TopK(verifier.temperature, cuts.top_p, cuts.top_k, cuts.min_p)

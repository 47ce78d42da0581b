"""A lookup as drafter: it guesses what followed the text's end where that occurred before.

It makes no forward pass. How far a guess is believed follows from the match alone, and takes the
place of a draft model's probability: the calibration, the policy and its replay are the same. Its
cache is the index of the text. Knows nothing of how a tree is verified.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from sequoia_opt.engine.distributed import World
from sequoia_opt.engine.drafters.guesses import Drafted, LevelGuesses
from sequoia_opt.engine.drafters.lookup_index import (
    LENGTHS,
    OCCURRENCES,
    CorpusIndex,
    TextIndex,
    behind,
)
from sequoia_opt.engine.logits_processors import LogitsProcessor
from sequoia_opt.engine.verify import NodeRule, TreeIndex, Uniforms, Verifier
from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan.draft_passes import NO_PASSES
from sequoia_opt.plan.policy import Policy
from sequoia_opt.plan.tree import TokenTree

DOUBT = 2.4  # occurrences that say nothing, behind an ending of one token

FINGERPRINT = "lookup1"
"""Changes with what a lookup guesses and how far it believes its guesses."""

ONLY_ADAPTIVE = (
    "a lookup drafts by adaptive plans, whose trees follow the match, not by static trees; decode "
    "with a plan that was solved for it"
)
NO_LOGITS = "a lookup has no logits; only a draft model or a head on the target has"


def confidence(length: int, count: int, occurrences: int) -> float:
    """How far a guess of a lookup is believed, in (0, 1).

    It rises with the length of the match and with the share of the occurrences that the guess
    followed. The form was chosen on held-out code: what always followed n times came again n times
    in n + 2.4 / length; what followed a part of the times, that share of it less often. Rounded to
    float16, as recordings have it.

    Args:
        length: tokens of the match.
        count: occurrences that the guess followed.
        occurrences: of the match that were looked at.
    """
    share = count / occurrences
    return float(np.float16(share * count / (occurrences + DOUBT / length)))


_CONFIDENCES = {
    length: [
        [confidence(length, count, max(total, 1)) for count in range(total + 1)]
        for total in range(OCCURRENCES + 1)
    ]
    for length in LENGTHS
}
"""By length, occurrences that were looked at, and count."""


class LookupDrafter:
    """See `Drafter`.

    Attributes:
        model, hidden: None.
        positions: any number.
        width: the most guesses at a place.
        about: the corpus, as files name it; nothing without one.
    """

    model: None = None
    hidden: None = None
    passes = NO_PASSES
    positions, width = sys.maxsize, OCCURRENCES

    def __init__(
        self, corpus: CorpusIndex | None = None, about: Mapping[str, Any] | None = None
    ) -> None:
        """Look up in the text, and in a corpus if there is one.

        Args:
            about: what files say of the corpus.
        """
        self._corpus, self.about = corpus, dict(about or {})

    def candidates(
        self, index: TextIndex, context: bytes, ranks: int
    ) -> tuple[list[float], list[int]]:
        """The guesses behind a context, best first, and how far each is believed.

        The text counts before the corpus, unless the corpus has a longer match.

        Args:
            context: see `TextIndex.match`.
            ranks: guesses at most.
        """
        match = index.match(context)
        if self._corpus is not None and match.length < LENGTHS[0]:
            longer = self._corpus.match(context, match.length)
            match = longer if longer.length else match
        if not match.length:
            return [], []
        by_count = _CONFIDENCES[match.length][sum(match.counts)]
        return [by_count[count] for count in match.counts[:ranks]], match.tokens[:ranks]

    def reserve(self, capacity: int, batch: int = 1, branches: int = 1) -> TextIndex:
        """The index of one text."""
        return TextIndex()

    def release(self, cache: TextIndex) -> None:
        """See `Drafter`; an index serves no other text."""

    def prefill(
        self,
        cache: TextIndex,
        tokens: Tensor,
        pad: Tensor | None = None,
        held: int = 0,
        before: Tensor | None = None,
    ) -> Tensor:
        """Read a prompt [1, count]; it has no logits, [1, 0]."""
        cache.keep(held)
        cache.extend(tokens[0].tolist())
        return torch.empty(1, 0)

    def extend(
        self,
        cache: Any,
        tokens: Tensor,
        length: int,
        pad: Tensor | None = None,
        before: Tensor | None = None,
        runs: Tensor | None = None,
    ) -> NoReturn:
        """See `Drafter`.

        Raises:
            SequoiaError: always; it has no logits.
        """
        raise SequoiaError(NO_LOGITS)

    def read(
        self,
        cache: Any,
        tokens: Tensor,
        chunk: int,
        before: Iterator[Tensor | None] | None = None,
    ) -> Iterator[tuple[int, Tensor]]:
        """See `Drafter`.

        Raises:
            SequoiaError: always; it has no logits.
        """
        raise SequoiaError(NO_LOGITS)

    def on(
        self,
        tree: TokenTree,
        index: TreeIndex,
        verifier: Verifier,
        processor: LogitsProcessor | None,
    ) -> NoReturn:
        """See `Drafter`.

        Raises:
            SequoiaError: always; its trees follow the match.
        """
        raise SequoiaError(ONLY_ADAPTIVE)

    def growing_passes(self, nodes: int, branches: int, likeliest: bool = False) -> NoReturn:
        """See `Drafter`.

        Raises:
            SequoiaError: always; it has no logits.
        """
        raise SequoiaError(NO_LOGITS)

    def guess_source(
        self, policy: Policy, rule: NodeRule, world: World, device: torch.device
    ) -> LookupGuesses:
        """See `Drafter`.

        Raises:
            SequoiaError: the verifier tests draws, and a lookup draws nothing.
        """
        if rule.draws:
            raise SequoiaError(
                "verifier: found one that tests guesses drawn from a draft's distribution, but a "
                "lookup's guesses are not drawn; use --verifier topk"
            )
        return LookupGuesses(self, policy.ranks)


class LookupGuesses:
    """See `GuessSource`."""

    def __init__(self, drafter: LookupDrafter, ranks: int) -> None:
        self._drafter, self._ranks = drafter, ranks
        self._index = TextIndex()
        self._read = 0  # tokens that the step's beginning read
        self._contexts: dict[int, bytes] = {}  # of each node whose guesses were asked for

    def catch_up(
        self, cache: TextIndex, lacking: Sequence[int], held: int, before: Tensor | None = None
    ) -> int:
        """See `GuessSource`; a step reads all that its index lacks when it begins."""
        return 0

    def begin(
        self,
        cache: TextIndex,
        lacking: Sequence[int],
        held: int,
        bound: int,
        before: Tensor | None = None,
    ) -> None:
        """See `GuessSource`."""
        cache.keep(held)
        cache.extend(lacking)
        self._index, self._read = cache, len(lacking)
        self._contexts = {0: cache.context}

    def guess(
        self,
        drafted: Drafted,
        nodes: Sequence[int],
        uniforms: Uniforms,
        process: Callable[[Tensor], Tensor] | None,
    ) -> LevelGuesses:
        """See `GuessSource`."""
        contexts, parents = self._contexts, drafted.growth.parents
        rows = []
        for node in nodes:
            if node:
                contexts[node] = behind(contexts[parents[node]], drafted.tokens[node])
            rows.append(self._drafter.candidates(self._index, contexts[node], self._ranks))
        return LevelGuesses([row[0] for row in rows], [row[1] for row in rows])

    def accept(self, path: Sequence[int]) -> int:
        """See `GuessSource`; the next step reads the accepted path."""
        return self._read

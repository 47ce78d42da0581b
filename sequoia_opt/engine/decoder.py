"""The decoder: a pair, a tree and a way to sample, ready to decode texts.

Knows what all its texts share. One text's state is in session.py, its stopping and counting in
stream.py, the step itself in step.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sequoia_opt.engine.adaptive_step import AdaptiveStep
from sequoia_opt.engine.drafters import Committed, State
from sequoia_opt.engine.logits_processors import LogitsOptions
from sequoia_opt.engine.pair import Pair
from sequoia_opt.engine.random_numbers import RandomNumbers
from sequoia_opt.engine.session import Session, first_state
from sequoia_opt.engine.step import TOLD, Step
from sequoia_opt.engine.stream import Generation, Stream
from sequoia_opt.engine.verify import Synthetic, TreeIndex, make_verifier
from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan.sampling import Sampling
from sequoia_opt.plan.tree import AUTOREGRESSIVE, TokenTree
from sequoia_opt.plan.verifiers import check_verifier
from sequoia_opt.types import FloatArray

__all__ = ["Decoder", "Generation", "Session", "Stream", "check_seed"]

LARGEST_SEED = 2**63 - 1


class Decoder:
    """Decodes with one pair, tree and temperature.

    Args:
        tree: by default the one-node tree, plain decoding: the draft never runs. An adaptive plan
            grows each step's tree by its policy.
        temperature: 0 for greedy.
        top_p: in (0, 1].
        seed: seeds all sampling; a whole number of at most 63 bits.
        verifier: for temperatures above 0.
        logits_options: a bias of the target's logits, penalties, banned tokens; the target's own
            are `own_settings(pair).logits`.
        rates: [depth + 1, ranks], acceptance rates to simulate, whatever the models say: for speed
            alone, the text means nothing.
        top_k: how many of the most likely tokens may be drawn; 0 for all.
        min_p: in [0, 1], the least probability of a token, as a share of the most likely one's.

    Raises:
        SequoiaError: an option out of range, or an adaptive plan that these options cannot run.
    """

    def __init__(
        self,
        pair: Pair,
        tree: TokenTree = AUTOREGRESSIVE,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        verifier: str = "sequoia",
        rates: FloatArray | None = None,
        logits_options: LogitsOptions | None = None,
        top_k: int = 0,
        min_p: float = 0.0,
    ) -> None:
        check_verifier(Sampling(temperature, top_p, verifier, top_k, min_p).verifier)
        widest = int(tree.child_counts.max(initial=0))
        vocabulary = min(pair.target.vocabulary, pair.drafter.width)
        if widest > vocabulary:
            raise SequoiaError(
                f"tree: a node has {widest} children, but the draft makes at most {vocabulary} "
                "guesses at a place"
            )
        self.pair, self.tree = pair, tree
        self.verifier = make_verifier(verifier, temperature, top_p, top_k, min_p)
        if rates is not None:
            self.verifier = Synthetic(self.verifier, rates).to(pair.device)
        logits_options = logits_options or LogitsOptions()
        logits_options.check(pair.target.vocabulary)
        self._processor = (
            logits_options.processor(pair.device, pair.target.vocabulary)
            if logits_options.change_anything
            else None
        )
        parts = (pair.target, pair.drafter, tree, self.verifier, pair.world, self._processor)
        step = Step(*parts) if tree.policy is None else AdaptiveStep(*parts, pair.lookup)
        self.step = pair.machine.prepared(step)
        self.read_back: Callable[[Any], list[int]] = list  # an adaptive step returns a list
        if tree.policy is None:
            self.read_back = pair.machine.read_back(tree.depth + TOLD)
        self._root = TreeIndex(AUTOREGRESSIVE, pair.device)
        self.reseed(seed)

    def generate(
        self,
        input_ids: Sequence[int] | Tensor,
        max_new_tokens: int = 128,
        ignore_eos: bool = False,
        stop: Sequence[str] = (),
    ) -> Generation:
        """Decode a prompt.

        Args:
            input_ids: a list or a [1, length] tensor.
            max_new_tokens: at least 1.
            ignore_eos: go on past end-of-text tokens.
            stop: strings that end the text; they are not part of it. Special tokens have their
                names in the tokenizer, as "<|im_end|>".

        Raises:
            SequoiaError: the prompt is empty or does not fit the model.
        """
        return self.stream(input_ids, max_new_tokens, ignore_eos, stop).finish()

    def stream(
        self,
        input_ids: Sequence[int] | Tensor,
        max_new_tokens: int = 128,
        ignore_eos: bool = False,
        stop: Sequence[str] = (),
    ) -> Stream:
        """Like `generate`, step by step: iterate over the new tokens of each step."""
        return Stream(self, None, input_ids, max_new_tokens, ignore_eos, stop)

    def session(self, conversing: bool = True) -> Session:
        """A session for several texts, each of which may go on from the one before.

        Its random numbers follow from the decoder's seed and the number of sessions before it,
        not from what other sessions draw.
        """
        seeds = np.random.SeedSequence(self._seed % 2**64, spawn_key=(self._sessions,))
        seed = self._seed
        if self._sessions:
            seed = int(seeds.generate_state(1, np.uint64)[0] >> np.uint64(1))
        self._sessions += 1
        return Session(self, seed, conversing)

    def reseed(self, seed: int) -> None:
        """Start all random numbers again, from this seed.

        Raises:
            SequoiaError: the seed is out of range.
        """
        check_seed(seed)
        self._seed, self._sessions = seed, 0

    def blank_state(self, length: int) -> State:
        """The state of a text of so many tokens that says nothing, for steps to be timed."""
        pair, hidden = self.pair, self.pair.drafter.hidden
        committed = None
        if hidden is not None and self.tree.drafts:
            like = torch.empty(0, dtype=pair.target.dtype, device=pair.device)
            committed = Committed.blank(self.tree, hidden, like)
        recent = torch.zeros(2, dtype=torch.long, device=pair.device)
        return State(torch.tensor([length], device=pair.device), recent, committed=committed)

    @property
    def recording_seconds(self) -> float:
        """Time spent on recording steps, or passes of adaptive ones, so far."""
        return self.pair.machine.recording_seconds

    def random_numbers(self, seed: int) -> RandomNumbers:
        """Random numbers of a text or of several, on the pair's device."""
        device = self.pair.device
        return RandomNumbers(torch.Generator(device).manual_seed(seed), device)

    def uniforms_for_step(self, numbers: RandomNumbers) -> Tensor | RandomNumbers:
        """What a step takes: its random numbers, or what gives them."""
        count: int | None = self.step.uniform_count
        return numbers if count is None else numbers(count)

    def first_token(
        self,
        text: Tensor,
        logits: Tensor,
        numbers: RandomNumbers,
        hidden: Tensor | None = None,
    ) -> tuple[int, State]:
        """Choose the token that follows a prompt.

        Args:
            text: [length], the prompt's tokens.
            logits: [1, vocabulary], the target's after them.
            hidden: [1, width], its hidden states at the last of them, if the drafter reads them.

        Returns:
            The token, and the state of the text with it.
        """
        vocabulary = self.pair.target.vocabulary
        count = self.verifier.uniform_count(self._root, vocabulary)
        seen = None
        if self._processor is not None:
            seen = self._processor.seen(text)
            logits = self._processor.apply(logits, seen, first=True)
        verdict = self.verifier.verify(
            self._root,
            text[-1:],
            logits,
            logits.new_zeros(0, vocabulary),
            numbers(count),
        )
        first = self.pair.world.agree(verdict.next)
        state = first_state(text, first)
        if self._processor is not None and seen is not None:
            state = replace(
                state, seen=seen.index_fill(0, first, True), counts=self._processor.counts(first)
            )
        if hidden is not None:
            state = replace(state, committed=Committed.first(self.tree, first, hidden))
        return int(first), self.step.started(state)


def check_seed(seed: int) -> None:
    """Refuse a seed that no generator takes."""
    if not -LARGEST_SEED <= seed <= LARGEST_SEED:
        raise SequoiaError(f"seed: found {seed}, expected a whole number of at most 63 bits")

"""One text's state on a pair: its caches, its length, its random numbers.

Several sessions of one pair take turns safely, step by step, since each has caches of its own.
A session may go on over the turns of a conversation: a prompt that begins as the text before it is
read on from where they part. Knows nothing of when to stop.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sequoia_opt.engine.adaptive_step import GrowingState
from sequoia_opt.engine.devices import advice_for
from sequoia_opt.engine.drafters import State
from sequoia_opt.engine.model import Caches
from sequoia_opt.engine.pair import Pair
from sequoia_opt.engine.reading import prefill
from sequoia_opt.engine.sampling import at_least_float32
from sequoia_opt.engine.stream import Generation, Stream
from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan.growth_counts import GrownStep
from sequoia_opt.plan.tree import TokenTree

if TYPE_CHECKING:
    from sequoia_opt.engine.decoder import Decoder

CONVERSATION = 4096  # slots that a conversation's caches have from the beginning
CAPACITY_ROUNDING = 256  # slots: texts of similar length share their caches


class Session:
    """One text on a decoder's pair.

    Use it as a context manager, or call `close`: then its caches serve the next session. A session
    that is dropped closes itself.

    Attributes:
        last_node: the node that the last step accepted last; of an adaptive plan, how many
            guesses it accepted.
        length: committed tokens in the target's cache.
        texts: how many texts have begun.
    """

    def __init__(self, decoder: Decoder, seed: int, conversing: bool = False) -> None:
        """Begin without a text.

        Args:
            seed: of the session's random numbers.
            conversing: keep the text, so that the next one is read on from where the two part.
        """
        self._decoder, self._conversing = decoder, conversing
        self._numbers = decoder.random_numbers(seed)
        self._lease: _Lease | None = None
        self._state: State | GrowingState | None = None
        self._text: list[int] = []  # tokens that are committed, the root included
        self._held: list[int] = []  # tokens that both caches hold
        self.length, self.last_node, self.texts = 0, 0, 0
        self._drafted_length = 0  # that the last step began with

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the caches back."""
        if self._lease is not None:
            self._lease.end()
            self._lease, self._state, self._held = None, None, []

    @property
    def grown(self) -> tuple[int, int]:
        """Nodes that the last step verified, the root included, and levels that it drafted."""
        if isinstance(self._state, GrowingState):
            return self._state.size, self._state.levels
        tree = self._decoder.tree
        return tree.size, tree.depth

    @property
    def grown_step(self) -> GrownStep | None:
        """What the last step did, of an adaptive plan."""
        return self._state.last if isinstance(self._state, GrowingState) else None

    @property
    def caches(self) -> Caches:
        """The text's caches, which `reserve` or `start` makes."""
        assert self._lease is not None
        return self._lease.caches

    def reserve(self, length: int) -> None:
        """Have caches for a text of `length` tokens.

        Raises:
            SequoiaError: they do not fit into the memory that is left.
        """
        pair, size = self._decoder.pair, self._decoder.tree.most_slots
        capacity = pair.machine.capacity_for(length) + size
        capacity += -capacity % CAPACITY_ROUNDING
        if self._conversing:  # so that the text stays in its cache as long as it can
            capacity = max(capacity, min(pair.target.positions, CONVERSATION) + size)
        if self._lease is None or self._lease.caches.target.capacity < capacity:
            self.close()
            self._lease = _Lease(self, pair, capacity, self._decoder.tree)

    def generate(
        self,
        input_ids: Sequence[int] | Tensor,
        max_new_tokens: int = 128,
        ignore_eos: bool = False,
        stop: Sequence[str] = (),
    ) -> Generation:
        """Decode a prompt in this session; see `Decoder.generate`."""
        return self.stream(input_ids, max_new_tokens, ignore_eos, stop).finish()

    def stream(
        self,
        input_ids: Sequence[int] | Tensor,
        max_new_tokens: int = 128,
        ignore_eos: bool = False,
        stop: Sequence[str] = (),
    ) -> Stream:
        """Like `generate`, step by step: iterate over the new tokens of each step."""
        return Stream(self._decoder, self, input_ids, max_new_tokens, ignore_eos, stop)

    @torch.inference_mode()
    def start(self, prompt: Sequence[int], max_new_tokens: int) -> int:
        """Read a prompt.

        Args:
            prompt: token ids, at least one.
            max_new_tokens: that are to follow, at most.

        Returns:
            The first new token.

        Raises:
            SequoiaError: the caches do not fit into memory, or the logits are not numbers.
        """
        decoder, pair = self._decoder, self._decoder.pair
        self._state = None
        self.texts += 1
        self.reserve(len(prompt) + max_new_tokens)
        held = _common_length(self._held, prompt[:-1]) if self._conversing else 0
        if pair.drafter.hidden is not None:  # those at the last token that is held, once more
            held = max(0, held - 1)
        self._held = []
        tokens = torch.tensor([list(prompt)], device=pair.device)
        prefilled = prefill(pair.target, pair.drafter, self.caches, tokens[:, held:], held=held)
        if self.caches.lookup is not None:  # it may lack more of the last text than the caches
            self.caches.lookup.keep(held)
            self.caches.lookup.extend(prompt[len(self.caches.lookup) :])
        logits = at_least_float32(prefilled.target)
        if bool(logits.isnan().any()):
            raise SequoiaError(
                f"{pair.target.name}: its logits after the prompt are not numbers in {pair.dtype}; "
                + advice_for(pair.target.dtype)
            )
        last = prefilled.states.last
        hidden = None if last is None else last[:, 0]
        first, self._state = decoder.first_token(tokens[0], logits, self._numbers, hidden)
        self.length = self._drafted_length = len(prompt)
        self._text = [*prompt, first]
        return first

    def advance(self) -> list[int]:
        """Run one step; the tokens that it commits.

        Raises:
            SequoiaError: no text has begun, or the session was closed since.
        """
        if self._state is None:
            raise SequoiaError("session: found no text to continue; start one")
        tokens, self._state = self.step_from(self._state, self.length)
        self._drafted_length = self.length
        self.length += len(tokens)
        self._text += tokens
        return tokens

    def step_from(
        self, state: State | GrowingState, length: int
    ) -> tuple[list[int], State | GrowingState]:
        """Run one step from a state of the text; its tokens, and the state behind them."""
        decoder = self._decoder
        with decoder.step.mode():
            bound = decoder.pair.machine.bound_for(length)
            told, state = decoder.step(
                self.caches, state, bound, decoder.uniforms_for_step(self._numbers)
            )
            *tokens, self.last_node, count = decoder.read_back(told)  # the step's only one
        return tokens[:count], state

    def finish(self) -> None:
        """End the text; in a conversation, remember it for the next one."""
        if self._conversing:
            # All but the last token; the draft may lack the one before it, or more after a pause.
            held = self.length - 1
            if isinstance(self._state, GrowingState):
                held = min(self.length, self._state.held)
            if self._decoder.pair.drafter.hidden is not None:
                held = min(held, self._drafted_length)
            self._held = self._text[:held]


class _Lease:
    """A pair's caches that are a session's until it ends or is dropped."""

    def __init__(self, session: Session, pair: Pair, capacity: int, tree: TokenTree) -> None:
        target = pair.target.reserve(capacity, branches=tree.most_leaves)
        try:
            draft = (
                pair.drafter.reserve(capacity, branches=tree.most_leaves) if tree.drafts else None
            )
        except BaseException:
            pair.target.release(target)
            raise
        index = None
        if tree.looks_up_first and pair.lookup is not None:
            index = pair.lookup.reserve(capacity)
        self.caches = Caches(target, draft, index)
        self.end = weakref.finalize(session, _release, pair, self.caches)
        self.end.atexit = False


def _release(pair: Pair, caches: Caches) -> None:
    """Give caches back to their models."""
    pair.target.release(caches.target)
    if caches.draft is not None:
        pair.drafter.release(caches.draft)


def _common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two texts have in common from the beginning."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))


def first_state(text: Tensor, first: Tensor) -> State:
    """The state of a text [length] behind which the token `first` [1] was chosen."""
    length = torch.tensor([len(text)], device=text.device)
    return State(length, torch.cat([text[-1:], first]))

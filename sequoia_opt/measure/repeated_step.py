"""A step of decoding, repeated from the same state to be timed.

It runs as in a text, through the loop that asks for steps, counts them and looks for the end: in
small models that takes as long as some forward passes' differences. Knows nothing of clocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from sequoia_opt.engine.adaptive_step import GrowingState
from sequoia_opt.engine.decoder import Decoder
from sequoia_opt.engine.model import Caches
from sequoia_opt.engine.session import Session
from sequoia_opt.engine.stream import Stream


class StandingText(Session):
    """A text that stands still: each step begins where the first one did."""

    def __init__(self, decoder: Decoder, caches: Caches, context: int, lacking: int = 0) -> None:
        """Stand behind a text.

        Args:
            caches: hold the text.
            context: its length in tokens.
            lacking: tokens besides the root that the draft's cache lacks; of an adaptive plan.
        """
        super().__init__(decoder, seed=0)
        self._caches, self._context = caches, context
        self._standing = decoder.step.started(decoder.blank_state(context))
        if lacking:
            self._standing = _lacking(self._standing, lacking)

    @property
    def caches(self) -> Caches:
        """See `Session`."""
        return self._caches

    def start(self, prompt: Sequence[int], max_new_tokens: int) -> int:
        """Nothing is read: the text is there. The first new token is the prompt's last one."""
        self.texts += 1
        return prompt[-1]

    def advance(self) -> list[int]:
        """See `Session`."""
        self._state, self.length, self._text = self._standing, self._context, []
        return super().advance()


def _lacking(state: GrowingState, count: int) -> GrowingState:
    """The same text, of which the draft's cache lacks more tokens."""
    before = state.before
    return replace(
        state,
        lacking=(count + 1) * state.lacking,
        before=None if before is None else before.repeat(count + 1, 1),
    )


class RepeatedStep:
    """Runs one and the same step with each call."""

    def __init__(self, decoder: Decoder, caches: Caches, context: int, lacking: int = 0) -> None:
        """Prepare it; see `StandingText`."""
        self._decoder = decoder
        self._text = StandingText(decoder, caches, context, lacking)
        self._limit = decoder.pair.target.positions - 1
        self._most = self._limit - (decoder.tree.largest_depth + 1)
        self._stream, self._steps = self._begun()

    def __call__(self) -> list[int]:
        """Run the step; its tokens."""
        if len(self._stream.generation.tokens) > self._most:  # another step might end the text
            self._stream, self._steps = self._begun()
        return next(self._steps)

    def _begun(self) -> tuple[Stream, Iterator[list[int]]]:
        """A stream whose next tokens are a step's."""
        stream = Stream(self._decoder, self._text, [0], self._limit, ignore_eos=True, stop=())
        steps = iter(stream)
        next(steps)  # the prompt's
        return stream, steps

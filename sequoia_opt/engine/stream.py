"""A text being decoded: when it stops, what it counts, and what of it can be shown.

Knows lengths, end-of-text tokens and stop strings. The text's state on the models is in
session.py.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from sequoia_opt.engine.pair import Pair
from sequoia_opt.engine.text import NewText
from sequoia_opt.errors import SequoiaError
from sequoia_opt.frames import with_room
from sequoia_opt.plan.growth_counts import GuessCounts

if TYPE_CHECKING:
    from sequoia_opt.engine.decoder import Decoder
    from sequoia_opt.engine.session import Session


@dataclass
class Generation:
    """What a generation produced.

    Attributes:
        tokens: the new token ids.
        steps: target forward passes after the prompt's.
        verified: tokens that these steps yielded, including those past `max_new_tokens`.
        seconds: time of these steps, without the prompt and the first token, which it yields.
        prefill_seconds: time of the prompt.
        ended: by node of the tree, in how many steps it was the last accepted node; of an adaptive
            plan, by number of accepted guesses.
        sizes, levels: by number of nodes, in how many steps the target verified so many, the root
            included; by number of levels, in how many steps the draft went so deep.
        looked_up: steps that verified what a lookup guessed before the draft was asked.
        stops, guesses: of an adaptive plan, by reason, in how many steps no further level was
            drafted for it; and the verified guesses.
        stopped: "length", "end" (an end-of-text token) or "stop" (a stop string).
        text: what the new tokens add to the prompt's text, up to the stop string or the token that
            ended it, without special tokens. Empty without a tokenizer.
    """

    tokens: list[int] = field(default_factory=list)
    steps: int = 0
    verified: int = 0
    seconds: float = 0.0
    prefill_seconds: float = 0.0
    ended: Counter[int] = field(default_factory=Counter)
    sizes: Counter[int] = field(default_factory=Counter)
    levels: Counter[int] = field(default_factory=Counter)
    looked_up: int = 0
    stops: Counter[str] = field(default_factory=Counter)
    guesses: GuessCounts = field(default_factory=GuessCounts)
    stopped: str = "length"
    text: str = ""

    @property
    def tokens_per_step(self) -> float:
        """Yield of a step; a last step that the length cuts short counts in full."""
        return self.verified / self.steps if self.steps else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Tokens after the first, for each second after the prompt."""
        return max(0, len(self.tokens) - 1) / self.seconds if self.seconds else 0.0


class Stream:
    """A generation in progress: an iterator over the new tokens of each step.

    Attributes:
        generation: what has been produced so far.
    """

    def __init__(
        self,
        decoder: Decoder,
        session: Session | None,
        input_ids: Sequence[int] | Tensor,
        max_new_tokens: int,
        ignore_eos: bool,
        stop: Sequence[str],
    ) -> None:
        """Check the request; nothing runs before the first iteration.

        Args:
            session: whose text this is; by default one that ends with the text.
        """
        if isinstance(input_ids, Tensor) and input_ids.numel() != input_ids.shape[-1]:
            raise SequoiaError(
                f"input_ids: found shape {list(input_ids.shape)}, expected one text, [1, length]"
            )
        prompt = input_ids.flatten().tolist() if isinstance(input_ids, Tensor) else list(input_ids)
        pair = decoder.pair
        check_prompt(pair, prompt, max_new_tokens)
        if any(not text for text in stop):
            raise SequoiaError("stop: found an empty string, expected at least one character")
        self.generation = Generation()
        self._decoder, self._session = decoder, session
        self._prompt, self._limit = prompt, max_new_tokens
        self._end = frozenset() if ignore_eos else pair.end_tokens
        self._has_begun = False
        self._text: NewText | None = None
        if pair.tokenizer is not None or stop:
            self._text = NewText(pair.detokenizer, prompt, stop)

    def __iter__(self) -> Iterator[list[int]]:
        if self._has_begun:
            raise SequoiaError("stream: found a second iteration, expected one; make a new stream")
        self._has_begun = True
        if self._session is not None:
            yield from self._steps(self._session)
            return
        with self._decoder.session(conversing=False) as session:
            yield from self._steps(session)

    @with_room
    def finish(self) -> Generation:
        """Decode to the end."""
        for _ in self:
            pass
        return self.generation

    def _steps(self, session: Session) -> Iterator[list[int]]:
        """The new tokens of the prompt's forward pass, then of each step."""
        generation, decoder = self.generation, self._decoder
        started = time.perf_counter()
        new = [session.start(self._prompt, self._limit)]
        generation.prefill_seconds = time.perf_counter() - started
        number = session.texts
        while True:
            emitted, is_over = self._take(new)
            yield emitted
            if is_over:
                break
            if session.texts != number:
                raise SequoiaError(
                    "another text has begun in this session; finish one before the next, or open "
                    "a second session"
                )
            started, recorded = time.perf_counter(), decoder.recording_seconds
            new = session.advance()
            recording = decoder.recording_seconds - recorded
            generation.seconds += time.perf_counter() - started - recording
            generation.steps += 1
            generation.ended[session.last_node] += 1
            size, levels = session.grown
            generation.sizes[size] += 1
            generation.levels[levels] += 1
            if (step := session.grown_step) is not None:
                generation.looked_up += step.looked_up
                generation.stops[step.stop] += 1
                generation.guesses.add(step)
            generation.verified += len(new)
        session.finish()
        if self._text is not None:
            generation.text = self._text.text(self._shown_tokens())

    def _take(self, new: list[int]) -> tuple[list[int], bool]:
        """Add a step's tokens to the generation.

        Returns:
            The tokens that the generation emits, and whether it is over.
        """
        generation = self.generation
        emitted = new[: self._limit - len(generation.tokens)]
        is_over = len(generation.tokens) + len(emitted) == self._limit
        for index, token in enumerate(emitted):
            if token in self._end:
                emitted, is_over = emitted[: index + 1], True
                generation.stopped = "end"
                break
        before = len(generation.tokens)
        generation.tokens += emitted
        if self._text is not None:
            end = self._text.stop_place(generation.tokens, before)
            if end is not None:
                generation.tokens[end:] = []
                emitted, is_over = generation.tokens[before:], True
                generation.stopped = "stop"
        return emitted, is_over

    def text(self) -> str:
        """The text so far that later tokens cannot change: it begins the generation's.

        A last character that is incomplete is left out, and so is an ending that may turn out to
        begin a stop string.

        Raises:
            SequoiaError: the models came without a tokenizer.
        """
        if self._text is None:
            self._text = NewText(self._decoder.pair.detokenizer, self._prompt, [])
        return self._text.settled(self._shown_tokens())

    def _shown_tokens(self) -> list[int]:
        """The new tokens without the one that ended the text."""
        if self.generation.stopped == "end":
            return self.generation.tokens[:-1]
        return self.generation.tokens


def check_prompt(pair: Pair, prompt: list[int], max_new_tokens: int) -> None:
    """Refuse a prompt that the target cannot go on from."""
    if not prompt:
        raise SequoiaError("the prompt is empty; give at least one token")
    if max_new_tokens < 1:
        raise SequoiaError(f"max-new-tokens: found {max_new_tokens}, expected at least 1")
    vocabulary = pair.target.vocabulary
    if not all(0 <= token < vocabulary for token in prompt):
        raise SequoiaError(f"the prompt has token ids outside 0 to {vocabulary - 1}")
    positions, ends = pair.target.positions, pair.target.ends
    if len(prompt) + max_new_tokens > positions:
        raise SequoiaError(
            f"a prompt of {len(prompt)} tokens and {max_new_tokens} new ones do not fit the "
            f"{positions} positions of {pair.target.name}" + (f": {ends}" if ends else "")
        )

"""The decoding loop: prompt in, tokens out, streamed or whole.

Knows when to stop and what to count. The step itself is in step.py.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sequoia_opt.engine.logits_processors import Rules
from sequoia_opt.engine.pair import Pair
from sequoia_opt.engine.step import State, Step, at_least_float32
from sequoia_opt.engine.text import NewText
from sequoia_opt.engine.torch.agreement import advice_for
from sequoia_opt.engine.torch.cuda_graphs import ReadBack, RecordedStep, room
from sequoia_opt.engine.verify import VERIFIERS, Synthetic, make_verifier
from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan.tree import AUTOREGRESSIVE, TokenTree
from sequoia_opt.types import FloatArray

CONVERSATION = 4096  # slots that are there from the beginning where several texts follow
LARGEST_SEED = 2**63 - 1
CAPACITY_ROUNDING = 256  # slots; generations of similar length share their buffers


@dataclass
class Generation:
    """What a generation produced.

    Attributes:
        tokens: the new token ids.
        steps: target forwards after the prompt's.
        verified: tokens that these steps yielded, those past the wanted length included.
        seconds: time of these steps; the prompt and the first token, which it yields, are apart.
        prefill_seconds: time of the prompt.
        ended: by node of the tree, how many steps it was the last accepted one of.
        stopped: "length", "end" (an end-of-text token) or "stop" (a stop string).
        text: what the new tokens add to the prompt's, up to the stop string or the token that
            ends the text; special tokens are left out of it. Empty without a tokenizer.
    """

    tokens: list[int] = field(default_factory=list)
    steps: int = 0
    verified: int = 0
    seconds: float = 0.0
    prefill_seconds: float = 0.0
    ended: Counter[int] = field(default_factory=Counter)
    stopped: str = "length"
    text: str = ""

    @property
    def tokens_per_step(self) -> float:
        """Yield of a step; a last one that is cut short by the length counts whole."""
        return self.verified / self.steps if self.steps else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Tokens after the first for each second after the prompt."""
        return max(0, len(self.tokens) - 1) / self.seconds if self.seconds else 0.0


class Decoder:
    """Decodes with one pair, tree and temperature.

    Args:
        tree: by default the one-node tree, plain decoding: the draft is never run.
        temperature: 0 for greedy.
        top_p: in (0, 1].
        seed: seeds all sampling; a whole number of at most 63 bits.
        verifier: for temperatures above 0.
        rules: a bias of the target's logits, penalties, tokens that are never said; those that
            the target came with are `own_settings(pair).rules`.
        conversing: a text that begins as the last one did is read on from there.
        rates: [depth + 1, ranks], to draw from what is accepted, whatever the models say: for speed
            alone, the text means nothing.
        top_k: how many of the most likely tokens may be drawn; 0 for all.
        min_p: in [0, 1], a token's least probability, as a share of the most likely one's.

    Raises:
        SequoiaError: an option out of range.
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
        rules: Rules | None = None,
        conversing: bool = False,
        top_k: int = 0,
        min_p: float = 0.0,
    ) -> None:
        check_sampling(temperature, top_p, verifier, top_k, min_p)
        check_seed(seed)
        widest = int(tree.child_counts.max(initial=0))
        if widest > pair.target.vocabulary:
            raise SequoiaError(
                f"tree: a node has {widest} children, but the vocabulary only "
                f"{pair.target.vocabulary} tokens"
            )
        self.pair, self.tree, self.conversing = pair, tree, conversing
        self.verifier = make_verifier(verifier, temperature, top_p, top_k, min_p)
        if rates is not None:
            self.verifier = Synthetic(self.verifier, rates).to(pair.device)
        rules = rules or Rules()
        rules.check(pair.target.vocabulary)
        self._rules = (
            rules.on(pair.device, pair.target.vocabulary) if rules.change_anything else None
        )
        step = Step(pair.target, pair.draft, tree, self.verifier, pair.world, self._rules)
        self._step = RecordedStep(step) if pair.graphs else step
        self._read = ReadBack(tree.depth + 3, pair.device)
        self._first = Step(pair.target, pair.draft, AUTOREGRESSIVE, self.verifier)
        self._random = torch.Generator(pair.device).manual_seed(seed)
        self.last_node = 0  # that the last step accepted

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
        stream = Stream(self, input_ids, max_new_tokens, ignore_eos, stop)
        for _ in stream:
            pass
        return stream.generation

    def stream(
        self,
        input_ids: Sequence[int] | Tensor,
        max_new_tokens: int = 128,
        ignore_eos: bool = False,
        stop: Sequence[str] = (),
    ) -> Stream:
        """Like `generate`, step by step: iterate over the new tokens of each step."""
        return Stream(self, input_ids, max_new_tokens, ignore_eos, stop)

    @torch.inference_mode()
    def start(
        self, prompt: list[int], max_new_tokens: int, user: object = None
    ) -> tuple[int, State]:
        """Read the prompt into the pair's buffers, which are `user`'s from now on.

        Returns:
            The first token, and where the generation stands.
        """
        self.pair.user = user
        target, draft, tree = self.pair.target, self.pair.draft, self.tree
        length = len(prompt) + max_new_tokens
        capacity = (room(length) if self.pair.graphs else length) + tree.size
        capacity += -capacity % CAPACITY_ROUNDING
        if self.conversing:  # what is read stays where it is as long as it can
            capacity = max(capacity, min(target.positions, CONVERSATION) + tree.size)
        tokens = torch.tensor([prompt], device=self.pair.device)
        buffers = target.cache, draft.cache
        target.reserve(capacity)
        if tree.size > 1:
            draft.reserve(capacity)
        held = 0
        if self.conversing and (target.cache, draft.cache) == buffers:
            held = _alike(self.pair.held, prompt[:-1])
        self.pair.held = []
        new = tokens[:, held:]
        logits = at_least_float32(target.prefill(new, held=held))
        if bool(logits.isnan().any()):
            raise SequoiaError(
                f"{target.name}: its logits after the prompt are not numbers in {self.pair.dtype}; "
                + advice_for(target.dtype)
            )
        if tree.size > 1:
            draft.prefill(new.clamp(max=draft.vocabulary - 1), held=held)
        seen = None
        if self._rules is not None:
            seen = self._rules.seen(tokens[0])
            logits = self._rules.apply(logits, seen, first=True)
        verdict = self.verifier.verify(
            self._first.index,
            tokens[0, -1:],
            logits,
            logits.new_zeros(0, target.vocabulary),
            self.uniforms(self._first),
        )
        first = self.pair.world.agree(verdict.next)
        place = torch.tensor([len(prompt)], device=self.pair.device)
        seen = None if seen is None else seen.index_fill(0, first, True)
        counts = None if self._rules is None else self._rules.counts(first)
        return int(first), State(place, torch.cat([tokens[0, -1:], first]), seen, counts)

    @torch.inference_mode()
    def advance(self, state: State, length: int, user: object = None) -> tuple[list[int], State]:
        """One step: its tokens, and where the generation stands now.

        Raises:
            SequoiaError: another generation has begun on the pair since.
        """
        if self.pair.user is not user:
            raise SequoiaError(
                "another generation has begun on this pair; finish one before the next, or load "
                "a second pair"
            )
        emitted, state = self._step(state, length, self.uniforms(self._step))
        *tokens, self.last_node, count = self._read(emitted)  # the step's only one
        return tokens[:count], state

    def reseed(self, seed: int) -> None:
        """Begin everything random anew.

        Raises:
            SequoiaError: the seed is out of range.
        """
        check_seed(seed)
        self._random.manual_seed(seed)

    @property
    def recording_seconds(self) -> float:
        """What recording steps has taken so far."""
        return self._step.recording_seconds if isinstance(self._step, RecordedStep) else 0.0

    def uniforms(self, step: Step | RecordedStep) -> Tensor:
        """The next random numbers in [0, 1) for a step."""
        return torch.rand(step.uniform_count, generator=self._random, device=self.pair.device)


class Stream:
    """A generation under way: an iterator over the new tokens of each step.

    Attributes:
        generation: what has been produced so far.
    """

    def __init__(
        self,
        decoder: Decoder,
        input_ids: Sequence[int] | Tensor,
        max_new_tokens: int,
        ignore_eos: bool,
        stop: Sequence[str],
    ) -> None:
        if isinstance(input_ids, Tensor) and input_ids.numel() != input_ids.shape[-1]:
            raise SequoiaError(
                f"input_ids: found shape {list(input_ids.shape)}, expected one text, [1, length]"
            )
        prompt = input_ids.flatten().tolist() if isinstance(input_ids, Tensor) else list(input_ids)
        check_prompt(decoder.pair, prompt, max_new_tokens)
        if any(not text for text in stop):
            raise SequoiaError("stop: found an empty string, expected at least one character")
        self.generation = Generation()
        self._decoder, self._prompt, self._limit = decoder, prompt, max_new_tokens
        self._end = frozenset() if ignore_eos else decoder.pair.end_tokens
        self._text: NewText | None = None
        if decoder.pair.tokenizer is not None or stop:
            self._text = NewText(decoder.pair.detokenizer, prompt, stop)

    def __iter__(self) -> Iterator[list[int]]:
        generation, decoder = self.generation, self._decoder
        started = time.perf_counter()
        token, state = decoder.start(self._prompt, self._limit, self)
        generation.prefill_seconds = time.perf_counter() - started
        length = len(self._prompt)
        new = [token]
        all_new = [token]
        while True:
            done = self._take(new)
            yield new[: len(new) - self._surplus]
            if done:
                break
            started, recording = time.perf_counter(), decoder.recording_seconds
            new, state = decoder.advance(state, length, self)
            recording = decoder.recording_seconds - recording
            generation.seconds += time.perf_counter() - started - recording
            generation.steps += 1
            generation.ended[decoder.last_node] += 1
            generation.verified += len(new)
            length += len(new)
            all_new += new
        if decoder.conversing:
            # All but the last token; the draft may lack the one before it.
            decoder.pair.held = (self._prompt + all_new)[: length - 1]
        if self._text is not None:
            generation.text = self._text.text(self._said())

    def _take(self, new: list[int]) -> bool:
        """Add a step's tokens, as many as count; whether the generation is over."""
        generation = self.generation
        room = self._limit - len(generation.tokens)
        kept = new[:room]
        over = len(kept) == room
        for place, token in enumerate(kept):
            if token in self._end:
                kept, over = kept[: place + 1], True
                generation.stopped = "end"
                break
        before = len(generation.tokens)
        generation.tokens += kept
        if self._text is not None:
            end = self._text.stop_place(generation.tokens, before)
            if end is not None:
                generation.tokens[end:] = []
                kept, over = generation.tokens[before:], True
                generation.stopped = "stop"
        self._surplus = len(new) - len(kept)
        return over

    def text(self) -> str:
        """The text so far that later tokens cannot change: it begins the generation's.

        Without a last character that is incomplete, and without an end that may turn out to
        begin a stop string.

        Raises:
            SequoiaError: the models came without a tokenizer.
        """
        if self._text is None:
            self._text = NewText(self._decoder.pair.detokenizer, self._prompt, [])
        return self._text.settled(self._said())

    def _said(self) -> list[int]:
        """The new tokens but for the one that ended the text, whatever its own is."""
        ended = self.generation.stopped == "end"
        return self.generation.tokens[: len(self.generation.tokens) - ended]


def _alike(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two texts have in common from the beginning."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))


def check_seed(seed: int) -> None:
    """Refuse a seed that no generator takes."""
    if not -LARGEST_SEED <= seed <= LARGEST_SEED:
        raise SequoiaError(f"seed: found {seed}, expected a whole number of at most 63 bits")


def check_sampling(
    temperature: float,
    top_p: float,
    verifier: str = "sequoia",
    top_k: int = 0,
    min_p: float = 0.0,
) -> None:
    """Refuse sampling options that are out of range."""
    if not 0 <= temperature < float("inf"):
        raise SequoiaError(f"temperature: found {temperature:g}, expected at least 0")
    if not 0 < top_p <= 1:
        raise SequoiaError(f"top-p: found {top_p:g}, expected above 0 and at most 1")
    if top_k < 0:
        raise SequoiaError(f"top-k: found {top_k}, expected at least 1, or 0 for all tokens")
    if not 0 <= min_p <= 1:
        raise SequoiaError(f"min-p: found {min_p:g}, expected 0 to 1")
    if verifier not in VERIFIERS:
        raise SequoiaError(f"verifier: found {verifier!r}, expected {' or '.join(VERIFIERS)}")


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

"""Whether sampled texts come from the model's distribution: a test on short continuations.

A text's first token is never guessed; the others may be. Knows samples of texts. Knows nothing of
the statistics, which are `plan.homogeneity`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

import numpy as np

from sequoia_opt.measure.check.dialects import Guesses
from sequoia_opt.measure.check.reference import SEEDS, Reference
from sequoia_opt.measure.check.server import Completion, Server
from sequoia_opt.measure.check.verdict import NO_REFERENCE, Finding, Status
from sequoia_opt.measure.progress import Progress, ProgressBar
from sequoia_opt.plan import homogeneity

NAME = "sampled"
LEVEL = 1e-4  # the probability that a healthy server fails, at most
SUSPICIOUS = 0.05  # a first sample's p-value below which a larger one is drawn
MORE = 4  # times as many texts as the first sample has
FAILS_AT_ONCE = LEVEL / 2
FAILS_AFTER_MORE = LEVEL / 2 / SUSPICIOUS  # both samples are independent
POWER = 0.9  # the probability with which the reported deviation is found
COMPARED_TOKENS = 4  # of each text; guesses may decide all but the first
COMPARED_CHARACTERS = 16  # about as long, where a server gives no tokens
DECODED_TOKENS = 6  # the first step has room for 4 guesses, since none goes past a text's end
MOST_PROMPTS = 4  # prompts after which texts are sampled
SEED_NUMBERS = 2**64  # each seed, also a negative one, has a number of its own below this


@dataclass(frozen=True)
class SamplingSpec:
    """What to sample.

    Attributes:
        prompts: what the texts continue.
        samples: texts after each prompt, from each server.
        temperature: above 0.
        seed: the seed from which all texts' seeds are drawn, less than 2**63 in size.
        parallel: requests at a time.
        needs_guesses: whether texts that were decoded without guesses count as unchecked.
    """

    prompts: Sequence[str]
    samples: int
    temperature: float
    seed: int
    parallel: int
    needs_guesses: bool


def check_sampled(
    server: Server,
    reference: Reference | None,
    spec: SamplingSpec,
    guesses: Guesses | None,
    progress: ProgressBar,
) -> Finding:
    """Compare sampled texts with the reference's.

    A first sample that looks suspicious is followed by a larger one, which then decides alone. So a
    healthy server, which seldom needs the second one, still fails with a probability below `LEVEL`.

    Args:
        guesses: those made in other texts, if the server reports them.
    """
    if reference is None:
        return Finding(NAME, Status.UNCHECKED, NO_REFERENCE)
    if spec.needs_guesses and guesses is not None and not guesses.drafted:
        sentence = "nothing was sampled, since the server makes no guesses"
        return Finding(NAME, Status.UNCHECKED, sentence)
    first = _sample(server, reference, spec, progress, stage=0)
    if not FAILS_AT_ONCE <= first.result.p_value < SUSPICIOUS:
        return _finding(first, spec, FAILS_AT_ONCE)
    more = replace(spec, samples=MORE * spec.samples)
    return _finding(_sample(server, reference, more, progress, stage=1), more, FAILS_AFTER_MORE)


@dataclass(frozen=True)
class _Sampled:
    """A sample's outcome.

    Attributes:
        result: the test's result.
        drafted: the number of guesses in it; None if the server does not report them.
        by_token: whether all texts were compared by tokens, not by characters.
    """

    result: homogeneity.Verdict
    drafted: int | None
    by_token: bool


def _sample(
    server: Server, reference: Reference, spec: SamplingSpec, progress: ProgressBar, stage: int
) -> _Sampled:
    """Sample after each of the first prompts, and compare.

    Args:
        stage: number of the sample; each has random numbers of its own.
    """
    prompts = spec.prompts[:MOST_PROMPTS]
    random = np.random.default_rng([spec.seed % SEED_NUMBERS, stage])  # numpy takes none below 0
    seeds = random.integers(SEEDS, size=(len(prompts), 2, spec.samples)).tolist()
    comparisons = []
    units: list[bool] = []
    guesses: list[Guesses] = []
    with progress("sampling short texts" if stage == 0 else "sampling more texts") as advance:
        for number, prompt in enumerate(prompts):
            samples = _Samples(server, reference, prompt, spec)
            ours, theirs = samples.draw(seeds[number], advance, number, len(prompts))
            guesses += [text.reading.guesses for text in ours if text.reading.guesses is not None]
            by_token = all(text.reading.tokens for text in (*ours, *theirs))
            units.append(by_token)
            beginnings = [[_beginning(text, by_token) for text in side] for side in (ours, theirs)]
            comparisons.append(homogeneity.compare(*beginnings))
    drafted = sum(count.drafted for count in guesses) if guesses else None
    return _Sampled(homogeneity.verdict(comparisons), drafted, all(units))


def _beginning(text: Completion, by_token: bool) -> tuple[Hashable, ...]:
    """What is compared of a text: more than its first token, which is never guessed."""
    most = COMPARED_TOKENS if by_token else COMPARED_CHARACTERS
    return text.units(by_token)[:most]


class _Samples:
    """Texts after one prompt, from the server under test and from the reference in turn."""

    def __init__(
        self, server: Server, reference: Reference, prompt: str, spec: SamplingSpec
    ) -> None:
        self._server, self._reference, self._text = server, reference, prompt
        self._prompt, self._spec = reference.prompt(prompt), spec

    def draw(
        self, seeds: Sequence[Sequence[int]], advance: Progress, done: int, prompts: int
    ) -> tuple[list[Completion], list[Completion]]:
        """Sample from both.

        Args:
            seeds: of the texts of each, [2, samples].
            done, prompts: how many prompts are done, and their number.
        """
        temperature, count = self._spec.temperature, self._spec.samples
        plain_tokens = COMPARED_TOKENS if self._reference.is_one_by_one else DECODED_TOKENS

        def ours(seed: int) -> Completion:
            return self._server.complete(self._prompt, DECODED_TOKENS, temperature, seed)

        def theirs(seed: int) -> Completion:
            return self._reference.complete(self._text, plain_tokens, temperature, seed)

        texts: tuple[list[Completion], list[Completion]] = [], []
        sides: list[tuple[Callable[[int], Completion], Sequence[int]]]
        sides = [(ours, seeds[0]), (theirs, seeds[1])]
        with ThreadPoolExecutor(self._spec.parallel) as pool:
            for first in range(0, count, self._spec.parallel):
                for drawn, (sample, side_seeds) in zip(texts, sides, strict=True):
                    drawn += pool.map(sample, side_seeds[first : first + self._spec.parallel])
                advance(done * count + len(texts[0]), prompts * count)
        return texts


def _finding(sampled: _Sampled, spec: SamplingSpec, level: float) -> Finding:
    """The verdict, with the deviation that it could have found.

    Args:
        level: the p-value below which the server fails.
    """
    result, drafted = sampled.result, sampled.drafted
    prompts = len(result.comparisons)
    # A deviation has to make the first sample suspicious; the second one is far more powerful.
    detectable = result.detectable(SUSPICIOUS, POWER)
    numbers: dict[str, Any] = {
        "prompts": prompts,
        "samples": spec.samples,
        "tokens": COMPARED_TOKENS if sampled.by_token else None,
        "temperature": spec.temperature,
        "chi_square": result.statistic,
        "degrees_of_freedom": result.freedom,
        "p_value": result.p_value,
        "p_values": [comparison.p_value for comparison in result.comparisons],
        "level": level,
        "distance": result.distance,
        "detectable": detectable if isfinite(detectable) else None,
        "drafted": drafted,
    }
    length = f"{COMPARED_TOKENS} tokens"
    if not sampled.by_token:
        length = f"up to {COMPARED_CHARACTERS} characters"
    texts = (
        f"2 x {spec.samples} texts of {length} after each of {prompts} prompts at "
        f"temperature {spec.temperature:g}"
    )
    test = f"chi-square {result.statistic:.0f} with {result.freedom} degrees of freedom"
    if result.p_value < level:
        sentence = (
            f"{texts} come from different distributions ({test}, p = {result.p_value:.1g}, "
            f"{100 * result.distance:.0f}% of the texts differ); the verifier is not lossless"
        )
        return Finding(NAME, Status.FAILED, sentence, numbers)
    if spec.needs_guesses and drafted == 0:
        sentence = f"{texts} were decoded without a guess, so they say nothing about the verifier"
        return Finding(NAME, Status.UNCHECKED, sentence, numbers)
    if not result.freedom:
        sentence = (
            f"{texts} are almost all different, or all equal; raise --samples or --temperature"
        )
        return Finding(NAME, Status.UNCHECKED, sentence, numbers)
    sentence = (
        f"{texts} agree ({test}, p = {result.p_value:.2g}); a deviation of "
        f"{100 * detectable:.0f}% of the texts would have been found"
    )
    return Finding(NAME, Status.OK, sentence, numbers)

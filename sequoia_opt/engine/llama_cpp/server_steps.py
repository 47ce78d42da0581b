"""The steps of a text, from the counts that llama.cpp's server streams with its tokens.

Each token comes with the number of tokens so far and the guesses so far, drafted and accepted. A
step's guesses are counted before its tokens are sent. Knows nothing of requests.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from sequoia_opt.engine.llama_cpp.server_timings import ServerTimings
from sequoia_opt.plan.chain_replay import StepCounts


def steps_of(timings: Sequence[ServerTimings], longest: int | None) -> StepCounts:
    """The steps that a stream of counts tells apart.

    A token whose bytes end inside a character is not sent by itself, so that several steps may
    pass between two counts. Then all but the last of those that drafted count as steps of the
    longest chain of which nothing was accepted.

    Args:
        timings: those that came with each token, all cumulative.
        longest: the most guesses of a step; None if it is not known, of chains of one length.
    """
    most = _usual_guesses(timings) if longest is None else longest
    steps = StepCounts()
    tokens = 1  # that the steps so far have yielded, with the first one
    drafted_before = accepted_before = 0
    for counts in timings:
        fresh = counts.predicted - tokens
        if fresh <= 0:  # the rest of a step, or the end of the answer
            continue
        guesses, hits = counts.drafted - drafted_before, counts.accepted - accepted_before
        drafted_before, accepted_before = counts.drafted, counts.accepted
        while guesses > most and fresh > 1:  # each step yields a token
            steps.add(most, 0)
            guesses, fresh, tokens = guesses - most, fresh - 1, tokens + 1
        while fresh > hits + 1:
            steps.add(0, 0)
            fresh, tokens = fresh - 1, tokens + 1
        steps.add(guesses, hits)
        tokens += hits + 1
    return steps


def _usual_guesses(timings: Sequence[ServerTimings]) -> int:
    """By how much the guesses grow most often where they do; 0 if they never do."""
    drafted = [0, *(counts.drafted for counts in timings)]
    grown = Counter(after - before for before, after in pairwise(drafted) if after > before)
    return grown.most_common(1)[0][0] if grown else 0

"""Chains replayed from one recorded run, against the engine's rule itself."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from chain_model import ChainModel

from sequoia_opt.plan.chain_replay import ChainRecord, StepCounts

LONGEST = 60  # longer than any run of right guesses
TEXTS = [ChainModel.drawn(seed, 150, easy) for seed, easy in enumerate((0.3, 0.6, 0.8, 0.9))]


def record(threshold: float, longest: int = LONGEST) -> ChainRecord:
    return ChainRecord(longest, threshold, [text.counted(longest, threshold) for text in TEXTS])


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("guesses", [1, 2, 3, 5, 8])
def test_a_long_run_tells_how_shorter_chains_decode(guesses: int, threshold: float) -> None:
    walk = record(threshold).walk(guesses)
    for number, text in enumerate(TEXTS):
        full, cut = np.zeros(guesses + 1), np.zeros(guesses + 1)
        for drafted, _, passes in text.steps(guesses, threshold):
            (cut if passes > drafted else full)[drafted] += 1
        assert walk.full[number].tolist() == full.tolist()
        assert walk.cut[number].tolist() == cut.tolist()
        assert walk.tokens[number] == 150


def test_the_run_itself_is_replayed() -> None:
    found = record(0.4)
    walk = found.walk(LONGEST)
    drafted = Counter(count for text in found.texts for count in text.drafted)
    assert dict(enumerate((walk.full + walk.cut).sum(axis=0))) == {
        count: drafted[count] for count in range(LONGEST + 1)
    }


def test_traces_have_the_right_guesses() -> None:
    for trace, text in zip(record(0.0).traces, TEXTS, strict=True):
        # The last token is the target's own: nobody guesses there.
        assert trace[:-1] == [int(right) for right in text.right[:-1]]


def test_reached_counts_steps_by_accepted_guesses() -> None:
    steps = StepCounts([4, 4, 4, 4], [0, 2, 4, 1])
    assert ChainRecord(4, 0.0, [steps]).reached.tolist() == [3, 2, 1, 1]


def test_positions_that_were_never_guessed_count_as_right_as_often_as_others() -> None:
    """With chains of 2 the position behind two accepted guesses is never guessed."""
    steps = StepCounts([2] * 60, [2, 2, 1] * 20)
    trace = ChainRecord(2, 0.0, [steps]).traces[0]
    behind = [trace[i] for i in range(2, len(trace), 8)] + [trace[i] for i in range(5, 155, 8)]
    # Behind a hit, 40 of 60 second guesses were right.
    assert np.mean(behind) == pytest.approx(40 / 60, abs=0.05)


def test_a_text_without_guesses_is_plain_decoding() -> None:
    walk = ChainRecord(4, 0.5, [StepCounts([0] * 9, [0] * 9)]).walk(3)
    assert walk.steps.tolist() == [9]
    assert walk.tokens.tolist() == [9]
    assert walk.cut[0, 0] == 8  # the draft made a pass each time, but for the last token

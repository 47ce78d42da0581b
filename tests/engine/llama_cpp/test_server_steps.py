"""Steps told apart in a stream of counts, against the steps that made it."""

from __future__ import annotations

import pytest
from chain_model import ChainModel

from sequoia_opt.engine.llama_cpp.server_steps import steps_of
from sequoia_opt.engine.llama_cpp.server_timings import ServerTimings
from sequoia_opt.plan.chain_replay import StepCounts


def counts(tokens: int, drafted: int = 0, accepted: int = 0) -> ServerTimings:
    return ServerTimings(tokens, 0.0, drafted, accepted)


def stream(steps: StepCounts) -> list[ServerTimings]:
    """The counts with each token."""
    parts, drafted, accepted, tokens = [counts(1)], 0, 0, 1
    for guesses, hits in zip(steps.drafted, steps.accepted, strict=True):
        drafted, accepted = drafted + guesses, accepted + hits
        for _ in range(hits + 1):
            tokens += 1
            parts.append(counts(tokens, drafted, accepted))
    return parts


@pytest.mark.parametrize("threshold", [0.0, 0.4, 0.8])
def test_each_step_is_told_from_the_next(threshold: float) -> None:
    steps = ChainModel.drawn(3, 120).counted(6, threshold)
    parts = stream(steps)
    assert steps_of(parts, 6) == steps
    assert steps_of([*parts, parts[-1]], 6) == steps  # the answer's end repeats the counts


def test_a_token_that_was_not_sent_is_in_the_step_of_the_next_one() -> None:
    steps = StepCounts([4, 4, 0, 4], [2, 3, 0, 1])
    parts = stream(steps)
    for number in range(len(parts)):
        if number != 8:  # a whole step that passes unseen
            assert steps_of(parts[:number] + parts[number + 1 :], 4).accepted == steps.accepted


def test_guesses_and_tokens_are_all_there_whatever_was_not_sent() -> None:
    steps = ChainModel.drawn(5, 90, 0.5).counted(3, 0.0)
    parts = stream(steps)
    found = steps_of([part for n, part in enumerate(parts) if n % 5 or n == len(parts) - 1], 3)
    assert sum(found.drafted) == sum(steps.drafted)
    assert sum(found.accepted) == sum(steps.accepted)
    assert sum(found.accepted) + len(found.accepted) == 90
    assert max(found.drafted) <= 3


def test_an_answer_without_guesses_has_plain_steps() -> None:
    assert steps_of([counts(n) for n in (1, 2, 3, 4)], 8) == StepCounts([0] * 3, [0] * 3)


def test_the_length_of_chains_need_not_be_known() -> None:
    steps = ChainModel.drawn(5, 90, 0.5).counted(3, 0.0)
    parts = stream(steps)
    sent = [part for n, part in enumerate(parts) if n % 5 or n == len(parts) - 1]
    assert steps_of(parts, None) == steps
    assert steps_of(sent, None) == steps_of(sent, 3)


def test_chains_of_several_lengths_are_not_split_without_a_length() -> None:
    steps = StepCounts([2, 2, 6, 4, 2, 6], [0, 1, 4, 0, 2, 0])
    assert steps_of(stream(steps), None) == steps

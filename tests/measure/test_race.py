from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from sequoia_opt.errors import SequoiaError
from sequoia_opt.measure import methods
from sequoia_opt.measure.journal import Journal
from sequoia_opt.measure.methods import Method, Run
from sequoia_opt.measure.race import race, repeated
from sequoia_opt.plan import shapes


def test_all_methods_decode_the_same_greedy_tokens(make_pair: Callable[..., Any]) -> None:
    pair = make_pair()
    entered = [
        methods.with_tree(pair, "plain", shapes.chain(1)),
        methods.with_library(pair, "generate"),
        methods.with_tree(pair, "tree", shapes.k_ary(2, 2)),
    ]
    results = race(entered, [[5, 6, 7], [9, 8]], new_tokens=12, repeats=2).results()
    assert [r.agreement for r in results] == [1, 1, 1]
    assert results[0].tokens_per_step == results[1].tokens_per_step == 1
    assert results[2].tokens_per_step > 1
    assert all(r.tokens_per_second > 0 and r.ms_per_token > 0 for r in results)
    assert results[0].speedup == 1


def test_ratios_are_of_median_runs() -> None:
    def timed(name: str, seconds: list[float]) -> Method:
        waiting = [*seconds[:1], *seconds]  # the first is the warm-up
        return Method(
            name, lambda prompt, count: Run([1] * count, 5, 10, waiting.pop(0), count - 1)
        )

    first, second = race(
        [timed("a", [9.0, 2.0, 1.0]), timed("b", [1.0, 1.0, 50.0])], [[1]], 11, repeats=3
    ).results()
    assert first.tokens_per_second == pytest.approx(10 / 2)
    assert second.tokens_per_second == pytest.approx(10)
    assert second.speedup == pytest.approx(2)
    assert second.tokens_per_step == pytest.approx(2)


def test_repeated_runs_of_tokens_are_counted() -> None:
    assert repeated([[1, 2, 3, 4, 5]]) == 0
    assert repeated([[1, 2, 3, 4, 1, 2, 3, 4]]) == pytest.approx(1 / 5)
    assert repeated([[7] * 9, [1, 2, 3, 4]]) == pytest.approx(5 / 7)
    assert repeated([[1, 2, 3], []]) == 0


def test_ratios_count_timed_tokens() -> None:
    """A method whose prefill yields four of its eleven tokens has timed seven."""
    plain = Method("plain", lambda prompt, count: Run([1] * count, 10, 10, 10.0, 10))
    other = Method("other", lambda prompt, count: Run([1] * count, 3, 7, 3.5, 7))
    _, found = race([plain, other], [[1]], 11, repeats=1).results()
    assert found.speedup == pytest.approx(2)
    assert found.tokens_per_step == pytest.approx(7 / 3)


def test_a_last_step_that_is_cut_counts_in_texts_that_go_on() -> None:
    """Steps yielded 12 tokens, of which a text took 10: without an end it had been faster."""
    plain = Method("plain", lambda prompt, count: Run([1] * count, 10, 10, 10.0, 10))
    other = Method("other", lambda prompt, count: Run([1] * count, 3, 12, 4.0, 10))
    first, second = race([plain, other], [[1], [2]], 11, repeats=1).results()
    assert second.speedup == pytest.approx(10 / 4)
    assert second.surplus == pytest.approx(0.2)
    assert second.endless_speedup == pytest.approx(12 / 4)
    assert first.endless_speedup == first.speedup == 1


def test_one_prompt_has_no_interval() -> None:
    method = Method("a", lambda prompt, count: Run([1] * count, 5, 10, 1.0, count - 1))
    (found,) = race([method], [[1]], 11).results()
    assert found.speedup == 1
    assert found.speedup_low is found.speedup_high is found.tokens_low is None
    (found,) = race([method], [[1], [2]], 11).results()
    assert found.speedup_low == found.speedup_high == 1


def test_a_method_without_a_time_is_refused() -> None:
    """All tokens came with prefill."""
    plain = Method("plain", lambda prompt, count: Run([1] * count, 1, 1, 1.0, 1))
    other = Method("other", lambda prompt, count: Run([1] * count, 0, 0, 0.0, 0))
    with pytest.raises(SequoiaError, match="other: all of a prompt's tokens came at once"):
        race([plain, other], [[1]], 2).results()


def test_the_order_of_methods_is_shuffled() -> None:
    """So that what a method leaves in the caches meets every other method."""
    ran: list[str] = []

    def method(name: str) -> Method:
        def run(prompt: list[int], count: int) -> Run:
            ran.append(name)
            return Run([1] * count, 5, 10, 1.0, count - 1)

        return Method(name, run)

    outcome = race([method(name) for name in "abc"], [[i] for i in range(12)], 11, repeats=1)
    turns = [ran[3:][i : i + 3] for i in range(0, 36, 3)]
    assert all(sorted(turn) == ["a", "b", "c"] for turn in turns)
    assert {pair for turn in turns for pair in pairwise(turn)} == {
        (a, b) for a in "abc" for b in "abc" if a != b
    }
    # Any of them can be the baseline.
    assert [result.speedup for result in outcome.results(baseline=-1)] == [1, 1, 1]


def test_a_resumed_race_decodes_no_prompt_twice(tmp_path: Path) -> None:
    decoded: list[tuple[str, int]] = []
    path, prompts = tmp_path / "journal", [[1], [2], [3]]

    def racing(last: int = -1) -> list[Method]:
        def method(name: str) -> Method:
            def run(prompt: list[int], count: int) -> Run:
                if len(decoded) == last:
                    raise KeyboardInterrupt
                decoded.append((name, prompt[0]))
                return Run([prompt[0]] * count, 5, 10, 1.0 + prompt[0], count - 1)

            return Method(name, run)

        return [method("a"), method("b")]

    with pytest.raises(KeyboardInterrupt):  # in the fourth turn; the first two warm up
        race(racing(2 + 7), prompts, 11, repeats=2, journal=Journal(path, {}))
    assert len(decoded) == 9
    decoded.clear()
    found = race(racing(), prompts, 11, repeats=2, journal=Journal(path, {}, resume=True))
    assert len(decoded) == 2 + 6
    assert sorted(decoded[2:]) == [(name, prompt) for name in "ab" for prompt in (1, 2, 3)]
    assert found.results() == race(racing(), prompts, 11, repeats=2).results()


def test_prompts_are_left_out_when_the_time_is_up() -> None:
    method = Method("a", lambda prompt, count: Run([1] * count, 5, 10, 1.0, count - 1))
    said: list[str] = []
    journal = Journal(max_seconds=0.0)
    outcome = race([method], [[1]] * 5, 11, note=said.append, journal=journal)
    (found,) = outcome.results()
    assert said == ["the time is up: 2 of 15 prompts decoded, repetitions included"]
    assert found.prompts == 2

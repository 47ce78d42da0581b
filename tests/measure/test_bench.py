from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from sequoia_opt.engine.logits_processors import LogitsOptions
from sequoia_opt.errors import SequoiaError
from sequoia_opt.measure import bench, methods
from sequoia_opt.measure.journal import Journal
from sequoia_opt.measure.methods import Method, Run
from sequoia_opt.plan import shapes


def test_all_methods_decode_the_same_greedy_tokens(make_pair: Callable[..., Any]) -> None:
    pair = make_pair()
    racing = [
        methods.with_tree(pair, "plain", shapes.chain(1)),
        methods.with_generate(pair),
        methods.with_tree(pair, "tree", shapes.k_ary(2, 2)),
    ]
    results = bench.race(racing, [[5, 6, 7], [9, 8]], new_tokens=12, repeats=2).beside()
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

    first, second = bench.race(
        [timed("a", [9.0, 2.0, 1.0]), timed("b", [1.0, 1.0, 50.0])], [[1]], 11, repeats=3
    ).beside()
    assert first.tokens_per_second == pytest.approx(10 / 2)
    assert second.tokens_per_second == pytest.approx(10)
    assert second.speedup == pytest.approx(2)
    assert second.tokens_per_step == pytest.approx(2)


def test_repeated_runs_of_tokens_are_counted() -> None:
    assert bench.repeated([[1, 2, 3, 4, 5]]) == 0
    assert bench.repeated([[1, 2, 3, 4, 1, 2, 3, 4]]) == pytest.approx(1 / 5)
    assert bench.repeated([[7] * 9, [1, 2, 3, 4]]) == pytest.approx(5 / 7)
    assert bench.repeated([[1, 2, 3], []]) == 0


def test_ratios_count_the_tokens_that_were_timed() -> None:
    """A method whose first forward yields four of its eleven tokens has timed seven."""
    plain = Method("plain", lambda prompt, count: Run([1] * count, 10, 10, 10.0, 10))
    other = Method("other", lambda prompt, count: Run([1] * count, 3, 7, 3.5, 7))
    _, found = bench.race([plain, other], [[1]], 11, repeats=1).beside()
    assert found.speedup == pytest.approx(2)
    assert found.tokens_per_step == pytest.approx(7 / 3)


def test_one_prompt_has_no_interval() -> None:
    method = Method("a", lambda prompt, count: Run([1] * count, 5, 10, 1.0, count - 1))
    (found,) = bench.race([method], [[1]], 11).beside()
    assert found.speedup == 1
    assert found.speedup_low is found.speedup_high is found.tokens_low is None
    (found,) = bench.race([method], [[1], [2]], 11).beside()
    assert found.speedup_low == found.speedup_high == 1


def test_a_method_without_a_time_is_refused() -> None:
    """All tokens came with the first forward."""
    plain = Method("plain", lambda prompt, count: Run([1] * count, 1, 1, 1.0, 1))
    other = Method("other", lambda prompt, count: Run([1] * count, 0, 0, 0.0, 0))
    with pytest.raises(SequoiaError, match="other: all of a prompt's tokens came at once"):
        bench.race([plain, other], [[1]], 2).beside()


def test_what_goes_before_a_method_changes(tmp_path: Path) -> None:
    """Whatever a method leaves behind meets all the others."""
    ran: list[str] = []

    def method(name: str) -> Method:
        def run(prompt: list[int], count: int) -> Run:
            ran.append(name)
            return Run([1] * count, 5, 10, 1.0, count - 1)

        return Method(name, run)

    raced = bench.race([method(name) for name in "abc"], [[i] for i in range(12)], 11, repeats=1)
    turns = [ran[3:][i : i + 3] for i in range(0, 36, 3)]
    assert all(sorted(turn) == ["a", "b", "c"] for turn in turns)
    assert {pair for turn in turns for pair in pairwise(turn)} == {
        (a, b) for a in "abc" for b in "abc" if a != b
    }
    # Results may be set beside any of them.
    assert [each.speedup for each in raced.beside(-1)] == [1, 1, 1]


def test_divergence_names_the_place_and_the_gap(make_pair: Callable[..., Any]) -> None:
    pair = make_pair()
    first = methods.with_tree(pair, "plain", shapes.chain(1)).run([5, 6, 7], 10).tokens
    assert bench.divergence(pair, [5, 6, 7], first, first) is None
    other = [*first[:4], first[4] + 1, *first[5:]]
    found = bench.divergence(pair, [5, 6, 7], first, other)
    assert found is not None
    assert found.place == 4
    assert found.gap > 0


def test_the_librarys_own_forward_is_compared_with(make_pair: Callable[..., Any]) -> None:
    pair, prompt = make_pair(), [5, 6, 7]
    tokens = methods.with_tree(pair, "tree", shapes.k_ary(2, 3)).run(prompt, 10).tokens
    assert bench.library_divergence(pair, prompt, tokens) is None
    other = [*tokens[:4], (tokens[4] + 1) % 61, *tokens[5:]]
    parted = bench.library_divergence(pair, prompt, other)
    assert parted is not None
    assert (parted.place, parted.gap > 0) == (4, True)
    assert bench.library_divergence(pair, prompt, tokens) is None  # it left all as it was


def test_the_librarys_logits_are_ruled_as_the_text_was(make_pair: Callable[..., Any]) -> None:
    pair, prompt = make_pair(), [5, 6, 7]
    rules = LogitsOptions(1.5, {3: 2.0}, 0.5, 0.25, frozenset([9]), frozenset([11]))
    tree = shapes.k_ary(2, 3)
    tokens = methods.with_tree(pair, "tree", tree, rules=rules).run(prompt, 30).tokens
    assert bench.library_divergence(pair, prompt, tokens, rules) is None
    assert bench.library_divergence(pair, prompt, tokens) is not None


def test_the_library_notices_what_plain_decoding_shares(
    make_pair: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A window that the model does not have is in this program's plain decoding too."""
    pair, prompt = make_pair(), list(range(2, 30))
    narrow = [replace(layer, window=3) for layer in pair.target.layers]
    monkeypatch.setattr(pair.target, "layers", narrow)
    monkeypatch.setattr(pair.target, "_idle", None)
    monkeypatch.setattr(pair.target, "_chunks", {})
    plain, tree = (
        methods.with_tree(pair, "any", shape).run(prompt, 10).tokens
        for shape in (shapes.chain(1), shapes.k_ary(2, 3))
    )
    assert bench.divergence(pair, prompt, plain, tree) is None
    assert bench.library_divergence(pair, prompt, tree) is not None


def test_taken_up_no_prompt_is_decoded_twice(tmp_path: Path) -> None:
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
        bench.race(racing(2 + 7), prompts, 11, repeats=2, journal=Journal(path, {}))
    assert len(decoded) == 9
    decoded.clear()
    found = bench.race(racing(), prompts, 11, repeats=2, journal=Journal(path, {}, resume=True))
    assert len(decoded) == 2 + 6
    assert sorted(decoded[2:]) == [(name, prompt) for name in "ab" for prompt in (1, 2, 3)]
    assert found.beside() == bench.race(racing(), prompts, 11, repeats=2).beside()


def test_when_the_time_is_up_prompts_are_left_out() -> None:
    method = Method("a", lambda prompt, count: Run([1] * count, 5, 10, 1.0, count - 1))
    said: list[str] = []
    journal = Journal(max_seconds=0.0)
    raced = bench.race([method], [[1]] * 5, 11, note=said.append, journal=journal)
    (found,) = raced.beside()
    assert said == ["2 of 15 turns of a prompt; the time was up"]
    assert found.prompts == 2

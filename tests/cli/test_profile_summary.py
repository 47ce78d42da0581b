from __future__ import annotations

import pytest
from test_latency import make_profile

from sequoia_opt.cli.profile_summary import profile_summary, shown_counts
from sequoia_opt.plan.latency import Overhead


def test_every_other_count_is_shown_where_there_are_many() -> None:
    assert shown_counts([1, 2, 3, 4, 5, 8]) == [1, 2, 4, 8]
    counts = [2**power for power in range(10)]
    assert shown_counts(counts[:7]) == counts[:7]
    assert shown_counts(counts[:8]) == [1, 4, 16, 64, 128]
    assert shown_counts(counts) == [1, 4, 16, 64, 256, 512]


def test_the_overhead_is_a_sum(capsys: pytest.CaptureFixture[str]) -> None:
    profile = make_profile()
    profile.overhead["greedy"] = Overhead(0.34, 0.007, -0.252, 0.46)
    profile_summary(profile)
    expected = (
        "overhead per step (greedy): 0.34 ms + 7 µs/node - 252 µs/level + 0.46 ms when drafting"
    )
    assert expected in capsys.readouterr().out.splitlines()


def test_a_gain_of_compiling_says_what_was_measured(capsys: pytest.CaptureFixture[str]) -> None:
    profile = make_profile()
    profile.engine |= {"compile_gain": {"target": 1.8, "draft": 0.9}, "compile": ["target"]}
    profile_summary(profile)
    printed = capsys.readouterr().out
    assert "target: 1.80x as fast when compiled; measured compiled\n" in printed
    assert "draft: 0.90x as fast when compiled; measured without compiling\n" in printed

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from sequoia_opt.engine import memory
from sequoia_opt.engine.attention import Attend
from sequoia_opt.engine.decoder import Decoder
from sequoia_opt.engine.distributed import ALONE, World
from sequoia_opt.engine.models import Pair, load_pair
from sequoia_opt.errors import SequoiaError
from sequoia_opt.measure import profiler
from sequoia_opt.measure.journal import Journal
from sequoia_opt.measure.profiler import (
    LOGIT_COPIES,
    Interleaved,
    Options,
    default_tokens,
    fit_overhead,
    median_interval,
    overhead_trees,
    profile,
    without_drift,
)
from sequoia_opt.plan import shapes
from sequoia_opt.plan.acceptance import Acceptance, Sampling
from sequoia_opt.plan.solver import solve


def test_measures_every_point(make_pair: Callable[..., Any]) -> None:
    seen: list[tuple[int, int]] = []
    found = profile(
        make_pair(dtype="float32"),
        Options(tokens=[8, 1, 2, 4], contexts=[64, 16], repeats=5, warm_up=1),
        lambda done, total: seen.append((done, total)),
    )
    for model in (found.target, found.draft):
        assert [c.context for c in model.curves] == [16, 64]
        for curve in model.curves:
            assert curve.tokens == [1, 2, 4, 8]
            assert (curve.low_ms <= curve.median_ms).all()
            assert (curve.median_ms <= curve.high_ms).all()
            assert (curve.low_ms > 0).all()
    assert set(found.overhead) == {"greedy", "sequoia", "sequoia-top-p"}
    assert found.engine["dtype"] == "float32"
    assert found.hardware["device"] == "cpu"
    assert found.hardware["name"]
    assert seen == [(i, 6) for i in range(1, 7)]
    # What was measured can be solved with.
    assert solve(found, Acceptance(np.array([0.6, 0.2])), max_size=8).choice.tree.size >= 1


def test_measures_batches(make_pair: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiler, "PATIENCE", 1)
    seen: list[tuple[int, int]] = []
    options = Options(tokens=[1, 2, 8, 32], contexts=[16], batches=[4, 16], repeats=5, warm_up=1)
    found = profile(make_pair(dtype="float32"), options, lambda *counts: seen.append(counts))
    for model in (found.target, found.draft):
        assert [(c.batch, c.tokens) for c in model.curves] == [
            (1, [1, 2, 8, 32]), (4, [1, 2, 8, 32]), (16, [1, 2, 8])
        ]  # fmt: skip
    assert seen == [(i, 18) for i in range(1, 19)]
    plan = solve(found, Acceptance(np.array([0.6, 0.2])), batch=16)
    assert plan.choice.tree.size <= 8
    assert plan.tree.metadata["batch"] == 16


def test_drift_is_no_spread() -> None:
    """Rounds on a machine whose speed wanders: the points' ratios come out as they are."""
    generator = np.random.default_rng(0)
    wander = np.exp(0.3 * generator.standard_normal(25))
    true = np.array([1.0, 2.0, 5.0, 9.0, 9.5])
    noise = np.exp(0.01 * generator.standard_normal((5, 25)))
    steady = np.array(without_drift(true[:, None] * wander * noise))
    medians = np.median(steady, axis=1)
    assert medians / medians[0] == pytest.approx(true, rel=0.01)
    assert (steady.std(axis=1) / medians < 0.02).all()


@pytest.mark.parametrize("temperature", [0.0, 0.6])
def test_a_profile_taken_between_other_work(
    make_pair: Callable[..., Any], temperature: float
) -> None:
    """It has the points that were asked for, and leaves what decodes in between alone."""
    pair = make_pair()
    tree = shapes.k_ary(2, 2)
    decoder = Decoder(pair, tree)
    wanted = decoder.generate([3, 4, 5], 12, ignore_eos=True).tokens
    like = profile(pair, Options(tokens=[1, 2], contexts=[16], repeats=5, warm_up=0))
    sampling = Sampling(temperature, 1.0, "specinfer")
    beside = Interleaved(pair, [7, 1, 3], 20, sampling)
    for _ in range(5):
        beside.round()
        assert decoder.generate([3, 4, 5], 12, ignore_eos=True).tokens == wanted
    found = beside.profile(like)
    assert [curve.context for curve in found.target.curves] == [20]
    assert found.draft.curves[0].tokens == [1, 3, 7]
    assert list(found.overhead) == ["specinfer" if temperature else "greedy"]
    assert found.engine == like.engine
    rates = Acceptance(np.array([0.7, 0.2]), temperature=temperature, verifier="specinfer")
    assert solve(found, rates, context=20).tree.size <= 7


def test_the_median_of_a_rounds_turns_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = {"often": [3.0, 1.0, 2.0, 6.0, 4.0, 5.0], "once": [7.0, 7.0]}
    monkeypatch.setattr(profiler, "LONG_MS", 1.0)  # so that one run is a turn

    class Clock(profiler._Timed):
        def sample_ms(self, device: torch.device) -> float:
            return waiting[str(self.run())].pop(0)

    timed = [Clock(lambda: "often", turns=3), Clock(lambda: "once")]
    profiler._Rounds(profiler.Options(repeats=2, warm_up=0), torch.device("cpu")).run(timed)
    assert not any(waiting.values())
    assert timed[0].times[0] / timed[1].times[0] == pytest.approx(2 / 7)
    assert timed[0].times[1] / timed[1].times[1] == pytest.approx(5 / 7)


def test_what_is_timed_follows_runs_like_it() -> None:
    """A first run after another thing takes longer; it must not count."""
    last, slow = "", 0

    class Clock(profiler._Timed):
        def sample_ms(self, device: torch.device) -> float:
            before = last
            return 1.0 if self.run() == before else 9.0

    def run(name: str) -> str:
        nonlocal last, slow
        slow += name != last
        last = name
        return name

    timed = [Clock(lambda: run("a")), Clock(lambda: run("b"))]
    profiler._Rounds(profiler.Options(repeats=6, warm_up=0), torch.device("cpu")).run(timed)
    assert slow > 6
    assert {each for item in timed for each in item.times} == {1.0}


@pytest.mark.parametrize(
    ("spread", "rounds"),
    [([1.0] * 40, 5), ([1.0, 9.0, *[1.0] * 40], 9), ([1.0, 2.0, 3.0] * 14, 15)],
    ids=["quiet", "disturbed once", "never quiet"],
)
def test_rounds_are_added_while_times_spread(spread: list[float], rounds: int) -> None:
    """One round that is off counts until there are nine; three times as many are the most."""
    seen: list[tuple[int, int]] = []
    waiting = iter(spread)

    class Clock(profiler._Timed):
        def turn_ms(self, device: torch.device, world: Any) -> float:
            return float(next(waiting)) if self.parts == 2 else 1.0

    timed = [Clock(lambda: None, parts=parts) for parts in (1, 1, 2)]
    options = profiler.Options(repeats=5, warm_up=0)
    counted = profiler._Rounds(options, torch.device("cpu"), patience=3).run(
        timed, lambda *counts: seen.append(counts)
    )
    assert counted == len(timed[0].times) == rounds
    assert seen == [(n, max(n, 5)) for n in range(1, rounds + 1)]


def test_a_machine_that_slows_down_is_told_of() -> None:
    pace = iter([1.0, 1.0, 1.0, 1.0, 1.5, 1.5, 1.5])

    class Clock(profiler._Timed):
        def turn_ms(self, device: torch.device, world: Any) -> float:
            return next(pace)

    said: list[str] = []
    options = profiler.Options(repeats=7, warm_up=0)
    profiler._Rounds(options, torch.device("cpu")).run([Clock(lambda: None)], tell=said.append)
    assert said == ["all became 50% slower from first to last"]


@pytest.mark.parametrize("few", [False, True])
def test_overhead_fit_finds_its_parts(few: bool) -> None:
    trees = overhead_trees(64, few)
    assert len(trees) == (5 if few else 10)
    rows = [
        (
            tree,
            0.4 + 0.01 * tree.size + 0.05 * len(tree.draft_widths) + 0.7 * (tree.size > 1),
            10.0 + tree.size,
        )
        for tree in trees
    ]
    found = fit_overhead(rows)
    assert found.constant_ms == pytest.approx(0.4)
    assert found.per_token_ms == pytest.approx(0.01)
    assert found.per_level_ms == pytest.approx(0.05)
    assert found.drafting_ms == pytest.approx(0.7)
    for tree, wanted, _ in rows:
        assert found.at(tree.size, len(tree.draft_widths)) == pytest.approx(wanted)


def test_overhead_fit_passes_through_plain_decoding() -> None:
    generator = np.random.default_rng(0)
    rows = [(tree, 0.5 + generator.normal(0, 0.2), 10.0) for tree in overhead_trees(64)]
    found = fit_overhead(rows)
    assert found.at(1, 0) == pytest.approx(rows[0][1])
    assert found.per_token_ms >= 0
    assert found.per_level_ms >= 0
    assert fit_overhead([(shapes.chain(1), 0.3, 5.0)]).at(1, 0) == pytest.approx(0.3)
    assert fit_overhead([(shapes.chain(1), -4.7, 1.0)]).at(1, 0) == 0


def test_interval_of_the_median_covers_it() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        _, low, high = median_interval(generator.exponential(size=25))
        covered += bool(low <= np.log(2) <= high)
    assert covered >= 372  # 95 % of 400, less two standard deviations


def test_default_points_are_dense_then_four_an_octave() -> None:
    pair = SimpleNamespace(device=torch.device("cpu"), offload="none")
    sizes = default_tokens(cast("Pair", pair))
    assert sizes[:10] == [1, 2, 3, 4, 5, 6, 7, 8, 10, 12]
    assert sizes[-1] == 64
    assert max(b / a for a, b in pairwise(sizes[8:])) <= 1.25
    pair.offload = "disk"  # fewer, since each takes long, and larger
    sizes = default_tokens(cast("Pair", pair))
    assert sizes[:8] == [1, 2, 3, 4, 6, 8, 12, 16]
    assert sizes[-1] == 256


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (Options(tokens=[0, 1]), "at least 1"),
        (Options(tokens=[2, 4]), "1 is missing"),
        (Options(contexts=[0]), "at least 1"),
        (Options(repeats=1), "repeats at least 5"),
        (Options(contexts=[256]), "only 256 positions"),
    ],
)
def test_refuses_what_cannot_be_measured(
    options: Options, complaint: str, make_pair: Callable[..., Any]
) -> None:
    with pytest.raises(SequoiaError, match=complaint):
        profile(make_pair(), options)


def test_stops_at_what_fits_into_memory(
    make_pair: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is room for the logits of ten tokens: eight of one sequence, twice four, no 16."""
    pair, notes = make_pair(dtype="float32"), []
    each = pair.target.vocabulary * (4 + 4 * LOGIT_COPIES)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10 * each)
    monkeypatch.setattr("sequoia_opt.engine.runner.check_fits", lambda *_: None)
    options = Options(
        tokens=[1, 2, 4, 8, 16], contexts=[16], batches=[1, 4, 16], repeats=5, warm_up=0
    )
    found = profile(pair, options, note=notes.append)
    for model in (found.target, found.draft):
        assert [(c.batch, c.tokens) for c in model.curves] == [(1, [1, 2, 4, 8]), (4, [1, 2])]
    assert [note.partition(",")[0] for note in notes] == [
        "batch 1: measured to 8 tokens", "batch 4: measured to 2 tokens", "batch 16: left out"
    ]  # fmt: skip
    monkeypatch.setattr(memory, "free_bytes", lambda device: 0)
    with pytest.raises(SequoiaError, match="shorter --contexts"):
        profile(pair, options)


def test_stops_where_the_device_runs_out_of_memory(
    make_pair: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pair, notes = make_pair(dtype="float32"), []
    forward = pair.target.forward

    def of_few(tokens: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        if tokens.shape[1] > 4:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB.")
        return forward(tokens, *arguments, **options)

    monkeypatch.setattr(pair.target, "forward", of_few)
    options = Options(tokens=[1, 2, 4, 8], contexts=[16], repeats=5, warm_up=0)
    found = profile(pair, options, note=notes.append)
    assert found.target.largest() == found.draft.largest() == 4
    assert notes == [
        "batch 1: measured to 4 tokens, more do not fit into memory (CUDA out of memory. Tried "
        "to allocate 2 GiB.)"
    ]


@torch.inference_mode()
def test_processes_go_on_only_together(
    make_pair: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one has no room for four tokens: this one must not begin a forward of them."""
    others = iter(["", "", "", "no room there"])  # buffers, then 1, 2 and 4 tokens

    class Two(World):
        def gather(self, value: Any) -> list[Any]:
            return [value, next(others)]

    ran: list[int] = []
    monkeypatch.setattr(
        profiler, "_forward", lambda runner, context, count, *_: lambda: ran.append(count)
    )
    pair, notes = replace(make_pair(dtype="float32"), world=Two(0, 2)), []
    assert profiler._that_fit(pair, [1, 2, 4, 8], 16, 1, notes.append) == [1, 2]
    assert ran == [1, 1, 2, 2]
    assert notes == ["batch 1: measured to 2 tokens, more do not fit into memory (no room there)"]


@torch.inference_mode()
def test_out_of_memory_while_others_wait_ends_the_run(
    make_pair: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Two(World):
        def gather(self, value: Any) -> list[Any]:
            return [value, value]

    def forward(runner: Any, context: int, count: int, *_: object) -> Callable[[], None]:
        def run() -> None:
            if count > 2:
                raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB.")

        return run

    monkeypatch.setattr(profiler, "_forward", forward)
    pair = replace(make_pair(dtype="float32"), world=Two(0, 2))
    with pytest.raises(SequoiaError, match=r"out of memory\. Tried .*; profile shorter --contexts"):
        profiler._that_fit(pair, [1, 2, 4], 16, 1, pytest.fail)


def test_what_streams_is_timed_behind_itself(make_model: Callable[..., Path]) -> None:
    """Behind something else its first layers are there already."""
    times = [150.0, 200.0]

    class Clock(profiler._Timed):
        def sample_ms(self, device: torch.device) -> float:
            return times.pop(0)

    assert Clock(lambda: None, streams=True).turn_ms(torch.device("cpu"), ALONE) == 200
    pair: Any = load_pair(make_model("llama", 0), make_model("llama", 1), "cpu", "float32")
    pair.target.stream = SimpleNamespace(streamed=[0, 2], moved_bytes=5)
    pair.memory_budget = 7
    forwards = profiler._forwards(pair, [1], [16], 1)
    assert {role: item.streams for (role, *_), item in forwards.items()} == {
        "target": True, "draft": False
    }  # fmt: skip
    steps = profiler._steps(pair, 16, 64, [Sampling(0.0, 1.0, "sequoia")])
    assert all(step.streams and step.turns == 1 for _, _, step in steps)
    assert len(steps) == len(overhead_trees(64, few=True))
    found = profiler._streaming(pair)
    assert found == {"memory_budget": 7, "streamed_layers": 2, "moved_bytes": 5}


def test_the_machine_is_watched_from_when_it_works(
    make_pair: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An idle GPU's clock says nothing."""
    said: list[str] = []
    fitting = profiler._that_fit

    class Told:
        def __init__(self, device: torch.device, world: World) -> None:
            said.append("watched")

        def notes(self) -> list[str]:
            return ["it was loud"]

    def that_fit(*arguments: Any) -> list[int]:
        said.append("worked")
        return fitting(*arguments)

    monkeypatch.setattr(profiler, "Watch", Told)
    monkeypatch.setattr(profiler, "_that_fit", that_fit)
    found = profile(make_pair(dtype="float32"), Options(tokens=[1], contexts=[16], repeats=5))
    assert said == ["worked", "watched"]
    assert found.disturbed.endswith("it was loud")


def test_a_model_that_compiling_makes_slower_runs_eagerly(
    make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The draft's graphs stand for slow ones, the target's for ones that take no time."""
    pair = load_pair(make_model("llama", 0), make_model("llama", 1), "cpu", "float32")

    def graphs(model: Any, last_position: int) -> Callable[..., torch.Tensor]:
        kept: dict[int, torch.Tensor] = {}

        def forward(tokens: Any, positions: Any, slots: Any, masks: Any, cache: Any) -> Any:
            if model is pair.draft.model:
                time.sleep(0.02)
            elif tokens.shape[1] in kept:
                return kept[tokens.shape[1]]
            kept[tokens.shape[1]] = model(
                input_ids=tokens, position_ids=positions, tree=Attend(cache, slots, masks)
            ).logits
            return kept[tokens.shape[1]]

        return forward

    monkeypatch.setattr("sequoia_opt.engine.runner.compiled", graphs)
    pair.compile()
    assert pair.compiled == ["target", "draft"]
    found = profile(pair, Options(tokens=[1, 2, 8], contexts=[16], repeats=5, warm_up=0))
    assert found.engine["compile"] == pair.compiled == ["target"]
    assert found.engine["compile_gain"]["target"] > 1 > found.engine["compile_gain"]["draft"]


def test_rounds_are_taken_up(tmp_path: Path) -> None:
    clock = iter(range(1, 1000))

    class Counting(profiler._Timed):
        def turn_ms(self, device: torch.device, world: Any) -> float:
            return float(next(clock))

    def rounds(repeats: int, resume: bool) -> tuple[list[float], int]:
        item = Counting(lambda: None)
        options = profiler.Options(repeats=repeats, warm_up=1)
        journal = Journal(tmp_path / "journal", {}, resume)
        kept = profiler._Rounds(options, torch.device("cpu"), journal=journal, name="x")
        counted = kept.run([item])
        return [float(np.median(item.times))], counted

    first, counted = rounds(5, False)  # 2 to 6 count
    assert (first, counted) == ([4.0], 5)
    # Of nine rounds five are there; another warms up.
    second, counted = rounds(9, True)  # 2 to 6 and 8 to 11
    assert (second, counted) == ([6.0], 9)


def test_when_the_time_is_up_fewer_rounds_count(make_pair: Callable[..., Any]) -> None:
    said: list[str] = []
    options = Options(tokens=[1, 2, 4], contexts=[16], repeats=20, warm_up=1)
    found = profile(
        make_pair(dtype="float32"), options, note=said.append, journal=Journal(max_seconds=0.0)
    )
    assert said == ["batch 1: 5 of 20 rounds; the time was up"]
    assert (found.target.curves[0].median_ms > 0).all()
    assert solve(found, Acceptance(np.array([0.6, 0.2]))).tree.size <= 4

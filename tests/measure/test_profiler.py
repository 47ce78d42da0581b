from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from lookup_pairs import with_lookup

from sequoia_opt import demo
from sequoia_opt.api import load_pair
from sequoia_opt.engine.decoder import Decoder
from sequoia_opt.engine.distributed import ALONE, World
from sequoia_opt.engine.pair import Pair
from sequoia_opt.engine.torch import cache_pool, memory
from sequoia_opt.engine.torch.attention import Attend
from sequoia_opt.engine.torch.machine import TorchMachine
from sequoia_opt.engine.torch.runner import LOGIT_COPIES
from sequoia_opt.errors import SequoiaError
from sequoia_opt.measure import profiler
from sequoia_opt.measure.fixed_growth import fixed_chains, fixed_growths
from sequoia_opt.measure.forwards import fill, forwards_to_time, overhead_trees
from sequoia_opt.measure.interleaved import Interleaved
from sequoia_opt.measure.journal import Journal
from sequoia_opt.measure.overhead import PLAIN_PASS, TimedStep, steps_to_time
from sequoia_opt.measure.profiler import (
    ProfileOptions,
    default_contexts,
    default_tokens,
    profile,
)
from sequoia_opt.measure.timing import Timed
from sequoia_opt.plan import shapes
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.sampling import Sampling
from sequoia_opt.plan.solver import solve


def test_measures_every_point(make_pair: Callable[..., Any]) -> None:
    progress: list[tuple[int, int]] = []
    measured = profile(
        make_pair(dtype="float32"),
        ProfileOptions(tokens=[8, 1, 2, 4], contexts=[64, 16], repeats=5, warm_up=1),
        lambda done, total: progress.append((done, total)),
    )
    for model in (measured.target, measured.draft):
        assert [c.context for c in model.curves] == [16, 64]
        for curve in model.curves:
            assert curve.tokens == [1, 2, 4, 8]
            assert (curve.low_ms <= curve.median_ms).all()
            assert (curve.median_ms <= curve.high_ms).all()
            assert (curve.low_ms > 0).all()
    assert set(measured.overhead) == {
        name for way in ("greedy", "sequoia", "sequoia-top-p") for name in (way, f"adaptive {way}")
    }
    assert measured.engine["dtype"] == "float32"
    assert measured.hardware["device"] == "cpu"
    assert measured.hardware["name"]
    age = datetime.now(UTC) - datetime.fromisoformat(measured.date)
    assert timedelta(0) <= age < timedelta(hours=1)
    [turns] = {total for _, total in progress}
    assert [done for done, _ in dict.fromkeys(progress)] == list(range(turns + 1))
    # `solve` accepts the profile.
    assert solve(measured, Acceptance(np.array([0.6, 0.2])), max_size=8).choice.tree.size >= 1


def test_without_verifiers_only_greedy_overhead_is_measured(make_pair: Callable[..., Any]) -> None:
    options = ProfileOptions(tokens=[1, 2, 4, 8], contexts=[16], verifiers=[], repeats=5)
    measured = profile(make_pair(), options)
    assert set(measured.overhead) == {"greedy", "adaptive greedy"}


def test_measures_batches(make_pair: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiler, "MAX_MULTIPLE", 1)
    progress: list[tuple[int, int]] = []
    options = ProfileOptions(
        tokens=[1, 2, 8, 32], contexts=[16], batches=[4, 16], repeats=5, warm_up=1
    )
    measured = profile(make_pair(dtype="float32"), options, lambda *counts: progress.append(counts))
    for model in (measured.target, measured.draft):
        assert [(c.batch, c.tokens) for c in model.curves] == [
            (1, [1, 2, 8, 32]), (4, [1, 2, 8, 32]), (16, [1, 2, 8])
        ]  # fmt: skip
    assert [done for done, _ in progress] == sorted(done for done, _ in progress)
    assert progress[-1] == (300, 300)
    plan = solve(measured, Acceptance(np.array([0.6, 0.2])), batch=16)
    assert plan.choice.tree.size <= 8
    assert plan.tree.metadata["batch"] == 16


@pytest.mark.parametrize("temperature", [0.0, 0.6])
def test_a_profile_interleaved_with_decoding(
    make_pair: Callable[..., Any], temperature: float
) -> None:
    """It has the requested points, and does not change the text that is decoded in between."""
    pair = make_pair()
    tree = shapes.k_ary(2, 2)
    decoder = Decoder(pair, tree)
    expected = decoder.generate([3, 4, 5], 12, ignore_eos=True).tokens
    earlier = profile(pair, ProfileOptions(tokens=[1, 2], contexts=[16], repeats=5, warm_up=0))
    sampling = Sampling(temperature, 1.0, "specinfer")
    interleaved = Interleaved(pair, [7, 1, 3], 20, sampling)
    for _ in range(5):
        interleaved.round()
        assert decoder.generate([3, 4, 5], 12, ignore_eos=True).tokens == expected
    measured = interleaved.profile(earlier)
    assert [curve.context for curve in measured.target.curves] == [20]
    assert measured.draft.curves[0].tokens == [1, 3, 7]
    assert list(measured.overhead) == ["specinfer" if temperature else "greedy"]
    assert measured.engine == earlier.engine
    rates = Acceptance(np.array([0.7, 0.2]), temperature=temperature, verifier="specinfer")
    assert solve(measured, rates, context=20).tree.size <= 7


def test_default_token_counts_are_dense_then_four_per_octave() -> None:
    pair = SimpleNamespace(machine=SimpleNamespace(queues=False), offload="none")
    sizes = default_tokens(cast("Pair", pair))
    assert sizes[:10] == [1, 2, 3, 4, 5, 6, 7, 8, 10, 12]
    assert sizes[-1] == 64
    assert max(b / a for a, b in pairwise(sizes[8:])) <= 1.25
    pair.offload = "disk"  # fewer, since each pass takes long, and up to larger counts
    sizes = default_tokens(cast("Pair", pair))
    assert sizes[:8] == [1, 2, 3, 4, 6, 8, 12, 16]
    assert sizes[-1] == 256


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (ProfileOptions(tokens=[0, 1]), "tokens: found 0, expected at least 1"),
        (ProfileOptions(tokens=[2, 4]), "1 is missing"),
        (ProfileOptions(contexts=[0]), "contexts: found 0, expected at least 1"),
        (ProfileOptions(batches=[4, 0]), "batches: found 0, expected at least 1"),
        (ProfileOptions(repeats=1), "repeats: found 1, expected at least 5"),
        (ProfileOptions(contexts=[256]), "only 256 positions"),
    ],
)
def test_options_out_of_range(
    options: ProfileOptions, complaint: str, make_pair: Callable[..., Any]
) -> None:
    with pytest.raises(SequoiaError, match=complaint):
        profile(make_pair(), options)


def test_measures_only_token_counts_that_fit_into_memory(
    make_pair: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory holds the logits of ten tokens: of a sequence's 8, of four sequences' 2, never 16."""
    pair, notes = make_pair(dtype="float32"), []
    bytes_per_token = pair.target.vocabulary * (4 + 4 * LOGIT_COPIES)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10 * bytes_per_token)
    monkeypatch.setattr(cache_pool, "check_fits", lambda *_: None)
    options = ProfileOptions(
        tokens=[1, 2, 4, 8, 16], contexts=[16], batches=[1, 4, 16], repeats=5, warm_up=0
    )
    measured = profile(pair, options, note=notes.append)
    for model in (measured.target, measured.draft):
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

    def forward_of_few(
        cache: Any, tokens: torch.Tensor, *arguments: Any, **options: Any
    ) -> torch.Tensor:
        if tokens.shape[1] > 4:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB.")
        return forward(cache, tokens, *arguments, **options)

    monkeypatch.setattr(pair.target, "forward", forward_of_few)
    options = ProfileOptions(tokens=[1, 2, 4, 8], contexts=[16], repeats=5, warm_up=0)
    measured = profile(pair, options, note=notes.append)
    assert measured.target.largest() == measured.draft.largest() == 4
    assert notes == [
        "batch 1: measured to 4 tokens, more do not fit into memory (CUDA out of memory. Tried "
        "to allocate 2 GiB.)"
    ]


def test_streamed_passes_are_timed_after_one_of_their_kind(make_model: Callable[..., Path]) -> None:
    """After other work the first layers would already be loaded."""
    times = [150.0, 200.0]

    class Clock(Timed):
        def sample_ms(self, machine: Any) -> float:
            return times.pop(0)

    pair: Any = load_pair(make_model("llama", 0), make_model("llama", 1), "cpu", "float32")
    assert Clock(lambda: None, streams=True).turn_ms(pair.machine, ALONE) == 200
    with torch.inference_mode():
        filled = fill(pair, 16, 64)
    pair.target.stream = SimpleNamespace(streamed=[0, 2], moved_bytes=5)
    pair.memory_budget = 7
    forwards = forwards_to_time(pair, filled, [16])
    assert {role: item.streams for (role, *_), item in forwards.items()} == {
        "target": True, "draft": False
    }  # fmt: skip
    steps = steps_to_time(pair, filled, 16, [Sampling(0.0, 1.0, "sequoia")])
    assert all(step.timed.streams and step.timed.turns == 1 for step in steps)
    assert len(steps) == len(overhead_trees(64, few=True)) + len(fixed_growths(64, few=True))
    assert profiler._streaming(pair) == {"memory_budget": 7, "streamed_layers": 2, "moved_bytes": 5}


def test_plain_steps_are_timed_in_turn_with_their_forward_pass(
    make_pair: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Static and adaptive ones; every speedup is relative to a plain step."""
    pair = make_pair()
    with torch.inference_mode():
        filled = fill(pair, 16, 64)
        *steps, plain_pass = steps_to_time(pair, filled, 16, [Sampling(0.0)])
        plain = [step for step in steps if step.size == 1]
        assert [step.name for step in plain] == ["greedy", "adaptive greedy"]
        assert plain_pass.timed.companions == [step.timed for step in plain]
        assert plain_pass.timed.in_a_row > 1
        assert not any(step.timed.turns for step in plain)
        # What is timed in a queue shows nothing of what comes between.
        monkeypatch.setattr(pair.machine, "queues", True)
        queued = steps_to_time(pair, filled, 16, [Sampling(0.0)])
    assert PLAIN_PASS not in {step.name for step in queued}
    assert all(step.timed.turns for step in queued if step.size == 1)


def test_chains_of_all_sizes_follow_one_another_as_in_a_text_of_an_adaptive_plan(
    make_pair: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless another size costs something that is measured by itself. The last one begins with a
    token that the draft's cache lacks."""
    pair = make_pair()
    with torch.inference_mode():
        filled = replace(fill(pair, 16, 64), tokens=[1, 8, 64])
        first, *others = chains(steps_to_time(pair, filled, 16, [Sampling(0.0)]))
        assert first.timed.turns == 1
        assert first.timed.companions == [step.timed for step in others]
        assert not any(step.timed.turns for step in others)
        assert others[-1].like is first
        assert others[-1].passes == (2, *first.passes[1:])
        assert len(others[-1].timed.run()) == len(first.timed.run())
        monkeypatch.setattr(pair.machine, "rebuilds", True)
        rebuilt = chains(steps_to_time(pair, filled, 16, [Sampling(0.0)]))
    assert all(step.timed.turns == 1 and not step.timed.companions for step in rebuilt)


def chains(steps: list[TimedStep]) -> list[TimedStep]:
    """The adaptive plans' steps that draft one node a level."""
    adaptive = [step for step in steps if step.name == "adaptive greedy" and step.passes]
    return [step for step in adaptive if set(step.passes[1:]) == {1}]


def test_the_machine_is_monitored_once_it_works(
    make_pair: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock of an idle GPU is not the one that it computes with."""
    events: list[str] = []
    fill_what_fits = profiler.fill_what_fits

    class Monitor:
        def __init__(self, device: torch.device, world: World) -> None:
            events.append("monitored")

        def notes(self) -> list[str]:
            return ["it was loud"]

    def recorded_fill(*arguments: Any) -> Any:
        events.append("worked")
        return fill_what_fits(*arguments)

    monkeypatch.setattr(profiler, "DisturbanceMonitor", Monitor)
    monkeypatch.setattr(profiler, "fill_what_fits", recorded_fill)
    measured = profile(
        make_pair(dtype="float32"), ProfileOptions(tokens=[1], contexts=[16], repeats=5)
    )
    assert events == ["worked", "monitored"]
    assert measured.disturbed.endswith("it was loud")


def test_a_model_that_compiling_makes_slower_runs_eagerly(
    make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The draft's graphs are replaced by slow ones, the target's by ones that take no time."""
    pair = load_pair(make_model("llama", 0), make_model("llama", 1), "cpu", "float32")

    def graphs(model: Any, last_position: int, *_: Any) -> Callable[..., Any]:
        logits: dict[int, torch.Tensor] = {}  # by number of tokens

        def forward(tokens: Any, positions: Any, slots: Any, masks: Any, cache: Any) -> Any:
            if model is pair.draft.model:
                time.sleep(0.02)
            elif tokens.shape[1] in logits:
                return logits[tokens.shape[1]], ()
            logits[tokens.shape[1]] = model(
                input_ids=tokens, position_ids=positions, tree=Attend(cache, slots, masks)
            ).logits
            return logits[tokens.shape[1]], ()

        return forward

    monkeypatch.setattr("sequoia_opt.engine.torch.compile.compiled", graphs)
    pair.compile()
    assert pair.compiled == ["target", "draft"]
    measured = profile(pair, ProfileOptions(tokens=[1, 2, 8], contexts=[16], repeats=5, warm_up=0))
    assert measured.engine["compile"] == pair.compiled == ["target"]
    assert measured.engine["compile_gain"]["target"] > 1 > measured.engine["compile_gain"]["draft"]


def test_when_the_time_is_up_fewer_rounds_are_measured(make_pair: Callable[..., Any]) -> None:
    """One time for each token count that a curve needs, and a warning in the profile."""
    notes: list[str] = []
    options = ProfileOptions(
        tokens=[1, 2, 3, 4, 6, 7], contexts=[16, 32], batches=[1, 4], repeats=20, warm_up=1
    )
    measured = profile(
        make_pair(dtype="float32"), options, note=notes.append, journal=Journal(max_seconds=0.0)
    )
    thin = (
        "batch 1: 1 of 20 rounds; the time limit was reached, so these times are not to be trusted"
    )
    assert notes == [thin, "batch 4: left out; the time limit was reached"]
    assert thin in measured.disturbed
    assert thin in measured.doubts()[0]
    for model in (measured.target, measured.draft):
        assert [(c.batch, c.tokens) for c in model.curves] == [(1, [1, 2, 4, 7])] * 2
    assert (measured.target.curves[0].median_ms > 0).all()
    assert solve(measured, Acceptance(np.array([0.6, 0.2]))).tree.size <= 7


@pytest.mark.parametrize(
    ("positions", "contexts"),
    [(2048, [128, 512, 1024]), (1088, [128, 512, 1024]), (1024, [128, 512, 960]), (256, [128, 192]),
     (128, [64]), (32, [1])],
)  # fmt: skip
def test_default_contexts_fit_the_models_positions(positions: int, contexts: list[int]) -> None:
    """They leave room for the largest forward pass; a note says if they are shortened."""
    notes: list[str] = []
    pair = SimpleNamespace(positions=positions, machine=TorchMachine(torch.device("cpu")))
    assert default_contexts(cast("Pair", pair), 64, notes.append) == contexts
    assert bool(notes) == (positions < 1088)
    assert not notes or f"the models have {positions} positions" in notes[0]


def test_a_short_model_is_profiled_without_options(make_pair: Callable[..., Any]) -> None:
    pair, notes = make_pair(dtype="float32"), []
    options = ProfileOptions(tokens=[1, 2], repeats=5, warm_up=0)
    measured = profile(pair, options, note=notes.append, journal=Journal(max_seconds=0.0))
    assert [curve.context for curve in measured.target.curves] == [128, 254]
    assert "contexts: 128, 254; the models have 256 positions" in notes[0]


def test_a_profile_has_the_paths_of_its_models(make_pair: Callable[..., Any]) -> None:
    """Exports need the whole path of a folder; bundled models and hub ids have none."""
    options = ProfileOptions(tokens=[1, 2], contexts=[16], repeats=5, warm_up=0)
    pair = make_pair(dtype="float32")
    measured = profile(pair, options, journal=Journal(max_seconds=0.0))
    path = str(Path(pair.draft.name).resolve())
    assert measured.draft.extra == {"path": path}
    plan = solve(measured, Acceptance(np.array([0.6, 0.2])), size=2)
    assert plan.tree.metadata["draft_path"] == path
    assert profiler._path("demo-draft", demo.resolve("demo-draft")) == {}
    assert profiler._path("JackFram/llama-68m", "JackFram/llama-68m") == {}


def test_a_lookup_has_no_draft_passes(make_pair: Callable[..., Any]) -> None:
    """Its steps are timed on a text that repeats itself, so that they draft."""
    options = ProfileOptions([1, 2, 8], [16, 32], verifiers=["sequoia"], repeats=5)
    measured = profile(with_lookup(make_pair()), options)
    assert measured.draft.is_free
    assert (measured.draft.model, measured.draft.curves) == ("lookup", [])
    assert measured.document()["draft"]["passes"] == "none"
    assert set(measured.overhead) == {
        f"{kind}{name}" for kind in ("", "adaptive ") for name in ("greedy", "topk", "topk-top-p")
    }
    grown = fixed_chains(8)
    assert {(growth.widths, growth.size) for growth in grown} >= {((1,) * 6, 7), ((1, 1), 8)}

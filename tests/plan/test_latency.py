from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan import shapes
from sequoia_opt.plan.curves import Curve, ModelLatency
from sequoia_opt.plan.latency import LatencyProfile, Overhead, overhead_name
from sequoia_opt.plan.sampling import Sampling
from sequoia_opt.plan.step_times import StepTimes


def curve(context: int, tokens: list[int], times: list[float], batch: int = 1) -> Curve:
    median = np.array(times, dtype=float)
    return Curve(batch, context, tokens, median, median * 0.9, median * 1.1)


def make_profile(
    slope: float = 0.5, draft_ms: float = 1.0, overhead: float = 0.5
) -> LatencyProfile:
    tokens = [1, 2, 4, 8, 16, 32, 64]
    target = [
        curve(128, tokens, [10 + slope * n for n in tokens]),
        curve(1024, tokens, [20 + slope * n for n in tokens]),
    ]
    draft = [curve(c, tokens, [draft_ms] * len(tokens)) for c in (128, 1024)]
    return LatencyProfile(
        hardware={"slug": "test", "device": "cpu", "name": "test"},
        software={"torch": "0"},
        engine={"dtype": "float32", "threads": 1},
        target=ModelLatency("target", "f0", target),
        draft=ModelLatency("draft", "f1", draft),
        overhead={
            "greedy": Overhead(overhead, 0.01, 0.02, 0.3),
            "sequoia": Overhead(2 * overhead, 0.01, 0.02, 0.3),
        },
    )


def with_adaptive_overhead(profile: LatencyProfile) -> LatencyProfile:
    """The profile with the overhead of steps whose trees grow, the same as of others."""
    for name in ("greedy", "sequoia"):
        profile.overhead[f"adaptive {name}"] = profile.overhead[name]
    return profile


def test_step_is_the_sum_of_its_parts() -> None:
    profile = make_profile()
    tree = shapes.k_sequences(3, 4)
    assert profile.step_ms(tree, "greedy", 128) == pytest.approx(
        (10 + 0.5 * 13) + 4 * 1.0 + (0.5 + 0.01 * 13 + 0.02 * 4 + 0.3)
    )
    assert profile.step_ms(shapes.chain(1), "sequoia", 128) == pytest.approx(10.5 + 1.01)
    with pytest.raises(SequoiaError, match="no overhead for verifier 'topk'"):
        profile.step_ms(tree, "topk", 128)


def test_two_curves_of_one_context_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "profile.yaml"
    profile = make_profile()
    profile.target.curves[1].context = profile.target.curves[0].context
    profile.save(path)
    with pytest.raises(SequoiaError, match="target: latency: two curves"):
        LatencyProfile.load(path)


def test_a_profile_without_batch_1_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "profile.yaml"
    profile = make_profile()
    for draft_curve in profile.draft.curves:
        draft_curve.batch = 4
    profile.save(path)
    with pytest.raises(SequoiaError, match="draft: latency: no curve of batch 1"):
        LatencyProfile.load(path)


def test_file_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "profile.yaml"
    profile = make_profile()
    profile.extra = {"unknown": 1}
    profile.target.extra = {"note": "kept"}
    profile.draft.curves[0].extra = {"unknown": [1, 2]}
    profile.draft.curves[1].mean_ms = profile.draft.curves[1].median_ms * 1.02
    profile.overhead["greedy"].extra["unknown"] = "kept"
    profile.save(path)
    loaded = LatencyProfile.load(path)
    assert loaded.document() == profile.document()
    assert [curve.mean_ms is None for curve in loaded.draft.curves] == [True, False]


def test_a_step_takes_what_passes_take_on_average() -> None:
    """A forward pass that takes 16 ms most of the time and 22 ms else takes longer in a text."""
    profile = make_profile()
    by_medians = profile.step_ms(shapes.chain(1), "greedy", 128)
    times = profile.target.curves[0]
    times.mean_ms = times.median_ms + 1.5
    assert profile.step_ms(shapes.chain(1), "greedy", 128) == pytest.approx(by_medians + 1.5)
    steps = StepTimes(profile, "greedy", {128: 1.0}, replicates=50)
    assert steps.plain_ms[0] == pytest.approx(by_medians + 1.5)
    assert steps.plain_ms[1:].mean() == pytest.approx(by_medians + 1.5, rel=0.03)


@pytest.mark.parametrize(
    ("keys", "value", "complaint"),
    [
        (("target",), None, "target: found None, expected a mapping"),
        (("target", "latency"), [], "latency: found"),
        (("target", "latency", 0, "tokens"), [1, 1, 2], "tokens: found"),
        (("target", "latency", 0, "tokens"), [1, 2], "median_ms: found"),
        (("target", "latency", 0, "median_ms", 2), "fast", r"median_ms\[2\]: found 'fast'"),
        (("target", "latency", 0, "median_ms", 2), 0, "median_ms: found"),
        (("target", "latency", 0, "mean_ms"), [1.0, 2.0], "mean_ms: found"),
        (("target", "latency", 0, "mean_ms"), [0.0] * 7, "mean_ms: found"),
        (("draft", "latency", 0, "batch"), 0, "batch: found 0"),
        (("overhead", "greedy", "constant_ms"), ".nan", "constant_ms: found"),
        (("overhead",), 3, "overhead: found 3"),
    ],
)
def test_refuses_malformed_files(
    tmp_path: Path, keys: tuple[str | int, ...], value: object, complaint: str
) -> None:
    path = tmp_path / "profile.yaml"
    make_profile().save(path)
    document = yaml.safe_load(path.read_text())
    inner = document
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(yaml.safe_dump(document))
    with pytest.raises(SequoiaError, match=complaint) as caught:
        LatencyProfile.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("sampling", "name"),
    [
        (Sampling(0.0, 0.5, "topk"), "greedy"),
        (Sampling(0.6, 1.0, "topk"), "topk"),
        (Sampling(0.6, 0.9, "topk"), "topk-top-p"),
        (Sampling(0.6, 1.0, "sequoia", top_k=5), "sequoia-top-p"),
        (Sampling(0.6, 1.0, "sequoia", min_p=0.1), "sequoia-top-p"),
    ],
)
def test_an_overhead_is_named_after_the_verifier_and_the_cut(sampling: Sampling, name: str) -> None:
    assert overhead_name(sampling) == name

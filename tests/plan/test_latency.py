from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan import shapes
from sequoia_opt.plan.latency import Curve, LatencyProfile, ModelLatency, Overhead


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


def test_interpolates_between_points_and_contexts() -> None:
    profile = make_profile()
    assert profile.target.at([1, 3, 64], 128).tolist() == [10.5, 11.5, 42]
    assert profile.target.at([1], 576).tolist() == [15.5]
    assert profile.target.at([8], 1024).tolist() == [24]
    assert profile.target.at([8], 128, of="high_ms").tolist() == pytest.approx([15.4])


@pytest.mark.parametrize(
    ("tokens", "context", "batch", "complaint"),
    [
        ([65], 128, 1, "1 to 64 tokens a forward, not for 65"),
        ([0.5], 128, 1, "not for 0.5"),
        ([1], 127, 1, "contexts of 128 to 1024 tokens, not for 127"),
        ([1], 1025, 1, "not for 1025"),
        ([1], 128, 4, r"measured for batches \[1\], not for 4"),
    ],
)
def test_never_goes_past_what_was_measured(
    tokens: list[int], context: float, batch: int, complaint: str
) -> None:
    with pytest.raises(SequoiaError, match=complaint):
        make_profile().target.at(tokens, context, batch)


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


def test_a_profile_without_single_sequences_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "profile.yaml"
    profile = make_profile()
    for place in profile.draft.curves:
        place.batch = 4
    profile.save(path)
    with pytest.raises(SequoiaError, match="draft: latency: no curve of batch 1"):
        LatencyProfile.load(path)


def test_file_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "profile.yaml"
    profile = make_profile()
    profile.extra = {"unknown": 1}
    profile.target.extra = {"note": "kept"}
    profile.draft.curves[0].extra = {"unknown": [1, 2]}
    profile.overhead["greedy"].extra["unknown"] = "kept"
    profile.save(path)
    assert LatencyProfile.load(path).document() == profile.document()


@pytest.mark.parametrize(
    ("where", "value", "complaint"),
    [
        (("target",), None, "target: found None, expected a mapping"),
        (("target", "latency"), [], "latency: found"),
        (("target", "latency", 0, "tokens"), [1, 1, 2], "tokens: found"),
        (("target", "latency", 0, "tokens"), [1, 2], "median_ms: found"),
        (("target", "latency", 0, "median_ms", 2), "fast", r"median_ms\[2\]: found 'fast'"),
        (("target", "latency", 0, "median_ms", 2), 0, "median_ms: found"),
        (("draft", "latency", 0, "batch"), 0, "batch: found 0"),
        (("overhead", "greedy", "constant_ms"), ".nan", "constant_ms: found"),
        (("overhead",), 3, "overhead: found 3"),
    ],
)
def test_refuses_malformed_files(
    tmp_path: Path, where: tuple[str | int, ...], value: object, complaint: str
) -> None:
    path = tmp_path / "profile.yaml"
    make_profile().save(path)
    document = yaml.safe_load(path.read_text())
    inner = document
    for key in where[:-1]:
        inner = inner[key]
    inner[where[-1]] = value
    path.write_text(yaml.safe_dump(document))
    with pytest.raises(SequoiaError, match=complaint) as caught:
        LatencyProfile.load(path)
    assert str(path) in str(caught.value)

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from recordings import make_recording, of_head

from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan.confidence import Confidence
from sequoia_opt.plan.confidence_fit import fit_confidence
from sequoia_opt.plan.growth import Growth
from sequoia_opt.plan.policy import Pause, Policy
from sequoia_opt.plan.policy_replay import Counts, PolicyReplay
from sequoia_opt.plan.recording import Recording


def random_policy(
    generator: np.random.Generator, confidence: Confidence, levels: int, slots: int
) -> Policy:
    widths = [width for width in range(1, slots + 1) if width == 1 or generator.random() < 0.6]
    sizes = sorted({1, *generator.integers(2, 14, generator.integers(1, 5)).tolist()})
    pause = None
    if generator.random() < 0.7:
        steps = tuple(generator.integers(1, 6, generator.integers(1, 4)).tolist())
        pause = Pause(int(generator.integers(1, 4)), steps)
    thresholds = generator.choice([0.0, 0.05, 0.1, 0.3, 0.5, 0.9], len(widths))
    return Policy(
        confidence,
        depth=int(generator.integers(1, levels + 1)),
        ranks=int(generator.integers(1, confidence.ranks + 1)),
        expand=tuple(zip(widths, thresholds.tolist(), strict=True)),
        first=float(generator.choice([0.2, 0.2, 0.2, 1.0])),
        offer=float(generator.choice([0.0, 0.02, 0.1, 0.3, 0.6])),
        sizes=tuple(sizes),
        pause=pause,
    )


def grown_step(
    recording: Recording, policy: Policy, position: int, fill: bool
) -> tuple[int, int, list[int], int]:
    """Accepted guesses, size, widths and accepted guesses that the draft lacks, by `Growth`."""
    growth = Growth(policy)
    rows = recording.probabilities[position].astype(np.float64)
    expanded: set[int] = set()
    while nodes := growth.next_level():
        level = len(growth.widths)
        first = 0 if level == 0 else 1 + (level - 1) * recording.slots
        growth.add(nodes, rows[first : first + len(nodes)].tolist())
        expanded.update(nodes)
    tree = growth.finish(fill)
    children = {(growth.parents[node], growth.ranks[node]): node for node in tree.nodes}
    end = next(stop for stop in recording.starts[1:] if stop > position)
    node, accepted = 0, 0
    ranks = recording.ranks[position:end]
    if recording.path_ranks is not None:
        ranks = recording.path_ranks[position]
    for rank in ranks.tolist():
        if (node, rank) not in children:
            break
        node = children[node, rank]
        accepted += 1
    lacks = accepted if recording.is_of_head else int(node != 0 and node not in expanded)
    return accepted, tree.size, growth.widths, lacks


def simulated(recording: Recording, policy: Policy, fill: bool) -> list[Counter[tuple[str, int]]]:
    """The counts of each document, by decoding it step by step."""
    documents = []
    for start, end in zip(
        recording.starts[:-1].tolist(), recording.starts[1:].tolist(), strict=True
    ):
        counts: Counter[tuple[str, int]] = Counter()
        root, misses, paused, pauses, lacks, size_before = start, 0, 0, 0, 0, 0
        while root + policy.depth + 1 <= end:
            counts["steps", 0] += 1
            if paused:
                paused -= 1
                lacks += 1
                root += 1
                counts["tokens", 0] += 1
                counts["sizes", 1] += 1
                counts["levels", 0] += 1
                counts["changes", 0] += size_before != 1
                size_before = 1
                continue
            accepted, size, widths, lacking = grown_step(recording, policy, root, fill)
            counts["changes", 0] += size_before not in (0, size)
            size_before = size
            counts["tokens", 0] += accepted + 1
            counts["sizes", size] += 1
            counts["levels", len(widths)] += 1
            if widths:
                counts["first", lacks] += 1
            for width in widths[1:]:
                counts["widths", width] += 1
            lacks = lacking
            root += accepted + 1
            if accepted:
                misses = pauses = 0
            else:
                misses += 1
                if policy.pause is not None and misses >= policy.pause.misses:
                    paused = policy.pause.steps[min(pauses, len(policy.pause.steps) - 1)]
                    pauses += 1
        documents.append(+counts)  # without zeros
    return documents


def as_counters(counts: Counts) -> list[Counter[tuple[str, int]]]:
    documents = []
    for document in range(len(counts.steps)):
        counter: Counter[tuple[str, int]] = Counter()
        for name in ("sizes", "widths", "first", "levels"):
            for value, count in enumerate(getattr(counts, name)[document].tolist()):
                if count:
                    counter[name, value] = count
        for name in ("tokens", "steps", "changes"):
            if count := int(getattr(counts, name)[document]):
                counter[name, 0] = count
        documents.append(counter)
    return documents


@pytest.mark.parametrize(("seed", "head"), [(seed, seed > 5) for seed in range(9)])
def test_each_position_and_each_document_are_as_growth_has_them(seed: int, head: bool) -> None:
    generator = np.random.default_rng(seed)
    levels, slots, ranks = (int(n) for n in generator.integers([1, 1, 2], [6, 5, 5]))
    slots = min(slots, ranks)
    recording = make_recording([40, 0, 3, 25, 0], levels, slots, ranks, seed=seed)
    recording = of_head(recording, seed) if head else recording
    confidence = fit_confidence(recording).confidence
    replay = PolicyReplay(recording, confidence)
    for _ in range(25):
        policy = random_policy(generator, confidence, levels, slots if levels > 1 else 1)
        for fill in (False, True):
            steps = replay.steps(policy, fill)
            for position in range(len(recording.ranks)):
                accepted, size, widths, lacks = grown_step(recording, policy, position, fill)
                assert steps.accepted[position] == accepted
                assert steps.sizes[position] == size
                assert [w for w in steps.widths[position] if w] == widths
                assert steps.leaves_behind[position] == lacks
            counts = replay.replay(policy, fill)
            assert as_counters(counts) == simulated(recording, policy, fill)


def test_ties_are_resolved_as_growth_does() -> None:
    """A calibration of one rate: all guesses of a level are alike."""
    recording = make_recording([60], levels=4, slots=4, ranks=4)
    confidence = Confidence((0.5,), (((0.5, 0.5),) * 4,))
    replay = PolicyReplay(recording, confidence)
    for sizes in ((1, 4), (1, 7), (1, 12), (1, 30)):
        policy = Policy(confidence, 4, 4, ((1, 0.1), (2, 0.6), (4, 1.2)), 0.0, 0.25, sizes)
        for position in range(60):
            accepted, size, _, _ = grown_step(recording, policy, position, True)
            steps = replay.steps(policy, True)
            assert (steps.accepted[position], steps.sizes[position]) == (accepted, size)


def test_a_policy_past_what_was_recorded_is_refused() -> None:
    recording = make_recording([30], levels=2, slots=2)
    confidence = fit_confidence(recording).confidence
    replay = PolicyReplay(recording, confidence)
    policy = Policy(confidence, 3, 4, ((1, 0.1),), 0.5, 0.1, (1, 4))
    with pytest.raises(SequoiaError, match="drafts up to 3 levels, the recording has 2"):
        replay.replay(policy, True)
    wide = replace(policy, depth=2, expand=((1, 0.1), (4, 0.2)))
    with pytest.raises(SequoiaError, match="drafts up to 4 nodes a level, the recording has 2"):
        replay.replay(wide, True)
    other = replace(policy, confidence=Confidence((0.5,), (((0.5, 0.5),) * 4,)))
    with pytest.raises(SequoiaError, match="another calibration"):
        replay.replay(other, True)
    with pytest.raises(SequoiaError, match="has 1 ranks, the recording 4"):
        PolicyReplay(recording, Confidence((0.5,), (((0.5, 0.5),),)))


def test_passes_that_no_step_has_are_counted_as_none() -> None:
    """So that whoever looks for one of a policy's widths or sizes finds a zero."""
    recording = make_recording([40, 30], levels=3, seed=2)
    confidence = Confidence((), (((0.4,), (0.3,), (0.0,), (0.0,)),))
    policy = Policy(confidence, 2, 2, ((1, 0.0), (4, 9.0)), 0.0, 0.2, (1, 3, 20))
    counts = PolicyReplay(recording, confidence).replay(policy, fill=False)
    assert counts.sizes.shape == (2, 21)
    assert counts.widths.shape == (2, 5)
    assert not counts.widths[:, 2:].any()

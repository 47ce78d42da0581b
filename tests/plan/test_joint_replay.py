from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from recordings import make_recording
from test_policy_replay import as_counters, grown_step, random_policy

from sequoia_opt.plan.confidence_fit import fit_confidence
from sequoia_opt.plan.growth import Growth
from sequoia_opt.plan.joint_replay import JointReplay
from sequoia_opt.plan.pause import PauseState
from sequoia_opt.plan.policy import LookupFirst, Policy
from sequoia_opt.plan.recording import Recording

LENGTHS = [60, 3, 45, 0]


def joint_recording(seed: int, levels: int, slots: int, ranks: int) -> Recording:
    """A model's drafts, and those of something else in the lookup's place that the text follows
    as well."""
    model = make_recording(LENGTHS, levels, slots, ranks, seed=seed)
    other = make_recording(LENGTHS, 5, 2, 3, seed=seed + 100, sureness=0.5)
    return replace(model, lookup=other)


def joint_policy(random: np.random.Generator, model: Policy, lookup: Policy) -> Policy:
    lookup = replace(lookup, pause=None, first=0.0)
    worth = tuple((size, float(random.choice([0.0, 0.3, 0.6, 1.0]))) for size in lookup.sizes[1:])
    return replace(model, lookup=LookupFirst(lookup, worth))


def lookup_growth(recording: Recording, policy: Policy, position: int) -> Growth:
    growth = Growth(policy)
    rows = recording.probabilities[position].astype(np.float64)
    while nodes := growth.next_level():
        level = len(growth.widths)
        first = 0 if level == 0 else 1 + (level - 1) * recording.slots
        growth.add(nodes, rows[first : first + len(nodes)].tolist())
    return growth


def simulated(recording: Recording, policy: Policy, fill: bool) -> list[list[Counter[tuple]]]:
    """The counts of each document, of the model's steps and the lookup's, step by step."""
    assert recording.lookup is not None
    assert policy.lookup is not None
    lookup, rule = recording.lookup, policy.lookup
    documents: list[list[Counter[tuple]]] = []
    for start, end in zip(recording.starts[:-1], recording.starts[1:], strict=True):
        drafted: Counter[tuple] = Counter()
        looked_up: Counter[tuple] = Counter()
        root, cached, pause = int(start), int(start), PauseState()
        passed_over, sizes = 0, []
        while root + max(policy.depth, rule.policy.depth) + 1 <= end:
            growth = lookup_growth(lookup, rule.policy, root)
            passed_over += 0 if rule.takes(growth.offered, growth.expected) else len(growth.widths)
            if rule.takes(growth.offered, growth.expected):
                accepted, size, widths, _ = grown_step(lookup, rule.policy, root, True)
                count(looked_up, accepted, size, widths, 0)
            elif pause.plain:
                accepted, size = 0, 1
                count(drafted, 0, 1, [], 0)
                pause = pause.after(0, policy.pause)
            else:
                accepted, size, widths, is_behind = grown_step(recording, policy, root, fill)
                count(drafted, accepted, size, widths, root - cached)
                if widths:
                    cached = root + 1 + accepted - is_behind
                pause = pause.after(accepted, policy.pause)
            root += accepted + 1
            sizes.append(size)
        drafted["changes", 0] = sum(a != b for a, b in pairwise(sizes))
        documents.append([+drafted, looked_up, Counter({("levels", 0): passed_over})])
    return documents


def count(counts: Counter[tuple], accepted: int, size: int, widths: list[int], behind: int) -> None:
    counts["steps", 0] += 1
    counts["tokens", 0] += accepted + 1
    counts["sizes", size] += 1
    counts["levels", len(widths)] += 1
    if widths:
        counts["first", behind] += 1
    for width in widths[1:]:
        counts["widths", width] += 1


@pytest.mark.parametrize("seed", range(6))
def test_each_document_is_as_its_simulation_step_by_step(seed: int) -> None:
    random = np.random.default_rng(seed)
    levels, slots, ranks = (int(n) for n in random.integers([1, 1, 2], [6, 5, 5]))
    slots = min(slots, ranks)
    recording = joint_recording(seed, levels, slots, ranks)
    assert recording.lookup is not None
    model, lookup = (fit_confidence(r).confidence for r in (recording, recording.lookup))
    shares = []
    for _ in range(25):
        policy = joint_policy(
            random,
            random_policy(random, model, levels, slots if levels > 1 else 1),
            random_policy(random, lookup, 5, 2),
        )
        for fill in (False, True):
            counts = JointReplay.of(recording, policy).replay(policy, fill)
            expected = simulated(recording, policy, fill)
            assert as_counters(counts.model) == [of[0] for of in expected]
            assert as_counters(counts.lookup) == [of[1] for of in expected]
            assert counts.passed_over.tolist() == [of[2]["levels", 0] for of in expected]
            assert counts.steps.tolist() == counts.sizes.sum(axis=1).tolist()
            assert counts.steps.tolist() == counts.levels.sum(axis=1).tolist()
            shares.append(counts.looked_up)
    assert min(shares) < 0.3 < max(shares)


def test_a_lookup_that_is_never_worth_it_leaves_the_model_s_own_walk() -> None:
    random = np.random.default_rng(1)
    recording = joint_recording(1, 5, 2, 3)
    assert recording.lookup is not None
    model, lookup = (fit_confidence(r).confidence for r in (recording, recording.lookup))
    own = random_policy(random, model, 5, 2)
    other = replace(random_policy(random, lookup, 5, 2), pause=None, first=0.0, depth=own.depth)
    worth = tuple((size, 99.0) for size in other.sizes[1:])
    policy = replace(own, lookup=LookupFirst(other, worth))
    replay = JointReplay.of(recording, policy)
    counts = replay.replay(policy, True)
    alone = replay.model.replay(own, True)
    assert counts.looked_up == 0
    assert as_counters(counts.model) == as_counters(alone)

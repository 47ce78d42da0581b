"""Made-up recordings of a draft that is too sure of itself, and text in which it is sure or not."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.confidence_fit import fit_confidence
from sequoia_opt.plan.recording import Recording, slots_of
from sequoia_opt.plan.text_paths import text_ranks
from sequoia_opt.types import FloatArray


def make_recording(
    lengths: list[int],
    levels: int = 4,
    slots: int = 4,
    ranks: int = 4,
    seed: int = 0,
    sureness: float = 1.0,
    truth: float = 2.0,
) -> Recording:
    """Drafts of a text whose difficulty changes slowly.

    A position's first guess has a probability p that depends on its difficulty; the target
    accepts it with probability p ** truth, and each later guess with what its own share of the
    rest is. What the draft says on the path that verification follows is what it says of the text.

    Args:
        lengths: of the documents.
        sureness: how sure the draft is on the whole.
    """
    generator = np.random.default_rng(seed)
    said = np.concatenate([_said(generator, length, ranks, sureness) for length in lengths])
    said = said.astype(np.float16).astype(np.float64)
    true = said**truth
    draws = generator.random(len(said))
    passed = (draws[:, None] >= np.cumsum(true, axis=1)).sum(axis=1)
    accepted = np.where(passed < ranks, passed + 1, 0).astype(np.uint8)
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ends = np.repeat(starts[1:], lengths)
    probabilities = np.zeros((len(said), 1 + (levels - 1) * slots, ranks), np.float16)
    origins = np.zeros((len(said), levels - 1, slots), np.uint8)
    for position in range(len(said)):
        _grow(probabilities[position], origins[position], position, ends, said, accepted, generator)
    return Recording(probabilities, origins, accepted, starts, {"target": "t", "draft": "d"})


def of_head(recording: Recording, seed: int = 0) -> Recording:
    """The recording as a head's: at a part of its nodes the text takes another rank than `ranks`
    says of their token as a root."""
    generator = np.random.default_rng(seed)
    ranks = np.stack(text_ranks(recording), axis=1)
    others = generator.integers(0, recording.width_of_node + 1, ranks.shape)
    ends = np.repeat(recording.starts[1:], np.diff(recording.starts))
    is_decided = np.arange(len(ranks))[:, None] + np.arange(recording.levels) < ends[:, None]
    changed = is_decided & (generator.random(ranks.shape) < 0.3)
    along = np.where(changed, others, ranks).astype(np.uint8)
    return replace(recording, path_ranks=along, about={**recording.about, "passes": "head"})


def measured(recording: Recording, **fields: Any) -> Acceptance:
    """The acceptance that goes with a recording."""
    ranks = range(1, recording.width_of_node + 1)
    traces = [recording.ranks[a:b].tolist() for a, b in pairwise(recording.starts)]
    return Acceptance(
        np.array([float((recording.ranks == rank).mean()) for rank in ranks]),
        traces=traces,
        context=300,
        verifier="greedy",
        confidence=fit_confidence(recording, "a.npz"),
        **fields,
    )


def _said(generator: np.random.Generator, length: int, ranks: int, sureness: float) -> FloatArray:
    """What the draft says at each position of a document, [length, ranks], in order."""
    steps = generator.normal(0, 0.8, length)
    logits = np.zeros(length)
    level = generator.normal(0, 1)
    for position, step in enumerate(steps):
        level = 0.7 * level + step
        logits[position] = level
    first = 1 / (1 + np.exp(-(sureness + 1.5 * logits)))
    shares = np.sort(generator.dirichlet(np.ones(ranks + 1), length)[:, :ranks], axis=1)[:, ::-1]
    rest = np.minimum(shares[:, : ranks - 1] * (1 - first)[:, None], first[:, None])
    return np.concatenate([first[:, None], rest], axis=1)


def _grow(
    probabilities: FloatArray,
    origins: FloatArray,
    position: int,
    ends: FloatArray,
    said: FloatArray,
    accepted: FloatArray,
    generator: np.random.Generator,
) -> None:
    """Record the tree that is drafted at a position."""
    levels, slots = origins.shape[0] + 1, origins.shape[1]
    ranks = said.shape[1]
    rows, products = said[[position]], [1.0]
    probabilities[0] = rows[0]
    paths: list[tuple[int, ...]] = [()]
    text = tuple(int(rank) for rank in accepted[position : min(ends[position], position + levels)])
    for level in range(1, levels):
        chosen = slots_of(rows, products, slots)
        paths = [(*paths[guess // ranks], 1 + guess % ranks) for guess in chosen]
        products = [
            products[guess // ranks] * float(rows[guess // ranks, guess % ranks])
            for guess in chosen
        ]
        others = generator.integers(0, len(said), len(chosen))
        here = position + level
        goes_on = here < ends[position]
        nodes = [
            here if goes_on and path == text[:level] else int(other)
            for path, other in zip(paths, others, strict=True)
        ]
        rows = said[nodes]
        first = 1 + (level - 1) * slots
        probabilities[first : first + len(chosen)] = rows
        origins[level - 1, : len(chosen)] = chosen

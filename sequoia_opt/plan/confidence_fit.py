"""Fits the calibration of the draft's probabilities to recorded drafts.

It is fitted to every other document of a recording, and its reliability is measured on the rest:
what it predicts there beside what was accepted. Knows nothing of policies or times.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import Any

import numpy as np

from sequoia_opt.errors import SequoiaError
from sequoia_opt.files.documents import rounded
from sequoia_opt.files.fields import Fields
from sequoia_opt.plan.confidence import Confidence
from sequoia_opt.plan.recording import Recording
from sequoia_opt.plan.text_paths import path_slots, text_ranks
from sequoia_opt.plan.tree import IntArray
from sequoia_opt.types import FloatArray

DEPTH_CLASSES = 3  # depth 1, depth 2, and all deeper ones
FIRST_RANK_EDGES, LATER_RANK_EDGES = 8, 6  # of the bins, at most
POOLED_ACROSS_RANKS = 10.0  # events that a rank's own rates are shrunk by towards all ranks'
POOLED_ACROSS_DEPTHS = 50.0  # events that a depth's own rates are shrunk by towards all depths'
RELIABILITY_BINS = 10  # of predicted acceptance, equally wide
DIGITS = 4  # of a number in a file
RATE_DIGITS = 3  # decimals of a calibrated rate
CLOSEST_EDGES = 0.15  # difference of two edges' logits


@dataclass(frozen=True)
class Reliability:
    """How well predicted acceptance agrees with what was accepted on other documents.

    Attributes:
        predicted, accepted: [bins], the mean prediction of the guesses whose prediction is in a
            bin, and the share of them that was accepted.
        guesses: [bins], how many they are.
    """

    predicted: tuple[float, ...]
    accepted: tuple[float, ...]
    guesses: tuple[int, ...]

    @property
    def error(self) -> float:
        """Expected calibration error: the mean of |predicted - accepted| over all guesses."""
        total = sum(self.guesses)
        rows = zip(self.predicted, self.accepted, self.guesses, strict=True)
        return sum(abs(p - a) * count for p, a, count in rows) / total if total else 0.0

    @classmethod
    def of(cls, predicted: FloatArray, accepted: FloatArray) -> Reliability:
        """The reliability of predictions, [guesses], of what was accepted, [guesses], 0 or 1."""
        bins = np.minimum((predicted * RELIABILITY_BINS).astype(np.int64), RELIABILITY_BINS - 1)
        counts = np.bincount(bins, minlength=RELIABILITY_BINS)
        filled = np.flatnonzero(counts)
        means = [
            np.bincount(bins, weights, RELIABILITY_BINS)[filled] / counts[filled]
            for weights in (predicted, accepted)
        ]
        return cls(
            tuple(rounded(means[0].tolist(), DIGITS)),
            tuple(rounded(means[1].tolist(), DIGITS)),
            tuple(counts[filled].tolist()),
        )


@dataclass(frozen=True)
class FittedConfidence:
    """A calibration with where it comes from and how reliable it is.

    Attributes:
        confidence: the calibration, fitted to the recording's documents 1, 3, 5, …
        reliability: of the calibration, on the other documents.
        draft_error: expected calibration error of the draft's own probabilities there.
        recording: name of the recording's file, in the folder of the acceptance file.
        fingerprint: of the recording's content.
    """

    confidence: Confidence
    reliability: Reliability
    draft_error: float
    recording: str
    fingerprint: str

    def document(self) -> dict[str, Any]:
        """Its section of an acceptance file."""
        return {
            "recording": self.recording,
            "fingerprint": self.fingerprint,
            **self.confidence.document(),
            "reliability": {
                "predicted": list(self.reliability.predicted),
                "accepted": list(self.reliability.accepted),
                "guesses": list(self.reliability.guesses),
                "error": rounded(self.reliability.error, DIGITS),
                "draft_error": rounded(self.draft_error, DIGITS),
            },
        }

    @classmethod
    def from_fields(cls, fields: Fields) -> FittedConfidence:
        """Read it from an acceptance file.

        Raises:
            SequoiaError: it is malformed; the message names file and field.
        """
        section = fields.section("reliability")
        predicted, accepted = (
            tuple(section.numbers(name, 0.0, 1.0).tolist()) for name in ("predicted", "accepted")
        )
        guesses = tuple(section.integers("guesses", 1))
        if not len(predicted) == len(accepted) == len(guesses):
            raise SequoiaError(
                f"{section.where}: found lists of {len(predicted)}, {len(accepted)} and "
                f"{len(guesses)} bins, expected the same number in each"
            )
        return cls(
            confidence=Confidence.from_fields(fields),
            reliability=Reliability(predicted, accepted, guesses),
            draft_error=section.number("draft_error", 0.0, 1.0, default=0.0),
            recording=fields.text("recording", ""),
            fingerprint=fields.text("fingerprint", ""),
        )


def fitting_documents(recording: Recording) -> range:
    """The documents that calibrations and policies are fitted to."""
    return range(0, recording.documents, 2)


def held_out_documents(recording: Recording) -> range:
    """The documents that predictions are made on; all of them where there is only one."""
    return range(1, recording.documents, 2) or range(recording.documents)


def fit_confidence(recording: Recording, name: str = "") -> FittedConfidence:
    """Fit the calibration.

    Args:
        name: of the recording's file.
    """
    confidence = _fitted(recording.of_documents(fitting_documents(recording)))
    held_out = recording.of_documents(held_out_documents(recording))
    probabilities, accepted, depths = _events(held_out)
    predicted, outcomes = [], []
    for depth in range(1, DEPTH_CLASSES + 1):
        of_depth = depths == depth
        exists = probabilities[of_depth] > 0
        predicted.append(confidence.of_many(depth, probabilities[of_depth])[exists])
        outcomes.append(accepted[of_depth][exists])
    exists = probabilities > 0
    by_draft = Reliability.of(probabilities[exists], accepted[exists])
    return FittedConfidence(
        confidence=confidence,
        reliability=Reliability.of(np.concatenate(predicted), np.concatenate(outcomes)),
        draft_error=rounded(by_draft.error, DIGITS),
        recording=name,
        fingerprint=recording.fingerprint,
    )


def _events(recording: Recording) -> tuple[FloatArray, FloatArray, IntArray]:
    """What the draft said of nodes that verification reached, and what was accepted.

    The node that verification reaches at depth j of a tree at position i is the text's own token
    there: its probabilities are those of the first level at position i + j. A position at which
    an accepted run is n tokens long is such a node at the depths 0 to n; it counts once in each
    class of depths. A head's probabilities are those of that tree's own node instead, since they
    depend on where the step began.

    Returns:
        probabilities: [events, K], 0 where there is no guess.
        accepted: [events, K], 1 for the guess that was accepted.
        depths: [events], of the guesses, from 1 to `DEPTH_CLASSES`.
    """
    if recording.is_of_head:
        return _own_events(recording)
    positions = np.arange(len(recording.ranks))
    begins = np.zeros(len(positions), dtype=bool)
    begins[recording.starts[:-1][np.diff(recording.starts) > 0]] = True
    begins[1:] |= recording.ranks[:-1] == 0
    runs = positions - np.maximum.accumulate(np.where(begins, positions, 0))
    nodes = [np.flatnonzero(runs >= depth) for depth in range(DEPTH_CLASSES)]
    chosen = np.concatenate(nodes)
    ranks = np.arange(1, recording.width_of_node + 1)
    return (
        recording.level(0)[chosen, 0],
        (recording.ranks[chosen, None] == ranks).astype(np.float64),
        np.repeat(np.arange(1, DEPTH_CLASSES + 1), [len(part) for part in nodes]),
    )


def _own_events(recording: Recording) -> tuple[FloatArray, FloatArray, IntArray]:
    """The events of trees whose nodes say something else than their token as a root would."""
    text, ranks = text_ranks(recording), np.arange(1, recording.width_of_node + 1)
    positions = np.arange(len(recording.ranks))
    ends = np.repeat(recording.starts[1:], np.diff(recording.starts))
    probabilities, accepted, depths = [], [], []
    for level, slots in enumerate(path_slots(recording, text)):
        reached = np.flatnonzero((slots >= 0) & (positions + level < ends))
        probabilities.append(recording.level(level)[reached, slots[reached]])
        accepted.append((text[level][reached, None] == ranks).astype(np.float64))
        depths.append(np.full(len(reached), min(level + 1, DEPTH_CLASSES)))
    return np.concatenate(probabilities), np.concatenate(accepted), np.concatenate(depths)


def _fitted(recording: Recording) -> Confidence:
    probabilities, accepted, depths = _events(recording)
    first = depths == 1
    edges = _edges(probabilities[first], accepted[first])
    bins = np.searchsorted(edges, probabilities, side="right")
    ranks, count = probabilities.shape[1], len(edges) + 1
    cells = ((depths[:, None] - 1) * ranks + np.arange(ranks)) * count + bins
    shape = (DEPTH_CLASSES, ranks, count)
    size = DEPTH_CLASSES * ranks * count
    exists = (probabilities > 0).ravel()
    guesses = np.bincount(cells.ravel(), exists, size).reshape(shape)
    hits = np.bincount(cells.ravel(), accepted.ravel(), size).reshape(shape)
    # A position counts in several classes of depths; the rates for all depths count it once.
    of_all = _filled(hits[0].sum(axis=0), guesses[0].sum(axis=0))
    of_rank = [
        _monotone(hits[0][rank], guesses[0][rank], of_all, POOLED_ACROSS_RANKS)
        for rank in range(ranks)
    ]
    table = [
        [
            _monotone(hits[depth][rank], guesses[depth][rank], of_rank[rank], POOLED_ACROSS_DEPTHS)
            for rank in range(ranks)
        ]
        for depth in range(DEPTH_CLASSES)
    ]
    rates = np.minimum.accumulate(np.round(table, RATE_DIGITS), axis=1)
    return Confidence(
        tuple(edges.tolist()),
        tuple(tuple(tuple(row) for row in by_rank) for by_rank in rates.tolist()),
    )


def _edges(probabilities: FloatArray, accepted: FloatArray) -> FloatArray:
    """Where bins end: quantiles of the first rank's probabilities, and of later ranks' accepted.

    Args:
        probabilities, accepted: [events, K].
    """
    firsts = probabilities[:, 0]
    samples = [(firsts[firsts > 0], FIRST_RANK_EDGES)]
    later = probabilities[:, 1:][accepted[:, 1:] > 0]
    samples.append((later, LATER_RANK_EDGES))
    edges: set[float] = set()
    for values, count in samples:
        if len(values):
            shares = np.arange(1, count + 1) / (count + 1)
            edges |= {_readable(float(edge)) for edge in np.quantile(values, shares)}
    apart: list[float] = []
    for edge in sorted(edge for edge in edges if 0 < edge < 1):
        if not apart or _logit(edge) - _logit(apart[-1]) >= CLOSEST_EDGES:
            apart.append(edge)
    return np.array(apart or [0.5])


def _readable(edge: float) -> float:
    """A probability with two significant digits of itself or, above a half, of what is missing."""
    return float(rounded(edge, 2) if edge <= 0.5 else round(1 - rounded(1 - edge, 2), 6))


def _logit(probability: float) -> float:
    return log(probability / (1 - probability))


def _filled(hits: FloatArray, guesses: FloatArray) -> FloatArray:
    """The rate in each bin; in one without guesses, in between those of its neighbours.

    A bin in which all or none were accepted is not certain: by Krichevsky and Trofimov, one guess
    that was half accepted is added.
    """
    known = np.flatnonzero(guesses)
    if not len(known):
        return np.zeros(len(guesses))
    return np.interp(np.arange(len(guesses)), known, (hits[known] + 0.5) / (guesses[known] + 1))


def _monotone(
    hits: FloatArray, guesses: FloatArray, towards: FloatArray, strength: float
) -> FloatArray:
    """Rates that do not fall from bin to bin: shrunk, then fitted by least squares.

    Args:
        hits, guesses: [bins].
        towards: [bins], what the rates are shrunk towards.
        strength: how many guesses `towards` counts as.
    """
    weights = guesses + strength
    rates = (hits + strength * towards) / weights
    return _isotonic(rates, weights)


def _isotonic(values: FloatArray, weights: FloatArray) -> FloatArray:
    """The non-decreasing sequence nearest to `values` (pool adjacent violators).

    Barlow, Bartholomew, Bremner and Brunk, Statistical Inference under Order Restrictions (1972).
    """
    blocks: list[tuple[float, float, int]] = []  # mean, weight, number of values
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        block = (value, weight, 1)
        while blocks and blocks[-1][0] >= block[0]:
            mean, total, count = blocks.pop()
            both = total + block[1]
            block = ((mean * total + block[0] * block[1]) / both, both, count + block[2])
        blocks.append(block)
    means, _, counts = zip(*blocks, strict=True)
    return np.repeat(np.array(means), counts)

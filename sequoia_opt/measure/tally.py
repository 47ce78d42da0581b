"""What has been sampled of each document, and the acceptance rates that follow from it.

Knows sums, counts and traces. Knows nothing of models, nor of where the samples come from.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.rate_fit import bootstrap_rates, fit_monotone
from sequoia_opt.plan.recording import Recording
from sequoia_opt.plan.sampling import Sampling
from sequoia_opt.types import FloatArray

MIN_POSITIONS_PER_DEPTH = 100
"""Positions that a depth needs before it gets rates of its own."""


@dataclass
class Tally:
    """The samples of one document under one verifier.

    Row d of the tables holds the positions that follow exactly d accepted tokens in a row; the
    last row holds the positions that follow that many or more.

    Attributes:
        sums: [depths, W], acceptance probability by rank, summed over the positions.
        counts: [depths], number of positions.
        trace: the accepted rank at every position, 0 where none was accepted.
        context: sum over the positions of their context length.
        run: accepted tokens in a row up to now.
        recording: what the draft said in this document, if it was recorded.
        paths: of a head on the target, [depths, positions]: the rank of the token d behind each
            position in a step that begins there, for d from 0; 0 if none was accepted up to it,
            and past the end. Its acceptance by depth follows from them; None otherwise.
    """

    sums: FloatArray
    counts: FloatArray
    trace: list[int] = field(default_factory=list)
    context: float = 0.0
    run: int = 0
    recording: Recording | None = None
    paths: list[list[int]] | None = None

    @classmethod
    def empty(cls, depths: int, width: int) -> Tally:
        """A tally without samples."""
        return cls(np.zeros((depths, width)), np.zeros(depths))

    def record(
        self, probabilities: FloatArray, ranks: Sequence[int], contexts: Sequence[int]
    ) -> None:
        """Add consecutive positions.

        Args:
            probabilities: [positions, W], acceptance probability by rank.
            ranks: the accepted rank at each position, 0 for none.
            contexts: the context length at each position.
        """
        depths = []
        for rank in ranks:
            depths.append(min(self.run, len(self.counts) - 1))
            self.run = self.run + 1 if rank else 0
        is_at_depth = np.equal.outer(np.arange(len(self.counts)), depths).astype(float)
        self.sums += is_at_depth @ probabilities
        self.counts += is_at_depth.sum(axis=1)
        self.trace += ranks
        self.context += sum(contexts)

    def reached(self) -> tuple[FloatArray, FloatArray]:
        """The sums [depths, W] and counts [depths] of what verification reaches at each depth."""
        if self.paths is None:
            # A node at depth d is reached after at least d - 1 accepted tokens, wherever these
            # began.
            return _with_larger_depths(self.sums), _with_larger_depths(self.counts)
        paths = np.array(self.paths, np.int64).reshape(len(self.paths), -1)
        depths, positions = paths.shape
        is_reached = np.add.outer(np.arange(depths), np.arange(positions)) < positions
        is_reached[1:] &= np.logical_and.accumulate(paths[:-1] > 0, axis=0)
        is_rank = paths[:, :, None] == np.arange(1, self.sums.shape[1] + 1)
        sums = (is_rank & is_reached[:, :, None]).sum(axis=1)
        return sums.astype(np.float64), is_reached.sum(axis=1).astype(np.float64)

    def document(self) -> dict[str, Any]:
        """The tally as a mapping, for a journal."""
        values = asdict(replace(self, recording=None))
        if self.recording is not None:
            values["recording"] = b64encode(self.recording.content()).decode()
        return values

    def restore(self, values: Mapping[str, Any]) -> None:
        """Take over what `document` returned.

        Raises:
            TypeError, ValueError, LookupError: the mapping is not one of a tally of this shape.
        """
        self.sums[:], self.counts[:] = values["sums"], values["counts"]
        self.trace[:] = values["trace"]
        self.context, self.run = values["context"], values["run"]
        self.paths = values["paths"]
        self.recording = None
        if (content := values.get("recording")) is not None:
            try:
                self.recording = Recording.of_content(b64decode(content), "recording")
            except SequoiaError as error:
                raise ValueError(str(error)) from None


def acceptance_of(
    tallies: Sequence[Tally],
    sampling: Sampling,
    verifier: str,
    *,
    target: str,
    draft: str,
    dataset: str,
    extra: Mapping[str, Any],
) -> Acceptance:
    """Acceptance rates with 95% intervals, by depth where the tallies tell depths apart.

    Args:
        tallies: one per document.
        verifier: name of the verifier that decided, "greedy" at temperature 0.
        target, draft, dataset: names for the file.
        extra: further fields of the file.

    Raises:
        SequoiaError: no position was sampled.
    """
    positions = sum(len(tally.trace) for tally in tallies)
    if not positions:
        raise SequoiaError(f"{dataset}: the target ended every document with its first token")
    reached = [tally.reached() for tally in tallies]
    sums = np.stack([table for table, _ in reached])  # [documents, depths, W]
    counts = np.stack([numbers for _, numbers in reached])  # [documents, depths]
    paths = [tally.paths for tally in tallies if tally.paths is not None]
    measured_depths = int((counts.sum(axis=0) >= MIN_POSITIONS_PER_DEPTH).sum())
    by_depth = [_rates_of(sums[:, d], counts[:, d]) for d in range(max(1, measured_depths))]
    tells_depths_apart = sums.shape[1] > 1
    first = by_depth[0]
    return Acceptance(
        rates=first.rates,
        low=first.low,
        high=first.high,
        by_depth=np.stack([row.rates for row in by_depth]) if tells_depths_apart else None,
        traces=[tally.trace for tally in tallies],
        traces_by_depth=paths,
        positions=positions,
        target=target,
        draft=draft,
        dataset=dataset,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        verifier=verifier,
        fit=first.fit,
        measured=None if first.fit == "raw" else first.measured,
        context=sum(tally.context for tally in tallies) / positions,
        extra=dict(extra),
    )


def _with_larger_depths(table: FloatArray) -> FloatArray:
    """Each depth of [depths, …], and all larger depths with it."""
    return np.asarray(table[::-1].cumsum(axis=0)[::-1])


class _Rates(NamedTuple):
    """Acceptance by rank at one depth, each array [W].

    Attributes:
        rates: the rates to plan with.
        fit: how these were made from the measured ones, see `fit_monotone`.
        low, high: the measured rates' 95% interval.
    """

    rates: FloatArray
    fit: str
    measured: FloatArray
    low: FloatArray
    high: FloatArray


def _rates_of(sums: FloatArray, counts: FloatArray) -> _Rates:
    """Rates from the documents' sums [documents, W] and counts [documents]."""
    positions = int(counts.sum())
    measured = sums.sum(axis=0) / positions
    low, high = bootstrap_rates(sums, counts)
    rates, fit = fit_monotone(measured, low, high, positions)
    return _Rates(rates, fit, measured, low, high)

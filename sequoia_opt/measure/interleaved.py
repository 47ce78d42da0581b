"""A profile that is measured round by round between other work on the same pair.

Knows what is timed and when. Knows nothing of the other work.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import torch

from sequoia_opt.engine.pair import Pair
from sequoia_opt.measure.forwards import fill, forwards_to_time
from sequoia_opt.measure.overhead import overhead_of, steps_to_time
from sequoia_opt.measure.profiler import latencies
from sequoia_opt.measure.timing import remove_drift, time_round
from sequoia_opt.plan.latency import LatencyProfile
from sequoia_opt.plan.sampling import Sampling


class Interleaved:
    """A profile at one context length, measured round by round between other work on the pair.

    So the profile and the other work meet the same state of the machine.
    """

    @torch.inference_mode()
    def __init__(
        self,
        pair: Pair,
        tokens: Sequence[int],
        context: int,
        sampling: Sampling,
        adaptive: bool = False,
    ) -> None:
        """Prepare it, and time everything once to warm up.

        Args:
            tokens: query tokens of a forward pass, up to the largest tree's size; 1 among them.
            adaptive: whether to time steps of trees that grow, too.
        """
        self._pair, self._tokens, self._context = pair, sorted(set(tokens)), context
        self._order = random.Random(0)
        filled = replace(fill(pair, context, self._tokens[-1]), tokens=self._tokens)
        self._forwards = forwards_to_time(pair, filled, [context])
        self._steps = steps_to_time(pair, filled, context, [sampling], adaptive)
        self._timed = [*self._forwards.values(), *(step.timed for step in self._steps)]
        time_round(self._timed, pair.machine, self._order, pair.world)

    @torch.inference_mode()
    def round(self) -> None:
        """Time everything once."""
        times = time_round(self._timed, self._pair.machine, self._order, self._pair.world)
        for item, milliseconds in zip(self._timed, times, strict=True):
            item.times.append(milliseconds)

    def profile(self, like: LatencyProfile) -> LatencyProfile:
        """A copy of another profile, with the times that were measured here."""
        remove_drift(self._timed)
        context, tokens = self._context, self._tokens
        models = latencies(self._pair, {1: tokens}, [context], self._forwards)
        overhead = overhead_of(self._steps, self._forwards, tokens, context)
        return replace(like, target=models["target"], draft=models["draft"], overhead=overhead)

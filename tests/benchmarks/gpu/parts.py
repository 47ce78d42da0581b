"""The parts of the measurement, in order of worth, and how long each takes.

Expected seconds on an H100 are derived, not measured:

- A process takes 10 s to import and to begin; compiling layer by layer makes 8 graphs a model, in
  25 s for two models.
- A point of a 7B profile is recorded in 0.25 s (16 forward passes that Python issues, 15 ms each)
  and takes 0.11 s in each of 6 rounds (16 recorded ones of 6 ms); a draft's takes half of that, and
  a whole step 0.12 s (60 ms before it counts, 40 ms that do). 44 points and 11 steps, and what
  compiling gains: 50 s. With one context, as for the 8B shape, 30 s.
- Our plain decoding takes 6 ms a token, a step 8 ms, `generate` 30 ms a token, or 12 ms for the
  bundled pair, whose profile has 48 points and 33 steps: 60 s.
- 26 GB of host memory are made and pinned at 1 to 2 GB/s (20 s) and filled (10 s), and cross the
  bus at 50 GB/s: an offloaded 13B forward pass takes 0.45 s, is run twice in each of 10 turns in 5
  rounds (45 s) and once in each of 22 steps (10 s). accelerate's copy of the weights takes 20 s, a
  token of it 3 s.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import bundled
import checks
import offloaded
import own
import resident
from record import Record

TINY, FULL = "tiny", "full"
OWN = "own"  # the part of the user's own pair
LIMIT_MINUTES = 9


@dataclass(frozen=True)
class Asked:
    """What a run was asked for.

    Attributes:
        device: "cuda", "cuda:1", … or, to rehearse, "cpu".
        shapes: "full" or "tiny".
        target, draft, dataset: of the user's own pair, if there is one.
    """

    device: str
    shapes: str
    target: str | None = None
    draft: str | None = None
    dataset: str | None = None

    @property
    def tiny(self) -> bool:
        """Whether this is a rehearsal."""
        return self.shapes == TINY

    def title(self, part: Part) -> str:
        """The part's title; of a rehearsal it says so."""
        return f"{part.title} (rehearsed, tiny models)" if self.tiny else part.title

    def pair(self, target: str, draft: str) -> tuple[str, str]:
        """Names of two shapes, or of the tiny ones in their place."""
        return ("tiny-target", "tiny-draft") if self.tiny else (target, draft)


@dataclass(frozen=True)
class Part:
    """One part, run as a process of its own.

    Attributes:
        name: of the part and its file.
        title: what it is, for the table.
        expected: seconds on an H100, derived above.
        limit: seconds after which it is ended.
    """

    name: str
    title: str
    expected: int
    limit: int
    run: Callable[[Record, Asked], None]


def _resident(target: str, draft: str, contexts: list[int]) -> Callable[[Record, Asked], None]:
    return lambda record, asked: resident.measure(
        record, asked.device, *asked.pair(target, draft), contexts, asked.tiny
    )


PARTS = [
    Part("tests", "GPU tests", 70, 110, lambda record, asked: checks.measure(record)),
    Part(
        "7b",
        "Llama-2-7B's shape, a 68M draft's",
        115,
        150,
        _resident("llama-2-7b", "llama-68m", [128, 512]),
    ),
    Part(
        "bundled",
        "the bundled pair",
        110,
        135,
        lambda record, asked: bundled.measure(record, asked.device, asked.tiny),
    ),
    Part(
        "13b-offloaded",
        "Llama-2-13B's shape from host memory",
        145,
        190,
        lambda record, asked: offloaded.measure(
            record, asked.device, *asked.pair("llama-2-13b", "llama-68m"), asked.tiny
        ),
    ),
    Part(
        "8b",
        "Llama-3.1-8B's shape, a 1B draft's",
        90,
        120,
        _resident("llama-3.1-8b", "llama-3.2-1b", [256]),
    ),
]


def own_part(minutes: float) -> Part:
    """The part that measures a pair of the user's own, which may take all the time there is."""

    def run(record: Record, asked: Asked) -> None:
        assert asked.target is not None
        assert asked.draft is not None
        own.measure(record, asked.device, asked.target, asked.draft, asked.dataset)

    seconds = int(60 * minutes)
    return Part(OWN, "your own pair", seconds, seconds, run)

"""The parts of the measurement, the most important first, and their expected times.

The expected seconds on an H100 are derived, not measured:

- A process takes 10 s to import its modules and start; compiling layer by layer makes 8 graphs per
  model, in 25 s for two models.
- A point of a 7B profile is recorded in 0.25 s (16 forward passes issued from Python, 15 ms each)
  and takes 0.11 s in each of 6 rounds (16 replayed passes of 6 ms). A point of a draft takes half
  of that, and a whole step 0.12 s (60 ms of warm-up and 40 ms timed). 44 points, 11 steps and the
  measurement of compiling's gain take 50 s; with one context, as for the 8B shape, 30 s.
- Plain decoding takes 6 ms per token, a step with the tree 8 ms, `generate` 30 ms per token. For
  the bundled pair `generate` takes 12 ms per token, and the profile of 48 points and 33 steps 60 s.
- 26 GB of host memory are allocated and pinned at 1 to 2 GB/s (20 s), filled (10 s), and copied
  over the bus at 50 GB/s. An offloaded 13B forward pass takes 0.45 s; it runs twice in each of 10
  turns in 5 rounds (45 s) and once in each of 22 steps (10 s). accelerate's copy of the weights
  takes 20 s, and each of its tokens 3 s.
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
OWN = "own"  # the part that measures the user's pair
LIMIT_MINUTES = 9


@dataclass(frozen=True)
class Options:
    """The options of a run.

    Attributes:
        device: "cuda", "cuda:1", … or, to rehearse, "cpu".
        shapes: "full" or "tiny".
        target, draft, dataset: the user's pair and its dataset, or None.
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
        """The part's title, marked if this is a rehearsal."""
        return f"{part.title} (rehearsed, tiny models)" if self.tiny else part.title

    def pair(self, target: str, draft: str) -> tuple[str, str]:
        """The names of the two shapes, or of the tiny ones in a rehearsal."""
        return ("tiny-target", "tiny-draft") if self.tiny else (target, draft)


@dataclass(frozen=True)
class Part:
    """One part of the measurement, which runs as a separate process.

    Attributes:
        name: the name of the part and of its files.
        title: the part's heading in the table.
        expected: expected seconds on an H100, as derived above.
        limit: time limit in seconds.
        run: measures into a record.
    """

    name: str
    title: str
    expected: int
    limit: int
    run: Callable[[Record, Options], None]


def _resident(target: str, draft: str, contexts: list[int]) -> Callable[[Record, Options], None]:
    return lambda record, options: resident.measure(
        record, options.device, *options.pair(target, draft), contexts, options.tiny
    )


PARTS = [
    Part("tests", "GPU tests", 70, 110, lambda record, options: checks.measure(record)),
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
        lambda record, options: bundled.measure(record, options.device, options.tiny),
    ),
    Part(
        "13b-offloaded",
        "Llama-2-13B's shape from host memory",
        145,
        190,
        lambda record, options: offloaded.measure(
            record, options.device, *options.pair("llama-2-13b", "llama-68m"), options.tiny
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
    """The part that measures the user's pair, and may take the whole time."""

    def run(record: Record, options: Options) -> None:
        assert options.target is not None
        assert options.draft is not None
        own.measure(record, options.device, options.target, options.draft, options.dataset)

    seconds = int(60 * minutes)
    return Part(OWN, "your own pair", seconds, seconds, run)

"""What a lookup takes on the processor, without any model: reading a token, and a step's guesses.

The bundled code is read to several lengths; then each further step commits some tokens and looks
up a chain of guesses, as decoding does. CPU time of one thread.
Run `python tests/benchmarks/lookup.py`.
"""

from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Callable
from statistics import median

from tokenizers import Tokenizer

from sequoia_opt import demo
from sequoia_opt.engine.drafters import LookupDrafter
from sequoia_opt.engine.drafters.lookup_index import CorpusIndex, TextIndex, behind

LENGTHS = (1_000, 10_000, 30_000)
STEPS, RUNS = 1_000, 5
COMMITTED, LEVELS = 2, 4  # tokens of a step, and levels of its guesses


def microseconds(index: TextIndex, work: Callable[[], object], count: int) -> float:
    """The median CPU time of one of `count` pieces of work, after each of which the index is cut
    to what it was."""
    length, times = len(index), []
    for _ in range(RUNS):
        started = time.process_time()
        work()
        times.append(1e6 * (time.process_time() - started) / count)
        index.keep(length)
    return median(times)


def steps(drafter: LookupDrafter, index: TextIndex, text: list[int]) -> None:
    """Decode along a text: commit, look up, follow the likeliest guesses."""
    for step in range(STEPS):
        index.extend(text[COMMITTED * step : COMMITTED * (step + 1)])
        context = index.context
        for _ in range(LEVELS):
            _, tokens = drafter.candidates(index, context, 4)
            if not tokens:
                break
            context = behind(context, tokens[0])


def measure(text: list[int], length: int) -> None:
    """Print the times at one length of text."""
    index = TextIndex()
    tracemalloc.start()
    index.extend(text[:length])
    kilobytes = tracemalloc.get_traced_memory()[0] / 1024
    tracemalloc.stop()
    index.keep(0)
    read = microseconds(index, lambda: index.extend(text[:length]), length)
    index.extend(text[:length])
    following = text[length : length + COMMITTED * STEPS]
    alone = microseconds(index, lambda: steps(LookupDrafter(), index, following), STEPS)
    drafter = LookupDrafter(CorpusIndex([text[::-1]]))
    both = microseconds(index, lambda: steps(drafter, index, following), STEPS)
    print(
        f"{length:7,} tokens: {read:.1f} µs to read one, {kilobytes / length:.2f} kB of each; "
        f"a step {alone:.1f} µs, with a corpus of {len(text):,} tokens {both:.1f} µs"
    )


def main() -> None:
    """Measure at each length."""
    lines = demo.DATASET.read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    tokenizer = Tokenizer.from_file(str(demo.FOLDER / "target" / "tokenizer.json"))
    code = "".join(record["prompt"] + record["completion"] for record in records)
    text = tokenizer.encode(code).ids
    print(f"a step commits {COMMITTED} tokens and looks up to {LEVELS} levels deep")
    for length in LENGTHS:
        measure(text, length)


if __name__ == "__main__":
    main()

"""Measures with as few runs as possible, since tests ignore the times.

As a script it is the program, for tests that start processes.
"""

from __future__ import annotations

from sequoia_opt.__main__ import main


def shorten() -> None:
    """Have each piece of work run once where it gets a turn, and no rounds added."""
    from sequoia_opt.measure import profiler, timing

    timing.LONG_MS, profiler.MAX_MULTIPLE = 0, 1


if __name__ == "__main__":
    shorten()
    main()

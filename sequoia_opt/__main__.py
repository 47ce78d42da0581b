"""`python -m sequoia_opt` is the command line."""

from __future__ import annotations

import signal


def main() -> None:
    """Run the command line.

    Until it has been loaded there is nothing to end in order: Ctrl-C ends the process, without
    the traceback of an import.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from sequoia_opt.cli import main as run

    run()


if __name__ == "__main__":
    main()

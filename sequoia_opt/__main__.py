"""`python -m sequoia_opt` starts the command line."""

from __future__ import annotations

import signal


def main() -> None:
    """Run the command line.

    While its modules load, Ctrl-C simply ends the process: no work has begun that would have to
    be ended in order, and nobody wants the traceback of an import.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from sequoia_opt.cli import main as run

    run()


if __name__ == "__main__":
    main()

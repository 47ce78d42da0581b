"""The application: the list of its commands, and what it does with errors and signals.

Knows which module each command is in. Knows nothing of what a command does.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from copy import copy
from importlib import import_module
from typing import Annotated

import typer
from typer.models import CommandInfo

from sequoia_opt import __version__
from sequoia_opt.cli import terminal
from sequoia_opt.cli.moved import refuse_old_spelling
from sequoia_opt.errors import SequoiaError
from sequoia_opt.frames import with_room
from sequoia_opt.processes import is_first_process, is_one_of_several

# Each command and its module in this package, in the order in which --help lists them. A module
# adds its command to `app` when it is imported.
COMMANDS = {
    "profile": "profile",
    "estimate": "estimate",
    "solve": "solve",
    "decode": "decode",
    "complete": "complete",
    "chat": "chat",
    "bench": "bench",
    "bench-sizes": "bench_sizes",
    "calibrate": "calibrate",
    "check": "check",
    "solve-all": "solve_all",
    "sweep": "sweep",
    "compare-drafts": "compare_drafts",
    "show": "show",
    "report": "report",
    "plot": "plot",
    "export": "export",
    "import": "import_",
    "tune": "tune",
}
USAGE = 2  # exit status of a usage error
# Exit statuses for the signals that end the program.
SIGNALS = {number: 128 + number for number in (signal.SIGINT, signal.SIGTERM)}
# Commands that keep finished parts for --resume: always, or if they write a file.
RESUMED = ("profile", "estimate")
RESUMED_WITH_OUTPUT = ("bench", "bench-sizes")

app = typer.Typer(
    name="sequoia-opt",
    help="Find the speculation that decodes fastest on this machine, and decode with it. "
    "The steps: profile, estimate, solve, decode. Without options, each runs on a small pair of "
    "models that comes with the program.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _print_version(is_asked_for: bool) -> None:
    if is_asked_for:
        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", is_eager=True, callback=_print_version
        ),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks; allowed anywhere.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line: an error is one line, with a traceback only after --debug."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    with terminal.guarded_streams(), terminal.ending_signals(), _quiet_unless_first():
        code = _run(arguments, debug)
    for signal_, status in SIGNALS.items():
        if code == status:
            terminal.end_by(signal_)
    sys.exit(code)


@contextmanager
def _quiet_unless_first() -> Iterator[None]:
    """Print nothing in this process, unless it is the first of several or the only one."""
    if is_first_process():
        yield
        return
    with open(os.devnull, "w") as null, redirect_stdout(null), redirect_stderr(null):
        yield


def _run(arguments: list[str], debug: bool) -> int:
    """Run a command line and return its exit status; 128 + n where signal n ended it."""
    try:
        refuse_old_spelling(arguments)
        code = _status(arguments)
        terminal.flush_output()
    except typer.TyperException as error:
        if not arguments:  # typer has printed the help
            return USAGE
        context = getattr(error, "ctx", None)
        hint = f" (see `{context.command_path} --help`)" if context else ""
        return _fail(_message(error) + hint, USAGE, debug)
    except SequoiaError as error:
        return _fail(str(error), 1, debug)
    except (KeyboardInterrupt, typer.Abort):
        code = SIGNALS[signal.SIGINT]
    except terminal.Terminated:
        code = SIGNALS[signal.SIGTERM]
    except BrokenPipeError:
        terminal.drop(sys.stdout)  # the reader has gone: nobody to tell
        return 1
    except SystemExit as error:  # rich and typer exit by themselves when the reader has gone
        terminal.flush_output()
        return error.code if isinstance(error.code, int) else 1
    except OSError as error:
        if error.filename is None or isinstance(error.filename, int):
            return _fail(f"{error.strerror or error} (--debug shows where)", 1, debug)
        return _fail(f"{os.fsdecode(error.filename)}: {error.strerror or error}", 1, debug)
    except Exception as error:
        return _fail(f"{type(error).__name__}: {error} (--debug shows where)", 1, debug)
    if code in SIGNALS.values() and is_first_process():
        ending = "interrupted" if code == SIGNALS[signal.SIGINT] else "terminated"
        _fail(ending + _kept(arguments), code, debug)
    return code


def _kept(arguments: Sequence[str]) -> str:
    """What a command keeps when it is interrupted, and how to continue; empty if nothing."""
    command = arguments[0] if arguments else ""
    options = {argument.partition("=")[0] for argument in arguments}
    writes = bool(options & {"-o", "--output"})
    if command in RESUMED or (command in RESUMED_WITH_OUTPUT and writes):
        return "; finished parts are kept (continue with --resume)"
    if command == "complete":
        return "; finished completions are kept (the same command continues)"
    return ""


@with_room
def _status(arguments: list[str]) -> int:
    """Run a command; its exit status."""
    code = application(arguments)(arguments, prog_name="sequoia-opt", standalone_mode=False)
    return code if isinstance(code, int) else 0


def application(arguments: Sequence[str] = ()) -> typer.Typer:
    """The application with the command that the arguments begin with; without one, with all.

    Importing a command's module and reading its options takes 12 ms of processor time, for all
    commands 90 ms; solving the bundled pair's tree takes 40 ms.
    """
    named = [name for name in arguments[:1] if name in COMMANDS]
    commands = named or list(COMMANDS)
    for name in commands:
        import_module(f"sequoia_opt.cli.{COMMANDS[name]}")
    registered = {_name(info): info for info in app.registered_commands}
    chosen = copy(app)
    chosen.registered_commands = [registered[name] for name in commands]
    return chosen


def _name(info: CommandInfo) -> str:
    return info.name or str(getattr(info.callback, "__name__", ""))


def _message(error: Exception) -> str:
    """A usage error's text; typer's errors format themselves."""
    format_message = getattr(error, "format_message", None)
    return str(format_message() if format_message else error)


def _fail(message: str, code: int, debug: bool) -> int:
    """Print an error as one line, and return the exit status."""
    with suppress(SequoiaError):
        terminal.flush_output()
    stream = sys.stderr if is_first_process() else sys.__stderr__
    if debug:
        traceback.print_exc(file=stream)
    if _reports_errors():
        print("error: " + terminal.printable(" ".join(message.split())), file=stream)
    return code


def _reports_errors() -> bool:
    """Whether this process prints the error: of several, the first that fails does."""
    if not is_one_of_several():
        return True
    from sequoia_opt.engine.distributed import is_first_to_fail

    return is_first_to_fail()

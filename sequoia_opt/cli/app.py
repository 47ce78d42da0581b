"""The application: its name, what it does with errors, and nothing of any command."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from copy import copy
from typing import Annotated

import typer
from typer.models import CommandInfo

from sequoia_opt import __version__
from sequoia_opt.cli import terminal
from sequoia_opt.errors import SequoiaError
from sequoia_opt.processes import is_first_process, is_one_of_several

USAGE = 2  # exit status of a usage error
# Exit statuses of what ends the program from outside, by the signal.
SIGNALS = {number: 128 + number for number in (signal.SIGINT, signal.SIGTERM)}

app = typer.Typer(
    name="sequoia-opt",
    help="Find the token tree that decodes fastest on this machine, and decode with it. "
    "The steps: profile, estimate, solve, decode. Without options each runs on a small pair of "
    "models that comes along.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _print_version(wanted: bool) -> None:
    if wanted:
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
        bool, typer.Option("--debug", help="Show tracebacks; may stand anywhere.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; one line for an error, no traceback without --debug."""
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
    """Of several processes the first one speaks for all."""
    if is_first_process():
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        told, sys.stderr = sys.stderr, nowhere
        try:
            yield
        finally:
            sys.stderr = told


def _run(arguments: list[str], debug: bool) -> int:
    """Run a command line; its exit status, which is a signal's where one ended it."""
    try:
        code = _status(_only(arguments), arguments)
        terminal.flush_output()
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        if not arguments and context is not None:
            print(context.get_help())
            return USAGE
        where = f" (see `{context.command_path} --help`)" if context else ""
        return _fail(_message(error) + where, USAGE, debug)
    except SequoiaError as error:
        return _fail(str(error), 1, debug)
    except (KeyboardInterrupt, typer.Abort):
        code = SIGNALS[signal.SIGINT]
    except terminal.Terminated:
        code = SIGNALS[signal.SIGTERM]
    except BrokenPipeError:
        terminal.drop(sys.stdout)  # the reader has gone; there is nobody to tell
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
        how = "interrupted" if code == SIGNALS[signal.SIGINT] else "terminated"
        _fail(how + _kept(arguments), code, debug)
    return code


def _kept(arguments: Sequence[str]) -> str:
    """What a command that was ended keeps, and how to go on with it."""
    command, options = arguments[:1], {argument.partition("=")[0] for argument in arguments}
    resumed = command in (["profile"], ["estimate"])
    if resumed or (command == ["bench"] and options & {"-o", "--output"}):
        return "; finished parts are kept (continue with --resume)"
    if command == ["decode"] and "--prompts" in options:
        return "; finished completions are kept (the same command goes on with them)"
    return ""


def _status(application: typer.Typer, arguments: list[str]) -> int:
    """The exit status of a command that ends by itself."""
    code = application(arguments, prog_name="sequoia-opt", standalone_mode=False)
    return code if isinstance(code, int) else 0


def _only(arguments: Sequence[str]) -> typer.Typer:
    """The application with the one command that the arguments begin with, else with all.

    Typer reads the options of every command that it has, which takes as long as solving.
    """
    named = [info for info in app.registered_commands if [_name(info)] == list(arguments[:1])]
    chosen = copy(app)
    chosen.registered_commands = named or app.registered_commands
    return chosen


def _name(info: CommandInfo) -> str:
    return info.name or str(getattr(info.callback, "__name__", ""))


def _message(error: Exception) -> str:
    """A usage error's text; typer's errors format themselves."""
    format_message = getattr(error, "format_message", None)
    return str(format_message() if format_message else error)


def _fail(message: str, code: int, debug: bool) -> int:
    """Say in a line what was wrong; the exit status."""
    with suppress(SequoiaError):
        terminal.flush_output()
    told = sys.stderr if is_first_process() else sys.__stderr__
    if debug:
        traceback.print_exc(file=told)
    if _speaks_up():
        print("error: " + terminal.printable(" ".join(message.split())), file=told)
    return code


def _speaks_up() -> bool:
    """Whether this process says what was wrong: of several the first to find out."""
    if not is_one_of_several():
        return True
    from sequoia_opt.engine.distributed import is_first_to_fail

    return is_first_to_fail()

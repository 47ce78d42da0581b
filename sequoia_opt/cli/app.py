"""The application: its name, what it does with errors, and nothing of any command."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import redirect_stdout
from copy import copy
from typing import Annotated, NoReturn

import typer
from typer.models import CommandInfo

from sequoia_opt import __version__
from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan.files import is_first_process, is_one_of_several

USAGE = 2  # exit status of a usage error
INTERRUPTED = 130  # what typer makes of Ctrl-C

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
    if is_first_process():
        _run(arguments, debug)
    else:  # of several; the first one speaks for all
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            told, sys.stderr = sys.stderr, nowhere
            try:
                _run(arguments, debug)
            finally:
                sys.stderr = told


def _run(arguments: list[str], debug: bool) -> NoReturn:
    """Run a command line and exit."""
    try:
        code = _only(arguments)(arguments, prog_name="sequoia-opt", standalone_mode=False)
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        if not arguments and context is not None:
            print(context.get_help())
            sys.exit(USAGE)
        where = f" (see `{context.command_path} --help`)" if context else ""
        _fail(_message(error) + where, USAGE, debug)
    except SequoiaError as error:
        _fail(str(error), 1, debug)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()  # the reader has gone; there is nobody to tell
        sys.exit(1)
    except Exception as error:
        _fail(f"{type(error).__name__}: {error} (--debug shows where)", 1, debug)
    if code == INTERRUPTED:
        _fail("interrupted; what was finished is kept, for --resume where there is one", 1, debug)
    sys.exit(code if isinstance(code, int) else 0)


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


def _fail(message: str, code: int, debug: bool) -> NoReturn:
    told = sys.stderr if is_first_process() else sys.__stderr__
    if debug:
        traceback.print_exc(file=told)
    if _speaks_up():
        print("error: " + " ".join(message.split()), file=told)
    sys.exit(code)


def _speaks_up() -> bool:
    """Whether this process says what was wrong: of several the first to find out."""
    if not is_one_of_several():
        return True
    from sequoia_opt.engine.distributed import is_first_to_fail

    return is_first_to_fail()

"""What the terminal or the pipe cannot take costs no result, and the program ends as others do."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from sequoia_opt.cli import terminal
from sequoia_opt.cli.output import Console
from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan import shapes
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.latency import LatencyProfile
from sequoia_opt.plan.tree import TokenTree
from sequoia_opt.repository import paths

ESCAPE = "\x1b[31mred\x1b[0m \x9b2J \u202eback"
SOLVE = ["solve", "--max-size", "4", "-o", "tree.json"]


def command(
    arguments: Sequence[str], folder: Path, shell: str = "", **settings: str
) -> subprocess.CompletedProcess[bytes]:
    """A command line in a process of its own, with what a shell adds to it."""
    line = [sys.executable, "-m", "sequoia_opt", *arguments]
    return subprocess.run(
        ["bash", "-c", f'"$@" {shell}', "bash", *line],
        capture_output=True,
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | settings,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    ("shell", "code", "said"),
    [
        (">/dev/full", 1, b"standard output: cannot be written (No space left on device)"),
        (">&-", 1, b"standard output: cannot be written (Bad file descriptor)"),
        ("2>&-", 0, b""),
        ("2>/dev/full", 0, b""),
        (">&- 2>&-", 1, b""),
        ("| true", 0, b""),
    ],
)
def test_the_file_is_written_whatever_becomes_of_the_rest(
    tmp_path: Path, shell: str, code: int, said: bytes
) -> None:
    done = command(SOLVE, tmp_path, shell)
    assert done.returncode == code
    assert said in done.stderr
    assert b"Traceback" not in done.stderr + done.stdout
    assert b"Exception" not in done.stderr
    assert b"Error" not in done.stderr
    # No other stream's text went into the file that took the place of a closed one.
    assert TokenTree.load(tmp_path / "tree.json").size <= 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tree.json"]


def test_printing_that_fails_is_a_failure(tmp_path: Path) -> None:
    for shell in (">/dev/full", ">&-"):
        for arguments in (["show"], ["show", "--json"], ["--help"], ["--version"]):
            done = command(arguments, tmp_path, shell)
            assert done.returncode == 1
            assert done.stderr.startswith(b"error: standard output: cannot be written")
            assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize(
    ("arguments", "shell"),
    [(["decode", "--prompt", "-"], "<&-"), (["decode", "--prompt", "-"], "0>/dev/null")],
)
def test_a_closed_input_is_named(tmp_path: Path, arguments: list[str], shell: str) -> None:
    done = command(arguments, tmp_path, shell)
    assert done.returncode == 1
    assert done.stderr == b"error: standard input: is closed; give the text with --prompt-file\n"


@pytest.mark.parametrize(
    ("encoding", "dash"), [("utf-8", "–"), ("latin-1", "-"), ("ascii", "-"), ("cp1252", "–")]
)
def test_a_narrow_terminal_is_shown_what_it_can_draw(
    tmp_path: Path, encoding: str, dash: str
) -> None:
    tree = shapes.k_ary(2, 3)
    predicted = {"step_ms": 5.0, "tokens_per_second": 600.0}
    predicted |= {"speedup": 1.9, "speedup_low": 1.7, "speedup_high": 2.08}
    metadata = {"expected_tokens": 3.0, "predicted": predicted}
    TokenTree(tree.parents, tree.ranks, metadata).save(tmp_path / "t.json")
    rates = str(paths.bundled_acceptance().resolve())
    done = command(["show", "t.json", "--acceptance", rates], tmp_path, PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, b"")
    narrow = done.stdout.decode(encoding)
    assert f"(1.70{dash}2.08)" in narrow
    if encoding == "utf-8":
        assert "████" in narrow
        return
    assert "####" in narrow
    assert "?" not in narrow
    table = [line for line in narrow.splitlines() if line.startswith("|")]
    assert len(table) > 6
    assert len({len(line) for line in table}) == 1  # in line
    assert command(SOLVE, tmp_path, PYTHONIOENCODING=encoding).returncode == 0


def test_json_is_the_same_document_in_every_encoding(tmp_path: Path) -> None:
    tree = shapes.chain(2)
    TokenTree(tree.parents, tree.ranks, {"target": "modèle 模型 " + ESCAPE}).save(
        tmp_path / "t.json"
    )
    read = [
        json.loads(command(["show", "t.json", "--json"], tmp_path, PYTHONIOENCODING=name).stdout)
        for name in ("utf-8", "latin-1", "ascii")
    ]
    assert read[0] == read[1] == read[2] == TokenTree.load(tmp_path / "t.json").document()


def hostile_files(folder: Path) -> list[list[str]]:
    """Files with names in them that a terminal would obey, and commands that show these."""
    profile = LatencyProfile.load(paths.bundled_profile())
    rates = Acceptance.load(paths.bundled_acceptance())
    profile.target.model = profile.draft.model = rates.target = rates.draft = ESCAPE
    rates.dataset = f"[bold]{ESCAPE}[/] [/nothing]"
    profile.hardware["name"] = profile.engine["dtype"] = ESCAPE
    profile.disturbed = ESCAPE
    profile.save(folder / "p.yaml")
    rates.save(folder / "a.yaml")
    tree = shapes.k_ary(2, 2)
    metadata = {"target": ESCAPE, "draft": ESCAPE, "hardware": {"name": ESCAPE}}
    predicted = {"step_ms": 1.0, "speedup": 2.0, "tokens_per_second": 3.0}
    TokenTree(
        tree.parents, tree.ranks, metadata | {"predicted": predicted, "expected_tokens": 2.0}
    ).save(folder / "t.json")
    (folder / f"{ESCAPE}.json").write_text("[[0]]")
    return [
        ["show", "p.yaml"],
        ["show", "p.yaml", "--json"],
        ["show", "a.yaml"],
        ["show", "t.json"],
        ["export", "t.json", "--to", "vllm"],
        ["export", "t.json", "--to", "eagle"],
        ["solve", "--profile", "p.yaml", "--acceptance", "a.yaml", "--max-size", "4"],
        ["solve", "--profile", "p.yaml", "--against", f"{ESCAPE}.json", "--max-size", "4"],
        ["show", f"{ESCAPE}.json"],
        ["show", f"{ESCAPE}.none"],
        ["decode", "t.json"],
        [ESCAPE],
    ]


def test_what_files_say_is_not_obeyed_by_the_terminal(tmp_path: Path) -> None:
    for arguments in hostile_files(tmp_path):
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-m", "sequoia_opt", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=theirs,
            cwd=tmp_path,
            env=os.environ | {"TERM": "xterm", "COLUMNS": "200", "NO_COLOR": "1"},
        )
        os.close(theirs)
        shown = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:
                break
            if not part:
                break
            shown += part
        os.close(ours)
        process.wait()
        text = shown.decode()
        assert "MarkupError" not in text
        for obeyed in ("\x1b[31m", "\x9b", "\u202e"):
            assert obeyed not in text, arguments
        if arguments[0] in ("decode", ESCAPE) or arguments[-1] in ("p.yaml", "a.yaml", "t.json"):
            assert "x1b[31mred" in text


def test_control_characters_are_spelt_out() -> None:
    assert terminal.printable(ESCAPE) == r"\x1b[31mred\x1b[0m \x9b2J \u202eback"
    assert terminal.printable("a\tb\nc é 模型 👩‍💻") == "a\tb\nc é 模型 👩‍💻"
    assert terminal.printable("\r\x07\ud800") == r"\r\x07\ud800"


def test_names_are_no_markup() -> None:
    shown = io.StringIO()
    Console(file=shown, width=80).print("[bold]a[/] :smile: [/b]", ESCAPE)
    assert "[bold]a[/] :smile: [/b] \\x1b[31mred" in shown.getvalue()


def test_what_an_encoding_lacks_is_drawn_or_spelt_out() -> None:
    assert terminal.encodable("1 × – │█▌ … 模 é", "ascii") == r"1 x - |## . \u6a21 \xe9"
    assert terminal.encodable("1 × – é", "latin-1") == "1 × - é"


def test_a_stream_that_is_full_says_so_and_one_that_may_be_lost_does_not() -> None:
    with open("/dev/full", "w") as full:
        with pytest.raises(SequoiaError, match="output: cannot be written"):
            print("x" * 100_000, file=terminal.Output(full, "output"))  # type: ignore[call-overload]
        lost = terminal.Output(full, "output", may_be_lost=True)
        lost.write("x" * 100_000)
        lost.flush()  # and nothing is left that closing it would fail to write


WAITING = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
sys.argv = ["sequoia-opt", *sys.argv[1:]]
if {slow!r}:
    import sequoia_opt
    class Slow:
        def find_spec(self, name, path=None, target=None):
            if name == "sequoia_opt.cli":
                print("ready", flush=True)
                import time
                time.sleep(60)
    sys.meta_path.insert(0, Slow())
else:
    from sequoia_opt.plan import solver
    def solve(*arguments, **options):
        print("ready", flush=True)
        import time
        time.sleep(60)
    solver.solve = solve
from sequoia_opt.__main__ import main
main()
"""


@pytest.mark.parametrize("slow", [True, False], ids=["while it is loaded", "at work"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_as_interrupted_programs_do(
    tmp_path: Path, slow: bool, number: signal.Signals
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING.format(slow=slow), *SOLVE],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.1)
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    assert process.returncode == -number
    how = "interrupted" if number == signal.SIGINT else "terminated"
    assert told.splitlines() == (
        [] if slow else [f"error: {how}"]  # `solve` keeps nothing to go on with
    )
    assert not list(tmp_path.iterdir())


def test_where_interruptions_are_ignored_they_stay_so() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with terminal.ending_signals():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            with pytest.raises(terminal.Terminated):
                signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGINT, before)

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from command_line import SMALL, Outcome

from sequoia_opt import __version__, demo
from sequoia_opt.cli.app import COMMANDS
from sequoia_opt.plan import shapes
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.latency import LatencyProfile
from sequoia_opt.plan.tree import TokenTree


@pytest.mark.parametrize(
    ("temperature", "verifier"),
    [("0", "greedy"), ("0.6", "sequoia"), ("0.6", "specinfer"), ("0.6", "topk")],
)
def test_the_four_commands_in_a_row(
    run: Callable[..., Outcome], models: list[str], dataset: Path, temperature: str, verifier: str
) -> None:
    named = "sequoia" if verifier == "greedy" else verifier
    done = run("profile", *models, *SMALL, "--verifiers", named)
    assert done.code == 0, done.err
    assert "milliseconds per forward pass" in done.out
    (profile,) = Path("profiles").glob("*/small-target--small-draft--float32.yaml")
    assert str(profile) in done.err
    done = run(
        "estimate",
        *models,
        "--dataset",
        dataset,
        "--temperature",
        temperature,
        "--verifier",
        named,
        "--max-new-tokens",
        24,
        "--width",
        6,
    )
    assert done.code == 0, done.err
    name = f"small-target--small-draft--numbers--{verifier}-T{temperature}.yaml"
    acceptance = Path("profiles/acceptance") / name
    assert Acceptance.load(acceptance).positions > 0
    done = run("solve", "--profile", profile, "--acceptance", acceptance, "--max-size", 12)
    assert done.code == 0, done.err
    assert "chosen" in done.out
    assert "chain" in done.out
    slug = LatencyProfile.load(profile).hardware["slug"]
    tree = (
        Path("trees")
        / slug
        / f"small-target--small-draft--float32--numbers-{verifier}-T{temperature}.json"
    )
    loaded = TokenTree.load(tree)
    assert loaded.size <= 12
    assert loaded.metadata["verifier"] == verifier
    assert loaded.metadata["provenance"]["profile"]["file"] == profile.name
    done = run(
        "decode",
        tree,
        *models,
        "--prompt",
        "def g",
        "--max-new-tokens",
        12,
        "--compare",
        "--repeats",
        1,
        "--ignore-eos",
    )
    assert done.code == 0, done.err
    assert "12 tokens in" in done.out
    assert "tree" in done.out
    if temperature == "0":
        said = "agree with plain decoding", "two best logits", "the tree has one node"
        assert any(line in done.out for line in said)
        return
    decoding = ["decode", tree, *models, "--prompt", "a", "--max-new-tokens", 4, "--verifier"]
    for other in ("sequoia", "specinfer", "topk", "traversal"):
        done = run(*decoding, other)
        if other == verifier or (other, verifier) == ("traversal", "sequoia"):
            assert done.code == 0, done.err
        else:
            assert done.code == 1
            assert f"solved for verifier {verifier}, found --verifier {other}" in done.err


def test_json_is_one_document_and_nothing_else(
    run: Callable[..., Outcome], models: list[str], dataset: Path
) -> None:
    profile = json.loads(run("profile", *models, *SMALL, "-o", "p.yaml", "--json").out)
    assert profile == yaml.safe_load(Path("p.yaml").read_text())
    acceptance = json.loads(
        run(
            "estimate",
            *models,
            "--dataset",
            dataset,
            "--max-new-tokens",
            8,
            "-o",
            "a.yaml",
            "--json",
        ).out
    )
    assert acceptance == yaml.safe_load(Path("a.yaml").read_text())
    tree = json.loads(
        run("solve", "--profile", "p.yaml", "--acceptance", "a.yaml", "-o", "t.json", "--json").out
    )
    assert tree == json.loads(Path("t.json").read_text())
    assert tree["format"] == "sequoia-opt/tree"
    shapes.k_ary(2, 2).save("k.json")
    decoded = json.loads(
        run("decode", "k.json", *models, "--prompt", "def", "--max-new-tokens", 9, "--json").out
    )
    assert {"text", "tokens", "steps", "tokens_per_step", "tokens_per_second", "seconds"} <= set(
        decoded
    )
    assert len(decoded["tokens"]) <= 9


BAD_INPUT: dict[str, tuple[list[str], str]] = {
    "no room for the tree beside": (
        ["solve", "--profile", "p.yaml", "--acceptance", "a.yaml", "--against", "large.json"],
        "large.json: target: measured for 1 to 64 tokens",
    ),
    "no tree to set beside": (["solve", "--against", "no.json"], "no.json: no such file"),
    "no such profile": (["solve", "--profile", "no.yaml"], "no.yaml: no such file"),
    "profile is a tree": (["solve", "--profile", "tree.json"], "format: found 'sequoia-opt/tree'"),
    "profile is broken": (["solve", "--profile", "broken.yaml"], "broken.yaml: not valid YAML"),
    "acceptance is a tree": (
        ["solve", "--profile", "p.yaml", "--acceptance", "tree.json"],
        "tree.json: format: found",
    ),
    "tree is broken": (["decode", "broken.json"], "broken.json: not valid JSON"),
    "tree is a profile": (["decode", "p.yaml"], "p.yaml: format: found 'sequoia-opt/profile'"),
    "size was not measured": (
        ["solve", "--profile", "p.yaml", "--acceptance", "a.yaml", "--size", "500"],
        "no point past 64 tokens, 500 asked for",
    ),
    "context was not measured": (
        ["solve", "--profile", "p.yaml", "--acceptance", "a.yaml", "--context", "9999"],
        "not for 9999",
    ),
    "no such model": (
        ["decode", "tree.json", "--target", "no/such", "--draft", "no/such"],
        "no/such",
    ),
    "model without weights": (["decode", "tree.json", "--target", "hollow"], "hollow: no weights"),
    "empty dataset": (["estimate", "--dataset", "empty.jsonl"], "empty.jsonl: the dataset has no"),
    "no such dataset": (["estimate", "--dataset", "no.jsonl"], "no.jsonl: no such file"),
    "temperature below 0": (["estimate", "--temperature", "-1"], "temperature: found -1"),
    "top-p above 1": (["decode", "tree.json", "--top-p", "1.5"], "top-p: found 1.5"),
    "top-p of 0": (["estimate", "--temperature", "1", "--top-p", "0"], "top-p: found 0"),
    "no such verifier": (["estimate", "--verifier", "magic"], "verifier: found 'magic'"),
    "output is a folder": (["profile", "-o", "."], "is a folder"),
    "output under a file": (["estimate", "-o", "p.yaml/x.yaml"], "cannot be written"),
    "prompt too long": (
        ["decode", "tree.json", "--prompt", "def f(): pass\n" * 3000],
        "do not fit the 8192 positions",
    ),
    "context too long": (["profile", "--contexts", "9000"], "only 8192 positions"),
    "unknown dtype": (["profile", "--dtype", "int3"], "dtype: found 'int3'"),
    "unknown device": (["profile", "--device", "abacus"], "device 'abacus'"),
}


@pytest.mark.parametrize(("arguments", "complaint"), BAD_INPUT.values(), ids=BAD_INPUT.keys())
def test_bad_input_gets_one_line(
    run: Callable[..., Outcome], tmp_path: Path, arguments: list[str], complaint: str
) -> None:
    from test_latency import make_profile

    shapes.chain(3).save("tree.json")
    shapes.chain(65).save("large.json")
    make_profile().save("p.yaml")
    Acceptance([0.5, 0.2]).save("a.yaml")  # type: ignore[arg-type]
    Path("broken.json").write_text("{")
    Path("broken.yaml").write_text("a: [1, 2")
    Path("empty.jsonl").write_text("")
    shutil.copytree(demo.FOLDER / "target", "hollow")
    Path("hollow/model.safetensors").unlink()
    before = sorted(tmp_path.rglob("*"))
    done = run(*arguments)
    assert done.code == 1
    assert done.out == ""
    assert complaint in done.err
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert [p for p in sorted(tmp_path.rglob("*")) if p not in before and p.is_file()] == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["fly"],
        ["solve", "--speed"],
        ["decode", "--max-new-tokens", "0"],
        ["profile", "--tokens", "a"],
        ["profile", "--repeats", "many"],
        ["bench", "--methods", "plain,fast"],
        ["bench", "--methods", ","],
        ["bench", "--methods", "plain,tree", "--chain", "3"],
        ["sweep", "size"],
    ],
)
def test_usage_errors_exit_with_2(run: Callable[..., Outcome], arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert "Traceback" not in done.err
    assert not list(Path().iterdir())


def test_debug_shows_where(run: Callable[..., Outcome]) -> None:
    done = run("solve", "--profile", "no.yaml", "--debug")
    assert done.code == 1
    assert "Traceback" in done.err
    assert done.err.rstrip().endswith("error: no.yaml: no such file")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(run: Callable[..., Outcome], command: str) -> None:
    done = run(command, "--help")
    assert done.code == 0
    assert f"Example: sequoia-opt {command}" in done.out
    assert "×" not in done.out


def test_version_and_bare_call(run: Callable[..., Outcome]) -> None:
    assert run("--version").out.strip() == __version__
    bare = run()
    assert bare.code == 2
    assert "profile" in bare.out + bare.err


INTERRUPTED = """
import os, signal
from sequoia_opt import cli
from sequoia_opt.measure import profiler, timing

timing.LONG_MS = 0  # each piece of work runs once in a turn
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
profile = profiler.profile

def interrupted(pair, options, progress, note, journal):
    def advance(done, total):
        progress(done, total)
        if 2 * done > total:
            os.kill(os.getpid(), signal.SIGINT)
    return profile(pair, options, advance, note, journal)

profiler.profile = interrupted
cli.main()
"""


def test_interruption_leaves_the_old_file(tmp_path: Path) -> None:
    """Ctrl-C in the middle of a measurement."""
    from test_latency import make_profile

    path = tmp_path / "profile.yaml"
    make_profile().save(path)
    precious = path.read_bytes()
    options = ["--tokens", "1,2", "--contexts", "16", "-o", str(path)]
    command = [sys.executable, "-c", INTERRUPTED, "profile", *options]
    process = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        timeout=120,
    )
    errors = process.stderr
    assert process.returncode == -signal.SIGINT  # as shells expect, which stop their loops
    assert errors.strip().splitlines()[-1].startswith("error: interrupted")
    assert path.read_bytes() == precious
    # What was measured until then is there, to be taken up.
    assert sorted(p.name for p in tmp_path.iterdir()) == ["profile.yaml", "profile.yaml.partial"]


@pytest.mark.parametrize("words", [["--help"], ["--help", "solve"], []])
def test_help_lists_every_command(run: Callable[..., Outcome], words: list[str]) -> None:
    shown = run(*words)
    listed = re.findall(r"^│ ([a-z][a-z-]*) +\S", shown.out, re.MULTILINE)
    assert listed == list(COMMANDS)


def test_a_command_imports_no_other_commands_module() -> None:
    code = """
import sys
from sequoia_opt.cli.app import application
application(["solve", "--max-size", "4"])
print([name for name in sys.modules if name.startswith("sequoia_opt.cli.")])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "sequoia_opt.cli.solve'" in done.stdout
    for module in ("decode", "bench", "profile", "show", "solve_all"):
        assert f"sequoia_opt.cli.{module}'" not in done.stdout


def test_a_misspelt_command_is_guessed(run: Callable[..., Outcome]) -> None:
    done = run("solv", "--profile", "decode")
    assert done.code == 2
    assert "solve" in done.err


@pytest.mark.parametrize(
    ("words", "wanted"),
    [("sequoia-opt dec", "decode"), ("sequoia-opt solve --max-s", "--max-size")],
)
def test_the_shell_completes(
    words: str, wanted: str, run: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_SEQUOIA_OPT_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
    done = run()
    assert done.code == 0
    assert done.out.split() == [wanted]

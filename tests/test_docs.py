"""The documentation says what is there: code that runs, commands, options, links and numbers."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import typer

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "benchmarks" / "README.md",
    ROOT / "sequoia_opt" / "demo" / "README.md",
]
README_WORDS = 1300
CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)
COMMAND_LINE = re.compile(r"sequoia-opt ([a-z][a-z-]*)([^`\n]*)")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
RATIO = re.compile(r"(\d\.\d\d)x?(?: \((\d\.\d\d) – (\d\.\d\d)\))?")
MACHINES = ("amd-epyc-2-threads", "intel-xeon-processor-2-threads")
SOLVED = ("solved tree (", "adaptive plan (")
COLUMNS = (  # of the speed tables in benchmarks/README.md, behind the temperature
    SOLVED, "solved tree, traversal", "solved tree, specinfer", "solved tree, topk",
    "best chain", "best k sequences", "most tokens (64", "most tokens (128", "assisted",
    "prompt lookup", "transformers generate",
)  # fmt: skip


@cache
def options_of() -> dict[str, set[str]]:
    """The options of each command."""
    from sequoia_opt.cli.app import application

    group = typer.main.get_command(application())
    return {
        name: {text for each in command.params for text in (*each.opts, *each.secondary_opts)}
        for name, command in group.commands.items()  # type: ignore[attr-defined]
    }


def page(name: str) -> str:
    return (ROOT / name).read_text()


def sections(text: str) -> Iterator[tuple[str, str]]:
    """The second-level headings of a page and what stands under each."""
    for part in text.split("\n## ")[1:]:
        heading, _, body = part.partition("\n")
        yield heading, body


def results(machine: str, dataset: str, temperature: str) -> list[dict]:
    path = ROOT / "benchmarks" / machine / dataset / f"T{temperature}.json"
    return json.loads(path.read_text())["results"]


def fastest(of: list[dict], name: str | tuple[str, ...]) -> dict:
    """The result of the method whose name begins so, or in one of these ways; of several the
    fastest."""
    return max((r for r in of if r["name"].startswith(name)), key=lambda r: r["speedup"])


def agrees(cell: str, result: dict) -> bool:
    """Whether a cell has the result's speedup and, if it names one, its interval."""
    match = RATIO.search(cell)
    assert match, cell
    fields = ("speedup", "speedup_low", "speedup_high")
    pairs = zip(match.groups(), (result[field] for field in fields), strict=True)
    # Half a unit of the last digit either way: printing rounds halves as floats have them.
    return all(text is None or abs(float(text) - value) < 0.00501 for text, value in pairs)


def test_readme_is_short() -> None:
    assert len(page("README.md").split()) <= README_WORDS


def test_readme_names_the_two_commands_for_a_newcomer() -> None:
    assert {"make demo", "make test"} <= set(re.findall(r"make (?:demo|test)\b", page("README.md")))


def test_python_page_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    names: dict[str, object] = {}
    blocks = CODE.findall(page("docs/python.md"))
    assert len(blocks) >= 5
    for number, block in enumerate(blocks, start=1):
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(block, f"docs/python.md, block {number}", "exec"), names)
        assert printed.getvalue().strip()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_command_lines_have_commands_and_options_that_exist(path: Path) -> None:
    for name, rest in COMMAND_LINE.findall(path.read_text()):
        assert name in options_of(), f"sequoia-opt {name}"
        shown = set(OPTION.findall(rest))
        assert shown <= options_of()[name], f"sequoia-opt {name}{rest}"


def test_commands_page_has_a_section_for_each_command() -> None:
    headings = [heading for heading, _ in sections(page("docs/commands.md"))]
    assert set(options_of()) <= set(headings)


def test_commands_page_names_options_that_exist() -> None:
    every = {"--help", "--debug", "--install-completion"}.union(*options_of().values())
    engines = {"export", "import", "sweep"}  # whose sections name other engines' options in tables
    for heading, body in sections(page("docs/commands.md")):
        lines = body.splitlines()
        if heading in engines:
            lines = [line for line in lines if not line.startswith("|")]
        spans = re.findall(r"`([^`]+)`", "\n".join(lines))
        named = {option for span in spans for option in OPTION.findall(span)}
        assert named - every - {"--nproc-per-node"} == set(), heading


def test_export_table_has_every_format() -> None:
    from sequoia_opt.plan.export import FORMATS

    body = dict(sections(page("docs/commands.md")))["export"]
    assert set(FORMATS) <= set(re.findall(r"`([^`]+)`", body))


def test_verifier_table_has_every_verifier() -> None:
    from sequoia_opt.plan.verifiers import VERIFIERS

    body = dict(sections(page("docs/commands.md")))["decode"]
    assert [f"| `{name}` " for name in VERIFIERS] == re.findall(r"^\| `\w+` ", body, re.MULTILINE)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for target, anchor in LINK.findall(path.read_text()):
        file = (path.parent / target).resolve() if target else path
        assert file.exists(), target
        if anchor:
            headings = HEADING.findall(file.read_text())
            slugs = {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}
            assert anchor in slugs, f"{target}#{anchor}"


def test_readme_table_is_what_was_measured() -> None:
    rows = {
        "solved plan": SOLVED,
        "best chain": "best chain",
        "64 nodes": "most tokens (64",
        "transformers, assisted": "assisted",
        "transformers, `generate`": "transformers generate",
    }
    body = dict(sections(page("README.md")))["What the right size gains"]
    for label, name in rows.items():
        (row,) = [line for line in body.splitlines() if line.startswith(f"| {label}")]
        for cell, machine in zip(row.strip("| ").split("|")[1:], MACHINES, strict=True):
            assert agrees(cell, fastest(results(machine, "humaneval", "0"), name)), cell


@pytest.mark.parametrize(
    ("heading", "machine", "dataset"),
    [
        ("AMD EPYC, HumanEval", MACHINES[0], "humaneval"),
        ("Intel Xeon, HumanEval", MACHINES[1], "humaneval"),
        ("Intel Xeon, bundled prompts", MACHINES[1], "demo"),
    ],
)
def test_speed_tables_are_what_was_measured(heading: str, machine: str, dataset: str) -> None:
    body = page("benchmarks/README.md").split(f"### {heading}\n")[1].split("\n#")[0]
    rows = [line.strip("|").split("|") for line in body.splitlines() if re.match(r"\| \d", line)]
    assert rows
    for temperature, *cells in rows:
        raced = results(machine, dataset, temperature.strip())
        for cell, name in zip(cells, COLUMNS, strict=True):
            if cell.strip():
                assert agrees(cell, fastest(raced, name)), (temperature, name, cell)

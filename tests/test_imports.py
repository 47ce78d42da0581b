"""Which module may import which: the arrows between rooms, and what planning never loads."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "sequoia_opt"
HEAVY = ("torch", "transformers", "scipy")
# Each room may import itself and the rooms before it. The bundled pair lies beside them.
FOUNDATIONS = ("errors", "types", "processes", "frames")
ROOMS = ("files", "plan", "engine", "measure", "report", "repository", "cli")
ALLOWED: dict[str, set[str]] = {
    **{name: set(FOUNDATIONS) for name in FOUNDATIONS},
    **{room: {*FOUNDATIONS, *ROOMS[: ROOMS.index(room)]} for room in ROOMS},
    "demo": {*FOUNDATIONS, "files"},
}
ALLOWED["api"] = {*FOUNDATIONS, *ROOMS[: ROOMS.index("measure") + 1], "demo"}
ALLOWED["repository"].add("demo")
ALLOWED["cli"] |= {"demo", "api"}
# Arrows that no rule above allows, each with its reason: (module, imported room).
EXCEPTIONS = {
    ("sequoia_opt.__main__", "cli"): "starts the command line",
    ("sequoia_opt.demo.train", "engine"): "training may use the engine's parts",
}
# Imports under TYPE_CHECKING that close a cycle within a room, each with its reason.
TYPE_CYCLES = {
    ("engine.session", "engine.decoder"): "a session belongs to the decoder that opens it",
    ("engine.stream", "engine.decoder"): "a stream belongs to a decoder's session",
    ("engine.stream", "engine.session"): "a session returns the streams of its text",
    ("engine.torch.agreement", "engine.torch.runner"): "checks the runner that calls it",
    ("engine.torch.compile", "engine.torch.runner"): "compares with the runner that calls it",
    ("engine.torch.tree_passes", "engine.torch.runner"): "a pass runs its runner's model",
    ("engine.torch.growing_passes", "engine.torch.runner"): "a pass runs its runner's model",
    ("engine.torch.likeliest", "engine.torch.runner"): "it compiles a runner's model",
    ("engine.torch.eagle.passes", "engine.torch.eagle.model"): "a pass runs its model",
    ("engine.torch.eagle.growing_passes", "engine.torch.eagle.model"): "a pass runs its model",
    ("engine.torch.eagle.feedback", "engine.torch.eagle.model"): "its outputs are the model's",
}


@dataclass(frozen=True)
class Arrow:
    """An import of one of the package's modules by another; `typing_only` under TYPE_CHECKING."""

    importer: str
    imported: str
    typing_only: bool
    line: int

    def __str__(self) -> str:
        kind = " for its types" if self.typing_only else ""
        return f"{self.importer} (line {self.line}) imports {self.imported}{kind}"


def module_files() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    files = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


def arrows_of(module: str, source: str, modules: set[str]) -> Iterator[Arrow]:
    """The imports of the package's own modules in a module's source, wherever they stand."""
    parsed = ast.parse(source)
    typing_only = {
        id(inner)
        for block in ast.walk(parsed)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for statement in block.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(parsed):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import in line {node.lineno}"
            dotted = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in modules else str(node.module) for name in dotted]
        for name in names:
            if name.split(".")[0] == "sequoia_opt":
                yield Arrow(module, name, id(node) in typing_only, node.lineno)


def all_arrows() -> list[Arrow]:
    files = module_files()
    return [
        arrow
        for module, path in files.items()
        for arrow in arrows_of(module, path.read_text(encoding="utf-8"), set(files))
    ]


def room_of(module: str) -> str:
    """`plan` of `sequoia_opt.plan.tree`; empty for the package itself."""
    return [*module.split("."), ""][1]


def is_allowed(arrow: Arrow) -> bool:
    room, imported = room_of(arrow.importer), room_of(arrow.imported)
    if room == imported or (arrow.importer, imported) in EXCEPTIONS:
        return True
    if imported == "":  # the version
        return True
    if arrow.importer == "sequoia_opt":  # the public names, which are imported on first use
        return arrow.typing_only
    return imported in ALLOWED[room]


def test_every_room_has_its_rule() -> None:
    rooms = {room_of(module) for module in module_files()} - {"", "__main__"}
    assert rooms <= set(ALLOWED)


def test_imports_go_one_way() -> None:
    assert [str(arrow) for arrow in all_arrows() if not is_allowed(arrow)] == []


@pytest.mark.parametrize(
    ("module", "statement"),
    [
        ("sequoia_opt.plan.tree", "import sequoia_opt.engine.step"),
        ("sequoia_opt.plan.tree", "from sequoia_opt import engine"),
        ("sequoia_opt.engine.pair", "from sequoia_opt import demo"),
        ("sequoia_opt.errors", "def late():\n    from sequoia_opt.files.names import safe_name"),
        (
            "sequoia_opt.files.names",
            "if TYPE_CHECKING:\n    from sequoia_opt.plan.tree import TokenTree",
        ),
    ],
)
def test_an_upward_import_is_noticed(module: str, statement: str) -> None:
    modules = {*module_files(), "sequoia_opt.engine"}
    [arrow] = arrows_of(module, statement, modules)
    assert not is_allowed(arrow)


def test_no_cycle_within_a_room() -> None:
    """Neither at the top nor in a function; for types alone, only with a reason."""
    graph: dict[str, set[str]] = {}
    for arrow in all_arrows():
        ends = tuple(
            module.removeprefix("sequoia_opt.") for module in (arrow.importer, arrow.imported)
        )
        is_excepted = arrow.typing_only and ends in TYPE_CYCLES
        if room_of(arrow.importer) == room_of(arrow.imported) != "" and not is_excepted:
            graph.setdefault(arrow.importer, set()).add(arrow.imported)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_plan_never_names_torch() -> None:
    """Not even in a function or for types."""
    for module, path in module_files().items():
        if room_of(module) != "plan":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [str(node.module)]
            assert not {name.split(".")[0] for name in names} & {"torch", "transformers"}, module


def modules_loaded_by(*arguments: str) -> str:
    """The heavy modules that a fresh interpreter has loaded after some code, as a list's text."""
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    "statement",
    [
        "import sequoia_opt",
        "from sequoia_opt import TokenTree, Acceptance, LatencyProfile, solve",
        "from sequoia_opt.cli.app import application; application()",
        "import sequoia_opt.cli.output, sequoia_opt.repository.paths",
        "import sequoia_opt.measure.check.checks, sequoia_opt.measure.check.server",
    ],
)
def test_planning_needs_no_torch(statement: str) -> None:
    code = f"{statement}\nimport sys\nprint([m for m in {HEAVY} if m in sys.modules])"
    assert modules_loaded_by("-c", code) == "[]"


@pytest.mark.parametrize("arguments", [["--help"], ["solve", "--help"], ["solve"]])
def test_help_and_solve_load_no_torch(arguments: list[str], tmp_path: Path) -> None:
    """As a process from its start: what `sequoia-opt` runs."""
    if arguments == ["solve"]:
        arguments = ["solve", "-o", str(tmp_path / "tree.json")]
    code = (
        "import atexit, sys\n"
        f"atexit.register(lambda: print([m for m in {HEAVY[:2]} if m in sys.modules]))\n"
        f"sys.argv = ['sequoia-opt', *{arguments!r}]\n"
        "from sequoia_opt.__main__ import main\nmain()\n"
    )
    assert modules_loaded_by("-c", code) == "[]"


def test_the_reasons_are_still_needed() -> None:
    arrows = {
        (a.importer.removeprefix("sequoia_opt."), a.imported.removeprefix("sequoia_opt."))
        for a in all_arrows()
        if a.typing_only
    }
    assert set(TYPE_CYCLES) <= arrows


def test_every_public_name_exists() -> None:
    import sequoia_opt

    for name in sequoia_opt.__all__:
        assert getattr(sequoia_opt, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = sequoia_opt.nothing


def test_users_get_the_type_hints() -> None:
    assert (PACKAGE / "py.typed").is_file()

"""What a tree file says about how to run it, unless the options say otherwise."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sequoia_opt.cli.options import OFFLOAD_HELP, byte_count
from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan.sampling import Sampling

if TYPE_CHECKING:
    from sequoia_opt.engine.pair import Pair
    from sequoia_opt.plan.tree import TokenTree

Tree = Annotated[Path | None, typer.Argument(help="Tree file.", show_default="of the bundled pair")]
TreeTemperature = Annotated[
    float | None, typer.Option(help="0 for greedy.", show_default="the tree's")
]
TreeTopP = Annotated[
    float | None,
    typer.Option("--top-p", help="Nucleus of the target.", show_default="the tree's"),
]
TreeTopK = Annotated[
    int | None,
    typer.Option(
        "--top-k",
        min=0,
        help="Draw from the target's k most likely tokens; 0: from all.",
        show_default="the tree's",
    ),
]
TreeMinP = Annotated[
    float | None,
    typer.Option(
        "--min-p",
        min=0,
        max=1,
        help="Draw no token less probable than this share of the most likely one's.",
        show_default="the tree's",
    ),
]
TreeVerifier = Annotated[
    str | None,
    typer.Option(
        help="Above temperature 0: sequoia, specinfer, topk or traversal.",
        show_default="the tree's",
    ),
]
TreeCompile = Annotated[
    bool | None,
    typer.Option(
        "--compile/--no-compile",
        help="Compile the forwards: takes a minute.",
        show_default="as the tree was solved for",
    ),
]
TreeOffload = Annotated[
    str | None,
    typer.Option("--offload", help=OFFLOAD_HELP, show_default="as the tree was solved for"),
]
TreeMemoryBudget = Annotated[
    str | None,
    typer.Option(
        "--memory-budget",
        help="What the target may take there, 8GB, with a short text's keys and values; the "
        "buffers of two layers apart.",
        show_default="as the tree was solved for, else most of what is free",
    ),
]
GREEDY, DEFAULT_VERIFIER = "greedy", "sequoia"


@dataclass(frozen=True)
class Comparable:
    """Whether a tree's predicted tokens, and its predicted times, are for what is run."""

    tokens: bool
    times: bool


def sampling_of(
    tree: TokenTree,
    temperature: float | None,
    top_p: float | None,
    verifier: str | None,
    top_k: int | None = None,
    min_p: float | None = None,
) -> Sampling:
    """The tree's way to sample, but for what is asked for otherwise.

    Raises:
        SequoiaError: they are out of range, or the tree was solved for another verifier, whose
            guesses are accepted at other rates.
    """
    from sequoia_opt.cli import console
    from sequoia_opt.engine.decoder import check_sampling

    own = tree.metadata
    warm = float(own.get("temperature", 0.0) if temperature is None else temperature)
    nucleus = float(own.get("top_p", 1.0) if top_p is None else top_p)
    planned = own.get("verifier", GREEDY)
    chosen = verifier or (DEFAULT_VERIFIER if planned == GREEDY else planned)
    likely = int(own.get("top_k", 0) if top_k is None else top_k)
    least = float(own.get("min_p", 0.0) if min_p is None else min_p)
    check_sampling(warm, nucleus, chosen, likely, least)
    if warm == 0:  # the most likely token is in every cut
        asked = {"--top-p": (top_p, 1), "--top-k": (top_k, 0), "--min-p": (min_p, 0)}
        for option, (value, idle) in asked.items():
            if value not in (None, idle):
                console.note(f"{option} does nothing at temperature 0; add --temperature")
        nucleus, likely, least = 1.0, 0, 0.0
    # Traversal has no acceptance of its own: it is planned with that of its drafting.
    fitting = (GREEDY, chosen, *([DEFAULT_VERIFIER] if chosen == "traversal" else []))
    if warm > 0 and planned not in fitting:
        raise SequoiaError(
            f"the tree was solved for verifier {planned}, found --verifier {chosen}; solve with "
            "an acceptance estimated for it, or drop the option"
        )
    return Sampling(warm, nucleus, chosen, likely, least)


def models_of(
    tree: TokenTree, target: str | None, draft: str | None
) -> tuple[str | None, str | None]:
    """The models to run: those named; else the bundled pair, if the tree is not for others."""
    from sequoia_opt import demo

    for role, given, bundled in (
        ("target", target, demo.TARGET_NAME), ("draft", draft, demo.DRAFT_NAME)
    ):  # fmt: skip
        own = tree.metadata.get(role, bundled)
        if given is None and own != bundled:
            raise SequoiaError(f"the tree was solved for {role} {own}; name it with --{role}")
    return target, draft


def bundled_tree(temperature: float | None, compiled: bool | None, device: str | None) -> Path:
    """The bundled pair's tree for this machine, if there is one for it."""
    from sequoia_opt.engine.devices import usable_device
    from sequoia_opt.measure.hardware import hardware
    from sequoia_opt.repository import paths

    slug = str(hardware(usable_device(device))["slug"])
    return paths.bundled_tree(temperature or 0.0, bool(compiled), slug)


def compiled_roles(tree: TokenTree, wanted: bool | None) -> Collection[str]:
    """The roles to compile: by default those that were when the tree's profile was measured."""
    from sequoia_opt.engine.pair import ROLES

    own = tree.metadata.get("engine", {}).get("compile")
    roles = [role for role in ROLES if own is True or (isinstance(own, list) and role in own)]
    return [] if wanted is False else roles or (ROLES if wanted else [])


def check_world(tree: TokenTree) -> None:
    """Refuse a tree that was solved for another number of processes.

    Raises:
        SequoiaError: with both numbers.
    """
    from sequoia_opt.engine.distributed import launched

    engine, found = tree.metadata.get("engine", {}), launched()
    wanted = engine.get("world_size") or found
    if wanted != found:
        way = f"with `torchrun --nproc-per-node {wanted} -m sequoia_opt …`"
        processes = f"{wanted} processes" if wanted > 1 else "one process"
        raise SequoiaError(
            f"the tree was solved for {processes}, found {found}; start it "
            f"{way if wanted > 1 else 'without torchrun'}, or solve from a profile of {found}"
        )


def offload_of(tree: TokenTree, place: str | None, budget: str | None) -> tuple[str, int | None]:
    """Where layers of the target stay, and the bytes that may be on the device: by default as
    when the tree's profile was measured."""
    engine = tree.metadata.get("engine", {})
    own = str(engine.get("offload", "none"))
    place = place or own
    if budget is not None:
        return place, byte_count("--memory-budget", budget)
    return place, engine.get("memory_budget") if place == own else None


def comparable(tree: TokenTree, pair: Pair, sampling: Sampling) -> Comparable:
    """Which of the tree's predictions are for what is run here."""
    from sequoia_opt.measure.hardware import hardware

    own = tree.metadata
    models = (own.get("target"), own.get("draft")) == (pair.target_name, pair.draft_name)
    verifier = GREEDY if sampling.temperature == 0 else sampling.verifier
    wanted = (sampling.temperature, sampling.top_p, verifier, sampling.top_k, sampling.min_p)
    planned = own.get("temperature"), own.get("top_p"), own.get("verifier", verifier)
    same = (*planned, own.get("top_k", 0), own.get("min_p", 0.0)) == wanted
    machine = own.get("hardware", {}).get("slug") == hardware(pair.device)["slug"]
    settings = own.get("engine", {}).get("dtype"), compiled_roles(tree, None)
    engine = settings == (pair.dtype, pair.compiled)
    for setting, usual in (("graphs", pair.graphs), ("offload", "none"), ("memory_budget", None)):
        engine = engine and own.get("engine", {}).get(setting, usual) == getattr(pair, setting)
    return Comparable(tokens=models and same, times=models and same and machine and engine)

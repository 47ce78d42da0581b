"""How to run a tree: what its file says, unless options say otherwise.

Knows a tree's metadata and the options that override it. Knows nothing of decoding.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sequoia_opt.cli.options import (
    MEMORY_BUDGET_HELP,
    MIN_P_HELP,
    MODELS,
    OFFLOAD_HELP,
    SAMPLING,
    TOP_K_HELP,
    VERIFIER_HELP,
    byte_count,
)
from sequoia_opt.engine.names import TORCH
from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan.draft_names import LOOKUP, LOOKUP_FIRST, looks_up
from sequoia_opt.plan.sampling import Sampling
from sequoia_opt.plan.verifiers import (
    DEFAULT_VERIFIER,
    GREEDY,
    VERIFIERS,
    check_verifier,
    verifier_at,
)

if TYPE_CHECKING:
    from sequoia_opt.engine.pair import Pair
    from sequoia_opt.plan.tree import TokenTree

THE_TREES, AS_SOLVED = "the tree's", "as the tree was solved for"

Tree = Annotated[
    Path | None, typer.Argument(help="Tree file.", show_default="the bundled pair's tree")
]
TreeTemperature = Annotated[
    float | None,
    typer.Option(
        help="Sampling temperature; 0 is greedy.", show_default=THE_TREES, rich_help_panel=SAMPLING
    ),
]
TreeTopP = Annotated[
    float | None,
    typer.Option(
        "--top-p",
        help="Draw from the target's nucleus of this probability, in (0, 1].",
        show_default=THE_TREES,
        rich_help_panel=SAMPLING,
    ),
]
TreeTopK = Annotated[
    int | None,
    typer.Option(
        "--top-k", min=0, help=TOP_K_HELP, show_default=THE_TREES, rich_help_panel=SAMPLING
    ),
]
TreeMinP = Annotated[
    float | None,
    typer.Option(
        "--min-p", min=0, max=1, help=MIN_P_HELP, show_default=THE_TREES, rich_help_panel=SAMPLING
    ),
]
TreeVerifier = Annotated[
    str | None, typer.Option(help=VERIFIER_HELP, show_default=THE_TREES, rich_help_panel=SAMPLING)
]
TreeCompile = Annotated[
    bool | None,
    typer.Option(
        "--compile/--no-compile",
        help="Compile the forward passes, which takes a minute.",
        show_default=AS_SOLVED,
        rich_help_panel=MODELS,
    ),
]
TreeOffload = Annotated[
    str | None,
    typer.Option("--offload", help=OFFLOAD_HELP, show_default=AS_SOLVED, rich_help_panel=MODELS),
]
TreeMemoryBudget = Annotated[
    str | None,
    typer.Option(
        "--memory-budget",
        help=MEMORY_BUDGET_HELP,
        show_default=f"{AS_SOLVED}, else most of the free memory",
        rich_help_panel=MODELS,
    ),
]


@dataclass(frozen=True)
class Comparable:
    """Which of a tree's predictions apply to a run: those of tokens, and those of times."""

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
    """How to sample: as the options say, else as the tree was solved for.

    Raises:
        SequoiaError: a value is out of range, or the tree was solved for another verifier, whose
            acceptance rates differ.
    """
    from sequoia_opt.cli.output import note

    solved = tree.metadata
    solved_verifier = solved.get("verifier", GREEDY)
    sampling = Sampling(
        temperature=float(solved.get("temperature", 0.0) if temperature is None else temperature),
        top_p=float(solved.get("top_p", 1.0) if top_p is None else top_p),
        verifier=verifier or (DEFAULT_VERIFIER if solved_verifier == GREEDY else solved_verifier),
        top_k=int(solved.get("top_k", 0) if top_k is None else top_k),
        min_p=float(solved.get("min_p", 0.0) if min_p is None else min_p),
    )
    check_verifier(sampling.verifier)
    if sampling.temperature == 0:  # the most likely token is in every cut
        for option, value, neutral in (
            ("--top-p", top_p, 1),
            ("--top-k", top_k, 0),
            ("--min-p", min_p, 0),
        ):
            if value not in (None, neutral):
                note(f"{option} has no effect at temperature 0; add --temperature")
        return Sampling(0.0, 1.0, sampling.verifier, 0, 0.0)
    planned_as = VERIFIERS[sampling.verifier].planned_as
    if solved_verifier not in (GREEDY, sampling.verifier, planned_as):
        raise SequoiaError(
            f"the tree was solved for verifier {solved_verifier}, found --verifier "
            f"{sampling.verifier}; solve with acceptance rates estimated for that, or drop the "
            "option"
        )
    return sampling


def models_of(
    tree: TokenTree, target: str | None, draft: str | None
) -> tuple[str | None, str | None]:
    """The target and the draft that the options name; None stands for the bundled ones, or for
    the lookup that the tree was solved for.

    Raises:
        SequoiaError: the tree was solved for other models than the bundled ones, and no option
            names any; or for a draft model, and a lookup is named; or it looks up first, and the
            model alone is named.
    """
    from sequoia_opt import demo

    solved_draft = tree.metadata.get("draft", LOOKUP)
    by_itself = (LOOKUP, LOOKUP_FIRST + demo.DRAFT_NAME)
    if draft is None and solved_draft in by_itself and "draft" in tree.metadata:
        draft = solved_draft
    if draft is not None and not looks_up(draft) and tree.looks_up_first:
        raise SequoiaError(
            f"the plan looks up before its model drafts, found --draft {draft}; use --draft "
            f"{LOOKUP_FIRST}{draft}"
        )
    if draft == LOOKUP and tree.speculates and solved_draft != LOOKUP:
        raise SequoiaError(
            f"the tree was solved for draft {solved_draft}; profile, estimate and solve with "
            f"--draft {LOOKUP} for a lookup's"
        )
    for role, named, bundled in (
        ("target", target, demo.TARGET_NAME), ("draft", draft, demo.DRAFT_NAME)
    ):  # fmt: skip
        solved = tree.metadata.get(role, bundled)
        if named is None and solved != bundled:
            raise SequoiaError(f"the tree was solved for {role} {solved}; name it with --{role}")
    return target, draft


def corpus_of(tree: TokenTree, corpus: Path | None) -> Path | None:
    """The corpus that the option names.

    Raises:
        SequoiaError: the tree was solved for a lookup with one, and the option names none.
    """
    solved = tree.metadata.get("corpus")
    if corpus is None and solved is not None:
        raise SequoiaError(
            f"the tree was solved with the corpus {solved.get('name')}; name it with --corpus"
        )
    return corpus


def tree_for_this_machine(
    temperature: float | None, compiled: bool | None, device: str | None, engine: str = TORCH
) -> Path:
    """The bundled pair's tree that was solved for this machine, else the general one.

    Args:
        engine: that is to run it.
    """
    from sequoia_opt.engine.devices import usable_device
    from sequoia_opt.engine.hardware import hardware
    from sequoia_opt.repository import paths

    slug = str(hardware(usable_device(device))["slug"])
    return paths.bundled_tree(temperature or 0.0, bool(compiled), slug, engine)


def compiled_roles(tree: TokenTree, asked: bool | None) -> Collection[str]:
    """The roles whose forward passes are compiled.

    Args:
        asked: what the option says; if None, the roles that were compiled when the tree's profile
            was measured; if True and none were, both.
    """
    from sequoia_opt.engine.pair import ROLES

    if asked is False:
        return []
    solved = tree.metadata.get("engine", {}).get("compile")
    if solved is True:
        return list(ROLES)
    roles = [role for role in ROLES if isinstance(solved, list) and role in solved]
    return roles or (list(ROLES) if asked else [])


def check_world(tree: TokenTree) -> None:
    """Refuse a tree that was solved for another number of processes.

    Raises:
        SequoiaError: with both numbers.
    """
    from sequoia_opt.engine.distributed import launched

    running = launched()
    solved = tree.metadata.get("engine", {}).get("world_size") or running
    if solved == running:
        return
    if solved > 1:
        processes = f"{solved} processes"
        start = f"start it with `torchrun --nproc-per-node {solved} -m sequoia_opt …`"
    else:
        processes, start = "one process", "start it without torchrun"
    raise SequoiaError(
        f"the tree was solved for {processes}, found {running}; {start}, or solve from a profile "
        f"of {running}"
    )


def offload_of(tree: TokenTree, offload: str | None, budget: str | None) -> tuple[str, int | None]:
    """Where the target's layers stay, and how many bytes it may take on the device (None: any).

    Without options, both are as when the tree's profile was measured.
    """
    engine = tree.metadata.get("engine", {})
    solved = str(engine.get("offload", "none"))
    offload = offload or solved
    if budget is not None:
        return offload, byte_count("--memory-budget", budget)
    return offload, engine.get("memory_budget") if offload == solved else None


def comparable(tree: TokenTree, pair: Pair, sampling: Sampling) -> Comparable:
    """Which of the tree's predictions apply to this pair on this machine."""

    solved = tree.metadata
    engine = solved.get("engine", {})
    verifier = verifier_at(sampling.temperature, sampling.verifier)
    same_tokens = (
        solved.get("target") == pair.target_name
        and solved.get("draft") == pair.draft_name
        and solved.get("temperature") == sampling.temperature
        and solved.get("top_p") == sampling.top_p
        and solved.get("verifier", verifier) == verifier
        and solved.get("top_k", 0) == sampling.top_k
        and solved.get("min_p", 0.0) == sampling.min_p
        and _fingerprint(solved) == _fingerprint(pair.about_draft)
    )
    same_engine = (
        engine.get("name", TORCH) == pair.engine
        and (pair.engine == TORCH or pair.machine.settings.items() <= engine.items())
        and engine.get("dtype") == pair.dtype
        and compiled_roles(tree, None) == pair.compiled
        and engine.get("graphs", pair.graphs) == pair.graphs
        and engine.get("offload", "none") == pair.offload
        and engine.get("memory_budget") == pair.memory_budget
    )
    same_machine = solved.get("hardware", {}).get("slug") == pair.machine.hardware["slug"]
    return Comparable(tokens=same_tokens, times=same_tokens and same_machine and same_engine)


def _fingerprint(about: Mapping[str, Any]) -> str | None:
    """The fingerprint of the corpus that a tree or a drafter names; None if it names none."""
    fingerprint: str | None = about.get("corpus", {}).get("fingerprint")
    return fingerprint

"""A tree in the formats of other engines, and what their users should know about it.

Knows which trees an engine can draft, and where it drafts otherwise than the acceptance was
measured for. How each engine writes down what it drafts is in `export_formats`; where a plan has
solved numbers for an engine's own rule, these are written (`export_rules`). The caller writes the
research code's `.pt`, the only binary format, from `tree_formats.growmap`.
"""

from __future__ import annotations

from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan.draft_passes import NO_PASSES, OF_HEAD, PER_BLOCK
from sequoia_opt.plan.export_formats import (
    FORMATS,
    ExportFormat,
    count_guesses,
    is_sampled,
    passes_of,
    verifier_of,
    width,
)
from sequoia_opt.plan.export_rules import RULE_TEXTS, rule_notes, rule_of
from sequoia_opt.plan.tree import TokenTree

__all__ = ["FORMATS", "check_draft", "export", "is_chain", "names_by_kind", "sampling_note"]


def is_chain(tree: TokenTree) -> bool:
    """Whether every node has at most one child."""
    return tree.depth == tree.size - 1


def names_by_kind() -> dict[str, list[str]]:
    """The names of all formats by what they can express, for help: chains, trees, dynamic."""
    kinds: dict[str, list[str]] = {"chains": [], "trees": [], "dynamic": []}
    for name, export_format in FORMATS.items():
        if export_format.dynamic:
            kinds["dynamic"].append(name)
        else:
            kinds["chains" if export_format.chains_only else "trees"].append(name)
    return kinds


def export(tree: TokenTree, to: str) -> tuple[str, list[str]]:
    """The tree as another engine takes it, and notes for the engine's user.

    Args:
        to: one of `FORMATS`.

    Raises:
        SequoiaError: an unknown format, or a tree that the engine cannot draft.
    """
    if to not in FORMATS:
        raise SequoiaError(f"--to: found {to!r}, expected one of {', '.join(FORMATS)}")
    export_format = FORMATS[to]
    check_draft(tree, export_format)
    if (numbers := rule_of(tree, to)) is not None:
        rule_text = RULE_TEXTS[to]
        notes = [*rule_notes(numbers), export_format.needs, rule_text.needs]
        notes.append(sampling_note(tree, export_format))
        return rule_text.write(tree, numbers), [note for note in notes if note]
    _check(tree, export_format)
    return export_format.write(tree), _notes(tree, export_format)


def check_draft(tree: TokenTree, export_format: ExportFormat) -> None:
    """Refuse a plan for a kind of draft that an engine does not take, or takes in other words.

    Raises:
        SequoiaError: it says why, and what to do.
    """
    engine, passes = export_format.engine, passes_of(tree)
    if passes == NO_PASSES:
        raise SequoiaError(
            f"the plan is for a lookup, which {engine} makes by rules of its own; `sequoia-opt "
            "tune` compares those of llama.cpp and OpenVINO GenAI"
        )
    if passes == PER_BLOCK:
        raise SequoiaError(
            f"the plan is for a drafter of blocks, of which there are several kinds: tell {engine} "
            f"which one yours is, and {count_guesses(tree)} guesses"
        )
    if passes == OF_HEAD and not export_format.takes_heads:
        raise SequoiaError(f"the plan is for an EAGLE head, which {engine} does not take as draft")


def _check(tree: TokenTree, export_format: ExportFormat) -> None:
    """Refuse a tree that an engine cannot draft.

    Raises:
        SequoiaError: it says why, and what to do.
    """
    engine, most = export_format.engine, export_format.most_guesses
    if tree.size == 1 and tree.policy is not None:
        raise SequoiaError(
            f"the plan is adaptive, which {engine} cannot run, and its best fixed tree has one "
            "node: there decode plainly"
        )
    if tree.size == 1:
        raise SequoiaError(f"the tree has one node: decode plainly, without {engine}'s speculation")
    if export_format.chains_only and not is_chain(tree):
        raise SequoiaError(
            f"{engine} drafts one sequence and this tree has siblings; solve with --shape chain"
        )
    if most and tree.size - 1 > most:
        raise SequoiaError(
            f"found {tree.size - 1} guesses, expected at most {most}: {engine} drafts no more; "
            f"solve with --max-size {most + 1}"
        )
    if export_format.greedy_only and is_sampled(tree):
        raise SequoiaError(
            f"found a tree for temperature {tree.metadata['temperature']:g}, expected temperature "
            f"0: above it {engine} {export_format.drafting}; export a chain"
        )


def _notes(tree: TokenTree, export_format: ExportFormat) -> list[str]:
    """What the engine's user should know about the exported text."""
    engine = export_format.engine
    count = export_format.guesses(tree)
    if export_format.counts_root:
        notes = [f"{count + 1} nodes: {engine} counts the root"]
    else:
        notes = [f"{count} nodes: {engine} does not count the root"]
    if tree.policy is not None:
        notes.append(f"{engine} cannot grow trees by this plan's policy: this is its best tree")
    if export_format.versions:
        notes.append(f"only for versions of {engine} {export_format.versions}")
    if export_format.dynamic:
        notes.append(
            f"{engine} grows its own tree at each step: depth {tree.depth}, at most "
            f"{width(tree)} children and {count} guesses are all that can be set; which nodes "
            "have children is lost, and with it the predicted speed"
        )
    if export_format.needs:
        notes.append(export_format.needs)
    if note := sampling_note(tree, export_format):
        notes.append(note)
    return notes


def sampling_note(tree: TokenTree, export_format: ExportFormat) -> str:
    """Whether the plan's acceptance holds for the engine's drafts; empty at temperature 0."""
    if not is_sampled(tree):
        return ""
    verifier, holding = verifier_of(tree), export_format.verifiers
    start = f"above temperature 0 {export_format.engine} {export_format.drafting}: "
    if verifier in holding:
        return f"{start}the acceptance measured for verifier {verifier} holds there"
    if not holding:
        return f"{start}no acceptance that this program measures holds there, nor does this plan"
    return (
        f"{start}the acceptance measured for verifier {verifier} does not hold there, nor does "
        f"this plan; measure with `sequoia-opt profile --verifiers {holding[0]}` and "
        f"`sequoia-opt estimate --verifier {holding[0]} --temperature "
        f"{tree.metadata['temperature']:g}`, and solve again"
    )

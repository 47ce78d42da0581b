"""Trees and settings of other engines, read from a text that a user pastes.

Reads rank paths, growmaps and the settings of chains. Refuses a setting that may change the tree
and whose effect is not known: a number is the length of a chain only if no other setting affects
it. The research code's `.pt` files are read elsewhere.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sequoia_opt.errors import SequoiaError
from sequoia_opt.files.fields import shown
from sequoia_opt.plan import shapes
from sequoia_opt.plan.engine_settings import (
    CHAIN_MODES,
    COUNT_OF_GUESSES,
    COUNT_WITH_ROOT,
    DYNAMIC,
    MODES,
    OLD_LLAMA_CPP,
    SCHEDULES,
    THRESHOLDS,
    TOP_KS,
    TREES,
    is_count,
    is_length,
    is_unknown,
    mode_name,
)
from sequoia_opt.plan.settings_text import Setting, plain_name, settings
from sequoia_opt.plan.tree import TokenTree
from sequoia_opt.plan.tree_formats import of_growmap, of_paths

LONGEST_CHAIN = 10_000  # guesses: more than any engine drafts


def read(
    text: str,
    where: str,
    name: str | None = None,
    first_rank: int = 0,
    note: Callable[[str], None] = lambda message: None,
) -> TokenTree:
    """The tree that a text describes: rank paths, a growmap, or an engine's settings.

    Args:
        where: the text's file, for messages.
        name: the list that is the tree, if there are several, or the number that is the length
            of a chain.
        first_rank: rank of a first child in rank paths, 0 or 1.
        note: called with each thing about the settings that the tree does not show.

    Raises:
        SequoiaError: none of these formats, several trees, ranks with gaps, an engine that
            builds its own tree, or settings whose effect on the tree is not known.
    """
    stripped = text.strip()
    if stripped.startswith(("[", "(", "{")) and name is None:
        whole = _literal(stripped)
        if isinstance(whole, dict) and "Successors" in whole:
            return of_growmap(whole, where)
        if isinstance(whole, (list, tuple)) and not any(isinstance(p, (dict, str)) for p in whole):
            return of_paths(whole, where, first_rank)
        if whole is None and not stripped.startswith("{") and not re.search(r"[A-Za-z]", stripped):
            raise SequoiaError(f"{where}: neither JSON nor a Python literal")
    present = [setting for setting in settings(stripped) if setting.value is not None]
    lists = _path_lists(present)
    if name is not None:
        return _named(name, present, lists, where, first_rank)
    _refuse_dynamic_trees(present, where)
    if lists:
        return of_paths(_only(lists, where), where, first_rank)
    if written := next((s.written for s in present if s.name in TREES), None):
        raise SequoiaError(
            f"{where}: {written}: found no list, expected [[0], [1], [0, 0], …] after it"
        )
    return _chain(present, where, note)


def _literal(text: str) -> Any:
    """The value of a text as JSON or as a Python literal; None if it is neither."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None


def _path_lists(present: Sequence[Setting]) -> dict[str, list[Any]]:
    """The lists that may be trees, by their names in the text."""
    return {
        setting.written: setting.value
        for setting in present
        if isinstance(setting.value, list)
        and setting.value
        and setting.name not in SCHEDULES
        and all(isinstance(path, (list, tuple)) for path in setting.value)
    }


def _only(lists: Mapping[str, list[Any]], where: str) -> list[Any]:
    """The one tree of a text, whatever its names.

    Raises:
        SequoiaError: the text has several.
    """
    different = {repr([list(path) for path in paths]) for paths in lists.values()}
    if len(different) > 1:
        names = ", ".join(f"{name} ({len(paths)} paths)" for name, paths in lists.items())
        raise SequoiaError(
            f"{where}: found {len(lists)} lists: {names}; "
            f"`sequoia-opt import {where} --name {next(iter(lists))}` takes one of them"
        )
    return next(iter(lists.values()))


def _named(
    name: str,
    present: Sequence[Setting],
    lists: Mapping[str, list[Any]],
    where: str,
    first_rank: int,
) -> TokenTree:
    """The list of that name as a tree, or the number of that name as a chain's length."""
    plain = plain_name(name)
    for written, paths in lists.items():
        if name == written or plain == plain_name(written):
            return of_paths(paths, where, first_rank)
    numbers = {s.value for s in present if s.name == plain and is_count(s.value)}
    if len(numbers) != 1:
        choices = [*lists, *(s.written for s in present if is_count(s.value))]
        known = ", ".join(dict.fromkeys(choices)) or "none"
        raise SequoiaError(
            f"{where}: --name: found {'several' if numbers else 'no'} {name!r}, expected one of "
            f"its lists and numbers: {known}"
        )
    [count] = numbers
    return _chain_of(count - 1 if plain == COUNT_WITH_ROOT else count, where)


def _refuse_dynamic_trees(present: Sequence[Setting], where: str) -> None:
    """Refuse settings with which the engine itself decides what it drafts."""
    for setting in present:
        is_on = setting.value is not False and setting.value not in (0, "0")
        has_siblings = setting.name in TOP_KS and setting.value not in (1, False)
        if has_siblings or (setting.name in DYNAMIC and is_on):
            raise SequoiaError(
                f"{where}: {setting.written}: with it the engine grows this tree itself; "
                "it cannot be imported"
            )
        if setting.name == "spec_type" and setting.value == "none":
            raise SequoiaError(f"{where}: --spec-type none: the engine does not speculate at all")


def _chain(present: Sequence[Setting], where: str, note: Callable[[str], None]) -> TokenTree:
    """The chain that settings describe.

    Raises:
        SequoiaError: they do not, or could mean something else.
    """
    lengths = [setting for setting in present if is_length(setting)]
    _refuse_ambiguous(present, lengths, where)
    if not lengths:
        raise SequoiaError(
            f"{where}: found none of the known formats, expected rank paths, a growmap or the "
            "settings of a chain"
        )
    for setting in lengths:
        if not is_count(setting.value):
            raise SequoiaError(
                f"{where}: {setting.written}: found {shown(setting.value)}, expected a number"
            )
    counts = sorted({s.value for s in lengths if is_count(s.value)})
    if len(counts) > 1:
        raise SequoiaError(
            f"{where}: found chains of {' and '.join(map(str, counts))} guesses, expected one; "
            f"`sequoia-opt import {where} --name {lengths[0].written}` takes one of them"
        )
    for line in _early_ends(present, lengths):
        note(line)
    return _chain_of(counts[0], where)


def _chain_of(guesses: int, where: str) -> TokenTree:
    if not 0 <= guesses <= LONGEST_CHAIN:
        raise SequoiaError(f"{where}: found {guesses} guesses, expected 0 to {LONGEST_CHAIN}")
    return shapes.chain(guesses + 1)


def _refuse_ambiguous(present: Sequence[Setting], lengths: Sequence[Setting], where: str) -> None:
    """Refuse numbers that could mean something other than a chain's length.

    Raises:
        SequoiaError: it names the setting that makes them ambiguous.
    """
    for setting in present:
        if complaint := _ambiguity(setting, present, lengths):
            number = next((s for s in [*lengths, setting] if is_count(s.value)), None)
            remedy = (
                f"; if a chain is meant, `sequoia-opt import {where} --name {number.written}` "
                "takes that number as its length"
                if number
                else ""
            )
            raise SequoiaError(f"{where}: {setting.written}: {complaint}{remedy}")


def _ambiguity(setting: Setting, present: Sequence[Setting], lengths: Sequence[Setting]) -> str:
    """Why a setting leaves the tree open, among all that are present; empty if it does not."""
    if setting.name in SCHEDULES:
        return "the length depends on the number of sequences"
    if setting.name == "max_draft_len":
        modes = {mode_name(str(s.value)) for s in present if s.name in MODES}
        if not modes or not modes <= CHAIN_MODES:
            mode = " or ".join(sorted(modes)) if modes else "no decoding_type"
            return (
                f"with {mode} it need not be the length of a chain (with Medusa it is the number "
                "of nodes of medusa_choices)"
            )
    counts = [s.value for s in lengths if is_count(s.value)]
    has_top_k = any(s.name in TOP_KS for s in present)
    if setting.name == COUNT_WITH_ROOT and not has_top_k:
        if setting.value not in [count + 1 for count in counts]:
            return "without speculative-eagle-topk these need not be a chain's nodes"
    elif setting.name == COUNT_OF_GUESSES and setting.value not in [s.value for s in lengths]:
        return "this many guesses need not be a chain"
    if setting.name == "num_assistant_tokens_schedule" and setting.value != "constant":
        return "transformers changes the length while it decodes"
    return "its effect on the tree is not known" if is_unknown(setting) else ""


def _early_ends(present: Sequence[Setting], lengths: Sequence[Setting]) -> list[str]:
    """Reasons why an engine drafts less than the chain at times, one line each."""
    lines = []
    names = {setting.name for setting in present}
    for setting in present:
        if setting.name in THRESHOLDS and setting.value != 0:
            lines.append(
                f"{setting.written} {setting.value}: the engine ends this chain early where its "
                "draft is less sure; the tree is the longest that it drafts"
            )
    if not names & set(THRESHOLDS):
        if names & OLD_LLAMA_CPP & {s.name for s in lengths}:
            lines.append(
                "llama.cpp until May 2026 ends this chain early where its draft is less sure than "
                "0.75, unless --draft-p-min is 0; the tree is the longest that it drafts"
            )
        elif "num_assistant_tokens" in names:
            lines.append(
                "transformers ends this chain early where its assistant is less sure than 0.4, "
                "unless assistant_confidence_threshold is 0; the tree is the longest that it "
                "drafts"
            )
    if any(s.name == "speculative_num_steps" for s in lengths) and not names & set(TOP_KS):
        lines.append("speculative-eagle-topk is not set: this is the chain that SGLang drafts at 1")
    return lines

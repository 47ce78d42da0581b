"""Other engines' trees and settings in ours.

Knows what each engine's settings say about the tree that it drafts, as they were in vLLM 0.33,
SGLang 0.5.23, TensorRT-LLM 1.4.0rc4, transformers 5.24 and llama.cpp of November 2026, and in the
older versions that are named. A setting of theirs that may change the tree and whose effect is
not known here is refused: a number is a chain's length only where nothing else has a say in it.
Reads text; the research code's `.pt` files are read elsewhere.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeGuard

from sequoia_opt.errors import SequoiaError
from sequoia_opt.files.fields import shown
from sequoia_opt.plan import shapes
from sequoia_opt.plan.settings_text import Setting, plain_name, settings
from sequoia_opt.plan.tree import TokenTree

LONGEST = 10_000  # guesses of a chain: more than any engine drafts

# What says how many tokens are guessed one behind another, the root not among them.
LENGTHS = {
    "num_speculative_tokens",  # vLLM
    "spec_draft_n_max",  # llama.cpp
    "draft_max",  # llama.cpp until spring 2026, as the next three
    "draft_n",
    "n_max",
    "draft_n_max",
    "max_draft_len",  # TensorRT-LLM
    "num_nextn_predict_layers",
    "speculative_num_steps",  # SGLang
    "num_assistant_tokens",  # transformers
    "prompt_lookup_num_tokens",
    "num_draft_tokens",  # mlx-lm
    "max_draft_tokens",  # ONNX Runtime GenAI
}
FLAG_LENGTHS = {"draft"}  # llama.cpp's --draft; a word behind which other things stand too
ROOTED = "speculative_num_draft_tokens"  # SGLang's count of all nodes, the root among them
IN_ALL = "max_total_draft_tokens"  # TensorRT-LLM's count of all guesses
TREES = ("medusa_choices", "eagle_choices", "speculative_token_tree")
NOT_TREES = {"num_speculative_tokens_per_batch_size", "draft_len_schedule"}
TOPKS = ("speculative_eagle_topk", "dynamic_tree_max_topk")
MODES = ("decoding_type", "speculative_decoding_mode")
# TensorRT-LLM's ways to draft of which max_draft_len is the length of a chain. With Medusa it is a
# tree's number of nodes, and with others of which it does not say.
CHAIN_MODES = {
    "draft_target", "drafttarget", "draft_tokens_external", "eagle", "eagle3", "mtp", "ngram",
    "pard", "sa", "dflash", "dspark",
}  # fmt: skip
# With these the engine decides at each step what it drafts or verifies.
DECIDING = {
    "use_dynamic_tree", "speculative_adaptive", "enable_adaptive_verification",
    "speculative_adaptive_config", "draft_p_split", "spec_draft_p_split", "p_split",
    "max_verification_set_size", "max_non_leaves_per_layer", "branching_factor", "tree_depth",
}  # fmt: skip
# What sounds like speculation, and what of it has no say in the tree's shape.
_SPECULATIVE = re.compile(
    r"spec(?!ial)|draft|assist|medusa|eagle|lookahead|mtp|nextn|tree|choices|verif|guess|ngram"
)
_HARMLESS = re.compile(
    # where the drafter comes from and how it is held; Python's names for its parts
    r"(?:^|_)(?:model|tokenizer|path|dir|folder|file|repo|url|revision|device|devices|ngl"
    r"|gpu_layers|threads|threads_batch|poll|prio|cpu_mask|cpu_range|cpu_strict|quantization"
    r"|backend|attention_mode|format|token_map|dtype|ctx_size|parallel_size|max_model_len"
    r"|type_[kv]|override_tensor|cpu_moe|logprobs|vocab|replace)$"
    r"|_draft$|^(?:draft|assistant|drafter|speculative)_?(?:model|tokenizer|llm|engine|config)$"
    # of which kind it is, and by what rule its guesses are accepted
    r"|^(?:spec_type|speculative_(?:algorithm|decoding|config)|use_speculative_decoding"
    r"|draft_sample_method|num_medusa_heads|num_eagle_layers|eagle3_(?:one_model|model_arch"
    r"|layers_to_capture)|mtp_eagle_one_model|use_mtp_vanilla|is_assistant|assistant_early_exit"
    r"|parallel_drafting|disable_padded_drafter_batch|use_heterogeneous_vocab|speculative_use_"
    r"(?:block_verification|rejection_sampling)|speculative_accept_threshold_(?:single|acc))$"
    # when it is not used, or ends early
    r"|^(?:draft_min|draft_n_min|spec_draft_n_min|draft_p_min|spec_draft_p_min"
    r"|assistant_confidence_threshold|num_assistant_tokens_schedule|(?:speculative_)?disable_by_batch_size"
    r"|max_matching_ngram_size|assistant_lookbehind)$"
)
_DRAFTERS = {"spec", "speculative", "draft", "drafter", "assistant"}  # unless a number
_THRESHOLDS = ("p_min", "draft_p_min", "spec_draft_p_min", "assistant_confidence_threshold")
_OLD_LLAMA = {"draft", "draft_max", "draft_n"}


def of_growmap(found: Mapping[str, Any], where: str) -> TokenTree:
    """The tree of a growmap; its `Successors` say all of it.

    Raises:
        SequoiaError: no growmap, or its fields contradict each other.
    """
    children = found.get("Successors")
    if not isinstance(children, list) or not all(isinstance(c, list) for c in children):
        raise SequoiaError(f"{where}: Successors: found none, expected each node's children")
    parents, ranks = [-1] * len(children), [0] * len(children)
    for node, own in enumerate(children):
        for rank, child in enumerate(own, start=1):
            if not isinstance(child, int) or not node < child < len(children):
                raise SequoiaError(f"{where}: Successors[{node}]: found {child!r}, no later node")
            if parents[child] != -1:
                raise SequoiaError(f"{where}: Successors: node {child} has two parents")
            parents[child], ranks[child] = node, rank
    orphans = [node for node in range(1, len(parents)) if parents[node] == -1]
    if not children or orphans:
        raise SequoiaError(f"{where}: Successors: node {orphans[0] if orphans else 0} is missing")
    if found.get("size", len(children)) != len(children):
        raise SequoiaError(
            f"{where}: size: found {found['size']}, expected {len(children)} (its Successors)"
        )
    return TokenTree.from_any_order(parents, ranks)


def of_paths(found: Any, where: str, first_rank: int = 0) -> TokenTree:
    """The tree of a list of rank paths, in any order; an empty path is the root.

    Args:
        first_rank: what the first child is counted as.

    Raises:
        SequoiaError: no such list, or ranks with gaps.
    """
    if not isinstance(found, (list, tuple)) or not found:
        raise SequoiaError(f"{where}: found no paths, expected [[0], [1], [0, 0], …]")
    for path in found:
        if not isinstance(path, (list, tuple)) or not all(
            isinstance(rank, int) and rank >= first_rank for rank in path
        ):
            raise SequoiaError(
                f"{where}: found path {shown(path)}, expected ranks from {first_rank}"
            )
    known = {tuple(rank - first_rank for rank in path) for path in found if len(path)}
    if first_rank == 0 and known and all(min(path) > 0 for path in known):
        raise SequoiaError(
            f"{where}: no path begins with rank 0; if the ranks are counted from 1, "
            f"`sequoia-opt import {where} --first-rank 1` reads them so"
        )
    for path in sorted(known, key=lambda p: (len(p), p)):
        shifted = [rank + first_rank for rank in path]
        if len(path) > 1 and path[:-1] not in known:
            raise SequoiaError(f"{where}: path {shifted} has no parent {shifted[:-1]}")
        if path[-1] and (*path[:-1], path[-1] - 1) not in known:
            raise SequoiaError(
                f"{where}: path {shifted} has no elder sibling: its ranks have a gap"
            )
    return TokenTree.from_paths([[rank + 1 for rank in path] for path in known])


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
        name: which of several lists is the tree, or which number is the length of a chain.
        first_rank: what rank paths count the first child as.
        note: called with what the tree leaves out of the settings.

    Raises:
        SequoiaError: none of them, several, ranks with gaps, an engine's own dynamic tree, or
            settings whose effect on the tree is not known.
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
    given = [setting for setting in settings(stripped) if setting.value is not None]
    lists = _path_lists(given)
    if name is not None:
        return _named(name, given, lists, where, first_rank)
    _refuse_own_trees(given, where)
    if lists:
        return of_paths(_only(lists, where), where, first_rank)
    if written := next((s.written for s in given if s.name in TREES), None):
        raise SequoiaError(
            f"{where}: {written}: found no list, expected [[0], [1], [0, 0], …] behind it"
        )
    return _chain(given, where, note)


def _literal(text: str) -> Any:
    """What a text is as JSON or as a Python literal; None if it is neither."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None


def _path_lists(given: Sequence[Setting]) -> dict[str, list[Any]]:
    """The lists that may be trees, by the names that they have in the text."""
    return {
        setting.written: setting.value
        for setting in given
        if isinstance(setting.value, list)
        and setting.value
        and setting.name not in NOT_TREES
        and all(isinstance(path, (list, tuple)) for path in setting.value)
    }


def _only(lists: Mapping[str, list[Any]], where: str) -> list[Any]:
    """The one tree of a text, by whatever names.

    Raises:
        SequoiaError: there are several.
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
    given: Sequence[Setting],
    lists: Mapping[str, list[Any]],
    where: str,
    first_rank: int,
) -> TokenTree:
    """The list of that name as a tree, or the number of that name as a chain's length."""
    plain = plain_name(name)
    for written, paths in lists.items():
        if name == written or plain == plain_name(written):
            return of_paths(paths, where, first_rank)
    numbers = {s.value for s in given if s.name == plain and _is_count(s.value)}
    if len(numbers) != 1:
        choices = [*lists, *(s.written for s in given if _is_count(s.value))]
        known = ", ".join(dict.fromkeys(choices)) or "none"
        raise SequoiaError(
            f"{where}: --name: found {'no' if not numbers else 'several'} {name!r}, expected one "
            f"of its lists and numbers: {known}"
        )
    [length] = numbers
    return _chain_of(length - (plain == ROOTED), where)


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _refuse_own_trees(given: Sequence[Setting], where: str) -> None:
    """Refuse settings with which the engine itself decides what it drafts."""
    for setting in given:
        is_on = setting.value is not False and setting.value not in (0, "0")
        several = setting.name in TOPKS and setting.value not in (1, False)
        if several or (setting.name in DECIDING and is_on):
            raise SequoiaError(
                f"{where}: {setting.written}: with it the engine grows this tree itself; "
                "it cannot be imported"
            )
        if setting.name == "spec_type" and setting.value == "none":
            raise SequoiaError(f"{where}: --spec-type none: the engine does not speculate at all")


def _chain(given: Sequence[Setting], where: str, note: Callable[[str], None]) -> TokenTree:
    """The chain that settings describe."""
    lengths = [s for s in given if s.name in LENGTHS or (s.is_flag and s.name in FLAG_LENGTHS)]
    _refuse_open(given, lengths, where)
    if not lengths:
        raise SequoiaError(
            f"{where}: found none of the known formats, expected rank paths, a growmap or the "
            "settings of a chain"
        )
    for setting in lengths:
        if not _is_count(setting.value):
            raise SequoiaError(
                f"{where}: {setting.written}: found {shown(setting.value)}, expected a number"
            )
    counts = sorted({s.value for s in lengths if _is_count(s.value)})
    if len(counts) > 1:
        raise SequoiaError(
            f"{where}: found chains of {' and '.join(map(str, counts))} guesses, expected one; "
            f"`sequoia-opt import {where} --name {lengths[0].written}` takes one of them"
        )
    for line in _cut_short(given, lengths):
        note(line)
    return _chain_of(counts[0], where)


def _chain_of(guesses: int, where: str) -> TokenTree:
    if not 0 <= guesses <= LONGEST:
        raise SequoiaError(f"{where}: found {guesses} guesses, expected 0 to {LONGEST}")
    return shapes.chain(guesses + 1)


def _refuse_open(given: Sequence[Setting], lengths: Sequence[Setting], where: str) -> None:
    """Refuse numbers that could mean something else than a chain's length.

    Raises:
        SequoiaError: it names the setting that makes them so.
    """
    names = {setting.name for setting in given}
    modes = {_mode(str(s.value)) for s in given if s.name in MODES}
    for setting in given:
        complaint = ""
        if setting.name in NOT_TREES:
            complaint = "the length depends on the number of sequences"
        elif setting.name == "max_draft_len" and not (modes and modes <= CHAIN_MODES):
            way = " or ".join(sorted(modes)) if modes else "no decoding_type"
            complaint = (
                f"with {way} it need not be the length of a chain (with Medusa it is the number "
                "of nodes of medusa_choices)"
            )
        elif setting.name == ROOTED and not names & set(TOPKS):
            if not any(_is_count(s.value) and s.value + 1 == setting.value for s in lengths):
                complaint = "without speculative-eagle-topk these need not be a chain's nodes"
        elif setting.name == IN_ALL:
            if not any(s.value == setting.value for s in lengths):
                complaint = "this many guesses need not be a chain"
        elif setting.name == "num_assistant_tokens_schedule" and setting.value != "constant":
            complaint = "the length changes as transformers goes on"
        elif _is_unknown(setting, lengths):
            complaint = "its effect on the tree is not known"
        if complaint:
            number = next((s for s in [*lengths, setting] if _is_count(s.value)), None)
            remedy = (
                f"; if a chain is meant, `sequoia-opt import {where} --name {number.written}` "
                "takes that number for its length"
                if number
                else ""
            )
            raise SequoiaError(f"{where}: {setting.written}: {complaint}{remedy}")


def _mode(written: str) -> str:
    """A way to draft as it is compared: SpeculativeDecodingMode.MEDUSA is medusa."""
    return written.rsplit(".", 1)[-1].lower().replace("-", "_")


def _is_unknown(setting: Setting, lengths: Sequence[Setting]) -> bool:
    """Whether a setting sounds like speculation, is switched on, and is none that is known."""
    name = setting.name
    known = setting in lengths or name in {
        *TREES,
        *TOPKS,
        *DECIDING,
        *NOT_TREES,
        *MODES,
        ROOTED,
        IN_ALL,
    }
    if known or setting.value is False or isinstance(setting.value, list | dict):
        return False
    if name in _DRAFTERS and not _is_count(setting.value):
        return False
    return bool(_SPECULATIVE.search(name)) and not _HARMLESS.search(name)


def _cut_short(given: Sequence[Setting], lengths: Sequence[Setting]) -> list[str]:
    """What makes an engine draft less than the chain at times, a line each."""
    lines = []
    names = {setting.name for setting in given}
    for setting in given:
        if setting.name in _THRESHOLDS and setting.value != 0:
            lines.append(
                f"{setting.written} {setting.value}: the engine ends this chain early where its "
                "draft is less sure; the tree is the longest that it drafts"
            )
    if not names & set(_THRESHOLDS):
        if names & _OLD_LLAMA & {s.name for s in lengths}:
            lines.append(
                "llama.cpp until May 2026 ends this chain early where its draft is less sure than "
                "0.75, unless with --draft-p-min 0; the tree is the longest that it drafts"
            )
        elif "num_assistant_tokens" in names:
            lines.append(
                "transformers ends this chain early where its assistant is less sure than 0.4, "
                "unless with assistant_confidence_threshold=0; the tree is the longest that it "
                "drafts"
            )
    if any(s.name == "speculative_num_steps" for s in lengths) and not names & set(TOPKS):
        lines.append("speculative-eagle-topk is not named: a chain is what SGLang drafts with 1")
    return lines

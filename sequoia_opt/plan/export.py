"""The same tree in other engines' words, and theirs in ours.

Knows how each engine writes down what it drafts, whether it counts the root, and in what it
drafts otherwise than the acceptance was measured for. Reads and writes text; the one format
that is no text, the research code's `.pt`, is left to its caller as a mapping.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan import shapes
from sequoia_opt.plan.tree import TokenTree


@dataclass(frozen=True)
class Format:
    """How one engine is told what to draft.

    Attributes:
        engine: what it is called.
        write: the text that its user pastes or saves.
        chains_only: it drafts one sequence.
        counts_root: the root is one of the nodes that it counts.
        drafting: how it drafts above temperature 0, where that is not what `sequoia` does.
        dynamic: it builds its own tree, of which only some numbers can be said.
        versions: the versions that take it, where the newest do not.
    """

    engine: str
    write: Callable[[TokenTree], str]
    chains_only: bool = False
    counts_root: bool = False
    drafting: str = ""
    dynamic: bool = False
    versions: str = ""


TOP_K = "drafts the most likely tokens, not samples"


def paths(tree: TokenTree) -> list[list[int]]:
    """Each node but the root as its ranks from the root down, counted from 0."""
    found: list[list[int]] = [[]]
    for node in range(1, tree.size):
        found.append([*found[tree.parents[node]], tree.ranks[node] - 1])
    return found[1:]


def growmap(tree: TokenTree) -> dict[str, Any]:
    """The tree as the Sequoia research code and UMbreLLa keep it, in plain lists.

    `roots` are the nodes of each level and `branches` how many children each has; `mask` marks
    a node's ancestors and itself; `size` counts the root.
    """
    children: list[list[int]] = [[] for _ in range(tree.size)]
    for node in range(1, tree.size):
        children[tree.parents[node]].append(node)
    return {
        "roots": tree.levels,
        "branches": [[len(children[node]) for node in level] for level in tree.levels],
        "Successors": children,
        "mask": tree.ancestor_mask.astype(int).tolist(),
        "depth": tree.depths.tolist(),
        "size": tree.size,
    }


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


def of_paths(found: Any, where: str) -> TokenTree:
    """The tree of a list of rank paths, counted from 0, in any order.

    Raises:
        SequoiaError: no such list, or ranks with gaps.
    """
    if not isinstance(found, (list, tuple)) or not found:
        raise SequoiaError(f"{where}: found no paths, expected [[0], [1], [0, 0], …]")
    for path in found:
        if not isinstance(path, (list, tuple)) or not path or not all(
            isinstance(rank, int) and rank >= 0 for rank in path
        ):  # fmt: skip
            raise SequoiaError(f"{where}: found path {path!r}, expected ranks from 0")
    known = {tuple(path) for path in found}
    for path in sorted(known, key=lambda p: (len(p), p)):
        if len(path) > 1 and path[:-1] not in known:
            raise SequoiaError(f"{where}: path {list(path)} has no parent {list(path[:-1])}")
        if path[-1] and (*path[:-1], path[-1] - 1) not in known:
            raise SequoiaError(
                f"{where}: path {list(path)} has no elder sibling: its ranks have a gap"
            )
    return TokenTree.from_paths([[rank + 1 for rank in path] for path in known])


def is_chain(tree: TokenTree) -> bool:
    """Whether every node has at most one child."""
    return tree.depth == tree.size - 1


def _guesses(tree: TokenTree) -> int:
    return tree.size - 1


def _lines(*lines: str) -> str:
    return "\n".join(lines) + "\n"


def _draft(tree: TokenTree) -> str:
    return str(tree.metadata.get("draft", "DRAFT"))


def _vllm(tree: TokenTree) -> str:
    config = {
        "method": "draft_model",
        "model": _draft(tree),
        "num_speculative_tokens": _guesses(tree),
    }
    return _lines(f"--speculative-config '{json.dumps(config)}'")


def _vllm_tree(tree: TokenTree) -> str:
    config = {
        "model": _draft(tree),
        "num_speculative_tokens": _guesses(tree),
        "speculative_token_tree": str([tuple(path) for path in paths(tree)]),
    }
    return _lines(f"--speculative-config '{json.dumps(config)}'")


def _llama_cpp(tree: TokenTree) -> str:
    return _lines(f"--spec-draft-n-max {_guesses(tree)}")


def _tensorrt_llm(tree: TokenTree) -> str:
    return _lines(
        "speculative_config:",
        "  decoding_type: Draft_Target",
        f"  max_draft_len: {_guesses(tree)}",
        f"  speculative_model: {_draft(tree)}",
    )


def _tensorrt_llm_tree(tree: TokenTree) -> str:
    return _lines(
        "speculative_config:",
        "  decoding_type: Eagle",
        f"  max_draft_len: {tree.depth}",
        f"  eagle_choices: {json.dumps(paths(tree))}",
    )


def _tensorrt_llm_dynamic(tree: TokenTree) -> str:
    return _lines(
        "speculative_config:",
        "  decoding_type: Eagle",
        f"  max_draft_len: {tree.depth}",
        "  use_dynamic_tree: true",
        f"  dynamic_tree_max_topK: {_widest(tree)}",
        f"  max_total_draft_tokens: {_guesses(tree)}",
    )


def _sglang(tree: TokenTree) -> str:
    return _lines(
        "--speculative-algorithm STANDALONE",
        f"--speculative-draft-model-path {_draft(tree)}",
        f"--speculative-num-steps {tree.depth}",
        f"--speculative-eagle-topk {_widest(tree)}",
        f"--speculative-num-draft-tokens {tree.size}",
    )


def _transformers(tree: TokenTree) -> str:
    return _lines(
        "assistant.generation_config.update(",
        f"    num_assistant_tokens={_guesses(tree)},",
        '    num_assistant_tokens_schedule="constant",',
        "    assistant_confidence_threshold=0,",
        ")",
    )


def _paths(tree: TokenTree) -> str:
    return _lines(json.dumps(paths(tree)))


def _growmap(tree: TokenTree) -> str:
    return _lines(json.dumps(growmap(tree)))


def _widest(tree: TokenTree) -> int:
    return int(tree.child_counts.max())


FORMATS: dict[str, Format] = {
    "vllm": Format("vLLM", _vllm, chains_only=True),
    "llama.cpp": Format(
        "llama.cpp",
        _llama_cpp,
        chains_only=True,
        drafting="drafts the most likely token and takes it where the target samples the same",
    ),
    "tensorrt-llm": Format("TensorRT-LLM", _tensorrt_llm, chains_only=True),
    "sglang": Format("SGLang", _sglang, chains_only=True, counts_root=True),
    "transformers": Format("transformers", _transformers, chains_only=True),
    "eagle": Format("EAGLE", _paths, drafting=TOP_K),
    "medusa": Format("Medusa", _paths, drafting=TOP_K),
    "umbrella": Format("UMbreLLa", _growmap, counts_root=True, drafting=TOP_K),
    "sequoia": Format("the Sequoia research code", _growmap, counts_root=True),
    "vllm-tree": Format(
        "vLLM",
        _vllm_tree,
        drafting=TOP_K,
        versions="before tree attention was removed in May 2026 (vllm 42121)",
    ),
    "tensorrt-llm-tree": Format(
        "TensorRT-LLM",
        _tensorrt_llm_tree,
        drafting=TOP_K,
        versions="before eagle_choices was removed in August 2026 (TensorRT-LLM 18210)",
    ),
    "sglang-dynamic": Format("SGLang", _sglang, counts_root=True, drafting=TOP_K, dynamic=True),
    "tensorrt-llm-dynamic": Format(
        "TensorRT-LLM", _tensorrt_llm_dynamic, drafting=TOP_K, dynamic=True
    ),
}


def export(tree: TokenTree, to: str) -> tuple[str, list[str]]:
    """The tree in another engine's words, and what its user should know.

    Raises:
        SequoiaError: an unknown format, or a tree that the engine cannot draft.
    """
    if to not in FORMATS:
        raise SequoiaError(f"--to: found {to!r}, expected one of {', '.join(FORMATS)}")
    form = FORMATS[to]
    if tree.size == 1:
        raise SequoiaError(
            f"the tree has one node: decode plainly, without {form.engine}'s speculation"
        )
    if form.chains_only and not is_chain(tree):
        raise SequoiaError(
            f"{form.engine} drafts one sequence and this tree has siblings; "
            "solve with --shape chain"
        )
    counted = tree.size if form.counts_root else tree.size - 1
    notes = [
        f"{counted} nodes: {form.engine} "
        + ("counts the root" if form.counts_root else "does not count the root")
    ]
    if form.versions:
        notes.append(f"only for versions of {form.engine} {form.versions}")
    if form.dynamic:
        notes.append(
            f"{form.engine} grows its own tree at each step: depth {tree.depth}, at most "
            f"{_widest(tree)} children and {tree.size - 1} nodes are all that can be said; which "
            "nodes have children is lost, and with it the predicted speed"
        )
    temperature = tree.metadata.get("temperature", 0)
    if form.drafting and temperature:
        notes.append(
            f"above temperature 0 {form.engine} {form.drafting}: the acceptance measured for "
            f"verifier {tree.metadata.get('verifier', 'sequoia')} does not hold there"
        )
    return form.write(tree), notes


# What the chain formats call the number of guesses, or of steps.
_CHAIN_KEYS = re.compile(
    r"(?:num_speculative_tokens|spec-draft-n-max|draft-max|max_draft_len|speculative-num-steps"
    r"|num_assistant_tokens)['\"]?\s*[:=\s]\s*(\d+)"
)
_TREE_KEYS = re.compile(
    r"(?:speculative_token_tree|eagle_choices)['\"]?\s*[:=]\s*['\"]?(\[.*\])", re.DOTALL
)


def read(text: str, where: str) -> TokenTree:
    """The tree of any of the text formats.

    Raises:
        SequoiaError: none of them, ranks with gaps, or an engine's own dynamic tree.
    """
    stripped = text.strip()
    written = _TREE_KEYS.search(stripped)
    if (named := re.search(r"speculative_token_tree|eagle_choices", stripped)) and not written:
        raise SequoiaError(
            f"{where}: {named.group()}: found no list, expected [[0], [1], [0, 0], …] behind it"
        )
    if written or stripped.startswith("["):
        return of_paths(_literal(written.group(1) if written else stripped, where), where)
    if stripped.startswith("{"):
        found = _literal(stripped, where)
        if isinstance(found, dict) and "Successors" in found:
            return of_growmap(found, where)
    topk = re.search(r"(?:eagle-topk|max_topK)['\"]?\s*[:=\s]\s*(\d+)", stripped)
    if topk and int(topk.group(1)) > 1:
        raise SequoiaError(f"{where}: the engine grows this tree itself; it cannot be imported")
    lengths = sorted({int(count) for count in _CHAIN_KEYS.findall(stripped)})
    if len(lengths) > 1:
        raise SequoiaError(
            f"{where}: found chains of {' and '.join(map(str, lengths))} guesses, expected one; "
            "leave only the setting that counts"
        )
    if lengths:
        return shapes.chain(lengths[0] + 1)
    raise SequoiaError(
        f"{where}: found none of the known formats, expected rank paths, a growmap or the "
        "settings of a chain"
    )


def _literal(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        raise SequoiaError(f"{where}: neither JSON nor a Python literal") from None

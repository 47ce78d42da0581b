"""The same tree in other engines' words.

Knows how each engine writes down what it drafts, whether it counts the root, and in what it
drafts otherwise than the acceptance was measured for. What is said of an engine was read in the
sources and the documentation of vLLM 0.33, SGLang 0.5.23, TensorRT-LLM 1.4.0rc4, transformers 5.24
and llama.cpp of November 2026. The research code's `.pt`, the only binary format, is
returned to its caller as a mapping.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan.tree import TokenTree


@dataclass(frozen=True)
class Format:
    """How one engine is told what to draft.

    Attributes:
        engine: what it is called.
        write: the text that its user pastes or saves.
        chains_only: it drafts one sequence.
        counts_root: the root is one of the nodes that it counts.
        drafting: how it drafts above temperature 0, where that is not what `sequoia` does: its
            guesses are the draft's most likely tokens, accepted at the rates of `topk`.
        dynamic: it builds its own tree, of which only some numbers can be said.
        versions: the versions that take it, where the newest do not.
        needs: what its user has to know or to have besides.
    """

    engine: str
    write: Callable[[TokenTree], str]
    chains_only: bool = False
    counts_root: bool = False
    drafting: str = ""
    dynamic: bool = False
    versions: str = ""
    needs: str = ""


TOP_K = "drafts the most likely tokens, not samples"
GREEDY = "drafts greedily by default"
UNKNOWN = "unknown"  # a model's name that was not given
DETERMINISTIC = "topk"  # the verifier whose rates hold for such drafts


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


def is_chain(tree: TokenTree) -> bool:
    """Whether every node has at most one child."""
    return tree.depth == tree.size - 1


def _guesses(tree: TokenTree) -> int:
    return tree.size - 1


def _lines(*lines: str) -> str:
    return "\n".join(lines) + "\n"


def _draft(tree: TokenTree) -> str:
    """The draft as an engine can load it: a hub id, or where its folder is."""
    name = tree.metadata.get("draft", UNKNOWN)
    return str(tree.metadata.get("draft_path") or ("DRAFT" if name == UNKNOWN else name))


def _vllm(tree: TokenTree) -> str:
    config = {
        "method": "draft_model",
        "model": _draft(tree),
        "num_speculative_tokens": _guesses(tree),
    }
    return _lines(f"--speculative-config {shlex.quote(json.dumps(config))}")


def _vllm_tree(tree: TokenTree) -> str:
    config = {
        "model": _draft(tree),
        "num_speculative_tokens": _guesses(tree),
        "speculative_token_tree": str([tuple(path) for path in paths(tree)]),
    }
    return _lines(f"--speculative-config {shlex.quote(json.dumps(config))}")


def _llama_cpp(tree: TokenTree) -> str:
    """Flags of llama-server and llama-cli.

    Without --spec-type the draft is loaded and never used (ggml-org/llama.cpp 25345). Until May
    2026 --spec-draft-p-min was 0.75, which ends chains early.
    """
    return _lines(
        f"-md {shlex.quote(_draft(tree))} --spec-type draft-simple "
        f"--spec-draft-n-max {_guesses(tree)} --spec-draft-n-min 0 --spec-draft-p-min 0"
    )


def _tensorrt_llm(tree: TokenTree) -> str:
    return _lines(
        "speculative_config:",
        "  decoding_type: Draft_Target",
        f"  max_draft_len: {_guesses(tree)}",
        f"  speculative_model: {_yaml(_draft(tree))}",
    )


def _tensorrt_llm_tree(tree: TokenTree) -> str:
    return _lines(
        "speculative_config:",
        "  decoding_type: Eagle",
        f"  max_draft_len: {tree.depth}",
        f"  speculative_model: {_yaml(_draft(tree))}",
        f"  eagle_choices: {json.dumps(paths(tree))}",
    )


def _tensorrt_llm_dynamic(tree: TokenTree) -> str:
    return _lines(
        "speculative_config:",
        "  decoding_type: Eagle3",
        f"  max_draft_len: {tree.depth}",
        f"  speculative_model: {_yaml(_draft(tree))}",
        "  use_dynamic_tree: true",
        f"  dynamic_tree_max_topK: {_widest(tree)}",
        f"  max_total_draft_tokens: {_grown(tree)}",
    )


def _yaml(name: str) -> str:
    """A name as YAML reads it back, in quotes where it would be taken for something else."""
    return json.dumps(name, ensure_ascii=False)


def _sglang(tree: TokenTree) -> str:
    return _lines(
        "--speculative-algorithm STANDALONE",
        f"--speculative-draft-model-path {shlex.quote(_draft(tree))}",
        f"--speculative-num-steps {tree.depth}",
        f"--speculative-eagle-topk {_widest(tree)}",
        f"--speculative-num-draft-tokens {_grown(tree) + 1}",
    )


def _grown(tree: TokenTree) -> int:
    """Guesses that an engine is told to verify that grows its own tree: the tree's, or all that
    it drafts: k children of the root, then k of each of the k likeliest nodes of every level."""
    widest = _widest(tree)
    return min(_guesses(tree), widest + (tree.depth - 1) * widest**2)


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


_EAGLE_HEAD = (
    "TensorRT-LLM's dynamic trees are for EAGLE-3 heads: a tree that was solved for a draft model "
    "does not run there, and speculative_model has to be a head of the target"
)

FORMATS: dict[str, Format] = {
    "vllm": Format(
        "vLLM",
        _vllm,
        chains_only=True,
        drafting=f'{GREEDY} ("draft_sample_method": "greedy"; with "probabilistic" it samples)',
    ),
    "llama.cpp": Format(
        "llama.cpp",
        _llama_cpp,
        chains_only=True,
        drafting="drafts the most likely token and takes it where the target samples the same",
        needs="-md takes the draft as a .gguf file; versions that do not know --spec-type take "
        "--draft-max, --draft-min and --draft-p-min",
    ),
    "tensorrt-llm": Format(
        "TensorRT-LLM",
        _tensorrt_llm,
        chains_only=True,
        drafting=f"{GREEDY} (use_rejection_sampling: false)",
    ),
    "sglang": Format(
        "SGLang",
        _sglang,
        chains_only=True,
        counts_root=True,
        drafting="drafts the most likely tokens with STANDALONE, which has no rejection sampling",
    ),
    "transformers": Format("transformers", _transformers, chains_only=True),
    "eagle": Format(
        "EAGLE",
        _paths,
        drafting=TOP_K,
        needs="EAGLE-1 reads it; EAGLE-2 and later ones grow their own tree at each step",
    ),
    "medusa": Format(
        "Medusa",
        _paths,
        drafting=TOP_K,
        needs="Medusa's research code reads it; TensorRT-LLM, which did, has no Medusa any more",
    ),
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
        versions="before eagle_choices was removed in August 2026 (TensorRT-LLM 18210); the last "
        "of them had it switched off",
    ),
    "sglang-dynamic": Format("SGLang", _sglang, counts_root=True, drafting=TOP_K, dynamic=True),
    "tensorrt-llm-dynamic": Format(
        "TensorRT-LLM", _tensorrt_llm_dynamic, drafting=TOP_K, dynamic=True, needs=_EAGLE_HEAD
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
    counted = (_grown(tree) if form.dynamic else _guesses(tree)) + form.counts_root
    notes = [
        f"{counted} nodes: {form.engine} "
        + ("counts the root" if form.counts_root else "does not count the root")
    ]
    if form.versions:
        notes.append(f"only for versions of {form.engine} {form.versions}")
    if form.dynamic:
        notes.append(
            f"{form.engine} grows its own tree at each step: depth {tree.depth}, at most "
            f"{_widest(tree)} children and {_grown(tree)} guesses are all that can be said; which "
            "nodes have children is lost, and with it the predicted speed"
        )
    if form.needs:
        notes.append(form.needs)
    if warning := _rates_that_do_not_hold(tree, form):
        notes.append(warning)
    return form.write(tree), notes


def _rates_that_do_not_hold(tree: TokenTree, form: Format) -> str:
    """What to say of a plan whose acceptance is not that of the engine's drafts; else nothing."""
    temperature = tree.metadata.get("temperature", 0)
    verifier = tree.metadata.get("verifier", "sequoia")
    if not form.drafting or not temperature or verifier == DETERMINISTIC:
        return ""
    return (
        f"above temperature 0 {form.engine} {form.drafting}: the acceptance measured for verifier "
        f"{verifier} does not hold there, nor does this plan; measure with `sequoia-opt profile "
        f"--verifiers {DETERMINISTIC}` and `sequoia-opt estimate --verifier {DETERMINISTIC} "
        f"--temperature {temperature:g}`, and solve again"
    )

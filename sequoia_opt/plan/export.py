"""A tree in the formats of other engines.

Knows how each engine writes down what it drafts, whether it counts the root, and where it drafts
otherwise than the acceptance was measured for. These facts come from the sources and the
documentation of vLLM 0.33, SGLang 0.5.23, TensorRT-LLM 1.4.0rc4, transformers 5.24, OpenVINO GenAI
2026.4 and llama.cpp of November 2026. Where a plan has solved numbers for an engine's own rule,
these are written (`export_rules`). `import_settings` reads all of these texts without being told
the engine. The caller writes the research code's `.pt`, the only binary format, from
`tree_formats.growmap`.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass

from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan.export_rules import RULE_TEXTS, rule_notes, rule_of
from sequoia_opt.plan.tree import TokenTree
from sequoia_opt.plan.tree_formats import growmap, paths
from sequoia_opt.plan.verifiers import DEFAULT_VERIFIER, DETERMINISTIC_VERIFIER


@dataclass(frozen=True)
class ExportFormat:
    """How one engine is told what to draft.

    Attributes:
        engine: the engine's name.
        write: the text that its user pastes or saves, from a tree.
        chains_only: whether it drafts one sequence only.
        counts_root: whether it counts the root among the nodes.
        drafting: how it drafts above temperature 0, if that is not what `sequoia` does: its
            guesses are the draft's most likely tokens, accepted at the rates of `topk`.
        dynamic: whether it builds its own tree, of which only a few numbers can be set.
        versions: the versions that take the text, if the newest do not.
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


_DRAFTS_TOP_K = "drafts the most likely tokens, not samples"
_DRAFTS_GREEDILY = "drafts greedily by default"
_UNKNOWN = "unknown"  # the name of a model in a tree that does not name it


def is_chain(tree: TokenTree) -> bool:
    """Whether every node has at most one child."""
    return tree.depth == tree.size - 1


def _guesses(tree: TokenTree) -> int:
    return tree.size - 1


def _lines(*lines: str) -> str:
    return "\n".join(lines) + "\n"


def _draft(tree: TokenTree) -> str:
    """The draft as an engine can load it: its folder or its hub id; DRAFT if it is not known."""
    name = tree.metadata.get("draft", _UNKNOWN)
    return str(tree.metadata.get("draft_path") or ("DRAFT" if name == _UNKNOWN else name))


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

    Without --spec-type llama.cpp loads the draft and never uses it (ggml-org/llama.cpp 25345).
    Until May 2026 --spec-draft-p-min was 0.75 by default, which ends chains early.
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
        f"  max_total_draft_tokens: {_dynamic_guesses(tree)}",
    )


def _yaml(name: str) -> str:
    """A name in quotes, so that YAML reads it back as this text and not as another type."""
    return json.dumps(name, ensure_ascii=False)


def _sglang(tree: TokenTree) -> str:
    return _lines(
        "--speculative-algorithm STANDALONE",
        f"--speculative-draft-model-path {shlex.quote(_draft(tree))}",
        f"--speculative-num-steps {tree.depth}",
        f"--speculative-eagle-topk {_widest(tree)}",
        f"--speculative-num-draft-tokens {_dynamic_guesses(tree) + 1}",
    )


def _dynamic_guesses(tree: TokenTree) -> int:
    """Guesses to verify for an engine that grows its own tree.

    As many as the tree has, but no more than the engine drafts: k children of the root, then k
    children of each of the k likeliest nodes on every level.
    """
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


def _openvino(tree: TokenTree) -> str:
    return _lines(f"config.num_assistant_tokens = {_guesses(tree)}")


def _paths(tree: TokenTree) -> str:
    return _lines(json.dumps(paths(tree)))


def _growmap(tree: TokenTree) -> str:
    return _lines(json.dumps(growmap(tree)))


def _widest(tree: TokenTree) -> int:
    return int(tree.child_counts.max())


_EAGLE_HEAD = (
    "TensorRT-LLM's dynamic trees are for EAGLE-3 heads: a tree that was solved for a draft model "
    "does not run there, and speculative_model must be a head of the target"
)

FORMATS: dict[str, ExportFormat] = {
    "vllm": ExportFormat(
        "vLLM",
        _vllm,
        chains_only=True,
        drafting=f'{_DRAFTS_GREEDILY} ("draft_sample_method": "greedy"; with "probabilistic" it '
        "samples)",
    ),
    "llama.cpp": ExportFormat(
        "llama.cpp",
        _llama_cpp,
        chains_only=True,
        drafting="drafts the most likely token and takes it where the target samples the same",
        needs="-md takes the draft as a .gguf file; versions that do not know --spec-type take "
        "--draft-max, --draft-min and --draft-p-min",
    ),
    "tensorrt-llm": ExportFormat(
        "TensorRT-LLM",
        _tensorrt_llm,
        chains_only=True,
        drafting=f"{_DRAFTS_GREEDILY} (use_rejection_sampling: false)",
    ),
    "sglang": ExportFormat(
        "SGLang",
        _sglang,
        chains_only=True,
        counts_root=True,
        drafting="drafts the most likely tokens with STANDALONE, which has no rejection sampling",
    ),
    "transformers": ExportFormat("transformers", _transformers, chains_only=True),
    "openvino-genai": ExportFormat(
        "OpenVINO GenAI",
        _openvino,
        chains_only=True,
        drafting=_DRAFTS_GREEDILY,
        needs="config is the pipeline's GenerationConfig; the pipeline takes the draft as "
        "openvino_genai.draft_model(FOLDER, DEVICE)",
    ),
    "eagle": ExportFormat(
        "EAGLE",
        _paths,
        drafting=_DRAFTS_TOP_K,
        needs="EAGLE-1 reads it; EAGLE-2 and later ones grow their own tree at each step",
    ),
    "medusa": ExportFormat(
        "Medusa",
        _paths,
        drafting=_DRAFTS_TOP_K,
        needs="Medusa's research code reads it; TensorRT-LLM no longer has Medusa",
    ),
    "umbrella": ExportFormat("UMbreLLa", _growmap, counts_root=True, drafting=_DRAFTS_TOP_K),
    "sequoia": ExportFormat("the Sequoia research code", _growmap, counts_root=True),
    "vllm-tree": ExportFormat(
        "vLLM",
        _vllm_tree,
        drafting=_DRAFTS_TOP_K,
        versions="before tree attention was removed in May 2026 (vllm 42121)",
    ),
    "tensorrt-llm-tree": ExportFormat(
        "TensorRT-LLM",
        _tensorrt_llm_tree,
        drafting=_DRAFTS_TOP_K,
        versions="before eagle_choices was removed in August 2026 (TensorRT-LLM 18210); the last "
        "of them had switched it off",
    ),
    "sglang-dynamic": ExportFormat(
        "SGLang", _sglang, counts_root=True, drafting=_DRAFTS_TOP_K, dynamic=True
    ),
    "tensorrt-llm-dynamic": ExportFormat(
        "TensorRT-LLM",
        _tensorrt_llm_dynamic,
        drafting=_DRAFTS_TOP_K,
        dynamic=True,
        needs=_EAGLE_HEAD,
    ),
}


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
    engine = export_format.engine
    if (numbers := rule_of(tree, to)) is not None:
        rule_text = RULE_TEXTS[to]
        needs = [needs for needs in (export_format.needs, rule_text.needs) if needs]
        return rule_text.write(_draft(tree), numbers), [*rule_notes(numbers), *needs]
    if tree.size == 1:
        raise SequoiaError(f"the tree has one node: decode plainly, without {engine}'s speculation")
    if export_format.chains_only and not is_chain(tree):
        raise SequoiaError(
            f"{engine} drafts one sequence and this tree has siblings; solve with --shape chain"
        )
    return export_format.write(tree), _notes(tree, export_format)


def _notes(tree: TokenTree, export_format: ExportFormat) -> list[str]:
    """What the engine's user should know about the exported text."""
    engine = export_format.engine
    count = _dynamic_guesses(tree) if export_format.dynamic else _guesses(tree)
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
            f"{_widest(tree)} children and {_dynamic_guesses(tree)} guesses are all that can be "
            "set; which nodes have children is lost, and with it the predicted speed"
        )
    if export_format.needs:
        notes.append(export_format.needs)
    if warning := _acceptance_warning(tree, export_format):
        notes.append(warning)
    return notes


def _acceptance_warning(tree: TokenTree, export_format: ExportFormat) -> str:
    """Why the plan's acceptance does not hold for the engine's drafts; empty if it does."""
    temperature = tree.metadata.get("temperature", 0)
    verifier = tree.metadata.get("verifier", DEFAULT_VERIFIER)
    if not export_format.drafting or not temperature or verifier == DETERMINISTIC_VERIFIER:
        return ""
    holds = DETERMINISTIC_VERIFIER
    return (
        f"above temperature 0 {export_format.engine} {export_format.drafting}: the acceptance "
        f"measured for verifier {verifier} does not hold there, nor does this plan; measure with "
        f"`sequoia-opt profile --verifiers {holds}` and `sequoia-opt estimate --verifier {holds} "
        f"--temperature {temperature:g}`, and solve again"
    )

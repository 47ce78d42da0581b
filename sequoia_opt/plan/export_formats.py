"""How each engine is told what to draft: the texts that its users paste, and what they must know.

Knows the names and the rules of each engine's settings, whether it counts the root, and how it
drafts and verifies above temperature 0. These facts come from the sources of vLLM 0.33,
SGLang 0.5.23, TensorRT-LLM 1.4.0rc4, transformers 5.24, OpenVINO GenAI 2026.4, ONNX Runtime
GenAI 0.18, mlx-lm 0.32 and llama.cpp of November 2026; tests hold the texts against these engines'
parsers or the fields that they accept. `import_settings` reads all of these texts without being
told the engine. Knows nothing of which tree suits which engine: that is `export`.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sequoia_opt.plan.draft_names import model_of
from sequoia_opt.plan.draft_passes import OF_HEAD, PER_LEVEL
from sequoia_opt.plan.tree import TokenTree
from sequoia_opt.plan.tree_formats import growmap, paths
from sequoia_opt.plan.verifiers import DEFAULT_VERIFIER, DETERMINISTIC_VERIFIER

UNKNOWN = "unknown"  # the name of a model in a tree that does not name it
DRAWING_VERIFIERS = ("sequoia", "specinfer")
"""The verifiers of draws; on a chain, where nodes have one child, both accept alike."""


METHODS = {
    "vLLM": {PER_LEVEL: "draft_model", OF_HEAD: "eagle3"},
    "llama.cpp": {PER_LEVEL: "draft-simple", OF_HEAD: "draft-eagle3"},
    "TensorRT-LLM": {PER_LEVEL: "Draft_Target", OF_HEAD: "Eagle3"},
    "SGLang": {PER_LEVEL: "STANDALONE", OF_HEAD: "EAGLE3"},
}
"""What the engines that take both call a draft model and an EAGLE-3 head."""


def passes_of(tree: TokenTree) -> str:
    """What kind of draft a plan is for, as one of `draft_passes.KINDS`; none makes no passes."""
    return str(tree.metadata.get("draft_passes", PER_LEVEL))


def method_of(tree: TokenTree, engine: str) -> str:
    """What an engine calls the kind of draft that a plan is for."""
    return METHODS[engine].get(passes_of(tree), METHODS[engine][PER_LEVEL])


def count_guesses(tree: TokenTree) -> int:
    """Nodes of a tree without the root."""
    return tree.size - 1


def width(tree: TokenTree) -> int:
    """Most children of a node."""
    return int(tree.child_counts.max())


def eagle_guesses(tree: TokenTree) -> int:
    """Guesses to verify for an engine that grows its own tree as EAGLE-2 does.

    As many as the tree has, but no more than the engine drafts: k children of the root, then k
    children of each of the k likeliest nodes on every level.
    """
    widest = width(tree)
    return min(count_guesses(tree), widest + (tree.depth - 1) * widest**2)


def tensorrt_llm_guesses(tree: TokenTree) -> int:
    """Guesses to verify for TensorRT-LLM's dynamic trees, which may have k for each level."""
    return min(count_guesses(tree), width(tree) * tree.depth)


@dataclass(frozen=True)
class ExportFormat:
    """How one engine is told what to draft.

    Attributes:
        engine: the engine's name.
        write: the text that its user pastes or saves, from a tree.
        chains_only: whether it drafts one sequence only.
        counts_root: whether it counts the root among the nodes.
        drafting: what it does above temperature 0, as a sentence's end.
        verifiers: the verifiers whose measured acceptance holds there above temperature 0.
        greedy_only: whether it takes the text at temperature 0 only.
        dynamic: whether it builds its own tree, of which only a few numbers can be set.
        guesses: how many guesses the text asks for, from a tree.
        most_guesses: the most that it accepts; 0 for any number.
        takes_heads: whether its draft may be an EAGLE head.
        versions: the versions that take the text, if the newest do not.
        needs: what its user has to know or to have besides.
    """

    engine: str
    write: Callable[[TokenTree], str]
    drafting: str
    verifiers: tuple[str, ...] = (DETERMINISTIC_VERIFIER,)
    chains_only: bool = False
    counts_root: bool = False
    greedy_only: bool = False
    dynamic: bool = False
    guesses: Callable[[TokenTree], int] = count_guesses
    most_guesses: int = 0
    takes_heads: bool = True
    versions: str = ""
    needs: str = ""


def lines(*texts: str) -> str:
    """Several lines, the last one ended too."""
    return "\n".join(texts) + "\n"


def draft_name(tree: TokenTree) -> str:
    """The draft as an engine can load it: its folder or its hub id; DRAFT if it is not known."""
    name = tree.metadata.get("draft", UNKNOWN)
    return str(tree.metadata.get("draft_path") or ("DRAFT" if name == UNKNOWN else model_of(name)))


def is_sampled(tree: TokenTree) -> bool:
    """Whether a tree was solved for a temperature above 0."""
    return bool(tree.metadata.get("temperature", 0))


def verifier_of(tree: TokenTree) -> str:
    """The verifier whose acceptance a tree was solved with."""
    return str(tree.metadata.get("verifier", DEFAULT_VERIFIER))


def vllm_config(config: dict[str, Any]) -> str:
    """The flag of vLLM that takes a speculative configuration."""
    return lines(f"--speculative-config {shlex.quote(json.dumps(config))}")


def vllm_sampling(temperature: float, verifier: str) -> dict[str, str]:
    """What vLLM is told of sampling: it drafts greedily unless it is told to draw."""
    draws = temperature and verifier in DRAWING_VERIFIERS
    return {"draft_sample_method": "probabilistic"} if draws else {}


def _vllm(tree: TokenTree) -> str:
    return vllm_config({
        "method": method_of(tree, "vLLM"),
        "model": draft_name(tree),
        "num_speculative_tokens": count_guesses(tree),
        **vllm_sampling(tree.metadata.get("temperature", 0), verifier_of(tree)),
    })  # fmt: skip


def _vllm_tree(tree: TokenTree) -> str:
    return vllm_config({
        "model": draft_name(tree),
        "num_speculative_tokens": count_guesses(tree),
        "speculative_token_tree": str([tuple(path) for path in paths(tree)]),
    })  # fmt: skip


def llama_cpp_flags(
    draft: str, guesses: int, threshold: float = 0.0, method: str = METHODS["llama.cpp"][PER_LEVEL]
) -> str:
    """Flags of llama-server and llama-cli for a chain.

    Without --spec-type llama.cpp loads the draft and never uses it (ggml-org/llama.cpp 25345).
    Until May 2026 --spec-draft-p-min was 0.75 by default, which ends chains early.

    Args:
        threshold: the draft's probability below which a step guesses no further.
        method: one of llama.cpp's in `METHODS`.
    """
    return (
        f"-md {shlex.quote(draft)} --spec-type {method} --spec-draft-n-max {guesses} "
        f"--spec-draft-n-min 0 --spec-draft-p-min {threshold:g}"
    )


def _llama_cpp(tree: TokenTree) -> str:
    method = method_of(tree, "llama.cpp")
    return lines(llama_cpp_flags(draft_name(tree), count_guesses(tree), method=method))


def _tensorrt_llm(tree: TokenTree) -> str:
    return lines(
        "speculative_config:",
        f"  decoding_type: {method_of(tree, 'TensorRT-LLM')}",
        f"  max_draft_len: {count_guesses(tree)}",
        f"  speculative_model: {yaml_text(draft_name(tree))}",
    )


def _tensorrt_llm_tree(tree: TokenTree) -> str:
    return lines(
        "speculative_config:",
        "  decoding_type: Eagle",
        f"  max_draft_len: {tree.depth}",
        f"  speculative_model: {yaml_text(draft_name(tree))}",
        f"  eagle_choices: {json.dumps(paths(tree))}",
    )


def _tensorrt_llm_dynamic(tree: TokenTree) -> str:
    return lines(
        "speculative_config:",
        "  decoding_type: Eagle3",
        f"  max_draft_len: {tree.depth}",
        f"  speculative_model: {yaml_text(draft_name(tree))}",
        "  use_dynamic_tree: true",
        f"  dynamic_tree_max_topK: {width(tree)}",
        f"  max_total_draft_tokens: {tensorrt_llm_guesses(tree)}",
    )


def yaml_text(name: str) -> str:
    """A name in quotes, so that YAML reads it back as this text and not as another type."""
    return json.dumps(name, ensure_ascii=False)


def _sglang(tree: TokenTree) -> str:
    return lines(
        f"--speculative-algorithm {method_of(tree, 'SGLang')}",
        f"--speculative-draft-model-path {shlex.quote(draft_name(tree))}",
        f"--speculative-num-steps {tree.depth}",
        f"--speculative-eagle-topk {width(tree)}",
        f"--speculative-num-draft-tokens {eagle_guesses(tree) + 1}",
    )


def _transformers(tree: TokenTree) -> str:
    return lines(
        "assistant.generation_config.update(",
        f"    num_assistant_tokens={count_guesses(tree)},",
        '    num_assistant_tokens_schedule="constant",',
        "    assistant_confidence_threshold=0,",
        ")",
    )


def _openvino(tree: TokenTree) -> str:
    return lines(f"config.num_assistant_tokens = {count_guesses(tree)}")


def _openvino_dynamic(tree: TokenTree) -> str:
    return lines(
        f"config.branching_factor = {width(tree)}",
        f"config.tree_depth = {tree.depth}",
        f"config.num_assistant_tokens = {eagle_guesses(tree)}",
    )


def _onnxruntime(tree: TokenTree) -> str:
    return lines(f"params.set_speculative_options(max_draft_tokens={count_guesses(tree)})")


def _mlx_lm(tree: TokenTree) -> str:
    draft = shlex.quote(draft_name(tree))
    return lines(f"--draft-model {draft} --num-draft-tokens {count_guesses(tree)}")


def _paths(tree: TokenTree) -> str:
    return lines(json.dumps(paths(tree)))


def _growmap(tree: TokenTree) -> str:
    return lines(json.dumps(growmap(tree)))


_TOP_K = "drafts the most likely tokens, not samples"
_GREEDY = "drafts greedily by default"
_EAGLE_HEAD = (
    "{}'s dynamic trees are for EAGLE-3 heads: a tree that was solved for a draft model does not "
    "run there, and {} must be a head of the target"
)

FORMATS: dict[str, ExportFormat] = {
    "vllm": ExportFormat(
        "vLLM",
        _vllm,
        chains_only=True,
        drafting='drafts greedily, unless "draft_sample_method" is "probabilistic" as it is here '
        "for plans of other verifiers than topk",
        verifiers=(DETERMINISTIC_VERIFIER, *DRAWING_VERIFIERS),
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
        drafting=f"{_GREEDY} (use_rejection_sampling: false)",
    ),
    "sglang": ExportFormat(
        "SGLang",
        _sglang,
        chains_only=True,
        counts_root=True,
        drafting="drafts the most likely tokens with STANDALONE, which has no rejection sampling",
    ),
    "transformers": ExportFormat(
        "transformers",
        _transformers,
        chains_only=True,
        drafting="draws its guesses and tests them against both distributions",
        verifiers=DRAWING_VERIFIERS,
        takes_heads=False,
    ),
    "openvino-genai": ExportFormat(
        "OpenVINO GenAI",
        _openvino,
        chains_only=True,
        drafting="compares a guess's probability with that of another token, the one that the "
        "target samples, so that the text is not distributed as the target's",
        verifiers=(),
        needs="config is the pipeline's GenerationConfig; the pipeline takes the draft as "
        "openvino_genai.draft_model(FOLDER, DEVICE)",
    ),
    "onnxruntime-genai": ExportFormat(
        "ONNX Runtime GenAI",
        _onnxruntime,
        chains_only=True,
        drafting="draws its guesses and tests them against both distributions",
        verifiers=DRAWING_VERIFIERS,
        most_guesses=16,
        takes_heads=False,
        needs="params is the generator's GeneratorParams; model.draft in genai_config.json "
        "describes the draft",
    ),
    "mlx-lm": ExportFormat(
        "mlx-lm",
        _mlx_lm,
        chains_only=True,
        drafting="draws its guesses and takes them where the target draws the same",
        verifiers=(),
        takes_heads=False,
    ),
    "eagle": ExportFormat(
        "EAGLE",
        _paths,
        drafting=_TOP_K,
        needs="EAGLE-1 reads it; EAGLE-2 and later ones grow their own tree at each step",
    ),
    "medusa": ExportFormat(
        "Medusa",
        _paths,
        drafting=_TOP_K,
        needs="Medusa's research code reads it; TensorRT-LLM no longer has Medusa",
    ),
    "umbrella": ExportFormat("UMbreLLa", _growmap, counts_root=True, drafting=_TOP_K),
    "sequoia": ExportFormat(
        "the Sequoia research code",
        _growmap,
        counts_root=True,
        drafting="draws its guesses without replacement",
        verifiers=("sequoia",),
    ),
    "vllm-tree": ExportFormat(
        "vLLM",
        _vllm_tree,
        drafting=_TOP_K,
        versions="before tree attention was removed in May 2026 (vllm 42121)",
    ),
    "tensorrt-llm-tree": ExportFormat(
        "TensorRT-LLM",
        _tensorrt_llm_tree,
        drafting=_TOP_K,
        versions="before eagle_choices was removed in August 2026 (TensorRT-LLM 18210); the last "
        "of them had switched it off",
    ),
    "sglang-dynamic": ExportFormat(
        "SGLang",
        _sglang,
        counts_root=True,
        drafting=_TOP_K,
        dynamic=True,
        guesses=eagle_guesses,
    ),
    "tensorrt-llm-dynamic": ExportFormat(
        "TensorRT-LLM",
        _tensorrt_llm_dynamic,
        drafting=_TOP_K,
        dynamic=True,
        guesses=tensorrt_llm_guesses,
        needs=_EAGLE_HEAD.format("TensorRT-LLM", "speculative_model"),
    ),
    "openvino-genai-dynamic": ExportFormat(
        "OpenVINO GenAI",
        _openvino_dynamic,
        drafting="refuses trees",
        verifiers=(),
        greedy_only=True,
        dynamic=True,
        guesses=eagle_guesses,
        needs=_EAGLE_HEAD.format("OpenVINO GenAI", "the pipeline's draft model"),
    ),
}

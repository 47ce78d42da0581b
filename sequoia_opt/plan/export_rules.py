"""Solved numbers for engines that draft by a rule of their own, as their users paste them.

Knows which engine follows which rule of `engine_rules`, and the names of its options. These come
from llama.cpp's source and transformers 5.24 and OpenVINO GenAI 2026.4, of November 2026.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sequoia_opt.files.fields import Fields
from sequoia_opt.plan.export_formats import draft_name, lines, llama_cpp_flags, method_of
from sequoia_opt.plan.tree import TokenTree

Numbers = Mapping[str, Any]


@dataclass(frozen=True)
class RuleText:
    """How an engine is told the numbers of its rule.

    Attributes:
        rule: the rule's name in a plan's `rules`.
        write: the text, from the plan and the numbers.
        counts, fractions: the names of the numbers, whole ones and others.
        needs: what its user has to know besides.
    """

    rule: str
    write: Callable[[TokenTree, Numbers], str]
    counts: tuple[str, ...] = ("guesses",)
    fractions: tuple[str, ...] = ("threshold",)
    needs: str = ""


def _llama_cpp(tree: TokenTree, numbers: Numbers) -> str:
    method = method_of(tree, "llama.cpp")
    flags = llama_cpp_flags(draft_name(tree), numbers["guesses"], numbers["threshold"], method)
    return lines(flags)


def _transformers(tree: TokenTree, numbers: Numbers) -> str:
    return (
        "assistant.generation_config.update(\n"
        f"    num_assistant_tokens={numbers['guesses']},\n"
        '    num_assistant_tokens_schedule="constant",\n'
        f"    assistant_confidence_threshold={numbers['threshold']:g},\n"
        ")\n"
    )


def _openvino(tree: TokenTree, numbers: Numbers) -> str:
    return f"config.assistant_confidence_threshold = {numbers['threshold']:g}\n"


def _sglang(tree: TokenTree, numbers: Numbers) -> str:
    return (
        f"--speculative-algorithm {method_of(tree, 'SGLang')}\n"
        f"--speculative-draft-model-path {shlex.quote(draft_name(tree))}\n"
        f"--speculative-num-steps {numbers['levels']}\n"
        f"--speculative-eagle-topk {numbers['width']}\n"
        f"--speculative-num-draft-tokens {numbers['nodes']}\n"
    )


RULE_TEXTS: dict[str, RuleText] = {
    "llama.cpp": RuleText(
        "dropping_chain",
        _llama_cpp,
        needs="llama.cpp compares --spec-draft-p-min with a probability among the ten likeliest "
        "tokens, which is a little larger than the draft's own",
    ),
    "transformers": RuleText(
        "keeping_chain",
        _transformers,
        needs="transformers moves assistant_confidence_threshold while it decodes if scikit-learn "
        "is installed",
    ),
    "openvino-genai": RuleText("endless_chain", _openvino, counts=()),
    "sglang-dynamic": RuleText("beam_tree", _sglang, ("levels", "width", "nodes"), ()),
}


def rule_of(tree: TokenTree, engine: str) -> Numbers | None:
    """The solved numbers of an engine's rule, where the plan has them and they pay; else None.

    Raises:
        SequoiaError: a number is missing, or is none.
    """
    rules = tree.metadata.get("rules", {})
    text = RULE_TEXTS.get(engine)
    numbers = rules.get(text.rule) if text is not None and isinstance(rules, dict) else None
    if text is None or not isinstance(numbers, dict):
        return None
    fields = Fields(numbers, f"tree: rules: {text.rule}")
    for name in ("speedup", "low", "high", *text.fractions):
        fields.number(name, low=0.0)
    for name in text.counts:
        fields.integer(name)
    if numbers["speedup"] <= 1:
        return None
    if engine == "openvino-genai" and not numbers["threshold"]:
        return None  # an endless chain without a threshold never ends there
    return numbers


def rule_notes(numbers: Numbers) -> list[str]:
    """What is predicted of the rule, one line."""
    return [
        f"solved for this engine's own rule on recorded drafts: {numbers['speedup']:.2f}x plain "
        f"decoding ({numbers['low']:.2f} to {numbers['high']:.2f}) where its forward passes take "
        "as long as the profile's"
    ]

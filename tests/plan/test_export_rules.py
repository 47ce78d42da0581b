from __future__ import annotations

from typing import Any

import pytest

from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan import shapes
from sequoia_opt.plan.export import export
from sequoia_opt.plan.tree import TokenTree

PREDICTED = {"speedup": 1.4, "low": 1.3, "high": 1.5}
RULES = {
    "dropping_chain": {"guesses": 6, "threshold": 0.45, **PREDICTED},
    "keeping_chain": {"guesses": 7, "threshold": 0.5, **PREDICTED},
    "endless_chain": {"guesses": 8, "threshold": 0.6, **PREDICTED},
    "beam_tree": {"levels": 3, "width": 2, "nodes": 6, **PREDICTED},
}


def plan(rules: dict[str, Any] = RULES) -> TokenTree:
    """A plan with siblings, which no engine of chains could take as it is."""
    return TokenTree([-1, 0, 0, 1], [0, 1, 2, 1], {"draft": "d.gguf", "rules": rules})


def test_llama_cpp_is_told_a_threshold() -> None:
    text, notes = export(plan(), "llama.cpp")
    assert text == (
        "-md d.gguf --spec-type draft-simple --spec-draft-n-max 6 --spec-draft-n-min 0 "
        "--spec-draft-p-min 0.45\n"
    )
    assert "1.40x plain decoding (1.30 to 1.50)" in notes[0]


def test_transformers_is_told_a_threshold() -> None:
    """The library itself reads the export."""
    from transformers import GenerationConfig

    class Assistant:
        generation_config = GenerationConfig()

    exec(export(plan(), "transformers")[0], {"assistant": Assistant})
    assert Assistant.generation_config.assistant_confidence_threshold == 0.5
    assert Assistant.generation_config.num_assistant_tokens == 7


def test_openvino_is_told_a_threshold_or_a_number() -> None:
    assert export(plan(), "openvino-genai")[0] == "config.assistant_confidence_threshold = 0.6\n"
    assert export(shapes.chain(4), "openvino-genai")[0] == "config.num_assistant_tokens = 3\n"


def test_sglang_is_told_the_numbers_of_its_tree() -> None:
    words = export(plan(), "sglang-dynamic")[0].split()
    options = dict(zip(words[::2], words[1::2], strict=True))
    assert options["--speculative-num-steps"] == "3"
    assert options["--speculative-eagle-topk"] == "2"
    assert options["--speculative-num-draft-tokens"] == "6"


def test_a_rule_that_does_not_pay_is_not_exported() -> None:
    rules = {"dropping_chain": {**RULES["dropping_chain"], "speedup": 0.9}}
    with pytest.raises(SequoiaError, match="drafts one sequence"):
        export(plan(rules), "llama.cpp")


@pytest.mark.parametrize(("to", "holds"), [("llama.cpp", True), ("transformers", False)])
def test_numbers_of_a_rule_are_warned_of_above_temperature_0(to: str, holds: bool) -> None:
    """Drafts are recorded for `topk`, whose guesses are not drawn as transformers draws them."""
    metadata = {"rules": RULES, "temperature": 0.6, "verifier": "topk"}
    notes = export(TokenTree([-1, 0], [0, 1], metadata), to)[1]
    verdict = "holds there" if holds else "does not hold there"
    assert f"the acceptance measured for verifier topk {verdict}" in notes[-1]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"speedup": "fast"}, "speedup: found 'fast', expected a number"),
        ({"guesses": 2.5}, "guesses: found 2.5, expected a whole number"),
        ({"threshold": None}, "threshold: found None, expected a number"),
    ],
)
def test_a_number_that_is_none_is_named(change: dict[str, Any], problem: str) -> None:
    rules = {"dropping_chain": {**RULES["dropping_chain"], **change}}
    with pytest.raises(SequoiaError, match=f"tree: rules: dropping_chain: {problem}"):
        export(plan(rules), "llama.cpp")
    with pytest.raises(SequoiaError, match="rules: dropping_chain: speedup: missing"):
        export(plan({"dropping_chain": {"guesses": 3}}), "llama.cpp")

from __future__ import annotations

import inspect

import pytest
import typer

from sequoia_opt.cli.solving_options import SolvingOptions, context_weights
from sequoia_opt.plan.solver import solve


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("512", {512: 1}),
        ("0", {0: 1}),
        ("128,512,2048", {128: 1, 512: 1, 2048: 1}),
        ("128:3,2048:1", {128: 3, 2048: 1}),
        ("128:0.5", {128: 0.5}),
        ("128:", {128: 1}),
    ],
)
def test_context_lengths_have_weights(text: str, weights: dict[float, float]) -> None:
    assert context_weights(text) == weights


@pytest.mark.parametrize(
    "text", ["", "many", "-1", ",128", "128:0", "128:-1", "128:inf", "nan", "128:nan", "1:2:3"]
)
def test_malformed_context_lengths_are_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match=r"expected 512, 128,512,2048 or 128:3,2048:1"):
        context_weights(text)


def test_the_options_are_the_keywords_of_the_solver() -> None:
    keywords = SolvingOptions(context="128:3").keywords()
    parameters = inspect.signature(solve).parameters
    assert set(keywords) <= set(parameters)
    assert keywords["context"] == {128: 3}
    defaults = {name: parameters[name].default for name in keywords}
    assert SolvingOptions().keywords() == defaults

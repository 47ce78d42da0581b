from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sequoia_opt.errors import SequoiaError
from sequoia_opt.measure.comparison import (
    ComparisonSpec,
    random_prompts,
    settings_of,
    usable_prompts,
    warn_of_few,
    workload,
)
from sequoia_opt.measure.records import Document
from sequoia_opt.measure.template import PLAIN, Template
from sequoia_opt.plan import shapes
from sequoia_opt.plan.sampling import Sampling


def documents(*lengths: int) -> list[Document]:
    """Prompts of so many tokens."""
    return [
        Document("", "", tokens=(7,) * length, where=f"line {number}")
        for number, length in enumerate(lengths, 1)
    ]


def spec(folder: Path, **options: Any) -> ComparisonSpec:
    tree = shapes.chain(3)
    tree.save(folder / "tree.json")
    options = {"sampling": Sampling(), **options}
    return ComparisonSpec(tree=tree, tree_file=folder / "tree.json", **options)


def test_a_prompt_that_does_not_fit_is_replaced(make_pair: Callable[..., Any]) -> None:
    pair, notes = make_pair(), list[str]()
    too_long = pair.target.positions + 1
    prompts = usable_prompts(pair, documents(3, too_long, 4, 5), 3, 4, PLAIN, notes.append)
    assert sorted(map(len, prompts)) == [3, 4, 5]
    [note] = notes
    assert note.startswith("1 of 4 prompts left out: a prompt of ")


def test_no_usable_prompt_is_an_error(make_pair: Callable[..., Any]) -> None:
    pair = make_pair()
    with pytest.raises(SequoiaError, match="no prompt is usable: a prompt of"):
        usable_prompts(pair, documents(pair.target.positions + 1), 1, 4, PLAIN, print)
    with pytest.raises(SequoiaError, match="no prompt is usable: the dataset has no documents"):
        usable_prompts(pair, [], 1, 4, PLAIN, print)


def test_prompts_for_random_models_are_the_same_every_time(
    make_pair: Callable[..., Any], tmp_path: Path
) -> None:
    pair = make_pair()
    prompts = random_prompts(pair, 3)
    assert prompts == random_prompts(pair, 3)
    assert len(prompts) == 3
    assert all(0 <= token < pair.target.vocabulary for prompt in prompts for token in prompt)
    pair.random_weights, pair.tokenizer = True, None
    chosen = workload(spec(tmp_path, limit=3), pair, "numbers", documents(2), print)
    assert (chosen.dataset, chosen.prompts) == ("random tokens", prompts)
    assert chosen.longest == len(prompts[0])
    assert settings_of(spec(tmp_path), pair, chosen)["random_weights"] is True


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        (1, ["1 prompt gives no intervals; raise --limit"]),
        (4, ["4 prompts are few, so intervals are wide; raise --limit"]),
        (5, []),
    ],
)
def test_few_prompts_are_noted(prompts: int, said: list[str]) -> None:
    notes: list[str] = []
    warn_of_few(prompts, notes.append)
    assert notes == said


def test_settings_name_what_is_not_usual(make_pair: Callable[..., Any], tmp_path: Path) -> None:
    pair = make_pair()
    pair.random_weights = False
    usual = spec(tmp_path)
    chosen = workload(usual, pair, "numbers", documents(2, 3), lambda message: None)
    settings = settings_of(usual, pair, chosen)
    assert not {"offload", "world_size", "template", "synthetic_acceptance"} & set(settings)
    assert (settings["prompts"], settings["max_new_tokens"], settings["repeats"]) == (2, 128, 3)
    pair.offload = "disk"
    other = spec(tmp_path, template=Template(for_all=True), memory_budget=7)
    settings = settings_of(other, pair, chosen, Path("rates.yaml"))
    assert (settings["offload"], settings["memory_budget"]) == ("disk", 7)
    assert settings["synthetic_acceptance"] == "rates.yaml"
    assert settings["template"] == {"chat": True}

"""The bundled pair, as the program ships it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from exact_texts import exact_chances, follows

from sequoia_opt import demo
from sequoia_opt.api import load_dataset, load_pair
from sequoia_opt.engine.decoder import Decoder
from sequoia_opt.measure.estimator import EstimateOptions, estimate
from sequoia_opt.plan import shapes
from sequoia_opt.plan.verifiers import VERIFIERS


@pytest.fixture(scope="module")
def pair() -> Any:
    return load_pair(device="cpu")


def test_greedy_tokens_are_plain_decodings_own_in_float64() -> None:
    """Without exception, for prompts and trees of different shapes."""
    pair = load_pair(device="cpu", dtype="float64")
    for text in demo.prompts()[:3]:
        prompt = pair.encode(text)
        plain = Decoder(pair).generate(prompt, 48)
        for tree in (shapes.chain(5), shapes.k_sequences(3, 4)):
            generation = Decoder(pair, tree).generate(prompt, 48)
            assert generation.tokens == plain.tokens
            assert generation.text == plain.text
            assert generation.tokens_per_step > 1.5


def test_sampled_text_is_distributed_as_the_targets(pair: Any) -> None:
    prompt = pair.encode("def add(first, second):\n    ")
    chances = exact_chances(demo.FOLDER / "target", prompt, 3, 0.8, least=1e-3)
    for verifier in VERIFIERS:
        decoder = Decoder(pair, shapes.k_ary(3, 2), temperature=0.8, seed=5, verifier=verifier)
        texts = [decoder.generate(prompt, 3, ignore_eos=True).tokens for _ in range(100)]
        assert follows(texts, chances)


def test_the_draft_is_worth_its_place(pair: Any) -> None:
    """Greedy acceptance of the first rank on held-out code, teacher-forced, is 0.70."""
    name, documents = load_dataset()
    options = EstimateOptions(teacher_forced=True, max_new_tokens=256)
    (acceptance,) = estimate(pair, documents, name, options=options)
    assert acceptance.positions > 13_000
    assert acceptance.rates[0] >= 0.70
    # The training's record is over all of the held-out modules, this over excerpts of them.
    record = json.loads((demo.FOLDER / "training.json").read_text())
    assert acceptance.rates[0] == pytest.approx(record["draft_agreement"], abs=0.03)

"""Greedy decoding with a target's settings against transformers' `generate`, which reads the
same file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from sequoia_opt.api import load_pair
from sequoia_opt.engine.decoder import Decoder
from sequoia_opt.engine.logits_processors import LogitsOptions
from sequoia_opt.engine.own_settings import own_settings
from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan import shapes

PROMPT = [5, 6, 7, 6, 30]


@pytest.fixture
def pair_with(make_model: Callable[..., Path], tmp_path: Path) -> Callable[..., Any]:
    """Makes a pair whose target has the given settings; returns it with the target's folder."""

    def make(**settings: Any) -> tuple[Any, Path]:
        folder = tmp_path / "target"
        shutil.copytree(make_model("llama"), folder)
        path = folder / "generation_config.json"
        path.write_text(json.dumps({"eos_token_id": 1, **settings}))
        return load_pair(folder, make_model("llama", 1), "cpu", "float64"), folder

    return make


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 1.3},
        {"repetition_penalty": 1.05, "do_sample": True, "temperature": 0.7, "top_k": 20},
        {"suppress_tokens": [43, 57], "begin_suppress_tokens": [26, 33]},
        {"bad_words_ids": [[49], [1], [30, 31]], "repetition_penalty": 1.2},
        {"sequence_bias": [[[49], -8.0], [[3], 2.5]]},
        {"eos_token_id": [1, 44, 33]},
    ],
)
def test_greedy_tokens_are_those_of_generate(
    pair_with: Callable[..., Any], settings: dict[str, Any]
) -> None:
    pair, folder = pair_with(**settings)
    library: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    expected = library.generate(torch.tensor([PROMPT]), do_sample=False, max_new_tokens=40)
    logits = own_settings(pair).logits
    for tree in (shapes.chain(1), shapes.k_ary(2, 3)):
        generation = Decoder(pair, tree, logits_options=logits).generate(PROMPT, 40)
        assert generation.tokens == expected[0, len(PROMPT) :].tolist()
    changes_logits = "eos_token_id" not in settings
    assert logits.change_anything == changes_logits
    plain = Decoder(pair).generate(PROMPT, 40).tokens
    assert (generation.tokens != plain) == changes_logits


def test_settings_that_are_not_applied_are_listed(pair_with: Callable[..., Any]) -> None:
    pair, _ = pair_with(
        no_repeat_ngram_size=3, num_beams=1, min_length=0, guidance_scale=1.0, typical_p=0.9,
        bad_words_ids=[[1, 2]], stop_strings=["x", "y"], do_sample=True, temperature=0.7,
        top_p=0.8, top_k=20, min_p=0.0,
    )  # fmt: skip
    settings = own_settings(pair)
    assert settings.logits == LogitsOptions()
    assert settings.stop == ("x", "y")
    assert settings.sampling == {"temperature": 0.7, "top_p": 0.8, "top_k": 20}
    assert settings.unused == {
        "no_repeat_ngram_size": 3,
        "bad_words_ids": "1 sequences of several tokens",
    }
    assert settings.unused_sampled == {"typical_p": 0.9}


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"repetition_penalty": "high"}, "repetition_penalty: found 'high', expected a number"),
        ({"suppress_tokens": [1.5]}, "suppress_tokens: found .*expected a list of token ids"),
        ({"bad_words_ids": 3}, "bad_words_ids: found 3, expected a list of lists"),
        ({"sequence_bias": [[1]]}, "sequence_bias: found .*, expected pairs"),
        ({"stop_strings": [3]}, "stop_strings: found .*, expected a list of texts"),
        ({"repetition_penalty": 0}, "repetition-penalty: found 0, expected .*ignore the file with"),
    ],
)
def test_settings_that_cannot_be_applied_are_named(
    pair_with: Callable[..., Any], settings: dict[str, Any], complaint: str
) -> None:
    pair, _ = pair_with()
    for name, value in settings.items():
        setattr(pair.target.generation_config, name, value)
    with pytest.raises(SequoiaError, match=f"target: generation_config.json: {complaint}"):
        own_settings(pair)


def test_an_engine_needs_no_torch_module() -> None:
    """Of the target only its settings and its vocabulary are read."""
    target = SimpleNamespace(generation_config=GenerationConfig(top_k=5, do_sample=True))
    target.vocabulary = 61
    pair: Any = SimpleNamespace(target=target, target_name="small", end_tokens=frozenset())
    assert own_settings(pair).sampling == {"temperature": 1, "top_k": 5}


def test_a_target_without_settings_has_none(make_pair: Callable[..., Any]) -> None:
    settings = own_settings(make_pair())
    assert (settings.logits, settings.stop, dict(settings.unused)) == (LogitsOptions(), (), {})


def test_tokens_outside_the_vocabulary_are_ignored_as_the_library_does(
    pair_with: Callable[..., Any],
) -> None:
    pair, folder = pair_with(suppress_tokens=[43, 99999, -3])
    assert own_settings(pair).logits == LogitsOptions(banned=frozenset([43]))
    library = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    expected = library.generate(torch.tensor([PROMPT]), max_new_tokens=12, do_sample=False)
    decoder = Decoder(pair, shapes.k_ary(2, 3), logits_options=own_settings(pair).logits)
    assert decoder.generate(PROMPT, 12).tokens == expected[0, len(PROMPT) :].tolist()


def test_missing_sampling_fields_have_the_librarys_defaults(
    pair_with: Callable[..., Any],
) -> None:
    pair, _ = pair_with(do_sample=True)
    defaults = pair.target.generation_config._get_default_generation_params()
    assert own_settings(pair).sampling == {"temperature": 1, "top_k": defaults["top_k"]}

"""What a target's generation_config.json asks for: what is applied of it, and what is not.

transformers' `generate` follows that file without being told to. Knows its fields; nothing of
decoding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sequoia_opt.engine.logits_processors import Rules
from sequoia_opt.engine.pair import Pair
from sequoia_opt.errors import SequoiaError
from sequoia_opt.files.fields import shown

# Fields that are not applied, and the values with which they do nothing.
UNUSED: dict[str, Any] = {
    "encoder_repetition_penalty": 1,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "min_length": 0,
    "min_new_tokens": 0,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "exponential_decay_length_penalty": None,
    "guidance_scale": 1,
    "num_beams": 1,
    "penalty_alpha": 0,
    "dola_layers": None,
    "watermarking_config": None,
    "max_time": None,
}
# The same, of fields that matter above temperature 0 only.
UNUSED_SAMPLED: dict[str, Any] = {
    "typical_p": 1,
    "epsilon_cutoff": 0,
    "eta_cutoff": 0,
    "top_h": None,
}
SAMPLED = {"temperature": 1, "top_k": 0, "top_p": 1, "min_p": 0}
UNSAID = SAMPLED | {"top_k": 50}  # what transformers samples with where the file does not say


@dataclass(frozen=True)
class OwnSettings:
    """What the target came with.

    Attributes:
        rules: what is done to its logits.
        stop: strings that end a text.
        sampling: the temperature, top_k, top_p and min_p that it asks for, as far as it does;
            empty if it is to be decoded greedily.
        unused: fields that are not applied, with their values.
        unused_sampled: likewise, of those that matter above temperature 0 only.
    """

    rules: Rules = field(default_factory=Rules)
    stop: tuple[str, ...] = ()
    sampling: Mapping[str, float] = field(default_factory=dict)
    unused: Mapping[str, Any] = field(default_factory=dict)
    unused_sampled: Mapping[str, Any] = field(default_factory=dict)


def own_settings(pair: Pair) -> OwnSettings:
    """Those of a pair's target.

    Raises:
        SequoiaError: one of them cannot be, with its name.
    """
    config = pair.target.generation_config
    if config is None:
        return OwnSettings()
    values = {name: value for name, value in vars(config).items() if value is not None}
    where = f"{pair.target_name}: generation_config.json"
    try:
        settings = _settings(values, pair.end_tokens, pair.target.vocabulary)
        settings.rules.check(pair.target.vocabulary)
    except SequoiaError as error:
        raise SequoiaError(
            f"{where}: {error}; correct it, or leave it out with --no-generation-config"
        ) from None
    return settings


def _settings(values: Mapping[str, Any], ends: frozenset[int], vocabulary: int) -> OwnSettings:
    bias, long_bias = _by_token(_biases(values))
    bad, long_bad = _by_token(dict.fromkeys(_sequences(values, "bad_words_ids"), 0.0))
    rules = Rules(
        repetition_penalty=_number(values, "repetition_penalty", 1.0),
        bias=bias,
        # Words that are bad are never the end of the text, to the library.
        banned=_known(_tokens(values, "suppress_tokens"), vocabulary) | (frozenset(bad) - ends),
        banned_first=_known(_tokens(values, "begin_suppress_tokens"), vocabulary),
    )
    unused = _not_idle(values, UNUSED)
    for name, long in (("sequence_bias", long_bias), ("bad_words_ids", long_bad)):
        if long:
            unused[name] = f"{long} sequences of several tokens"
    stop = values.get("stop_strings", ())
    stop = [stop] if isinstance(stop, str) else stop
    if not isinstance(stop, Sequence) or not all(isinstance(s, str) and s for s in stop):
        raise SequoiaError(f"stop_strings: found {shown(stop)}, expected a list of texts")
    sampling = {}
    if values.get("do_sample"):
        sampling = {name: _number(values, name, unsaid) for name, unsaid in UNSAID.items()}
    return OwnSettings(
        rules,
        tuple(stop),
        {k: v for k, v in sampling.items() if v != SAMPLED[k] or k == "temperature"},
        unused,
        _not_idle(values, UNUSED_SAMPLED),
    )


def _not_idle(values: Mapping[str, Any], idle: Mapping[str, Any]) -> dict[str, Any]:
    """Of these fields the ones that are there and do something."""
    return {k: values[k] for k in idle if k in values and values[k] not in (idle[k], False)}


def _number(values: Mapping[str, Any], name: str, idle: float) -> float:
    value = values.get(name, idle)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SequoiaError(f"{name}: found {shown(value)}, expected a number")
    return value


def _tokens(values: Mapping[str, Any], name: str) -> list[int]:
    found = values.get(name, [])
    if not isinstance(found, list) or not all(type(token) is int for token in found):
        raise SequoiaError(f"{name}: found {shown(found)}, expected a list of token ids")
    return [int(token) for token in found]


def _known(tokens: list[int], vocabulary: int) -> frozenset[int]:
    """Those that there are; the library overlooks others."""
    return frozenset(token for token in tokens if 0 <= token < vocabulary)


def _sequences(values: Mapping[str, Any], name: str) -> list[tuple[int, ...]]:
    found = values.get(name, [])
    if not isinstance(found, list):
        raise SequoiaError(f"{name}: found {shown(found)}, expected a list of lists of token ids")
    return [tuple(_tokens({name: sequence}, name)) for sequence in found]


def _biases(values: Mapping[str, Any]) -> dict[tuple[int, ...], float]:
    """The sequences that have a bias, which JSON has as pairs."""
    found = values.get("sequence_bias", [])
    name = "sequence_bias"
    pairs = list(found.items()) if isinstance(found, Mapping) else found
    if not isinstance(pairs, list) or not all(
        isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs
    ):
        raise SequoiaError(f"{name}: found {shown(found)}, expected pairs of token ids and a bias")
    return {
        tuple(_tokens({name: list(tokens)}, name)): _number({name: bias}, name, 0.0)
        for tokens, bias in pairs
    }


def _by_token(values: Mapping[tuple[int, ...], float]) -> tuple[dict[int, float], int]:
    """The values of single tokens, and how many are of longer sequences."""
    single = {tokens[0]: value for tokens, value in values.items() if len(tokens) == 1}
    return single, len(values) - len(single)

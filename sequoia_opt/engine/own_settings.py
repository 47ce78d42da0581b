"""Reads a target's generation_config.json: the settings that are applied, and the others by name.

transformers' `generate` follows that file by itself, so this program does too. Knows the file's
fields. Knows nothing of decoding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sequoia_opt.engine.logits_processors import LogitsOptions
from sequoia_opt.engine.pair import Pair
from sequoia_opt.errors import SequoiaError
from sequoia_opt.files.fields import shown

# Fields that are not applied, with the values at which they have no effect.
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
# The same for fields that have an effect only above temperature 0.
UNUSED_SAMPLED: dict[str, Any] = {
    "typical_p": 1,
    "epsilon_cutoff": 0,
    "eta_cutoff": 0,
    "top_h": None,
}
# The sampling fields, with the values at which they have no effect.
SAMPLING = {"temperature": 1, "top_k": 0, "top_p": 1, "min_p": 0}
# The values with which transformers samples where the file does not set a field.
SAMPLING_DEFAULTS = SAMPLING | {"top_k": 50}


@dataclass(frozen=True)
class OwnSettings:
    """The settings of a target's generation_config.json.

    Attributes:
        logits: how its logits are processed.
        stop: strings that end a text.
        sampling: temperature, and top_k, top_p and min_p as far as they have an effect; empty if
            the file asks for greedy decoding.
        unused: fields that are not applied, with their values.
        unused_sampled: the same for fields that have an effect only above temperature 0.
    """

    logits: LogitsOptions = field(default_factory=LogitsOptions)
    stop: tuple[str, ...] = ()
    sampling: Mapping[str, float] = field(default_factory=dict)
    unused: Mapping[str, Any] = field(default_factory=dict)
    unused_sampled: Mapping[str, Any] = field(default_factory=dict)


def own_settings(pair: Pair) -> OwnSettings:
    """The settings of a pair's target; the defaults if it has no generation_config.json.

    Raises:
        SequoiaError: a field has a value that cannot be applied; names the field.
    """
    config = pair.target.generation_config
    if config is None:
        return OwnSettings()
    fields = {name: value for name, value in vars(config).items() if value is not None}
    try:
        settings = _settings(fields, pair.end_tokens, pair.target.vocabulary)
        settings.logits.check(pair.target.vocabulary)
    except SequoiaError as error:
        raise SequoiaError(
            f"{pair.target_name}: generation_config.json: {error}; correct it, or ignore the file "
            "with --no-generation-config"
        ) from None
    return settings


def _settings(
    fields: Mapping[str, Any], end_tokens: frozenset[int], vocabulary: int
) -> OwnSettings:
    bias, long_biases = _single_tokens(_biases(fields))
    bad_words, long_bad_words = _single_tokens(
        dict.fromkeys(_sequences(fields, "bad_words_ids"), 0.0)
    )
    logits = LogitsOptions(
        repetition_penalty=_number(fields, "repetition_penalty", 1.0),
        bias=bias,
        # transformers never takes an end-of-text token for a bad word.
        banned=(
            _in_vocabulary(_tokens(fields, "suppress_tokens"), vocabulary)
            | (frozenset(bad_words) - end_tokens)
        ),
        banned_first=_in_vocabulary(_tokens(fields, "begin_suppress_tokens"), vocabulary),
    )
    unused = _with_effect(fields, UNUSED)
    for name, count in (("sequence_bias", long_biases), ("bad_words_ids", long_bad_words)):
        if count:
            unused[name] = f"{count} sequences of several tokens"
    sampling = {}
    if fields.get("do_sample"):
        sampling = {
            name: _number(fields, name, default) for name, default in SAMPLING_DEFAULTS.items()
        }
    return OwnSettings(
        logits,
        _stop_strings(fields),
        {k: v for k, v in sampling.items() if v != SAMPLING[k] or k == "temperature"},
        unused,
        _with_effect(fields, UNUSED_SAMPLED),
    )


def _with_effect(fields: Mapping[str, Any], idle: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the fields in `idle` that are set to a value with an effect."""
    return {k: fields[k] for k in idle if k in fields and fields[k] not in (idle[k], False)}


def _number(fields: Mapping[str, Any], name: str, default: float) -> float:
    value = fields.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SequoiaError(f"{name}: found {shown(value)}, expected a number")
    return value


def _stop_strings(fields: Mapping[str, Any]) -> tuple[str, ...]:
    stop = fields.get("stop_strings", ())
    stop = [stop] if isinstance(stop, str) else stop
    if not isinstance(stop, Sequence) or not all(isinstance(s, str) and s for s in stop):
        raise SequoiaError(f"stop_strings: found {shown(stop)}, expected a list of texts")
    return tuple(stop)


def _tokens(fields: Mapping[str, Any], name: str) -> list[int]:
    tokens = fields.get(name, [])
    if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
        raise SequoiaError(f"{name}: found {shown(tokens)}, expected a list of token ids")
    return [int(token) for token in tokens]


def _in_vocabulary(tokens: list[int], vocabulary: int) -> frozenset[int]:
    """The tokens that exist; transformers ignores the others."""
    return frozenset(token for token in tokens if 0 <= token < vocabulary)


def _sequences(fields: Mapping[str, Any], name: str) -> list[tuple[int, ...]]:
    sequences = fields.get(name, [])
    if not isinstance(sequences, list):
        raise SequoiaError(
            f"{name}: found {shown(sequences)}, expected a list of lists of token ids"
        )
    return [tuple(_tokens({name: sequence}, name)) for sequence in sequences]


def _biases(fields: Mapping[str, Any]) -> dict[tuple[int, ...], float]:
    """The bias of each token sequence; in JSON they are pairs."""
    name = "sequence_bias"
    biases = fields.get(name, [])
    pairs = list(biases.items()) if isinstance(biases, Mapping) else biases
    if not isinstance(pairs, list) or not all(
        isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs
    ):
        raise SequoiaError(f"{name}: found {shown(biases)}, expected pairs of token ids and a bias")
    return {
        tuple(_tokens({name: list(tokens)}, name)): _number({name: bias}, name, 0.0)
        for tokens, bias in pairs
    }


def _single_tokens(
    values: Mapping[tuple[int, ...], float],
) -> tuple[dict[int, float], int]:
    """The values of single tokens, and the number of longer sequences."""
    single = {tokens[0]: value for tokens, value in values.items() if len(tokens) == 1}
    return single, len(values) - len(single)

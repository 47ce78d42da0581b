"""What a target's generation_config.json asks for, and what of it decoding applies.

Knows the file's settings and the options that override them. Knows nothing of decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from sequoia_opt.plan.sampling import Sampling

if TYPE_CHECKING:
    from sequoia_opt.engine.logits_processors import LogitsOptions
    from sequoia_opt.engine.own_settings import OwnSettings
    from sequoia_opt.engine.pair import Pair


def merged_logits_options(
    logits_options: LogitsOptions, config: OwnSettings, has_repetition_penalty: bool
) -> LogitsOptions:
    """The logits options from the command line; where they say nothing, the target's own.

    Args:
        logits_options: from the options.
        config: the target's settings.
        has_repetition_penalty: whether an option sets the repetition penalty.
    """
    chosen = logits_options if has_repetition_penalty else config.logits
    return replace(
        config.logits,
        repetition_penalty=chosen.repetition_penalty,
        bias={**config.logits.bias, **logits_options.bias},
        frequency_penalty=logits_options.frequency_penalty,
        presence_penalty=logits_options.presence_penalty,
        banned=config.logits.banned.difference(logits_options.bias),
        banned_first=config.logits.banned_first.difference(logits_options.bias),
    )


def note_generation_config(
    pair: Pair,
    config: OwnSettings,
    logits_options: LogitsOptions,
    sampling: Sampling,
    stops: Sequence[str],
) -> None:
    """Say on standard error what of the target's generation_config.json is applied, and what not.

    Args:
        config: the target's settings.
        logits_options: the logits options that are applied.
        stops: the strings that end a text.
    """
    from sequoia_opt.cli.output import note

    where = f"generation_config.json of {pair.target_name}"
    applied = _applied_settings(config, logits_options)
    if config.stop and list(config.stop) == list(stops):
        applied.append(f"stop strings {', '.join(map(repr, stops))}")
    if applied:
        note(f"{where}: applied: {', '.join(applied)} (turn off with --no-generation-config)")
    unused = dict(config.unused)
    if sampling.temperature > 0:
        unused |= config.unused_sampled
    if unused:
        settings = ", ".join(f"{name} {value}" for name, value in unused.items())
        note(f"{where}: not applied: {settings}")
    used = asdict(sampling)
    differing = {name: value for name, value in config.sampling.items() if used[name] != value}
    if differing:
        settings = ", ".join(f"{name} {value:g}" for name, value in differing.items())
        options = " ".join(
            f"--{name.replace('_', '-')} {value:g}" for name, value in config.sampling.items()
        )
        reason = (
            "decoding is greedy" if sampling.temperature == 0 else "sampling is set differently"
        )
        note(f"{where}: not applied: {settings}: {reason}; for these settings add {options}")


def _applied_settings(config: OwnSettings, logits_options: LogitsOptions) -> list[str]:
    """The target's own settings that are applied, in words."""
    penalty = config.logits.repetition_penalty
    applied = []
    if penalty != 1 and penalty == logits_options.repetition_penalty:
        applied.append(f"repetition_penalty {penalty:g}")
    for tokens, words in (
        (config.logits.bias, "with a bias"),
        (logits_options.banned, "suppressed"),
        (logits_options.banned_first, "suppressed as the first token"),
    ):
        if tokens:
            applied.append(f"{len(tokens)} token{'s' if len(tokens) > 1 else ''} {words}")
    return applied

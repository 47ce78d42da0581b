from __future__ import annotations

from sequoia_opt.cli.generation_config import merged_logits_options
from sequoia_opt.engine.logits_processors import LogitsOptions
from sequoia_opt.engine.own_settings import OwnSettings

OWN = OwnSettings(
    logits=LogitsOptions(
        repetition_penalty=1.3,
        bias={1: 2.0, 2: 2.0},
        banned=frozenset({3, 4}),
        banned_first=frozenset({4, 5}),
    )
)


def test_options_override_the_targets_own_rules() -> None:
    asked = LogitsOptions(repetition_penalty=1.0, bias={2: -1.0, 4: 1.0}, presence_penalty=0.5)
    logits_options = merged_logits_options(asked, OWN, has_repetition_penalty=True)
    assert logits_options.repetition_penalty == 1.0
    assert logits_options.bias == {1: 2.0, 2: -1.0, 4: 1.0}
    assert logits_options.presence_penalty == 0.5
    # A token with a bias from an option is no longer suppressed.
    assert (logits_options.banned, logits_options.banned_first) == ({3}, {5})


def test_the_targets_own_rules_hold_where_options_say_nothing() -> None:
    assert merged_logits_options(LogitsOptions(), OWN, has_repetition_penalty=False) == OWN.logits
    assert (
        merged_logits_options(LogitsOptions(), OwnSettings(), has_repetition_penalty=False)
        == LogitsOptions()
    )

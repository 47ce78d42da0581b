"""A llama-server that somebody else runs, and what can be changed of it from one text to the next.

Versions until the beginning of 2026 took the length and the threshold of a chain with each
request; later ones keep those that they were started with. Knows these requests. Knows nothing
of how settings are chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sequoia_opt.engine.http_client import ServerGoneError, client_of
from sequoia_opt.engine.library import DRAFT, NO_SPECULATION, Speculation
from sequoia_opt.engine.llama_cpp.server_client import GREEDY, Answer, ServerClient
from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan.chain_replay import StepCounts
from sequoia_opt.plan.chain_tuning import ChainSetting

N_MAX, N_MIN, P_MIN = (f"speculative.{name}" for name in ("n_max", "n_min", "p_min"))
UNUSUAL_GUESSES = 13  # a length that no server is started with by default


class RunningServer:
    """See `TunableEngine`, of a server whose chains can be set with each request.

    Args:
        url: its address, see `client_of`.
        api_key: that it asks for; None if it asks for none.

    Attributes:
        client: what asks it.
        takes_settings: whether it takes the length and the threshold of a chain with a request.
        model: the name of its model; empty if it does not say so.
        context: tokens that a text may have; 0 if it does not say so.

    Raises:
        SequoiaError: the address is none, nothing answers there as a llama-server does, or it asks
            for another key.
    """

    has_draft = True
    others = ()
    ends_unsure_chains = True

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self.client = ServerClient(url, client_of(url, api_key), lambda what: _failure(url, what))
        properties = self.client.properties()
        defaults = properties.get("default_generation_settings")
        if not isinstance(defaults, dict):
            raise SequoiaError(f"{url}: found no llama-server there, expected one; name its URL")
        self.model = Path(str(properties.get("model_path", ""))).stem
        self.context = int(defaults.get("n_ctx") or 0)
        unusual = self._settings_told(_fields(Speculation(DRAFT, UNUSUAL_GUESSES)))
        self.takes_settings = unusual.get(N_MAX) == UNUSUAL_GUESSES
        own = self._settings_told({})
        self.default_chain = ChainSetting(int(own.get(N_MAX) or 0), float(own.get(P_MIN) or 0))

    def _settings_told(self, fields: Mapping[str, Any]) -> Mapping[str, Any]:
        """How the server says that it decodes a request with these fields."""
        text = self.client.tokens("a") or [0]
        return self.client.generate(text, 1, GREEDY, fields).settings

    def answer(self, speculation: Speculation, prompt: list[int], new_tokens: int) -> Answer:
        """See `TunableEngine`."""
        return self.client.generate(prompt, new_tokens, GREEDY, _fields(speculation))

    def counted(self, speculation: Speculation, prompt: list[int], new_tokens: int) -> StepCounts:
        """See `TunableEngine`."""
        fields = _fields(speculation)
        return self.client.steps(prompt, new_tokens, speculation.guesses, fields)

    def step_ms(self, text: list[int], guesses: int) -> float | None:
        """See `FixedSettingsEngine`."""
        return self.client.step_ms(text, guesses)

    def step_without_guesses_ms(self, text: list[int]) -> float:
        """See `FixedSettingsEngine`."""
        return self.client.generate(text, 2, GREEDY, {"cache_prompt": True}).predicted_ms


def _fields(speculation: Speculation) -> dict[str, Any]:
    """A request's fields for a setting; none for the server's own."""
    if speculation == NO_SPECULATION:
        return {N_MAX: 0, N_MIN: 0}
    if speculation.guesses is None:
        return {}
    return {N_MAX: speculation.guesses, N_MIN: 0, P_MIN: speculation.threshold}


def _failure(url: str, what: str) -> ServerGoneError:
    return ServerGoneError(f"{url}: the server {what}; is a llama-server running there?")

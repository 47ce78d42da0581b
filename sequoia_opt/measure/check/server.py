"""A server under test: found by its address, recognised, and sent requests for texts.

Knows connections, refusals and what a server serves. Knows nothing of what its texts are
compared with.
"""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, TypeVar

from sequoia_opt.engine.http_client import (
    QUOTED,
    REFUSED_KEY,
    HttpClient,
    client_of,
    error_message,
    json_mapping,
    refused_key,
)
from sequoia_opt.errors import SequoiaError, one_line
from sequoia_opt.measure.check.dialects import (
    ANY,
    DIALECTS,
    Candidate,
    Dialect,
    Prompt,
    Reading,
)

MODELS = "/v1/models"
NAMED = 8  # models that an error names

Value = TypeVar("Value")


@dataclass(frozen=True)
class Completion:
    """A text that a server decoded.

    Attributes:
        reading: what its answer says.
        seconds: from the request to its answer, as seen from here.
    """

    reading: Reading
    seconds: float

    def units(self, by_token: bool) -> tuple[Hashable, ...]:
        """The text as token ids or as characters."""
        return self.reading.tokens if by_token else tuple(self.reading.text)


class Server:
    """A server that answered, and the model to ask it for.

    Attributes:
        url: its address, without `/v1`.
        model: the model's name.
        dialect: how it is asked.
    """

    def __init__(self, client: HttpClient, model: str, dialect: Dialect, timeout: float) -> None:
        self.url, self.model, self.dialect = client.url, model, dialect
        self._client, self._timeout = client, timeout
        self._tokens: dict[str, list[int]] = {}  # of prompts

    def complete(
        self,
        prompt: Prompt,
        new_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
        plain: bool = False,
    ) -> Completion:
        """Decode a text.

        Args:
            plain: ask for no speculation, which not every server heeds.

        Raises:
            SequoiaError: it does not answer in time, refuses, or answers something else.
        """
        request = self.dialect.completion(self.model, prompt, new_tokens, temperature, seed)
        if plain:
            request |= self.dialect.without_speculation
        began = time.perf_counter()
        answer = self._post(self.dialect.path, request)
        seconds = time.perf_counter() - began
        return Completion(self._understood(self.dialect.read, answer), seconds)

    def candidates(self, prompt: Prompt) -> dict[Hashable, Candidate]:
        """The likeliest next tokens; empty if the server gives no log-probabilities.

        The one token comes from the prompt's own forward pass, in which nothing is guessed.
        """
        request = self.dialect.next_token(self.model, prompt)
        status, text = self._ask("POST", self.dialect.path, request)
        if status != http.client.OK:
            return {}
        return self._understood(self.dialect.candidates, json_mapping(text))

    def tokenize(self, text: str) -> list[int] | None:
        """The token ids of a prompt; None if the server does not give them."""
        if text not in self._tokens and self.dialect.tokenize_path:
            request = self.dialect.tokenization(self.model, text)
            status, answer = self._ask("POST", self.dialect.tokenize_path, request)
            tokens = json_mapping(answer).get("tokens")
            if status != http.client.OK or not isinstance(tokens, list) or not tokens:
                return None
            if all(isinstance(token, int) for token in tokens):
                self._tokens[text] = tokens
        return self._tokens.get(text)

    def get(self, path: str) -> str | None:
        """The text at a path; None if the server has nothing there."""
        status, text = self._ask("GET", path)
        return text if status == http.client.OK else None

    def _post(self, path: str, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request that the server must not refuse."""
        status, text = self._ask("POST", path, request)
        answer = json_mapping(text)
        if status in REFUSED_KEY:
            raise refused_key(self.url, status, has_key=True)
        if status != http.client.OK or "error" in answer:
            raise SequoiaError(f"{self.url}: refuses a request to {path} ({_message(text)})")
        return answer

    def _ask(self, method: str, path: str, body: object = None) -> tuple[int, str]:
        return _asked(self._client, method, path, body, self._timeout)

    def _understood(self, read: Callable[[dict[str, Any]], Value], answer: dict[str, Any]) -> Value:
        """What an answer says.

        Raises:
            SequoiaError: it is of another form.
        """
        try:
            return read(answer)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise SequoiaError(
                f"{self.url}: found an answer from {self.dialect.path}, expected one in the format "
                f"of {self.dialect.name} ({type(error).__name__}: {one_line(error)[:QUOTED]})"
            ) from None


def connect(url: str, model: str | None, api_key: str | None, timeout: float) -> Server:
    """Find a server, see what it is, and choose the model.

    Args:
        url: see `client_of`.
        model: the name to ask for; None for the only one that is served.
        timeout: seconds to wait for an answer.

    Raises:
        SequoiaError: it does not answer, is no OpenAI-compatible server, refuses the key, or does
            not serve the model.
    """
    client = client_of(url, api_key)
    status, text = _asked(client, "GET", MODELS, None, timeout)
    if status in REFUSED_KEY:
        raise refused_key(client.url, status, client.has_key)
    served = _cards(json_mapping(text).get("data"))
    names = [str(card["id"]) for card in served]
    if status != http.client.OK or not names:
        raise SequoiaError(
            f"{client.url}: found {status} {_message(text)} at {MODELS}, expected the list of "
            "models of an OpenAI-compatible server"
        )
    if model is not None and model not in names:
        raise SequoiaError(
            f"{client.url}: found no model {model!r}, expected one that it serves: "
            f"{', '.join(names[:NAMED])}"
        )
    if model is None and len(names) > 1:
        raise SequoiaError(
            f"{client.url}: serves {', '.join(names[:NAMED])}; choose one with --model"
        )
    chosen = names.index(model) if model is not None else 0
    owner = str(served[chosen].get("owned_by"))
    return Server(client, names[chosen], DIALECTS.get(owner, ANY), timeout)


def _cards(data: object) -> list[dict[str, Any]]:
    """The models in a list of them; empty if it is anything else."""
    cards = data if isinstance(data, list) else []
    return [card for card in cards if isinstance(card, dict) and "id" in card]


def _asked(
    client: HttpClient, method: str, path: str, body: object, timeout: float
) -> tuple[int, str]:
    """The status and the text of an answer.

    Raises:
        SequoiaError: there is none.
    """
    try:
        return client.ask(method, path, body, timeout)
    except TimeoutError:
        raise SequoiaError(
            f"{client.url}: no answer to {method} {path} within {timeout:g} s; raise --timeout"
        ) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise SequoiaError(
            f"{client.url}: does not answer {method} {path} ({reason[:QUOTED]}); start the server, "
            "or check its address"
        ) from None


def _message(text: str) -> str:
    """The message of an error's answer, or all of it, in one line."""
    return error_message(json_mapping(text), text) or "an empty answer"

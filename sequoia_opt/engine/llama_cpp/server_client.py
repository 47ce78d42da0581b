"""What llama.cpp's server is asked over HTTP, and what it answers.

Knows requests, answers and the counts in them. Knows nothing of how a server is started, nor of
what its answers are compared with.
"""

from __future__ import annotations

import http.client
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sequoia_opt.engine.http_client import (
    REFUSED_KEY,
    HttpClient,
    ServerGoneError,
    error_message,
    json_mapping,
    refused_key,
)
from sequoia_opt.engine.library import LibraryGeneration
from sequoia_opt.engine.llama_cpp.server_steps import steps_of
from sequoia_opt.engine.llama_cpp.server_timings import ServerTimings, timings_of
from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan.chain_replay import StepCounts
from sequoia_opt.plan.sampling import Sampling

PROBE_SECONDS = 60.0
REQUEST_SECONDS = 3600.0
STREAM_START = "data: "
NO_ANSWER = "ended, or does not answer"
BROKEN_OFF = "stopped in the middle of an answer"
GREEDY = Sampling()

Value = TypeVar("Value")


@dataclass(frozen=True)
class Answer:
    """What a server decoded.

    Attributes:
        tokens: the new tokens.
        timings: what the server counted.
        settings: how the server says that it decoded.
    """

    tokens: list[int]
    timings: ServerTimings
    settings: Mapping[str, Any]

    @property
    def steps(self) -> int:
        """See `ServerTimings`."""
        return self.timings.steps

    @property
    def predicted_ms(self) -> float:
        """See `ServerTimings`."""
        return self.timings.predicted_ms

    @property
    def generation(self) -> LibraryGeneration:
        """The same in the words that libraries have in common."""
        after_first = self.timings.predicted - 1
        return LibraryGeneration(self.tokens, self.steps, after_first, self.predicted_ms / 1000)


class ServerClient:
    """Asks one server.

    Args:
        name: the server's, for messages.
        http: what reaches it.
        failure: makes the error of a server that has ended or does not answer, from what happened.
    """

    def __init__(
        self, name: str, http: HttpClient, failure: Callable[[str], ServerGoneError]
    ) -> None:
        self.name, self._http, self._failure = name, http, failure

    def generate(
        self,
        prompt: Sequence[int],
        new_tokens: int,
        sampling: Sampling,
        fields: Mapping[str, Any] | None = None,
    ) -> Answer:
        """Decode a prompt, past end-of-text tokens.

        Args:
            fields: further fields of the request.

        Raises:
            SequoiaError: it refuses the request, has ended, or does not say how long it took.
        """
        request = _request(prompt, new_tokens, sampling) | dict(fields or {})
        try:
            status, answer = self.ask("POST", "/completion", request, REQUEST_SECONDS)
        except (OSError, http.client.HTTPException):
            raise self._failure(NO_ANSWER) from None
        self._check(status, answer, len(prompt))
        return self._understood(
            lambda: Answer(
                tokens=[int(token) for token in answer["tokens"]],
                timings=timings_of(answer["timings"]),
                settings=dict(answer.get("generation_settings") or {}),
            )
        )

    def steps(
        self,
        prompt: Sequence[int],
        new_tokens: int,
        longest: int | None,
        fields: Mapping[str, Any] | None = None,
    ) -> StepCounts:
        """Decode a prompt greedily, past end-of-text tokens, and count each step's guesses.

        The answer is streamed, which takes time of its own: its times are not to be compared.

        Args:
            longest: the most guesses of a step; see `steps_of`.

        Raises:
            SequoiaError: as in `generate`.
        """
        request = _request(prompt, new_tokens, GREEDY) | dict(fields or {})
        counts = self._counts(request)
        if counts[-1].predicted < new_tokens:
            raise self._failure(BROKEN_OFF)
        return steps_of(counts, longest)

    def step_ms(self, prompt: Sequence[int], guesses: int) -> float | None:
        """The time of one greedy step behind a prompt, which the server keeps.

        A server guesses no further than the text is to go: so the first step of a short enough
        answer has fewer guesses than the server was started with.

        Args:
            guesses: of the step, at most the server's own.

        Returns:
            None if the step had another number of guesses, or cannot be told from the next one.

        Raises:
            SequoiaError: as in `generate`.
        """
        request = _request(prompt, guesses + 2, GREEDY) | {"cache_prompt": True}
        counts = self._counts(request)
        if len(counts) < 2:
            return None
        first, second = counts[:2]  # the prompt's own token, and the first one of the step
        # Either may be missing: a token whose bytes end inside a character is not sent.
        is_one_step = first.predicted == 1 and second.predicted <= 2 + second.accepted
        if second.drafted != guesses or not is_one_step:
            return None
        return second.predicted_ms - first.predicted_ms

    def _counts(self, request: Mapping[str, Any]) -> list[ServerTimings]:
        """The timings and counts that are streamed with each token of an answer."""
        streamed = {**request, "stream": True, "timings_per_token": True}
        parts = [part.get("timings") or {} for part in self._stream(streamed)]
        if not parts:
            raise self._failure(BROKEN_OFF)
        counts = self._understood(
            lambda: [timings_of(timings) for timings in parts if timings.get("predicted_n")]
        )
        if not counts:
            raise self._too_old()
        return counts

    def _understood(self, read: Callable[[], Value]) -> Value:
        """What an answer says.

        Raises:
            SequoiaError: it is of another form.
        """
        try:
            return read()
        except (KeyError, TypeError, ValueError, AttributeError):
            raise self._too_old() from None

    def _stream(self, request: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        """The parts of a streamed answer."""
        asked = self._http.stream("POST", "/completion", request, REQUEST_SECONDS)
        try:
            with asked as (status, lines):
                if status != http.client.OK:
                    self._check(status, json_mapping("".join(lines)), len(request["prompt"]))
                for line in lines:
                    if not line.startswith(STREAM_START):
                        continue
                    part = json_mapping(line.removeprefix(STREAM_START))
                    if not part:  # [DONE]
                        continue
                    if "error" in part:
                        self._check(http.client.INTERNAL_SERVER_ERROR, part, len(request["prompt"]))
                    yield part
        except (OSError, http.client.HTTPException):
            raise self._failure(NO_ANSWER) from None

    def tokens(self, text: str) -> list[int]:
        """A text's tokens, with those that the model has at a beginning.

        Raises:
            ServerGoneError: there is no answer.
            SequoiaError: the server gives no tokens.
        """
        answer = self._told("POST", "/tokenize", {"content": text, "add_special": True})
        tokens = answer.get("tokens")
        if not isinstance(tokens, list) or not all(isinstance(token, int) for token in tokens):
            raise SequoiaError(f"{self.name}: found no tokens in its answer to /tokenize")
        return tokens

    def chat_text(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """A conversation in the model's chat template.

        Raises:
            ServerGoneError: there is no answer.
            SequoiaError: the server has no template that takes it.
        """
        answer = self._told("POST", "/apply-template", {"messages": [dict(m) for m in messages]})
        if not isinstance(answer.get("prompt"), str):
            raise SequoiaError(
                f"{self.name}: cannot put a conversation into a chat template "
                f"({error_message(answer, 'it does not say why')})"
            )
        return str(answer["prompt"])

    def properties(self) -> dict[str, Any]:
        """What the server says of itself.

        Raises:
            ServerGoneError: there is no answer.
        """
        return self._told("GET", "/props")

    def _told(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        try:
            status, answer = self.ask(method, path, body)
        except (OSError, http.client.HTTPException):
            raise self._failure(NO_ANSWER) from None
        if status in REFUSED_KEY:
            raise refused_key(self.name, status, self._http.has_key)
        return answer

    def ask(
        self, method: str, path: str, body: object = None, timeout: float = PROBE_SECONDS
    ) -> tuple[int, dict[str, Any]]:
        """The status and the document of an answer.

        Raises:
            OSError, http.client.HTTPException: there is no answer.
        """
        status, text = self._http.ask(method, path, body, timeout)
        return status, json_mapping(text)

    def _check(self, status: int, answer: Mapping[str, Any], prompt: int) -> None:
        """Refuse an answer without a text and its timings.

        Raises:
            SequoiaError: it says why.
        """
        if status in REFUSED_KEY:
            raise refused_key(self.name, status, self._http.has_key)
        if status != http.client.OK:
            raise SequoiaError(
                f"{self.name}: refuses a prompt of {prompt} tokens "
                f"({error_message(answer, f'status {status}')})"
            )
        if "predicted_ms" not in (answer.get("timings") or {}) or "tokens" not in answer:
            raise self._too_old()

    def _too_old(self) -> SequoiaError:
        return SequoiaError(
            f"{self.name}: its answers have no tokens or no timings; use a llama-server of 2025 or "
            "later"
        )


def _request(prompt: Sequence[int], new_tokens: int, sampling: Sampling) -> dict[str, Any]:
    return {
        "prompt": list(prompt),
        "n_predict": new_tokens,
        "ignore_eos": True,
        "cache_prompt": False,
        "return_tokens": True,
        **sampling_options(sampling),
    }


def sampling_options(sampling: Sampling) -> dict[str, Any]:
    """A request's fields: samplers in this program's order, and none that change nothing."""
    if sampling.temperature == 0:
        return {"temperature": 0, "samplers": ["top_k"], "top_k": 1}
    fields: dict[str, Any] = {"temperature": sampling.temperature}
    if sampling.top_k:
        fields["top_k"] = sampling.top_k
    if sampling.top_p < 1:
        fields["top_p"] = sampling.top_p
    if sampling.min_p:
        fields["min_p"] = sampling.min_p
    return {**fields, "samplers": list(fields)}

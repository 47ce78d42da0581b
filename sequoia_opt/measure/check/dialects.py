"""The requests that each kind of server takes, and how its answers are read.

Written for llama.cpp's server (November 2026), vLLM 0.33, SGLang 0.5.23 and TensorRT-LLM's `serve`.
Knows requests and answers. Knows nothing of connections or checks.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from sequoia_opt.engine.llama_cpp.server_timings import timings_of

Prompt = str | Sequence[int]

CANDIDATES = 10  # log-probabilities asked for after a prompt
MOST_CANDIDATES_OF_OPENAI = 5


@dataclass(frozen=True)
class Guesses:
    """What was guessed while one or several texts were decoded.

    Attributes:
        drafted, accepted: tokens.
        steps: how often guesses were verified; an upper limit where a server does not count them.
    """

    drafted: int
    accepted: int
    steps: int

    def __add__(self, other: Guesses) -> Guesses:
        return Guesses(
            self.drafted + other.drafted, self.accepted + other.accepted, self.steps + other.steps
        )

    def __sub__(self, other: Guesses) -> Guesses:
        return Guesses(
            self.drafted - other.drafted, self.accepted - other.accepted, self.steps - other.steps
        )


@dataclass(frozen=True)
class Reading:
    """What an answer says.

    Attributes:
        text: the new text.
        tokens: its token ids; empty if the answer does not have them.
        new_tokens: the number of tokens; None if the answer does not say.
        decode_seconds: the server's own time for all tokens but the first; None if not reported.
        guesses: None if the answer does not say.
    """

    text: str
    tokens: tuple[int, ...]
    new_tokens: int | None
    decode_seconds: float | None = None
    guesses: Guesses | None = None


@dataclass(frozen=True)
class Candidate:
    """A token that a server considered: its log-probability and its text, as far as known."""

    logprob: float
    text: str = ""


class Dialect:
    """OpenAI's completions, which every server takes; texts are compared by characters."""

    name = "an OpenAI-compatible server"
    path = "/v1/completions"
    tokenize_path = ""
    extra: ClassVar[Mapping[str, Any]] = {}
    without_speculation: ClassVar[Mapping[str, Any]] = {}
    most_candidates = MOST_CANDIDATES_OF_OPENAI

    def completion(
        self, model: str, prompt: Prompt, new_tokens: int, temperature: float, seed: int
    ) -> dict[str, Any]:
        """A request for a text, drawn from the whole distribution and continued past its end."""
        return {
            "model": model,
            "prompt": prompt if isinstance(prompt, str) else list(prompt),
            "max_tokens": new_tokens,
            "temperature": temperature,
            "top_p": 1.0,
            "seed": seed,
            **self.extra,
        }

    def read(self, answer: Mapping[str, Any]) -> Reading:
        """The text and counts in an answer.

        Raises:
            KeyError, IndexError, TypeError, ValueError: the answer is of another form.
        """
        text = str(answer["choices"][0]["text"])
        tokens = (answer.get("usage") or {}).get("completion_tokens")
        return Reading(text, (), None if tokens is None else int(tokens))

    def next_token(self, model: str, prompt: Prompt) -> dict[str, Any]:
        """A request for one token with the log-probabilities of the likeliest ones."""
        request = self.completion(model, prompt, 1, 0.0, 0)
        return {**request, "logprobs": self.most_candidates}

    def candidates(self, answer: Mapping[str, Any]) -> dict[Hashable, Candidate]:
        """The likeliest tokens in its answer; empty if it has none.

        Raises:
            KeyError, IndexError, TypeError, ValueError: the answer is of another form.
        """
        logprobs = answer["choices"][0].get("logprobs") or {}
        rows = logprobs.get("top_logprobs") or []
        if not rows:
            return {}
        return {text: Candidate(float(logprob), text) for text, logprob in rows[0].items()}

    def tokenization(self, model: str, text: str) -> dict[str, Any]:
        """A request for the tokens of a prompt."""
        return {"model": model, "prompt": text, "add_special_tokens": True}


class TensorRtLlm(Dialect):
    """TensorRT-LLM's `trtllm-serve`."""

    name = "TensorRT-LLM"
    extra: ClassVar[Mapping[str, Any]] = {"ignore_eos": True}


class Vllm(Dialect):
    """vLLM, whose answers have token ids; its defaults may be the model's generation_config."""

    name = "vLLM"
    tokenize_path = "/tokenize"
    most_candidates = CANDIDATES
    extra: ClassVar[Mapping[str, Any]] = {
        "ignore_eos": True,
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "return_token_ids": True,
    }

    def read(self, answer: Mapping[str, Any]) -> Reading:
        """See `Dialect`; versions before 0.10.2 give no token ids."""
        choice = answer["choices"][0]
        if choice.get("token_ids") is None:
            return super().read(answer)
        tokens = tuple(int(token) for token in choice["token_ids"])
        return Reading(str(choice["text"]), tokens, len(tokens))

    def next_token(self, model: str, prompt: Prompt) -> dict[str, Any]:
        """See `Dialect`."""
        return {**super().next_token(model, prompt), "return_tokens_as_token_ids": True}

    def candidates(self, answer: Mapping[str, Any]) -> dict[Hashable, Candidate]:
        """See `Dialect`; tokens are written as token_id:17."""
        return {
            int(str(name).removeprefix("token_id:")): Candidate(candidate.logprob)
            for name, candidate in super().candidates(answer).items()
        }


class SgLang(Dialect):
    """SGLang, by its own `/generate`, whose answers have token ids and count guesses."""

    name = "SGLang"
    path = "/generate"
    # Proposed and accepted guesses, as of today and as of versions before 2026.
    counts = (
        ("spec_num_proposed_drafts", "spec_num_correct_drafts"),
        ("spec_draft_token_num", "spec_accept_token_num"),
    )
    tokenize_path = "/tokenize"
    most_candidates = CANDIDATES

    def completion(
        self, model: str, prompt: Prompt, new_tokens: int, temperature: float, seed: int
    ) -> dict[str, Any]:
        """See `Dialect`."""
        asked = {"text": prompt} if isinstance(prompt, str) else {"input_ids": list(prompt)}
        sampling = {
            "max_new_tokens": new_tokens,
            "temperature": temperature,
            "top_p": 1.0,
            "top_k": -1,
            "ignore_eos": True,
            "sampling_seed": seed,
        }
        return {**asked, "sampling_params": sampling}

    def read(self, answer: Mapping[str, Any]) -> Reading:
        """See `Dialect`; an answer without counts was decoded without guesses."""
        tokens = tuple(int(token) for token in answer["output_ids"])
        counts = answer["meta_info"]
        guesses: Guesses | None = Guesses(0, 0, 0)
        if "spec_verify_ct" in counts:
            steps = int(counts["spec_verify_ct"])
            given = (
                Guesses(int(counts[proposed]), int(counts[accepted]), steps)
                for proposed, accepted in self.counts
                if proposed in counts and accepted in counts
            )
            guesses = next(given, None)
        return Reading(str(answer["text"]), tokens, len(tokens), guesses=guesses)

    def next_token(self, model: str, prompt: Prompt) -> dict[str, Any]:
        """See `Dialect`."""
        request = self.completion(model, prompt, 1, 0.0, 0)
        return {**request, "return_logprob": True, "top_logprobs_num": self.most_candidates}

    def candidates(self, answer: Mapping[str, Any]) -> dict[Hashable, Candidate]:
        """See `Dialect`."""
        rows = answer["meta_info"].get("output_top_logprobs") or []
        row = rows[0] if rows else []
        return {int(token): Candidate(float(logprob), text or "") for logprob, token, text in row}


class LlamaCpp(Dialect):
    """llama.cpp's server, by its own `/completion`, whose answers have token ids and timings.

    Versions of 2024 and 2025 take speculative settings in a request. That of November 2026 ignores
    them: these fields are compiled out of its server-schema.cpp.
    """

    name = "llama.cpp"
    path = "/completion"
    tokenize_path = "/tokenize"
    most_candidates = CANDIDATES
    without_speculation: ClassVar[Mapping[str, Any]] = {"speculative.n_max": 0}

    def completion(
        self, model: str, prompt: Prompt, new_tokens: int, temperature: float, seed: int
    ) -> dict[str, Any]:
        """See `Dialect`; only the temperature sampler is used, so that none cuts off a tail."""
        greedy = {"temperature": 0, "samplers": ["top_k"], "top_k": 1}
        drawn = {"temperature": temperature, "samplers": ["temperature"], "seed": seed}
        return {
            "model": model,
            "prompt": prompt if isinstance(prompt, str) else list(prompt),
            "n_predict": new_tokens,
            "ignore_eos": True,
            "cache_prompt": True,
            "return_tokens": True,
            **(drawn if temperature else greedy),
        }

    def read(self, answer: Mapping[str, Any]) -> Reading:
        """See `Dialect`."""
        tokens = tuple(int(token) for token in answer["tokens"])
        timings = timings_of(answer["timings"])
        guesses = Guesses(timings.drafted, timings.accepted, timings.steps)
        seconds = timings.predicted_ms / 1000
        return Reading(str(answer["content"]), tokens, timings.predicted, seconds, guesses)

    def next_token(self, model: str, prompt: Prompt) -> dict[str, Any]:
        """See `Dialect`."""
        return {**self.completion(model, prompt, 1, 0.0, 0), "n_probs": self.most_candidates}

    def candidates(self, answer: Mapping[str, Any]) -> dict[Hashable, Candidate]:
        """See `Dialect`."""
        rows = answer.get("completion_probabilities") or []
        row = rows[0]["top_logprobs"] if rows else []
        return {int(t["id"]): Candidate(float(t["logprob"]), str(t["token"])) for t in row}

    def tokenization(self, model: str, text: str) -> dict[str, Any]:
        """See `Dialect`."""
        return {"content": text, "add_special": True}


DIALECTS: dict[str, Dialect] = {
    "llamacpp": LlamaCpp(),
    "vllm": Vllm(),
    "sglang": SgLang(),
    "tensorrt_llm": TensorRtLlm(),
}
"""Dialects by the owner that a server names for its models."""

ANY = Dialect()

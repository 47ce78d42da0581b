"""A small server for tests of `check`: a tiny language model, exact verification, planted faults.

The model has one token for each letter; the next one depends on the last two. Answers are as those
of llama.cpp's server, vLLM, SGLang, or any OpenAI-compatible server.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

LETTERS = "abcdefghijklmnop"
SHARPNESS = 2.0  # of the model's distributions
OWNERS = {"llama.cpp": "llamacpp", "vLLM": "vllm", "SGLang": "sglang", "other": "someone"}


@cache
def target_logits(before: tuple[int, ...], weights: int = 0) -> np.ndarray:
    """The model's logits after two tokens, in halves, so that there are ties."""
    generator = np.random.default_rng([*before, weights, 1])
    return np.round(2 * SHARPNESS * generator.standard_normal(len(LETTERS))) / 2


@cache
def draft_logits(before: tuple[int, ...]) -> np.ndarray:
    """The draft's: the model's with an error."""
    generator = np.random.default_rng([*before, 2])
    return target_logits(before) + 1.2 * generator.standard_normal(len(LETTERS))


def probabilities(logits: np.ndarray, temperature: float) -> np.ndarray:
    weights = np.exp((logits - logits.max()) / temperature)
    return weights / weights.sum()


@dataclass
class StandIn:
    """A server without a connection: `ask` answers as an `HttpClient` does.

    Attributes:
        kind: whose answers it gives.
        guesses: of a step; 0 for a server without speculation.
        fault: "" or one of "accepts too much", "no draft", "other tokenizer", "other weights".
        rounding: noise on logits, other for verified tokens than for plain ones.
        heeds: whether a request can switch speculation off.
        ms: of a step, as llama.cpp's timings say.
        has_logprobs, has_tokens, has_metrics: what it gives.
        api_key: that it asks for.
        models: that it serves.
        extra: fields of `/props`'s parameters, or of SGLang's `/server_info`.
    """

    kind: str = "llama.cpp"
    guesses: int = 4
    fault: str = ""
    rounding: float = 0.0
    heeds: bool = False
    ms: float = 1.0
    has_logprobs: bool = True
    has_tokens: bool = True
    has_metrics: bool = True
    api_key: str = ""
    models: tuple[str, ...] = ("letters",)
    extra: dict[str, Any] = field(default_factory=dict)
    url: str = "http://stand-in"
    has_decoded: bool = False
    counts: dict[str, int] = field(
        default_factory=lambda: {"drafts": 0, "draft_tokens": 0, "accepted_tokens": 0}
    )

    def ask(
        self, method: str, path: str, body: object = None, timeout: float = 60.0
    ) -> tuple[int, str]:
        request: Any = body or {}
        if path == "/v1/models":
            cards = [{"id": name, "owned_by": OWNERS[self.kind]} for name in self.models]
            return 200, json.dumps({"object": "list", "data": cards})
        if path == "/tokenize" and self.has_tokens and self.kind != "other":
            text = request.get("content", request.get("prompt"))
            return 200, json.dumps({"tokens": tokens_of(text)})
        if path == "/props" and self.kind == "llama.cpp":
            parameters = {"speculative.types": "none", **self.extra}  # "none" in any case
            return 200, json.dumps({"default_generation_settings": {"params": parameters}})
        if path == "/slots" and self.kind == "llama.cpp":
            slot: dict[str, Any] = {"id": 0, "speculative": self.speculates}
            if self.has_decoded:
                kind = "draft-simple" if self.speculates else "none"
                kind += ",draft-simple" if self.fault == "no draft" else ""
                slot["params"] = {"speculative.types": kind}
            return 200, json.dumps([slot])
        if path == "/server_info" and self.kind == "SGLang":
            return 200, json.dumps(self.extra)
        if path == "/metrics" and self.has_metrics and self.kind == "vLLM":
            return 200, self.metrics()
        answers = {
            "/completion": ("llama.cpp", self.llama_cpp),
            "/generate": ("SGLang", self.sglang),
            "/v1/completions": (self.kind, self.openai),
        }
        if path in answers and answers[path][0] == self.kind:
            return 200, json.dumps(answers[path][1](request))
        return 404, json.dumps({"error": {"message": "no such path"}})

    @property
    def speculates(self) -> bool:
        return self.guesses > 0 and self.fault != "no draft"

    def llama_cpp(self, request: dict[str, Any]) -> dict[str, Any]:
        temperature = request["temperature"]
        guesses = request.get("speculative.n_max", self.guesses) if self.heeds else self.guesses
        context = tokens_of(request["prompt"])
        run = self.decode(context, request["n_predict"], temperature, request.get("seed"), guesses)
        timings = {"predicted_n": len(run.tokens), "predicted_ms": self.ms * run.steps + 1e-3}
        if run.drafted:
            timings |= {"draft_n": run.drafted, "draft_n_accepted": run.accepted}
        answer = {"content": text_of(run.tokens), "tokens": run.tokens, "timings": timings}
        if request.get("n_probs") and self.has_logprobs:
            top = [
                {"id": token, "token": LETTERS[token], "logprob": logprob}
                for token, logprob in self.likeliest(context, request["n_probs"])
            ]
            answer["completion_probabilities"] = [{"top_logprobs": top}]
        return answer

    def sglang(self, request: dict[str, Any]) -> dict[str, Any]:
        assert "speculative.n_max" not in request  # it refuses fields that it does not know
        sampling = request["sampling_params"]
        context = tokens_of(request.get("text", request.get("input_ids")))
        seed, count = sampling["sampling_seed"], sampling["max_new_tokens"]
        run = self.decode(context, count, sampling["temperature"], seed, self.guesses)
        counts: dict[str, Any] = {}
        if run.verified:
            counts = {
                "spec_verify_ct": run.verified,
                "spec_num_proposed_drafts": run.drafted,
                "spec_num_correct_drafts": run.accepted,
            }
        if request.get("return_logprob"):
            top = self.likeliest(context, request["top_logprobs_num"])
            counts["output_top_logprobs"] = [[[lp, token, None] for token, lp in top]]
        return {"text": text_of(run.tokens), "output_ids": run.tokens, "meta_info": counts}

    def openai(self, request: dict[str, Any]) -> dict[str, Any]:
        context = tokens_of(request["prompt"])
        temperature, seed = request["temperature"], request["seed"]
        run = self.decode(context, request["max_tokens"], temperature, seed, self.guesses)
        choice: dict[str, Any] = {"text": text_of(run.tokens)}
        if request.get("return_token_ids") and self.has_tokens:
            choice["token_ids"] = run.tokens
        if request.get("logprobs") and self.has_logprobs:
            as_ids = request.get("return_tokens_as_token_ids")
            top = {
                f"token_id:{token}" if as_ids else LETTERS[token]: logprob
                for token, logprob in self.likeliest(context, request["logprobs"])
            }
            choice["logprobs"] = {"top_logprobs": [top]}
        return {"choices": [choice], "usage": {"completion_tokens": len(run.tokens)}}

    def metrics(self) -> str:
        lines = ["vllm:num_requests_running 0"]
        if self.speculates:
            label = '{engine="0",model_name="letters"}'
            lines += [f"vllm:spec_decode_num_{k}_total{label} {v}" for k, v in self.counts.items()]
            lines += [
                "vllm:spec_decode_num_accepted_tokens_per_pos_total"
                f'{{model_name="letters",position="{position}"}} 0'
                for position in range(self.guesses)
            ]
        return "\n".join(lines)

    def likeliest(self, context: list[int], count: int) -> list[tuple[int, float]]:
        logits = self.logits(context)
        logprobs = np.log(probabilities(logits, 1.0))
        order = np.argsort(-logprobs)[:count]
        return [(int(token), float(logprobs[token])) for token in order]

    def logits(self, context: list[int]) -> np.ndarray:
        weights = 7 if self.fault == "other weights" else 0
        return target_logits(tuple(context[-2:]), weights)

    def decode(
        self, context: list[int], count: int, temperature: float, seed: int | None, guesses: int
    ) -> Run:
        self.has_decoded = True
        guesses = guesses if self.speculates else 0
        run = Run(self, list(context), temperature, np.random.default_rng(seed or 0))
        run.plain_token()
        while len(run.tokens) < count:
            # As engines do: of the tokens that are left, one is the step's own.
            run.step(min(guesses, count - len(run.tokens) - 1))
        self.counts["drafts"] += run.verified
        self.counts["draft_tokens"] += run.drafted
        self.counts["accepted_tokens"] += run.accepted
        return run


class Run:
    """One text while it is decoded, by rejection sampling (Leviathan et al., 2023)."""

    def __init__(
        self, server: StandIn, context: list[int], temperature: float, random: np.random.Generator
    ) -> None:
        self.server, self.context, self.temperature, self.random = (
            server, context, temperature, random
        )  # fmt: skip
        self.tokens: list[int] = []
        self.steps = self.verified = self.drafted = self.accepted = 0

    def target(self, is_verified: bool) -> np.ndarray:
        logits = self.server.logits(self.context)
        if self.server.rounding:  # batches of another shape round differently
            noise = np.random.default_rng([*self.context[-3:], int(is_verified)])
            logits = logits + self.server.rounding * noise.standard_normal(len(LETTERS))
        return self.shares(logits)

    def shares(self, logits: np.ndarray) -> np.ndarray:
        if self.temperature == 0:
            return np.eye(len(LETTERS))[int(logits.argmax())]
        return probabilities(logits, self.temperature)

    def draw(self, shares: np.ndarray) -> int:
        return int(np.searchsorted(np.cumsum(shares), self.random.random() * shares.sum()))

    def add(self, token: int) -> None:
        self.tokens.append(token)
        self.context.append(token)

    def plain_token(self) -> None:
        self.add(self.draw(self.target(is_verified=False)))

    def guess(self) -> tuple[int, np.ndarray]:
        logits = draft_logits(tuple(self.context[-2:]))
        if self.server.fault == "other tokenizer":  # its tokens mean something else here
            logits = -6 * self.server.logits(self.context)
        shares = self.shares(logits)
        return self.draw(shares), shares

    def step(self, guesses: int) -> None:
        self.steps += 1
        if guesses <= 0:
            self.plain_token()
            return
        self.verified += 1
        self.drafted += guesses
        for _ in range(guesses):
            token, shares = self.guess()
            target = self.target(is_verified=True)
            is_lax = self.server.fault == "accepts too much" and self.random.random() < 0.5
            if is_lax or self.random.random() * shares[token] < target[token]:
                self.accepted += 1
                self.add(token)
                continue
            self.add(self.draw(np.maximum(target - shares, 0.0)))
            return
        self.add(self.draw(self.target(is_verified=True)))


def tokens_of(prompt: str | list[int]) -> list[int]:
    """Token ids of letters; any other character stands for a letter too."""
    if isinstance(prompt, list):
        return prompt
    return [
        LETTERS.index(letter) if letter in LETTERS else ord(letter) % len(LETTERS)
        for letter in prompt
    ]


def text_of(tokens: list[int]) -> str:
    return "".join(LETTERS[token] for token in tokens)


@contextmanager
def serving(server: StandIn) -> Iterator[str]:
    """The address at which it answers over HTTP."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self, body: object = None) -> None:
            key = self.headers.get("Authorization", "").removeprefix("Bearer ")
            if server.api_key and key != server.api_key:
                status, text = 401, json.dumps({"error": {"message": "Invalid API Key"}})
            else:
                status, text = server.ask(self.command, self.path, body)
            content = text.encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self) -> None:  # the library's name
            self.answer()

        def do_POST(self) -> None:  # the library's name
            self.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def log_message(self, *_: object) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listening.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.server_port}"
    finally:
        listening.shutdown()
        listening.server_close()
        thread.join()

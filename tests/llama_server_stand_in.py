"""A stand-in for a llama-server that runs: known acceptance and known times, over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from chain_model import ChainModel

from sequoia_opt.plan.round_costs import RoundCosts

POSITIONS = 512


@dataclass
class StandIn:
    """What the server does.

    Attributes:
        costs: of its rounds.
        guesses, threshold: what it was started with.
        takes_settings: whether a request may change these.
        easy: how likely guesses are right.
        timings: whether answers have timings.
        hidden: every token whose number is a multiple of this is not sent by itself.
        stops: after how many tokens a stream ends, as if the server had died.
        api_key: that it asks for; empty if it asks for none.
        nulls: names of fields that its answers leave empty.
        requests: those that it got, with their paths.
        url: its address.
    """

    costs: RoundCosts
    guesses: int = 3
    threshold: float = 0.0
    takes_settings: bool = True
    easy: float = 0.75
    timings: bool = True
    hidden: int = 0
    stops: int | None = None
    api_key: str = ""
    nulls: tuple[str, ...] = ()
    requests: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    url: str = ""

    def model(self, prompt: list[int], new_tokens: int) -> ChainModel:
        """The draft along a prompt's text; shorter texts begin alike."""
        whole = ChainModel.drawn(sum(prompt), 256, self.easy)
        return ChainModel(whole.right[: new_tokens - 1], whole.sure[: new_tokens - 1], whole.astray)

    def setting(self, request: dict[str, Any]) -> tuple[int, float]:
        """The length and the threshold that a request is decoded with."""
        if not self.takes_settings:
            return self.guesses, self.threshold
        guesses = request.get("speculative.n_max", self.guesses)
        return guesses, request.get("speculative.p_min", self.threshold)

    def rounds(self, request: dict[str, Any]) -> list[dict[str, Any]]:
        """The counts with each token, as they are streamed."""
        new_tokens = request["n_predict"]
        guesses, threshold = self.setting(request)
        round_ms = self.costs.at(64)
        counts = {"predicted_n": 1, "predicted_ms": 0.001}
        parts = [dict(counts)]
        for drafted, accepted, passes in self.model(request["prompt"], new_tokens).steps(
            guesses, threshold
        ):
            # A draft that is there reads each token, also where it guesses nothing.
            counts["predicted_ms"] += float(round_ms[drafted]) if guesses else self.costs.plain_ms
            counts["predicted_ms"] += self.costs.pass_ms * (passes > drafted)
            if drafted:
                counts["draft_n"] = counts.get("draft_n", 0) + drafted
                counts["draft_n_accepted"] = counts.get("draft_n_accepted", 0) + accepted
            for _ in range(accepted + 1):
                counts["predicted_n"] += 1
                parts.append(dict(counts))
        return parts


class _Handler(BaseHTTPRequestHandler):
    stand_in: StandIn

    def log_message(self, *_: object) -> None:
        """Log nothing."""

    def _answer(self, document: dict[str, Any], status: int = 200) -> None:
        key = self.stand_in.api_key
        if key and self.headers["Authorization"] != f"Bearer {key}":
            document, status = {"error": {"message": "Invalid API Key"}}, 401
        document |= {name: None for name in self.stand_in.nulls if name in document}
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(document).encode())

    def do_GET(self) -> None:
        self._answer(
            {"default_generation_settings": {"n_ctx": POSITIONS}, "model_path": "a/big.gguf"}
        )

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        stand_in = self.stand_in
        stand_in.requests.append((self.path, request))
        if self.path == "/tokenize":
            return self._answer({"tokens": [1, *request["content"].encode()]})
        if self.path == "/apply-template":
            texts = [message["content"] for message in request["messages"]]
            return self._answer({"prompt": "<user>" + "".join(texts)})
        if len(request["prompt"]) + request["n_predict"] > POSITIONS:
            return self._answer({"error": {"message": "the request exceeds\nthe context"}}, 400)
        parts = stand_in.rounds(request)
        if request.get("stream"):
            return self._stream(parts)
        guesses, threshold = stand_in.setting(request)
        settings = {"speculative.n_max": guesses, "speculative.p_min": threshold}
        answer = {
            "tokens": [sum(request["prompt"]) % 251 + i for i in range(request["n_predict"])],
            "timings": parts[-1],
            "generation_settings": settings if stand_in.takes_settings else {},
        }
        if not stand_in.timings:
            del answer["timings"]
        return self._answer(answer)

    def _stream(self, parts: list[dict[str, Any]]) -> None:
        self.send_response(200)
        self.end_headers()
        hidden = self.stand_in.hidden
        for number, part in enumerate(parts[: self.stand_in.stops]):
            if hidden and number % hidden == hidden - 1 and number < len(parts) - 1:
                continue
            document = {"tokens": [7]} | ({"timings": part} if self.stand_in.timings else {})
            self.wfile.write(b"data: " + json.dumps(document).encode() + b"\n\n")
        self.wfile.write(b"data: [DONE]\n\n")


@contextmanager
def serving(stand_in: StandIn) -> Iterator[StandIn]:
    """Run a stand-in, whose `url` then is its address."""
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), type("Handler", (_Handler,), {"stand_in": stand_in})
    )
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    stand_in.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield stand_in
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

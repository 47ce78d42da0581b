"""llama.cpp's servers, one started for each setting of their own speculation.

Knows which settings a server has, and when it must be started again. Knows nothing of how
settings are chosen.
"""

from __future__ import annotations

from collections.abc import Mapping

from sequoia_opt.engine.library import DRAFT, NO_SPECULATION, Speculation
from sequoia_opt.engine.llama_cpp.server import LlamaServer
from sequoia_opt.engine.llama_cpp.server_client import GREEDY, Answer, ServerClient
from sequoia_opt.engine.llama_cpp.server_pool import REMEMBERING, ServerPool
from sequoia_opt.engine.llama_cpp.server_program import KINDS, program
from sequoia_opt.engine.llama_cpp.settings import Settings
from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan.chain_replay import StepCounts

NGRAM = "ngram-"
SLACK = 32  # tokens that a server wants room for beside a text
FIRST_CONTEXT = 512  # of the server that only tells tokens


class StartedServers:
    """See `TunableEngine`; a context manager that ends the servers.

    Args:
        files: GGUF files of target and, perhaps, draft, by role.
        settings: how the models run.

    Raises:
        SequoiaError: there is no server, or it cannot use the draft.
    """

    ends_unsure_chains = True

    def __init__(self, files: Mapping[str, str], settings: Settings) -> None:
        server = program()
        self.default_chain = server.default_chain
        self.has_draft = "draft" in files
        lookups = sorted(kind for kind in server.speculations if kind.startswith(NGRAM))
        self.others = [Speculation(kind) for kind in lookups]
        lacking = f"{KINDS[DRAFT]}, which --draft is for" if self.has_draft else f"{NGRAM}simple"
        if not (KINDS[DRAFT] in server.speculations if self.has_draft else self.others):
            raise SequoiaError(
                f"{server.name} {server.version}: has no speculation {lacking}; install a newer one"
            )
        self._pool = ServerPool(files, settings)
        self._remembered: dict[Speculation, set[tuple[int, ...]]] = {}
        self._room = 0

    def make_room(self, tokens: int) -> None:
        """Start the next servers with room for texts of so many tokens, prompts included."""
        self._room = tokens + SLACK

    def __enter__(self) -> StartedServers:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.close()

    @property
    def client(self) -> ServerClient:
        """What asks the server that does not speculate."""
        return self._pool.server(NO_SPECULATION, FIRST_CONTEXT).client

    def answer(self, speculation: Speculation, prompt: list[int], new_tokens: int) -> Answer:
        """See `TunableEngine`."""
        return self._server(speculation, prompt, new_tokens).generate(prompt, new_tokens, GREEDY)

    def counted(self, speculation: Speculation, prompt: list[int], new_tokens: int) -> StepCounts:
        """See `TunableEngine`."""
        server = self._server(speculation, prompt, new_tokens)
        return server.client.steps(prompt, new_tokens, speculation.guesses)

    def _server(self, speculation: Speculation, prompt: list[int], new_tokens: int) -> LlamaServer:
        """The server of a setting, which does not remember how this prompt went on."""
        if speculation.kind in REMEMBERING:
            texts = self._remembered.setdefault(speculation, set())
            if tuple(prompt) in texts:
                self._pool.end(speculation)
                texts.clear()
            texts.add(tuple(prompt))
        return self._pool.server(speculation, max(self._room, len(prompt) + new_tokens + SLACK))

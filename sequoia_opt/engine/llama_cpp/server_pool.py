"""One of llama.cpp's servers for each way to speculate, as many at once as memory holds.

Knows files, settings and memory. Knows nothing of what the servers are asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import psutil

from sequoia_opt.engine.library import Speculation
from sequoia_opt.engine.llama_cpp.server import LlamaServer
from sequoia_opt.engine.llama_cpp.server_program import ServerOptions
from sequoia_opt.engine.llama_cpp.settings import Settings

REMEMBERING = ("ngram-cache", "ngram-map-k", "ngram-map-k4v", "ngram-mod")
"""Kinds of speculation that guess from texts of earlier requests too.

A benchmark decodes a prompt several times, and would measure how well a text is remembered.
"""

CONTEXT_STEP = 1024  # a server's context is a multiple, so that few prompts need another server
FREE_SHARE = 0.25  # of the host's memory that further servers leave free


class ServerPool:
    """Servers that are started when they are needed.

    Args:
        files: GGUF files of target and draft, by role.
        settings: how the models run.

    Attributes:
        servers: those that run, the one that was used last at the end.
    """

    def __init__(self, files: Mapping[str, str], settings: Settings) -> None:
        self._files, self._settings = dict(files), settings
        self.servers: dict[Speculation, LlamaServer] = {}

    def server(self, speculation: Speculation, tokens: int) -> LlamaServer:
        """The server that speculates so, with room for this many tokens.

        Raises:
            SequoiaError: it does not start.
        """
        server = self.servers.pop(speculation, None)
        if server is not None and server.options.context >= tokens:
            self.servers[speculation] = server
            return server
        if server is not None:
            server.close()
        context = max(self._settings.context_size, tokens + -tokens % CONTEXT_STEP)
        target, draft = self._files["target"], self._files.get("draft", "")
        options = ServerOptions(target, draft, self._settings, context, speculation)
        while self.servers and not self.has_room():
            self.servers.pop(next(iter(self.servers))).close()
        self.servers[speculation] = server = LlamaServer(options)
        return server

    def has_room(self) -> bool:
        """Whether another server fits beside those that run."""
        if self._settings.gpu_layers:
            return False  # how much memory of a GPU a server takes is not known
        memory = psutil.virtual_memory()
        needed = sum(Path(file).stat().st_size for file in self._files.values())
        return bool(memory.available - needed > FREE_SHARE * memory.total)

    def end(self, speculation: Speculation) -> None:
        """End the server that speculates so, if one runs."""
        if (server := self.servers.pop(speculation, None)) is not None:
            server.close()

    def close(self) -> None:
        """End all servers."""
        for server in self.servers.values():  # all of them, before a second signal comes
            server.kill()
        while self.servers:
            self.servers.popitem()[1].close()

"""A server that is asked over HTTP: one request, its status and its text.

Knows addresses and headers. Knows nothing of what is asked. Loads no torch.
"""

from __future__ import annotations

import http.client
import json
from typing import Any
from urllib.parse import urlsplit


class HttpClient:
    """Asks one server; each request has a connection of its own, so threads may share it.

    Attributes:
        url: the server's address, without a slash at its end.
    """

    def __init__(self, url: str, api_key: str | None = None) -> None:
        """Prepare requests to `http://…` or `https://…`; nothing is sent yet.

        Args:
            api_key: sent as a bearer token; None to send none.

        Raises:
            ValueError: the address has no host, or no valid port.
        """
        self.url = url.rstrip("/")
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"found {url!r}, expected an address like http://127.0.0.1:8000")
        secure = parts.scheme == "https"
        self._connection = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        self._host, self._port, self._path = parts.hostname, parts.port, parts.path
        self._headers = {"Content-Type": "application/json"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"

    def ask(
        self, method: str, path: str, body: object = None, timeout: float = 60.0
    ) -> tuple[int, str]:
        """The status and the text of an answer.

        Args:
            body: sent as JSON; None to send none.
            timeout: seconds without a byte after which it gives up.

        Raises:
            OSError: no connection, or no answer in time (TimeoutError).
            http.client.HTTPException: the answer is not HTTP, or breaks off.
        """
        connection = self._connection(self._host, self._port, timeout=timeout)
        try:
            content = None if body is None else json.dumps(body)
            connection.request(method, self._path + path, content, self._headers)
            response = connection.getresponse()
            return response.status, response.read().decode("utf-8", errors="replace")
        finally:
            connection.close()


def json_mapping(text: str) -> dict[str, Any]:
    """The JSON mapping that a text is; an empty one if it is anything else."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}

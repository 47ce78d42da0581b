"""A server that is asked over HTTP: one request, its status and its text, whole or line by line.

Knows addresses, headers and the form of an error. Knows nothing of what is asked. Loads no torch.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from sequoia_opt.errors import SequoiaError, one_line

QUOTED = 160  # characters of a server's message that an error quotes
REFUSED_KEY = (http.client.UNAUTHORIZED, http.client.FORBIDDEN)


class ServerGoneError(SequoiaError):
    """A server that has ended or does not answer, so that asking it again is of no use."""


class HttpClient:
    """Asks one server; each request has a connection of its own, so threads may share it.

    Attributes:
        url: the server's address, without a slash at its end.
        has_key: whether requests have an API key.
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
        self._host.encode("idna")  # refuses a name that no connection could be made to
        self._headers = {"Content-Type": "application/json"}
        self.has_key = api_key is not None
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
        with self._response(method, path, body, timeout) as response:
            return response.status, response.read().decode("utf-8", errors="replace")

    @contextmanager
    def stream(
        self, method: str, path: str, body: object = None, timeout: float = 60.0
    ) -> Iterator[tuple[int, Iterator[str]]]:
        """The status and the lines of an answer, each as soon as it has come, with its line break.

        An answer that breaks off ends as a whole one does.

        Args:
            body, timeout: see `ask`.

        Raises:
            OSError, http.client.HTTPException: as in `ask`, also while the lines are read.
        """
        with self._response(method, path, body, timeout) as response:
            yield response.status, (line.decode("utf-8", errors="replace") for line in response)

    @contextmanager
    def _response(
        self, method: str, path: str, body: object, timeout: float
    ) -> Iterator[http.client.HTTPResponse]:
        connection = self._connection(self._host, self._port, timeout=timeout)
        try:
            content = None if body is None else json.dumps(body)
            connection.request(method, self._path + path, content, self._headers)
            yield connection.getresponse()
        finally:
            connection.close()


def client_of(url: str, api_key: str | None = None) -> HttpClient:
    """A client for an address as people write it: `http://` and OpenAI's `/v1` may be left out.

    Raises:
        SequoiaError: it is no address.
    """
    address = url if "://" in url else f"http://{url}"
    try:
        return HttpClient(address.rstrip("/").removesuffix("/v1"), api_key)
    except ValueError as error:
        raise SequoiaError(f"{url}: not an address ({one_line(error)})") from None


def refused_key(where: str, status: int, has_key: bool) -> SequoiaError:
    """The error of a server that answers with one of `REFUSED_KEY`."""
    problem = "refuses the API key" if has_key else "asks for an API key"
    return SequoiaError(f"{where}: {problem} (status {status}); give its key with --api-key")


def json_mapping(text: str) -> dict[str, Any]:
    """The JSON mapping that a text is; an empty one if it is anything else."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def error_message(answer: Mapping[str, Any], otherwise: str) -> str:
    """What an answer says of an error, in one line; `otherwise` if it says nothing.

    Servers write `error`, `message` or `detail`, as a text or as a mapping that has a `message`.
    """
    error = answer.get("error", answer.get("message", answer.get("detail", otherwise)))
    message = error.get("message", error) if isinstance(error, dict) else error
    return " ".join(str(message).split())[:QUOTED]

"""What a server's texts are compared with: the same model without speculation.

That is another server; or the same one, if a request can switch its speculation off; or the same
one, asked for one token at a time. A first token comes from the prompt's own forward pass, in which
no engine guesses anything, so a text of first tokens is decoded plainly, though not quickly.

Knows where plain texts come from. Knows nothing of how they are compared.
"""

from __future__ import annotations

import numpy as np

from sequoia_opt.errors import SequoiaError
from sequoia_opt.measure.check.counters import counters
from sequoia_opt.measure.check.dialects import Prompt, Reading
from sequoia_opt.measure.check.server import Completion, Server

PROBED_TOKENS = 16  # length of the texts that show whether a server heeds a request's settings
SEEDS = 2**31  # every server takes seeds below this


class Reference:
    """Another server, which serves the same model without speculation.

    Attributes:
        description: what it is, for a sentence.
        server: the server that decodes.
        is_same_server: whether that is the server under test.
        is_one_by_one: whether it is asked for one token at a time, so that its speed means nothing.
    """

    is_same_server = False
    is_one_by_one = False

    def __init__(self, server: Server) -> None:
        self.server = server
        self.description = server.url

    def prompt(self, text: str) -> Prompt:
        """The prompt to send to both servers, for them to continue a text."""
        return text

    def complete(
        self, text: str, new_tokens: int, temperature: float = 0.0, seed: int = 0
    ) -> Completion:
        """Decode a text plainly.

        Raises:
            SequoiaError: see `Server.complete`.
        """
        return self.server.complete(text, new_tokens, temperature, seed)


class WithoutSpeculation(Reference):
    """The same server, which switches speculation off for a request."""

    is_same_server = True

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self.description = "the same server with speculation switched off by request"

    def complete(
        self, text: str, new_tokens: int, temperature: float = 0.0, seed: int = 0
    ) -> Completion:
        """See `Reference`."""
        return self.server.complete(text, new_tokens, temperature, seed, plain=True)


class OneByOne(Reference):
    """The same server, asked for one token at a time."""

    is_same_server = True
    is_one_by_one = True

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self.description = "the same server asked for one token at a time"

    def prompt(self, text: str) -> list[int]:
        """See `Reference`; token ids, so that the text is not tokenized again for each token.

        Raises:
            SequoiaError: the server does not give them.
        """
        tokens = self.server.tokenize(text)
        if tokens is None:
            raise SequoiaError(f"{self.server.url}: gives no token ids for a prompt at /tokenize")
        return tokens

    def complete(
        self, text: str, new_tokens: int, temperature: float = 0.0, seed: int = 0
    ) -> Completion:
        """See `Reference`; each token has a random number of its own."""
        prompt = self.prompt(text)
        seeds = np.random.default_rng(seed).integers(SEEDS, size=new_tokens).tolist()
        texts: list[str] = []
        tokens: list[int] = []
        seconds = 0.0
        for token_seed in seeds:
            completion = self.server.complete([*prompt, *tokens], 1, temperature, token_seed)
            texts.append(completion.reading.text)
            tokens += completion.reading.tokens[:1]
            seconds += completion.seconds
        return Completion(Reading("".join(texts), tuple(tokens), len(tokens)), seconds)


def reference_for(server: Server, baseline: Server | None, text: str) -> Reference | None:
    """The best reference that there is; None if there is none.

    Args:
        baseline: a server without speculation, if one is given.
        text: a prompt to try.

    Raises:
        SequoiaError: see `Server.complete`; or the baseline is none.
    """
    if baseline is not None:
        _check_baseline(server, baseline, text)
        return Reference(baseline)
    tried = server.complete(text, PROBED_TOKENS)
    is_guessing = tried.reading.guesses is not None and tried.reading.guesses.drafted > 0
    if is_guessing and server.dialect.without_speculation:
        plain = server.complete(text, PROBED_TOKENS, plain=True).reading
        if plain.guesses is not None and not plain.guesses.drafted:
            return WithoutSpeculation(server)
    has_tokens = bool(tried.reading.tokens) and server.tokenize(text) is not None
    return OneByOne(server) if has_tokens else None


def _check_baseline(server: Server, baseline: Server, text: str) -> None:
    """Refuse a baseline that shares a fault of speculation, or has another vocabulary.

    Raises:
        SequoiaError: it speculates, or splits the text into other tokens.
    """
    before = counters(baseline)
    guesses = baseline.complete(text, PROBED_TOKENS).reading.guesses
    after = counters(baseline)
    drafted = 0 if guesses is None else guesses.drafted
    if guesses is None and before is not None and after is not None:
        drafted = after.guesses.drafted - before.guesses.drafted
    if drafted:
        raise SequoiaError(
            f"{baseline.url}: speculates, expected the same model served without speculation; "
            "leave --baseline out, or start it so"
        )
    tokens = [asked.tokenize(text) for asked in (server, baseline)]
    if None not in tokens and tokens[0] != tokens[1]:
        raise SequoiaError(
            f"{baseline.url}: splits a prompt into other tokens than {server.url}, expected the "
            "same model served without speculation"
        )

"""Whether greedy texts are the model's own: where two decodings diverge, and why.

Two engines, or two shapes of a batch, round differently, so healthy texts diverge where two tokens
are almost equally likely. A token that the model's own forward pass finds clearly less likely than
another is a fault. Knows texts and log-probabilities. Knows nothing of sampling.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from itertools import zip_longest
from math import nan
from typing import Any, NamedTuple

from sequoia_opt.measure.check.dialects import Candidate
from sequoia_opt.measure.check.reference import Reference
from sequoia_opt.measure.check.server import Completion, Server
from sequoia_opt.measure.check.verdict import NO_REFERENCE, Finding, Status
from sequoia_opt.measure.progress import ProgressBar

NAME = "greedy"
END = "the end of the text"

Candidates = Mapping[Hashable, Candidate]
"""Likely next tokens by id, or by text of a server that gives no ids."""


class Cause(StrEnum):
    """Why two greedy texts diverge."""

    NEAR_TIE = "near-tie"
    FAULT = "fault"
    OTHER_WEIGHTS = "other weights"
    UNKNOWN = "unknown"


class Logprobs(NamedTuple):
    """Log-probabilities of the chosen token and of the expected one; upper bounds if not known."""

    chosen: float
    expected: float

    @property
    def gap(self) -> float:
        """How much likelier the expected token is, in nats."""
        return self.expected - self.chosen


@dataclass(frozen=True)
class Parting:
    """The first token in which two greedy texts differ.

    Attributes:
        prompt: number of the prompt, from 1.
        place: index of the new token or character, from 0.
        unit: "token", or "character" of a server that gives no token ids.
        chosen, expected: the token of the server under test, and the reference's.
        logprobs: of both, by the tested server's own forward pass over the text before them; None
            if it gives none.
        reference_logprobs: the same by the other server's.
    """

    prompt: int
    place: int
    unit: str
    chosen: str
    expected: str
    logprobs: Logprobs | None
    reference_logprobs: Logprobs | None
    cause: Cause

    @property
    def known(self) -> Logprobs:
        """The log-probabilities that decide: the tested server's, if it gives them."""
        return self.logprobs or self.reference_logprobs or Logprobs(nan, nan)


@dataclass(frozen=True)
class GreedyTexts:
    """Greedy texts of the server under test.

    Attributes:
        prompts: what they continue.
        completions: one for each.
    """

    prompts: Sequence[str]
    completions: Sequence[Completion]


def greedy_texts(
    server: Server,
    reference: Reference | None,
    prompts: Sequence[str],
    new_tokens: int,
    progress: ProgressBar,
) -> GreedyTexts:
    """Decode the prompts greedily with the server under test."""
    completions = []
    with progress("decoding greedy texts") as advance:
        for text in prompts:
            prompt = text if reference is None else reference.prompt(text)
            completions.append(server.complete(prompt, new_tokens))
            advance(len(completions), len(prompts))
    return GreedyTexts(prompts, completions)


def check_greedy(
    server: Server,
    reference: Reference | None,
    texts: GreedyTexts,
    new_tokens: int,
    near_tie: float,
    progress: ProgressBar,
) -> Finding:
    """Compare greedy texts with the reference's.

    Args:
        near_tie: the largest gap of log-probabilities that may be rounding.
    """
    if reference is None:
        return Finding(NAME, Status.UNCHECKED, NO_REFERENCE)
    partings = []
    with progress("comparing greedy texts") as advance:
        for number, (prompt, ours) in enumerate(
            zip(texts.prompts, texts.completions, strict=True), start=1
        ):
            theirs = reference.complete(prompt, new_tokens)
            parting = _parting(server, reference, prompt, number, (ours, theirs), near_tie)
            if parting is not None:
                partings.append(parting)
            advance(number, len(texts.prompts))
    return _finding(partings, len(texts.prompts), new_tokens, near_tie)


def _parting(
    server: Server,
    reference: Reference,
    prompt: str,
    number: int,
    pair: tuple[Completion, Completion],
    near_tie: float,
) -> Parting | None:
    """Where two texts diverge, and why; None if they are equal."""
    ours, theirs = pair
    by_token = bool(ours.reading.tokens and theirs.reading.tokens)
    units, expected = ours.units(by_token), theirs.units(by_token)
    if units == expected:
        return None
    pairs = zip_longest(units, expected, fillvalue=END)
    place, names = next((i, [_name(a), _name(b)]) for i, (a, b) in enumerate(pairs) if a != b)
    servers = [server] if reference.is_same_server else [server, reference.server]
    logprobs: list[Logprobs | None] = []
    for asked in servers:
        if by_token:
            candidates, keys = _at_token(asked, prompt, (units, expected), place)
        else:
            texts = "".join(map(str, units)), "".join(map(str, expected))
            candidates, keys = _at_character(asked, prompt, texts, place)
        logprobs.append(_logprobs(candidates, *keys))
        shown = [candidates[key].text if key in candidates else "" for key in keys]
        names = [repr(text) if text else name for text, name in zip(shown, names, strict=True)]
    own, other = logprobs[0], logprobs[1] if len(logprobs) > 1 else None
    own_gap, other_gap = (None if both is None else both.gap for both in (own, other))
    cause = _cause(own_gap, other_gap, near_tie, reference.is_same_server)
    unit = "token" if by_token else "character"
    return Parting(number, place, unit, names[0], names[1], own, other, cause)


def _name(unit: Hashable) -> str:
    """A token or character as a sentence names it while its text is not known."""
    return f"token {unit}" if isinstance(unit, int) else unit if unit == END else repr(unit)


def _at_token(
    server: Server, prompt: str, texts: Sequence[Sequence[Hashable]], place: int
) -> tuple[Candidates, list[Hashable]]:
    """The likeliest tokens where two texts part, and those with which they go on there."""
    keys = [text[place] if place < len(text) else END for text in texts]
    before = texts[0][:place]
    tokens = server.tokenize(prompt)
    if tokens is not None:
        return server.candidates([*tokens, *(int(str(token)) for token in before)]), keys
    # The server gives a text's token ids, but not a prompt's.
    return ({} if before else server.candidates(prompt)), keys


def _at_character(
    server: Server, prompt: str, texts: Sequence[str], place: int
) -> tuple[Candidates, list[Hashable]]:
    """The likeliest tokens where the tokens of two texts part, and those with which they go on.

    Characters mostly part within a token, and a server that continues half a token says nothing
    of the whole one. So it is asked from the last space before on, which begins a token, and then
    token by token as long as both texts go on with the same one.
    """
    start = max((i for i in range(place) if texts[0][i].isspace()), default=0)
    while True:
        candidates = server.candidates(prompt + texts[0][:start])
        keys = [_likeliest(candidates, text[start:]) for text in texts]
        if keys[0] != keys[1] or keys[0] not in candidates:
            return candidates, keys
        start += len(str(keys[0]))


def _likeliest(candidates: Candidates, rest: str) -> Hashable:
    """The longest candidate with which a text goes on, "" if none does."""
    if not rest:
        return END
    fitting = (str(key) for key in candidates if str(key) and rest.startswith(str(key)))
    return max(fitting, key=len, default="")


def _logprobs(candidates: Candidates, chosen: Hashable, expected: Hashable) -> Logprobs | None:
    """Two tokens' log-probabilities. One outside the candidates gets the lowest of theirs.

    None if neither is a candidate, or if one text has ended: which token ends it is not known.
    """
    if END in (chosen, expected) or not {chosen, expected} & set(candidates):
        return None
    least = min(candidate.logprob for candidate in candidates.values())
    return Logprobs(
        *(candidates[t].logprob if t in candidates else least for t in (chosen, expected))
    )


def _cause(own: float | None, other: float | None, near_tie: float, is_same_server: bool) -> Cause:
    """Why texts diverge, from the gaps by the tested server's and the baseline's forward pass."""
    if own is None:
        if other is None or other < -near_tie:  # the baseline contradicts its own text
            return Cause.UNKNOWN
        return Cause.NEAR_TIE if abs(other) <= near_tie else Cause.FAULT
    if own > near_tie:
        return Cause.FAULT
    if own < -near_tie:  # its forward pass agrees with its text, and not with the reference's
        return Cause.FAULT if is_same_server else Cause.OTHER_WEIGHTS
    is_apart = other is not None and abs(other) > near_tie
    return Cause.OTHER_WEIGHTS if is_apart else Cause.NEAR_TIE


def _finding(
    partings: Sequence[Parting], prompts: int, new_tokens: int, near_tie: float
) -> Finding:
    """The verdict over all prompts: the worst cause decides."""
    causes = [parting.cause for parting in partings]
    numbers: dict[str, Any] = {
        "prompts": prompts,
        "equal": prompts - len(partings),
        "near_ties": causes.count(Cause.NEAR_TIE),
        "new_tokens": new_tokens,
        "near_tie": near_tie,
        "partings": [_document(parting) for parting in partings],
    }
    equal = f"{prompts - len(partings)} of {prompts} texts of {new_tokens} tokens are equal"
    for cause in (Cause.FAULT, Cause.OTHER_WEIGHTS, Cause.UNKNOWN):
        worst = [parting for parting in partings if parting.cause == cause]
        if worst:
            status = Status.UNCHECKED if cause == Cause.UNKNOWN else Status.FAILED
            sentence = f"{equal}; {_sentence(worst[0], len(worst))}"
            return Finding(NAME, status, sentence, numbers, cause == Cause.OTHER_WEIGHTS)
    if not partings:
        return Finding(NAME, Status.OK, equal, numbers)
    widest = max(
        abs(both.gap) for p in partings for both in (p.logprobs, p.reference_logprobs) if both
    )
    others = "the other diverges" if len(partings) == 1 else "the others diverge"
    sentence = f"{equal}; {others} at near-ties of at most {widest:.2g} nats, which is rounding"
    return Finding(NAME, Status.OK, sentence, numbers)


def _document(parting: Parting) -> dict[str, Any]:
    """A parting for JSON."""
    both = {"logprobs": parting.logprobs, "reference_logprobs": parting.reference_logprobs}
    named = {name: pair._asdict() | {"gap": pair.gap} for name, pair in both.items() if pair}
    return {**asdict(parting), **dict.fromkeys(both), **named}


def _sentence(parting: Parting, count: int) -> str:
    """Where the first text with the gravest cause diverges, and what that means."""
    more = f" (in {count} texts)" if count > 1 else ""
    where = f"the text of prompt {parting.prompt} diverges at {parting.unit} {parting.place + 1}"
    chosen = f"{where} with {parting.chosen} where plain decoding has {parting.expected}"
    if parting.cause == Cause.UNKNOWN:
        return (
            f"{chosen}, and the server gives no log-probabilities to tell a near-tie from a fault"
        )
    if parting.cause == Cause.OTHER_WEIGHTS:
        return (
            f"{chosen}, and the two servers' log-probabilities disagree{more}; they run different "
            "weights or number types, so compare servers that run the same"
        )
    logprobs = f"{parting.known.chosen:.1f} and {parting.known.expected:.1f}"
    return (
        f"{chosen}; their log-probabilities {logprobs} are too far apart for rounding{more}, so "
        "the server accepts tokens that the model does not choose"
    )

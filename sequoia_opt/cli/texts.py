"""Where `decode` takes texts from and what becomes of them: one, a dataset's, a conversation's."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from sequoia_opt.cli.running import GREEDY
from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan.acceptance import Sampling
from sequoia_opt.terminal import printable

if TYPE_CHECKING:
    from sequoia_opt.engine.decoder import Decoder, Generation
    from sequoia_opt.engine.models import Pair
    from sequoia_opt.plan.tree import TokenTree


def texts_of(prompt: str | None, file: Path | None) -> list[str]:
    """The prompt that was asked for; else the bundled ones, of which the first is decoded."""
    from sequoia_opt import demo
    from sequoia_opt.plan.files import read_text

    if file is not None:
        return [read_text(file)]
    if prompt == "-":
        try:
            return [sys.stdin.buffer.read().decode()]
        except UnicodeDecodeError as error:
            raise SequoiaError(f"standard input: is not UTF-8 ({error.reason})") from None
    return demo.prompts() if prompt is None else [prompt]


def keeper(
    path: Path | None, pair: Pair, tree: TokenTree, sampling: Sampling
) -> Callable[[int, Generation], None]:
    """What keeps the statistics of a generation behind a prompt of so many tokens."""
    from sequoia_opt.plan import traffic

    if path is None:
        return lambda length, generation: None
    verifier = GREEDY if sampling.temperature == 0 else sampling.verifier
    setting = traffic.Setting(
        pair.target_name,
        pair.draft_name,
        sampling.temperature,
        sampling.top_p,
        verifier,
        fingerprints=(pair.fingerprints["target"], pair.fingerprints["draft"]),
    )

    def keep(length: int, generation: Generation) -> None:
        context = length + len(generation.tokens) / 2
        traffic.add(path, traffic.Text(setting, tree, dict(generation.ended), context))

    return keep


def converse(
    decoder: Decoder,
    system: str | None,
    limits: dict[str, Any],
    keep: Callable[[int, Generation], None],
    quiet: bool,
    turns: list[dict[str, Any]],
) -> None:
    """Answer standard input line by line.

    Args:
        turns: where each is added with its numbers; those that there were stay if one fails.
    """
    from sequoia_opt import console

    messages = [{"role": "system", "content": system}] if system is not None else []
    decoder.pair.encode_chat([*messages, {"role": "user", "content": ""}])  # it can
    for line in _asked():
        messages.append({"role": "user", "content": line})
        encoded = decoder.pair.encode_chat(messages)
        stream = decoder.stream(encoded, **limits)
        shown = Typewriter(None if quiet else sys.stdout)
        for _ in stream:
            shown.write(stream.text())
        generation = stream.generation
        shown.write(generation.text)
        keep(len(encoded), generation)
        messages.append({"role": "assistant", "content": generation.text})
        turns.append({
            "user": line,
            "assistant": generation.text,
            "prompt_tokens": len(encoded),
            "tokens": generation.tokens,
            "steps": generation.steps,
            "tokens_per_second": generation.tokens_per_second,
            "prefill_seconds": generation.prefill_seconds,
        })  # fmt: skip
        if not quiet:
            console.out.print()
            console.note(
                f"[{len(generation.tokens)} tokens, {generation.tokens_per_second:.1f} tokens/s]"
            )


def _asked() -> Iterator[str]:
    """The lines of standard input that say anything; a person is shown that it is their turn."""
    from sequoia_opt import console

    while True:
        if sys.stdin.isatty():
            console.err.print("> ", end="")
        try:
            line = sys.stdin.readline()
        except UnicodeDecodeError as error:
            raise SequoiaError(f"standard input: is not UTF-8 ({error.reason})") from None
        except KeyboardInterrupt:  # one leaves so
            return
        if not line:
            return
        if line.strip():
            yield line.strip()


def complete(
    decoder: Decoder,
    texts: Sequence[str],
    output: Path,
    seed: int,
    limits: dict[str, Any],
    settings: dict[str, Any],
    keep: Callable[[int, Generation], None],
) -> dict[str, Any]:
    """Complete all prompts, but those that are in the output already.

    A prompt that cannot be gone on from has its line too, which says why.
    """
    from sequoia_opt import console
    from sequoia_opt.completions import Completions
    from sequoia_opt.engine.decoder import Generation

    seconds, tokens, before, failed = 0.0, 0, 0, 0
    with Completions(output, texts, settings) as file, console.progress("decoding") as advance:
        before = file.done
        if before:
            console.note(f"{output}: has {before} of {len(texts)} completions already")
        for place, text in list(enumerate(texts))[before:]:
            advance(place, len(texts))
            decoder.reseed(seed + place)  # as if it were decoded alone
            reason, encoded = {}, []
            try:
                encoded = decoder.pair.encode(text)
                found = decoder.generate(encoded, **limits)
            except SequoiaError as error:
                found, reason = Generation(stopped="error"), {"error": str(error)}
                console.note(f"prompt {place + 1}: {error}")
                failed += 1
            numbers = {
                "tokens": len(found.tokens), "steps": found.steps, "seconds": found.seconds
            }  # fmt: skip
            file.add_completion(
                text, {"completion": found.text, "stopped": found.stopped, **reason, **numbers}
            )
            if not reason:
                keep(len(encoded), found)
            seconds, tokens = seconds + found.seconds, tokens + max(0, len(found.tokens) - 1)
    return {
        "output": output,
        "prompts": len(texts),
        "completed": len(texts) - before - failed,
        "failed": failed,
        "tokens_per_second": tokens / seconds if seconds else 0.0,
    }


class Typewriter:
    """Writes a growing text as it comes."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream, self._done = stream, 0

    def write(self, text: str) -> None:
        """Write what `text` adds to what has been written."""
        if self._stream is not None:
            new = text[self._done :]
            if self._stream.isatty():  # what a model writes is not for the terminal to obey
                new = printable(new.replace("\r\n", "\n"))
            self._stream.write(new)
            self._stream.flush()
            self._done = max(self._done, len(text))

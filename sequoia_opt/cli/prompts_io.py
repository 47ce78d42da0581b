"""Where `decode` takes texts from and what becomes of them: one, a dataset's, a conversation's."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from sequoia_opt.cli.terminal import printable
from sequoia_opt.cli.tree_defaults import GREEDY
from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan.sampling import Sampling

if TYPE_CHECKING:
    from sequoia_opt.engine.decoder import Decoder, Generation
    from sequoia_opt.engine.logits_processors import LogitsOptions
    from sequoia_opt.engine.own_settings import OwnSettings
    from sequoia_opt.engine.pair import Pair
    from sequoia_opt.measure.records import Document
    from sequoia_opt.measure.template import Template
    from sequoia_opt.plan.tree import TokenTree


STANDARD_INPUT = "standard input"


def texts_of(prompt: str | None, file: Path | None) -> list[str]:
    """The prompt that was asked for; else the bundled ones, of which the first is decoded."""
    from sequoia_opt import demo
    from sequoia_opt.errors import one_line

    if file is not None:
        try:
            return [_as_text(file.read_bytes(), str(file))]
        except FileNotFoundError:
            raise SequoiaError(f"{file}: no such file") from None
        except (OSError, ValueError) as error:
            raise SequoiaError(f"{file}: cannot be read ({one_line(error)})") from None
    if prompt == "-":
        return [_as_text(_standard_input().read(), STANDARD_INPUT)]
    return demo.prompts() if prompt is None else [prompt]


def _standard_input() -> Any:
    """Standard input, in bytes if it has any.

    Raises:
        SequoiaError: it is closed.
    """
    if sys.stdin is None:
        raise SequoiaError(f"{STANDARD_INPUT}: is closed; give the text with --prompt-file")
    return getattr(sys.stdin, "buffer", sys.stdin)


def _as_text(content: bytes | str, where: str) -> str:
    """A text as it was written, line ends included: what marks its encoding is none of it.

    Raises:
        SequoiaError: it is not UTF-8.
    """
    if isinstance(content, str):
        return content
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SequoiaError(
            f"{where}: is not UTF-8 ({error.reason} at byte {error.start + 1}); convert it"
        ) from None


def with_own(rules: LogitsOptions, own: OwnSettings, chosen: bool) -> LogitsOptions:
    """The rules that options name, and those of the target's that they do not.

    Args:
        chosen: whether the repetition penalty is an option's.
    """
    penalty = rules.repetition_penalty if chosen else own.logits.repetition_penalty
    return replace(
        own.logits,
        repetition_penalty=penalty,
        bias={**own.logits.bias, **rules.bias},
        frequency_penalty=rules.frequency_penalty,
        presence_penalty=rules.presence_penalty,
        banned=own.logits.banned.difference(rules.bias),
        banned_first=own.logits.banned_first.difference(rules.bias),
    )


def stops_of(stop: Sequence[str] | None, own: OwnSettings) -> list[str]:
    """The strings that end a text: those that were asked for, else the target's own."""
    return list(own.stop if stop is None else stop)


def tell_own_settings(
    pair: Pair, own: OwnSettings, rules: LogitsOptions, sampling: Sampling, stops: Sequence[str]
) -> None:
    """Say what of the target's generation_config.json is applied, and what is not."""
    from sequoia_opt.cli import console

    where = f"generation_config.json of {pair.target_name}"
    applied = _applied(own, rules)
    if own.stop and list(own.stop) == list(stops):
        applied.append(f"stop strings {', '.join(map(repr, stops))}")
    if applied:
        console.note(f"{where}: applied: {', '.join(applied)} (not with --no-generation-config)")
    unused = dict(own.unused)
    if sampling.temperature > 0:
        unused |= own.unused_sampled
    if unused:
        named = ", ".join(f"{name} {value}" for name, value in unused.items())
        console.note(f"{where}: not applied: {named}")
    used = {"temperature": sampling.temperature, "top_p": sampling.top_p}
    used |= {"top_k": sampling.top_k, "min_p": sampling.min_p}
    other = {name: value for name, value in own.sampling.items() if used[name] != value}
    if other:
        options = " ".join(
            f"--{name.replace('_', '-')} {value:g}" for name, value in own.sampling.items()
        )
        named = ", ".join(f"{name} {value:g}" for name, value in other.items())
        here = "greedy decoding" if sampling.temperature == 0 else "this sampling"
        console.note(f"{where}: not applied: {named}, for {here}; {options} samples so")


def _applied(own: OwnSettings, rules: LogitsOptions) -> list[str]:
    """The target's own rules that are among those that are followed, in words."""
    penalty = own.logits.repetition_penalty
    applied = []
    if penalty != 1 and penalty == rules.repetition_penalty:
        applied.append(f"repetition_penalty {penalty:g}")
    for tokens, what in (
        (own.logits.bias, "with a bias"),
        (rules.banned, "suppressed"),
        (rules.banned_first, "suppressed at first"),
    ):
        if tokens:
            applied.append(f"{len(tokens)} token{'s' if len(tokens) > 1 else ''} {what}")
    return applied


def keeper(
    path: Path | None, pair: Pair, tree: TokenTree, sampling: Sampling
) -> Callable[[int, Generation], None]:
    """What keeps the statistics of a generation behind a prompt of so many tokens."""
    from sequoia_opt.plan import decode_stats

    if path is None:
        return lambda length, generation: None
    verifier = GREEDY if sampling.temperature == 0 else sampling.verifier
    setting = decode_stats.Setting(
        pair.target_name,
        pair.draft_name,
        sampling.temperature,
        sampling.top_p,
        verifier,
        sampling.top_k,
        sampling.min_p,
        fingerprints=(pair.fingerprints["target"], pair.fingerprints["draft"]),
    )

    def keep(length: int, generation: Generation) -> None:
        context = length + len(generation.tokens) / 2
        decode_stats.add(path, decode_stats.Text(setting, tree, dict(generation.ended), context))

    return keep


def converse(
    decoder: Decoder,
    template: Template,
    limits: dict[str, Any],
    keep: Callable[[int, Generation], None],
    quiet: bool,
    turns: list[dict[str, Any]],
) -> None:
    """Answer standard input line by line.

    Args:
        turns: where each is added with its numbers; those that there were stay if one fails.
    """
    from sequoia_opt.cli import console

    messages = template.conversation([])
    options = template.options
    decoder.pair.encode_chat([*messages, {"role": "user", "content": ""}], options)  # it can
    session = decoder.session()
    for line in _asked():
        messages.append({"role": "user", "content": line})
        encoded = decoder.pair.encode_chat(messages, options)
        stream = session.stream(encoded, **limits)
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
    from sequoia_opt.cli import console

    stream = _standard_input()
    for number in count(1):
        if sys.stdin.isatty():
            console.err.print("> ", end="")
        try:
            line = stream.readline()
        except KeyboardInterrupt:  # one leaves so
            return
        if not line:
            return
        text = _as_text(line, f"{STANDARD_INPUT}: line {number}")
        if text.strip():
            yield text.removesuffix("\n").removesuffix("\r")


def complete(
    decoder: Decoder,
    documents: Sequence[Document],
    template: Template,
    output: Path,
    seed: int,
    limits: dict[str, Any],
    settings: dict[str, Any],
    keep: Callable[[int, Generation], None],
) -> dict[str, Any]:
    """Complete all prompts, but those that are in the output already.

    A prompt that cannot be gone on from has its line too, which says why.
    """
    from sequoia_opt.cli import console
    from sequoia_opt.cli.completions import Completions
    from sequoia_opt.engine.decoder import Generation
    from sequoia_opt.measure.encoding import prompt_tokens

    prompts = [document.asked for document in documents]
    seconds, tokens, before, failed = 0.0, 0, 0, 0
    with Completions(output, prompts, settings) as file, console.progress("decoding") as advance:
        before = file.done
        if before:
            console.note(f"{output}: has {before} of {len(prompts)} completions already")
        for place, document in list(enumerate(documents))[before:]:
            advance(place, len(prompts))
            decoder.reseed(seed + place)  # as if it were decoded alone
            reason, encoded = {}, []
            try:
                encoded = prompt_tokens(decoder.pair, document, template)
                found = decoder.generate(encoded, **limits)
            except SequoiaError as error:
                found, reason = Generation(stopped="error"), {"error": str(error)}
                console.note(f"prompt {place + 1}: {_placed(document)}{error}")
                failed += 1
            numbers = {
                "tokens": len(found.tokens), "steps": found.steps, "seconds": found.seconds
            }  # fmt: skip
            file.add_completion(
                prompts[place],
                {"completion": found.text, "stopped": found.stopped, **reason, **numbers},
                document.fields,
            )
            if not reason:
                keep(len(encoded), found)
            seconds, tokens = seconds + found.seconds, tokens + max(0, len(found.tokens) - 1)
    return {
        "output": output,
        "prompts": len(prompts),
        "completed": len(prompts) - before - failed,
        "failed": failed,
        "tokens_per_second": tokens / seconds if seconds else 0.0,
    }


def _placed(document: Document) -> str:
    """Where a prompt is in its file, if that says more than its number."""
    return f"{document.where}: " if document.problem else ""


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

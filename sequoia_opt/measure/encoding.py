"""Documents to tokens: the same ones for every command that reads a dataset.

Knows how a prompt, a conversation and what follows them are put to a model. Knows nothing of
files.
"""

from __future__ import annotations

from collections.abc import Sequence

from sequoia_opt.engine.pair import Pair
from sequoia_opt.errors import SequoiaError
from sequoia_opt.measure.dataset import Document, Message
from sequoia_opt.measure.progress import Note
from sequoia_opt.measure.template import PLAIN, Template


def prompt_tokens(pair: Pair, document: Document, template: Template = PLAIN) -> list[int]:
    """Token ids of what is to be gone on from: the prompt, the conversation or the whole text.

    Raises:
        SequoiaError: there are none, or the models cannot read them.
    """
    if document.problem:
        raise SequoiaError(document.problem)
    if document.tokens:
        return list(document.tokens)
    return pair.encode(*_asked(pair, document, template))


def opening(pair: Pair, document: Document, template: Template = PLAIN) -> list[int]:
    """The same, but of a text that has no prompt the first half of its tokens."""
    tokens = prompt_tokens(pair, document, template)
    has_prompt = template.for_all or not document.is_whole
    return tokens if has_prompt else tokens[: max(1, len(tokens) // 2)]


def prompt_and_text(
    pair: Pair, document: Document, template: Template = PLAIN
) -> tuple[list[int], list[int]]:
    """Token ids of the prompt, and of the text that follows it in the dataset.

    The prompt as it is decoded from, the text behind it in tokens of its own; if these would read
    otherwise there, as those of tokenizers do that write a beginning with a space, then in those
    that it has when both are tokenized together.

    Raises:
        SequoiaError: as in `prompt_tokens`.
    """
    has_prompt = document.prompt or document.messages or document.tokens or template.for_all
    if document.text and not has_prompt:
        return [], pair.encode(document.text)
    prompt = prompt_tokens(pair, document, template)
    if not document.text or document.is_whole:
        return prompt, []
    alone = pair.encode(document.text, beginning=False)
    if document.tokens or pair.decode(alone, prompt) == document.text:
        return prompt, alone
    asked, beginning = _asked(pair, document, template)
    whole = pair.encode(asked + document.text, beginning)
    joined = whole[: len(prompt)] != prompt  # by a token that has parts of both
    return prompt, alone if joined else whole[len(prompt) :]


def check_template(
    pair: Pair, documents: Sequence[Document], template: Template, note: Note
) -> None:
    """Find out before long work that a chat template is asked for that there is not, or does not
    take what it is given; conversations alone are plain text then, with a note.

    Raises:
        SequoiaError: with what is wrong.
    """
    if template.for_all or template.options:
        pair.render_chat(
            template.conversation([{"role": "user", "content": "a"}]), template.options
        )
    count = sum(bool(document.messages) for document in documents)
    if count and not _has_template(pair):
        note(
            f"{pair.target_name}: its tokenizer has no chat template; {count} conversations are "
            "read as plain text, a blank line between messages"
        )


def _has_template(pair: Pair) -> bool:
    return bool(getattr(pair.tokenizer, "chat_template", None))


def _asked(pair: Pair, document: Document, template: Template) -> tuple[str, bool]:
    """The text of what is to be gone on from, and whether special tokens go before it."""
    text = document.text if document.is_whole else document.prompt
    messages: list[Message] = list(document.messages)
    if not messages and template.for_all:
        messages = [{"role": "user", "content": text}]
    if not messages:
        return text, True
    messages = template.conversation(messages)
    if not _has_template(pair) and not template.for_all and not template.options:
        return "\n\n".join(str(message["content"]) for message in messages), True
    return pair.render_chat(messages, template.options), False

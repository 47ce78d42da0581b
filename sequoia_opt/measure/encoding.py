"""Documents to tokens, in the same way for every command that reads a dataset.

Knows how a prompt, a conversation and the text after them become a model's input. Knows nothing of
files.
"""

from __future__ import annotations

from collections.abc import Sequence

from sequoia_opt.engine.pair import Pair
from sequoia_opt.errors import SequoiaError
from sequoia_opt.measure.dataset import Note
from sequoia_opt.measure.records import Document, Message
from sequoia_opt.measure.template import PLAIN, Template


def prompt_tokens(pair: Pair, document: Document, template: Template = PLAIN) -> list[int]:
    """Token ids of the prompt, the conversation or the whole text.

    Raises:
        SequoiaError: the document cannot be used, or has no tokens that both models know.
    """
    if document.problem:
        raise SequoiaError(document.problem)
    if document.tokens:
        return list(document.tokens)
    return pair.encode(*_prompt_text(pair, document, template))


def opening(pair: Pair, document: Document, template: Template = PLAIN) -> list[int]:
    """Token ids to decode from: those of the prompt, or the first half of a whole text's."""
    tokens = prompt_tokens(pair, document, template)
    has_prompt = template.for_all or not document.is_whole
    return tokens if has_prompt else tokens[: max(1, len(tokens) // 2)]


def prompt_and_text(
    pair: Pair, document: Document, template: Template = PLAIN
) -> tuple[list[int], list[int]]:
    """Token ids of the prompt, and of the text that follows it in the dataset.

    The prompt has the tokens that decoding starts from. The text is tokenized by itself, unless
    its tokens would then decode to another text after the prompt, as with tokenizers that put a
    space before a beginning; then it has its tokens of prompt and text tokenized together.

    Raises:
        SequoiaError: as in `prompt_tokens`.
    """
    has_prompt = document.prompt or document.messages or document.tokens or template.for_all
    if document.text and not has_prompt:
        return [], pair.encode(document.text)
    prompt = prompt_tokens(pair, document, template)
    if not document.text or document.is_whole:
        return prompt, []
    text = pair.encode(document.text, beginning=False)
    if document.tokens or pair.decode(text, prompt) == document.text:
        return prompt, text
    prompt_text, beginning = _prompt_text(pair, document, template)
    joint = pair.encode(prompt_text + document.text, beginning)
    crosses_boundary = joint[: len(prompt)] != prompt  # a token has parts of both
    return prompt, text if crosses_boundary else joint[len(prompt) :]


def check_template(
    pair: Pair, documents: Sequence[Document], template: Template, note: Note
) -> None:
    """Check before long work that the model has the chat template that `template` needs.

    Conversations without any such setting do not need one: they are read as plain text, with a
    note.

    Raises:
        SequoiaError: the model has no chat template, or its template rejects the messages.
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


def _prompt_text(pair: Pair, document: Document, template: Template) -> tuple[str, bool]:
    """The text of the prompt, and whether special tokens go before it."""
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

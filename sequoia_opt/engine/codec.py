"""Text to tokens and back, with a model's tokenizer and its chat template.

Knows special tokens, prompts and conversations. Knows nothing of how tokens are decoded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from sequoia_opt.engine.text import Detokenizer, Tokenizer
from sequoia_opt.errors import SequoiaError, one_line

# A tokenizer takes some 200 bytes of memory per character, and a text of more characters than
# these never fits a model's positions. Shorter texts are tokenized, so that the error can say how
# many tokens they have.
LONGEST_TEXT, CHARACTERS_PER_POSITION = 2**20, 16
TEMPLATE_ARGUMENTS = {
    "messages",
    "conversation",
    "chat_template",
    "tokenize",
    "add_generation_prompt",
}


class Codec:
    """A tokenizer, for the texts of one target.

    Attributes:
        tokenizer: None where the models' folders have none.
        name: the target's, for messages.
        positions: the most tokens that the target can take.
    """

    def __init__(self, tokenizer: Tokenizer | None, name: str, positions: int) -> None:
        self.tokenizer, self.name, self.positions = tokenizer, name, positions
        self._detokenizer: Detokenizer | None = None

    def encode(self, text: str, beginning: bool = True) -> list[int]:
        """Token ids of a text that is to be continued.

        Args:
            beginning: the text begins a document, so the tokenizer may put special tokens before
                it; an empty text is the beginning-of-text token. If the text itself begins with
                that token, it is not doubled. A token that the tokenizer appends to every text is
                removed, since the text is to be continued.

        Raises:
            SequoiaError: the models came without a tokenizer, the text is empty and the tokenizer
                has no beginning-of-text token, or the text is too long to be tokenized.
        """
        tokenizer = self._known_tokenizer()
        self._check_text(text)
        ids: list[int] = tokenizer(text, add_special_tokens=beginning)["input_ids"]
        if not beginning:
            return ids
        if ids and ids[-1] in self.detokenizer.hidden:
            ids = ids[: len(ids) - self._appended()]
        first = tokenizer.bos_token_id
        doubled = first is not None and ids[:2] == [first, first]
        if doubled and text.startswith(self.detokenizer.spelling(first)):
            ids = ids[1:]
        if not ids:
            if first is None:
                raise SequoiaError("the prompt is empty; give at least one token")
            ids = [first]
        return ids

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any] | None = None
    ) -> str:
        """The chat template's text of a conversation in which the assistant speaks next.

        Args:
            messages: each has a `role` and a `content`.
            options: switches of the template, such as enable_thinking.

        Raises:
            SequoiaError: the tokenizer has no chat template, or the template rejects the messages
                or the options.
        """
        if self.tokenizer is None or not self.tokenizer.chat_template:
            raise SequoiaError(
                f"{self.name}: its tokenizer has no chat template; expected a tokenizer "
                "with one for conversations and --chat, or prompts that are plain text"
            )
        options = dict(options or {})
        try:
            self._check_switches(options)
            return str(
                self.tokenizer.apply_chat_template(
                    [dict(message) for message in messages],
                    tokenize=False,
                    add_generation_prompt=True,
                    **options,
                )
            )
        except SequoiaError:
            raise
        except Exception as error:  # the template's own language raises its own kinds
            raise SequoiaError(
                f"{self.name}: its chat template fails ({one_line(error)[:200]}); check "
                "the roles of the messages, --system and --template-option"
            ) from None

    def encode_chat(
        self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any] | None = None
    ) -> list[int]:
        """Token ids of a conversation in which the assistant speaks next; see `render_chat`."""
        return self.encode(self.render_chat(messages, options), beginning=False)

    @property
    def detokenizer(self) -> Detokenizer:
        """The detokenizer of the tokenizer.

        Raises:
            SequoiaError: the models came without a tokenizer.
        """
        tokenizer = self._known_tokenizer()
        if self._detokenizer is None:
            self._detokenizer = Detokenizer(tokenizer)
        return self._detokenizer

    def decode(self, tokens: Sequence[int], context: Sequence[int] = ()) -> str:
        """Text of token ids, without special tokens.

        Args:
            context: the tokens before these; by default none.

        Raises:
            SequoiaError: the models came without a tokenizer.
        """
        return self.detokenizer.text(tokens, context)

    def _known_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise SequoiaError(
                f"{self.name}: has no tokenizer; put its tokenizer.json into the folder"
            )
        return self.tokenizer

    def _check_text(self, text: str) -> None:
        """Refuse texts with half characters, and texts that the target can never read."""
        if re.search("[\ud800-\udfff]", text):
            raise SequoiaError("the prompt is not text: it has half of a character (a surrogate)")
        longest = max(LONGEST_TEXT, CHARACTERS_PER_POSITION * self.positions)
        if len(text) > longest:
            raise SequoiaError(
                f"the prompt is too long: found {len(text)} characters, expected at most {longest} "
                f"for the {self.positions} positions of {self.name}"
            )

    def _appended(self) -> int:
        """How many special tokens the tokenizer appends to every text."""
        tokenizer = self._known_tokenizer()
        bare: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"]
        whole: list[int] = tokenizer("a", add_special_tokens=True)["input_ids"]
        starts = range(len(whole) - len(bare) + 1)
        place = next((i for i in starts if whole[i : i + len(bare)] == bare), None)
        return 0 if place is None else len(whole) - place - len(bare)

    def _check_switches(self, options: Mapping[str, Any]) -> None:
        """Refuse switches that the chat template does not read: they would change nothing."""
        assert self.tokenizer is not None
        template = str(self.tokenizer.get_chat_template())
        for name in options:
            if name in TEMPLATE_ARGUMENTS or not re.search(rf"\b{re.escape(name)}\b", template):
                raise SequoiaError(
                    f"template-option: found {name}, which the chat template of "
                    f"{self.name} does not read; expected a variable of the template, as "
                    "enable_thinking"
                )

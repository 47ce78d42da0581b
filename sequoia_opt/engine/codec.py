"""Text to tokens and back, with a model's tokenizer and its chat template.

Knows special tokens, prompts and conversations. Knows nothing of how tokens are decoded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from sequoia_opt.engine.text import Detokenizer
from sequoia_opt.errors import SequoiaError, one_line

# Characters: a tokenizer takes some 200 bytes of memory for each, and no text of that many for
# each position has ever fitted. Shorter ones are tokenized to say how many tokens they have.
LONGEST_TEXT, CHARACTERS_A_POSITION = 2**20, 16
TEMPLATES_OWN = {"messages", "conversation", "chat_template", "tokenize", "add_generation_prompt"}


class Codec:
    """A tokenizer, for the texts of one target.

    Attributes:
        tokenizer: None where the models' folders have none.
        name: the target's, for messages.
        positions: the most tokens that the target can take.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase | None, name: str, positions: int
    ) -> None:
        self.tokenizer, self.name, self.positions = tokenizer, name, positions
        self._detokenizer: Detokenizer | None = None

    def encode(self, text: str, beginning: bool = True) -> list[int]:
        """Token ids of a text, for more to follow.

        Args:
            beginning: it begins a document, so the tokenizer may put its special tokens before
                it; an empty one is the beginning-of-text token. A beginning-of-text token that
                the text itself begins with is not doubled, and a token that the tokenizer puts
                behind every text is left away: nothing is to follow that.

        Raises:
            SequoiaError: the models came without a tokenizer, nothing stands for no text, or the
                text is too long to be tokenized.
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
        """The chat template's text of a conversation that it is the assistant's turn in.

        Args:
            messages: each with its `role` and `content`.
            options: switches of the template, as enable_thinking.

        Raises:
            SequoiaError: the tokenizer has no chat template, or it does not take the messages or
                the options.
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
        """Token ids of a conversation that it is the assistant's turn in, see `render_chat`."""
        return self.encode(self.render_chat(messages, options), beginning=False)

    @property
    def detokenizer(self) -> Detokenizer:
        """What turns tokens into text.

        Raises:
            SequoiaError: the models came without a tokenizer.
        """
        tokenizer = self._known_tokenizer()
        if self._detokenizer is None:
            self._detokenizer = Detokenizer(tokenizer)
        return self._detokenizer

    def decode(self, tokens: Sequence[int], context: Sequence[int] = ()) -> str:
        """Text of token ids, special ones left out.

        Args:
            context: the tokens before them; by default they begin a text.

        Raises:
            SequoiaError: the models came without a tokenizer.
        """
        return self.detokenizer.text(tokens, context)

    def _known_tokenizer(self) -> PreTrainedTokenizerBase:
        if self.tokenizer is None:
            raise SequoiaError(
                f"{self.name}: has no tokenizer; put its tokenizer.json into the folder"
            )
        return self.tokenizer

    def _check_text(self, text: str) -> None:
        """Refuse what is no text, or more than the target could ever read."""
        if re.search("[\ud800-\udfff]", text):
            raise SequoiaError("the prompt is no text: it has half of a character (a surrogate)")
        longest = max(LONGEST_TEXT, CHARACTERS_A_POSITION * self.positions)
        if len(text) > longest:
            raise SequoiaError(
                f"the prompt is too long: found {len(text)} characters, expected at most {longest} "
                f"for the {self.positions} positions of {self.name}"
            )

    def _appended(self) -> int:
        """How many special tokens the tokenizer puts behind every text."""
        tokenizer = self._known_tokenizer()
        bare: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"]
        whole: list[int] = tokenizer("a", add_special_tokens=True)["input_ids"]
        starts = range(len(whole) - len(bare) + 1)
        place = next((i for i in starts if whole[i : i + len(bare)] == bare), None)
        return 0 if place is None else len(whole) - place - len(bare)

    def _check_switches(self, options: Mapping[str, Any]) -> None:
        """Refuse switches that the chat template does not have: they would change nothing."""
        assert self.tokenizer is not None
        template = str(self.tokenizer.get_chat_template())
        for name in options:
            if name in TEMPLATES_OWN or not re.search(rf"\b{re.escape(name)}\b", template):
                raise SequoiaError(
                    f"template-option: found {name}, which the chat template of "
                    f"{self.name} does not read; expected a variable of the template, as "
                    "enable_thinking"
                )

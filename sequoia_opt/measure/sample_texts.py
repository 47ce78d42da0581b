"""Documents as the token sequences that the estimator samples: a prompt and what follows it.

Knows tokens and how many fit into the target's positions. Knows nothing of acceptance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sequoia_opt.engine.pair import Pair
from sequoia_opt.errors import SequoiaError
from sequoia_opt.measure.dataset import tell_left_out
from sequoia_opt.measure.encoding import prompt_and_text
from sequoia_opt.measure.progress import Note, no_note
from sequoia_opt.measure.records import Document
from sequoia_opt.measure.template import PLAIN, Template


@dataclass(frozen=True)
class SampleText:
    """A document's tokens.

    Attributes:
        prompt: token ids to start from; at least one.
        text: token ids that follow in the dataset; none where the target continues the prompt.
        new_tokens: number of tokens to sample behind the prompt, at most.
    """

    prompt: list[int]
    text: list[int]
    new_tokens: int


def prepare_texts(
    pair: Pair,
    documents: Sequence[Document],
    *,
    max_new_tokens: int,
    max_prompt_tokens: int,
    teacher_forced: bool = False,
    template: Template = PLAIN,
    note: Note = no_note,
) -> list[SampleText]:
    """Tokenize documents, each into a prompt and, if teacher-forced, the text that follows it.

    Documents that the models cannot read are left out, with a note. A prompt that is too long
    keeps its end, and the token that begins every text.

    Args:
        max_new_tokens: tokens to sample of each document, at most.
        max_prompt_tokens: tokens of a prompt, at most.

    Raises:
        SequoiaError: no document can be used, or the target has too few positions.
    """
    longest_prompt = min(max_prompt_tokens, _positions_for_prompts(pair, max_new_tokens))
    texts: list[SampleText] = []
    problems: list[str] = []
    shortened = 0
    for number, document in enumerate(documents, start=1):
        try:
            prompt, text = prompt_and_text(pair, document, template)
            _check_vocabulary(pair, [*prompt, *text])
        except SequoiaError as error:
            problems.append(f"{document.where or f'document {number}'}: {error}")
            continue
        if teacher_forced:
            if not prompt:
                prompt, text = text[:1], text[1:]
            if not text:
                continue
            text = text[:max_new_tokens]
        else:
            if not prompt:
                prompt = text[: max(1, len(text) // 2)][:longest_prompt]
            text = []
        shortened += len(prompt) > longest_prompt
        prompt = _last_tokens(prompt, longest_prompt, pair)
        texts.append(SampleText(prompt, text, len(text) if teacher_forced else max_new_tokens))
    if not texts:
        missing = "texts for teacher forcing" if teacher_forced else "prompts"
        raise SequoiaError(problems[0] if problems else f"the dataset has no {missing}")
    tell_left_out(problems, note)
    if shortened:
        note(f"{shortened} prompts of more than {longest_prompt} tokens: only their ends are read")
    return texts


def _positions_for_prompts(pair: Pair, max_new_tokens: int) -> int:
    """Positions of the target that the sampled tokens leave to a prompt.

    Raises:
        SequoiaError: none.
    """
    positions = pair.target.positions
    remaining = positions - max_new_tokens - 1  # the first new token is not sampled
    if remaining < 1:
        raise SequoiaError(
            f"max-new-tokens: found {max_new_tokens}, but {pair.target.name} has only "
            f"{positions} positions"
        )
    return remaining


def _check_vocabulary(pair: Pair, tokens: Sequence[int]) -> None:
    """Refuse token ids that the target does not have.

    Raises:
        SequoiaError: with the first of them.
    """
    unknown = [token for token in tokens if not 0 <= token < pair.target.vocabulary]
    if unknown:
        raise SequoiaError(f"found token {unknown[0]}, expected 0 to {pair.target.vocabulary - 1}")


def _last_tokens(prompt: list[int], count: int, pair: Pair) -> list[int]:
    """The last `count` tokens of a prompt, a beginning-of-text token at its start included."""
    beginning = getattr(pair.tokenizer, "bos_token_id", None)
    if len(prompt) <= count or count < 2 or prompt[0] != beginning:
        return prompt[-count:]
    return [prompt[0], *prompt[1 - count :]]

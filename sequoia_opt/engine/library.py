"""What people would use instead of this program, on the same models: an engine's own library.

transformers is the library of the engine `torch`, llama.cpp's server that of `llama.cpp`. Knows
what a benchmark and a check of greedy tokens ask of it. Knows nothing of trees. Loads no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from sequoia_opt.plan.sampling import Sampling

if TYPE_CHECKING:
    from torch import Tensor

NONE, DRAFT, LOOKUP = "none", "draft", "lookup"
NO_DRAFT = "there is no draft model"


@dataclass(frozen=True)
class Speculation:
    """How a library speculates.

    Attributes:
        kind: "none"; "draft" for the pair's draft; "lookup" for prompt lookup; or one of the
            library's own names, as "ngram-simple".
        guesses: tokens guessed in each step; None for the library's own choice.
        threshold: the draft's probability below which a step guesses no further; llama.cpp's
            server takes it beside `guesses`, OpenVINO GenAI instead of them.
    """

    kind: str = NONE
    guesses: int | None = None
    threshold: float = 0.0


NO_SPECULATION = Speculation()


@dataclass(frozen=True)
class LibraryGeneration:
    """One prompt decoded by the library.

    Attributes:
        tokens: the new tokens.
        steps: forward passes of the target after prefill.
        timed: how many of the tokens came in `seconds`; prefill yields the first ones.
        seconds: time of these steps.
    """

    tokens: list[int]
    steps: int
    timed: int
    seconds: float


class Library(Protocol):
    """An engine's own library, for the models of one pair."""

    @property
    def reference(self) -> str:
        """Whose forward pass `text_logits` is, in the genitive."""
        ...

    def description(self) -> dict[str, str]:
        """Which version it is and how it was built, as far as the engine does not say that."""
        ...

    def remark(self) -> str:
        """What makes a comparison of speeds unfair; "" if nothing does."""
        ...

    def obstacle(self, speculation: Speculation, tokens: int) -> str:
        """Why it cannot decode so; "" if it can.

        Args:
            tokens: of the longest prompt and its new tokens.

        Raises:
            SequoiaError: the library is not there.
        """
        ...

    def generate(
        self,
        prompt: list[int],
        new_tokens: int,
        sampling: Sampling,
        speculation: Speculation = NO_SPECULATION,
    ) -> LibraryGeneration:
        """Decode a prompt, past end-of-text tokens.

        Args:
            sampling: how tokens are chosen; its verifier is not used.

        Raises:
            SequoiaError: the library is not there, or fails.
        """
        ...

    def text_logits(self, text: list[int], keep: int) -> Tensor:
        """The target's logits after a text's last tokens, in one forward pass over all of it.

        It shares nothing with this program's forward passes but the weights.

        Returns:
            [keep, vocabulary], float64.
        """
        ...

    def close(self) -> None:
        """End what it started."""
        ...

"""A target and a drafter that an engine has loaded, ready to decode.

Knows which roles there are, their names, and how text becomes tokens. Knows nothing of trees,
nor of how the engine runs the models.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sequoia_opt.engine.codec import Codec
from sequoia_opt.engine.distributed import ALONE, World
from sequoia_opt.engine.drafters import Drafter, LookupDrafter
from sequoia_opt.engine.library import Library
from sequoia_opt.engine.model import Machine, Model, TimedModel
from sequoia_opt.engine.text import Detokenizer, Tokenizer

ROLES = ("target", "draft")


@dataclass
class Pair:
    """A target and a drafter that share a tokenizer.

    Attributes:
        target: the model whose text is decoded.
        drafter: what proposes tokens: a draft model, or a lookup.
        lookup: what proposes tokens before the drafter is asked, by plans that look up first; None
            where nothing does.
        machine: the device that they run on.
        library: what people would use instead, on the same models.
        target_name, draft_name: short names, as in the files.
        fingerprints: of both, by role.
        tokenizer: None where the models' folders have none.
        end_tokens: tokens that end a text.
        random_weights: whether the models came without their weights, for their speed alone.
        offload: where layers of the target are that do not fit the device: "none", "cpu", "disk".
        memory_budget: bytes that an offloaded target may take on the device; None where all of it
            fits.
        world: the processes that the target is spread over.
        peers: the processes that each have a whole pair, and share out the work.
    """

    target: Model
    drafter: Drafter
    machine: Machine
    library: Library
    target_name: str
    draft_name: str
    fingerprints: dict[str, str]
    tokenizer: Tokenizer | None
    end_tokens: frozenset[int]
    random_weights: bool = False
    offload: str = "none"
    memory_budget: int | None = None
    world: World = ALONE
    peers: World = ALONE
    lookup: LookupDrafter | None = None
    _codec: Codec | None = field(default=None, repr=False, compare=False)

    @property
    def models(self) -> dict[str, TimedModel]:
        """What runs forward passes, by role."""
        draft = self.drafter.model
        return {"target": self.target} | ({} if draft is None else {"draft": draft})

    @property
    def draft(self) -> TimedModel:
        """The drafter's model.

        Raises:
            KeyError: the drafter runs no model.
        """
        return self.models["draft"]

    @property
    def about_draft(self) -> dict[str, Any]:
        """What files say of what drafts, besides its name and fingerprint."""
        return self.drafter.about | ({} if self.lookup is None else self.lookup.about)

    @property
    def device(self) -> torch.device:
        """Where the models are."""
        return self.machine.device

    @property
    def dtype(self) -> str:
        """The number type of the target's weights, as in the files."""
        return self.target.number_type

    @property
    def engine(self) -> str:
        """The name of the engine that runs the models."""
        return self.machine.engine

    @property
    def graphs(self) -> bool:
        """Whether steps are recorded and replayed."""
        return self.machine.graphs

    @property
    def positions(self) -> int:
        """The most tokens of a text that both target and drafter can take."""
        return min(self.target.positions, self.drafter.positions)

    @property
    def compiled(self) -> list[str]:
        """The roles whose forward passes in a step are compiled."""
        return [role for role, model in self.models.items() if model.compiled]

    def compile(self, roles: Collection[str] = ROLES, batch: int = 1) -> None:
        """Compile the forward passes of these roles from now on; takes a minute the first time.

        Args:
            batch: texts of a forward pass: 1, or any larger number.

        Raises:
            SequoiaError: a model cannot be compiled.
        """
        for role in roles:
            if role in self.models:
                self.models[role].compile(batch)

    @property
    def codec(self) -> Codec:
        """What turns text into tokens and back."""
        if self._codec is None or self._codec.tokenizer is not self.tokenizer:
            self._codec = Codec(self.tokenizer, self.target.name, self.target.positions)
        return self._codec

    @property
    def detokenizer(self) -> Detokenizer:
        """See `Codec.detokenizer`."""
        return self.codec.detokenizer

    def encode(self, text: str, beginning: bool = True) -> list[int]:
        """Token ids of a text; see `Codec.encode`."""
        return self.codec.encode(text, beginning)

    def decode(self, tokens: Sequence[int], context: Sequence[int] = ()) -> str:
        """Text of token ids; see `Codec.decode`."""
        return self.codec.decode(tokens, context)

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any] | None = None
    ) -> str:
        """The chat template's text of a conversation; see `Codec.render_chat`."""
        return self.codec.render_chat(messages, options)

    def encode_chat(
        self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any] | None = None
    ) -> list[int]:
        """Token ids of a conversation; see `Codec.encode_chat`."""
        return self.codec.encode_chat(messages, options)


def short_name(name: str) -> str:
    """A model's name for files and tables: a hub id as it is, a folder's last part."""
    return Path(name).resolve().name if Path(name).is_dir() else name

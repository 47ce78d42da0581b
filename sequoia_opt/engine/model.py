"""What the rest of the program asks of an engine: to load models, run them, and time itself.

An engine is a folder beside this file: `torch` runs transformers models. Everything else, the
decoder, the drafters, the profiler and the estimator, speaks to the protocols here, so that
another engine is another folder. Knows nothing of drafting or verifying.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from sequoia_opt.plan.tree import TokenTree


class Cache(Protocol):
    """Keys and values of one text, or of a batch of texts, in slots that were allocated once.

    Attributes:
        batch: texts that it holds.
        capacity: slots of each text.
    """

    batch: int
    capacity: int


class TreePass(Protocol):
    """A forward pass over all nodes of one tree, prepared once for that tree."""

    def score(self, cache: Any, tokens: Tensor, length: Tensor, bound: int) -> Tensor:
        """Run it.

        Args:
            cache: holds the text before the root.
            tokens: [size], each node's token.
            length: [1], how many tokens the cache holds.
            bound: at least `length`, known without asking the device.

        Returns:
            Logits [size, vocabulary] after each node, at least float32.
        """
        ...

    def accept(self, cache: Any, length: Tensor, last: Tensor) -> None:
        """Keep the path from the root to the node `last` [1], and drop the other nodes."""
        ...


class LevelPasses(Protocol):
    """Forward passes over a tree's internal nodes, level by level, prepared once for that tree.

    The first pass takes the root and the token before it, which the cache may lack; it may leave
    out that token where the cache has it.
    """

    def begin(self, cache: Any, length: Tensor, bound: int) -> Sequence[Any]:
        """What each level's pass needs in this step; see `TreePass.score` for the arguments."""
        ...

    def run(self, cache: Any, level: Any, tokens: Tensor, keep: bool = True) -> Tensor:
        """Logits [nodes, vocabulary] at one level's internal nodes.

        Args:
            level: that level's entry of what `begin` returned.
            tokens: of the level's internal nodes; of the first, the token before the root and the
                root.
            keep: whether the logits are read after the next forward pass over this cache.
        """
        ...

    def accept(self, cache: Any, length: Tensor, last: Tensor) -> None:
        """Keep the path to the node `last` [1]; a leaf at its end is not in the cache."""
        ...


class Likeliest(NamedTuple):
    """The likeliest next tokens after some nodes, on the host.

    Attributes:
        probabilities: [nodes][ranks], in order.
        tokens: [nodes][ranks].
    """

    probabilities: list[list[float]]
    tokens: list[list[int]]


class GrowingPasses(Protocol):
    """Forward passes over a tree whose nodes are not known before, a part of them in each pass.

    Nodes are numbered in the order in which they were run, from 0 in each step.
    """

    def begin(self, cache: Any, length: int, bound: int) -> None:
        """Begin a step behind the `length` tokens that the cache holds; what lies behind them is
        overwritten.

        Args:
            bound: at least `length`, see `Machine.bound_for`.
        """
        ...

    def run(self, tokens: Sequence[int], parents: Sequence[int], rows: int) -> Tensor:
        """One forward pass over new nodes, each of which sees the text and its ancestors.

        Args:
            tokens: of the nodes.
            parents: their numbers, of nodes before; of nodes in this pass, too. -1 for the text.
            rows: how many of the last nodes' logits are returned.

        Returns:
            [rows, vocabulary], at least float32; overwritten by the next pass over this cache.
        """
        ...

    def likeliest(
        self, tokens: Sequence[int], parents: Sequence[int], rows: int, ranks: int
    ) -> Likeliest:
        """`run`, of which the host reads no more than the likeliest next tokens.

        Args:
            ranks: how many after each of the last `rows` nodes.
        """
        ...

    def accept(self, path: Sequence[int]) -> None:
        """End the step: keep these nodes, in order, behind the text, and drop the others.

        Args:
            path: numbers of nodes, each the parent of the next one, the first without a parent.
        """
        ...


class HeadGrowingPasses(GrowingPasses, Protocol):
    """The same of a head on the target.

    A step's first pass takes tokens of the text alone, the later ones nodes behind these. None of
    the nodes is kept: an accepted one is read again, as a token of the text.
    """

    def take_states(self, before: Tensor) -> None:
        """Take what the first pass reads besides its tokens, once a step has begun.

        Args:
            before: [tokens, width], the target's hidden states at the token before each.
        """
        ...


class TimedModel(Protocol):
    """What forward passes are timed of: a model, or a head on one.

    Attributes:
        name: as the user gave it.
        parameters: how many it has.
        vocabulary: number of logits.
        positions: the most tokens that it can take.
        ends: the reason for a limit below the configuration's, or "".
        device: where it runs.
        dtype: of its logits, and on torch of its keys and values.
        number_type: of its weights, as files name it.
        compiled: whether its forward passes in a step are compiled.
    """

    name: str
    parameters: int
    vocabulary: int
    positions: int
    ends: str
    device: torch.device
    dtype: torch.dtype
    number_type: str
    compiled: bool

    @property
    def streamed_layers(self) -> int:
        """How many of its layers do not stay on the device."""
        ...

    @property
    def moved_bytes(self) -> int:
        """Bytes that each forward pass brings onto the device."""
        ...

    def reserve(self, capacity: int, batch: int = 1, branches: int = 1) -> Any:
        """A cache of at least `capacity` slots for `batch` texts, the caller's until released.

        Args:
            branches: leaves of the largest tree that is decoded in it.

        Raises:
            SequoiaError: it does not fit into the memory that is left.
        """
        ...

    def release(self, cache: Any) -> None:
        """Give a cache back, for the next caller that needs one."""
        ...

    def prefill(
        self, cache: Any, tokens: Tensor, pad: Tensor | None = None, held: int = 0
    ) -> Tensor:
        """Put prompts [batch, count] into a cache; logits [batch, vocabulary] after them.

        Args:
            pad: [batch], how many of each text's first tokens are padding.
            held: tokens before these that the cache holds already.
        """
        ...

    def pass_to_time(
        self, cache: Any, context: int, count: int, bound: int
    ) -> Callable[[], object]:
        """A forward pass over `count` tokens of each text at `context` cached ones, as in a step.

        Args:
            bound: see `TreePass.score`.
        """
        ...

    def compile(self, batch: int = 1) -> None:
        """Compile the forward passes of a step from now on; takes seconds to minutes.

        Raises:
            SequoiaError: the model cannot be compiled.
        """
        ...

    def check_logits_fit(self, count: int, batch: int) -> None:
        """Refuse a forward pass whose logits do not fit into the memory that is left.

        Raises:
            SequoiaError: they do not.
        """
        ...


class Model(TimedModel, Protocol):
    """One model that an engine has loaded."""

    @property
    def generation_config(self) -> Any:
        """The model's own settings for generation, as transformers has them; None without any."""
        ...

    def extend(
        self, cache: Any, tokens: Tensor, length: int, pad: Tensor | None = None, keep: int = 1
    ) -> Tensor:
        """One forward pass over tokens [batch, count] that follow `length` cached ones.

        Args:
            keep: how many of the last tokens' logits to return; 0 for all.
        """
        ...

    def read(
        self,
        cache: Any,
        tokens: Tensor,
        pad: Tensor | None = None,
        keep: int = 1,
        chunk: int | None = None,
        held: int = 0,
    ) -> Iterator[tuple[int, Tensor]]:
        """Put a text into a cache in chunks of bounded memory.

        Yields:
            For each chunk: the index of its first token, and its logits.
        """
        ...

    def tree_pass(self, tree: TokenTree) -> TreePass:
        """A forward pass over all of a tree's nodes."""
        ...

    def level_passes(self, tree: TokenTree) -> LevelPasses:
        """Forward passes over a tree's internal nodes, level by level."""
        ...

    def growing_passes(self, nodes: int, branches: int, likeliest: bool = False) -> GrowingPasses:
        """Forward passes over trees that grow while they are drafted.

        Args:
            nodes: the most nodes of a step, in all its passes.
            branches: the most leaves.
            likeliest: prepare what `GrowingPasses.likeliest` runs.
        """
        ...


class Machine(Protocol):
    """What an engine does with the device that its models run on.

    Attributes:
        engine: the engine's name in options and files.
        device: where its tensors are.
        graphs: whether steps are recorded and replayed.
        queues: whether work is issued first and done later, so that it is timed on the device.
        rebuilds: whether a forward pass takes longer if the one before had another number of
            tokens, since its graph is built anew.
        first_pass_tokens: of a draft model's first forward pass in most steps, see `draft_passes`.
        contexts: context lengths to measure by default.
    """

    engine: str
    device: torch.device
    graphs: bool
    queues: bool
    rebuilds: bool
    first_pass_tokens: int
    contexts: tuple[int, ...]

    @property
    def recording_seconds(self) -> float:
        """Time spent on recording so far; it is no part of decoding."""
        ...

    @property
    def hardware(self) -> dict[str, Any]:
        """The machine that the models run on; `slug` is the name of its folder."""
        ...

    @property
    def software(self) -> dict[str, str]:
        """Versions of the software that runs the models."""
        ...

    @property
    def settings(self) -> dict[str, Any]:
        """The engine's own settings that decide how fast it is, as files have them."""
        ...

    def capacity_for(self, length: int) -> int:
        """Slots to reserve, besides a tree's, for texts of `length` tokens."""
        ...

    def bound_for(self, length: int) -> int:
        """The bound that a step is given for a text of `length` tokens."""
        ...

    def prepared(self, step: Any) -> Any:
        """The step as the decoder is to call it: itself, or recorded and replayed."""
        ...

    def repeated(self, work: Callable[[], object]) -> Callable[[], object]:
        """Work to be done again and again, recorded where steps are."""
        ...

    def elapsed_ms(self, work: Callable[[], object], queued: bool = False) -> float:
        """Milliseconds that the work takes.

        Args:
            queued: time it on the device, issued behind itself, and not from outside.
        """
        ...

    def read_back(self, count: int) -> Callable[[Tensor], list[int]]:
        """What reads tensors of `count` whole numbers, and waits for nothing but them."""
        ...


class Caches(NamedTuple):
    """The caches of one text: the target's, the drafter's where it has one, and the index of the
    text where a plan looks up first."""

    target: Any
    draft: Any | None
    lookup: Any | None = None


@contextmanager
def reserved(model: Model, capacity: int, batch: int = 1, branches: int = 1) -> Iterator[Any]:
    """A cache of a model for a while; see `Model.reserve`."""
    cache = model.reserve(capacity, batch, branches)
    try:
        yield cache
    finally:
        model.release(cache)

"""Calls of a model's compiled graphs, without torch.compile's search for them.

In each call torch.compile looks for the graph that fits the arguments, and collects from Python
objects what the graph reads: every weight, every layer's keys and values, and their sizes. For the
bundled draft that takes as long as the forward pass itself. Here the number of tokens tells which
graph fits, and its inputs are listed once. Only the first call of each graph is torch.compile's; it
shows which inputs are the arguments'. Knows nothing of what a graph computes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from sequoia_opt.engine.torch.attention import KVCache, Masks

Outputs = tuple[Tensor, ...]


class GraphCalls:
    """A forward pass as graphs, each of which is compiled when it is first needed.

    Call it in inference mode.
    """

    def __init__(
        self,
        forward: Callable[..., Outputs],
        options: dict[str, Any],
        guard_filter: Callable[[Sequence[Any]], Sequence[bool]],
        fewest: Sequence[int],
    ) -> None:
        """Compile nothing yet.

        Args:
            forward: takes tensors, the first of which has a row for each text and a column for
                each token, then masks and a cache; returns tensors.
            options: of the compiler.
            guard_filter: which guards choose a graph, in calls of torch.compile.
            fewest: of each kind of number of tokens the fewest, in order. All numbers of a kind
                share a graph.
        """
        # Graphs are kept, and their number is limited, by code object: each model has its own.
        forward.__code__ = forward.__code__.replace()
        self._compiler = _Compiler(options)
        self._searched = torch.compile(
            forward,
            fullgraph=True,
            backend=self._compiler,
            options={"guard_filter_fn": guard_filter},
        )
        self._fewest = fewest
        self._listed: dict[Hashable, _ListedGraph | None] = {}

    def __call__(self, *arguments: Any) -> Outputs:
        """Run the graph that fits: tensors, masks and a cache, see `forward` of `__init__`."""
        *tensors, masks, cache = arguments
        used = next(iter(masks.values())).shape[-1]
        if used >= cache.capacity:  # which is compiled anew
            return self._search(arguments)[0]
        texts, tokens = tensors[0].shape
        kind = texts > 1, bisect_right(self._fewest, tokens)
        if (graph := self._listed.get(kind)) is not None:
            return graph(tensors, masks, cache)
        outputs, run = self._search(arguments)
        if kind not in self._listed:
            self._listed[kind] = _listed(run, tensors, masks, cache, outputs)
        return outputs

    def _search(self, arguments: Sequence[Any]) -> tuple[Outputs, _Run | None]:
        """Run the graph that torch.compile finds; returns what it ran, too."""
        outputs = self._searched(*arguments)
        run, self._compiler.last = self._compiler.last, None
        return outputs, run


class _Number(NamedTuple):
    """An input that is a number: a size of another one, or how it lies in memory.

    Attributes:
        place: index of the input.
        source: index of the tensor.
        read: reads the number off the tensor.
    """

    place: int
    source: int
    read: Callable[[Tensor], Any]


class _Run(NamedTuple):
    """A graph's last call.

    Attributes:
        graph: takes the inputs, returns the outputs.
        examples: what it was traced with: of sizes that may vary, their symbols.
        numbers: the inputs that are numbers; None if one belongs to no tensor.
        inputs, outputs: of the call.
    """

    graph: Callable[..., Sequence[Tensor]]
    examples: Sequence[Any]
    numbers: list[_Number] | None
    inputs: Sequence[Any]
    outputs: Sequence[Tensor]


class _Compiler:
    """Compiles graphs for torch.compile.

    Attributes:
        last: the last call of any of them.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options
        self.last: _Run | None = None

    def __call__(self, graph: torch.fx.GraphModule, examples: list[Any], **_: Any) -> Any:
        """Compile a graph; see the backends of torch.compile."""
        compiled: Any = torch._inductor.compile(graph, examples, self._options)
        placeholders = graph.graph.find_nodes(op="placeholder")
        traced = [node.meta.get("example_value") for node in placeholders]
        numbers = _numbers_of(traced)

        def run(*inputs: Any) -> Sequence[Tensor]:
            outputs: Sequence[Tensor] = compiled(*inputs)
            self.last = _Run(compiled, traced, numbers, inputs, outputs)
            return outputs

        return run


def _listed(
    run: _Run | None, tensors: Sequence[Tensor], masks: Masks, cache: KVCache, outputs: Outputs
) -> _ListedGraph | None:
    """A graph with its inputs listed; None if one of them, or an output, cannot be told, or if the
    graph is for some sizes only.

    Args:
        run: a call of it.
        tensors, masks, cache, outputs: of this call.
    """
    if run is None or run.numbers is None:
        return None
    arguments = {id(t): i for i, t in enumerate([*tensors, *masks.values()])}
    stored = {id(t): i for i, t in enumerate([*cache.keys, *cache.values])}
    returned = {id(t): i for i, t in enumerate(run.outputs)}
    is_ambiguous = len(arguments) < len(tensors) + len(masks)
    if is_ambiguous or any(id(t) not in returned for t in outputs):
        return None
    of_arguments = [(i, arguments[id(t)]) for i, t in enumerate(run.inputs) if id(t) in arguments]
    of_cache = [(i, stored[id(t)]) for i, t in enumerate(run.inputs) if id(t) in stored]
    texts, tokens = tensors[0].shape
    vary = {i: _varying_sizes(run.inputs[i], n >= len(tensors), tokens) for i, n in of_arguments}
    vary |= {i: [2] if texts == 1 else [0, 2] for i, _ in of_cache}  # the capacity
    if any(isinstance(run.examples[i].shape[d], int) for i, sizes in vary.items() for d in sizes):
        return None
    order = [returned[id(t)] for t in outputs]
    return _ListedGraph(
        run.graph, list(masks), run.inputs, of_arguments, of_cache, run.numbers, order
    )


def _varying_sizes(argument: Tensor, is_mask: bool, tokens: int) -> list[int]:
    """The dimensions of an argument that calls of the same kind may have of other sizes."""
    if is_mask:  # [1 or texts, 1, groups · tokens, slots]
        return [3] if tokens == 1 else [2, 3]
    return [d for d, size in enumerate(argument.shape) if size == tokens > 1]


def _numbers_of(inputs: Sequence[Any]) -> list[_Number] | None:
    """Which inputs are numbers that belong to tensors among them; None if one does not.

    Args:
        inputs: what a graph was traced with. Torch names each number by a symbol, which shows in
            the sizes of the tensors, or in how they lie in memory.
    """
    known: dict[str, tuple[int, Callable[[Tensor], Any]]] = {}
    for source, example in enumerate(inputs):
        if isinstance(example, Tensor):
            for read in _readers(example.dim()):
                known.setdefault(str(read(example)), (source, read))
    symbols = {i: str(value) for i, value in enumerate(inputs) if isinstance(value, torch.SymInt)}
    if any(symbol not in known for symbol in symbols.values()):
        return None
    return [_Number(place, *known[symbol]) for place, symbol in symbols.items()]


def _readers(dimensions: int) -> Iterator[Callable[[Tensor], Any]]:
    """What reads each number off a tensor of as many dimensions."""
    for dimension in range(dimensions):
        yield partial(Tensor.size, dim=dimension)
    for dimension in range(dimensions):
        yield partial(Tensor.stride, dim=dimension)
    yield Tensor.storage_offset


class _ListedGraph:
    """A graph whose inputs are listed: weights as they are, and where the others go."""

    def __init__(
        self,
        graph: Callable[..., Sequence[Tensor]],
        windows: Sequence[int | None],
        inputs: Sequence[Any],
        arguments: Sequence[tuple[int, int]],
        stored: Sequence[tuple[int, int]],
        numbers: Sequence[_Number],
        outputs: Sequence[int],
    ) -> None:
        """List them.

        Args:
            graph: takes the inputs.
            windows: of the masks, in order.
            inputs: of some call.
            arguments: (index of the input, number among the tensors and masks).
            stored: (index of the input, number among the cache's keys and values).
            outputs: which of the graph's outputs are the forward pass's, in order.
        """
        self._graph, self._windows, self._outputs = graph, windows, outputs
        self._arguments, self._stored = arguments, stored
        changing = {i for i, _ in arguments}
        kept = {i for i, _ in stored}
        self._numbers = [number for number in numbers if number.source in changing]
        self._stored_numbers = [number for number in numbers if number.source in kept]
        # Neither a cache nor a step's tensors are kept alive here.
        self._inputs = [None if i in changing | kept else value for i, value in enumerate(inputs)]
        self._of_cache: WeakKeyDictionary[KVCache, list[Any]] = WeakKeyDictionary()

    def __call__(self, tensors: Sequence[Tensor], masks: Masks, cache: KVCache) -> Outputs:
        """See `GraphCalls`."""
        inputs = self._with(cache).copy()
        arguments = [*tensors, *(masks[window] for window in self._windows)]
        for index, number in self._arguments:
            inputs[index] = arguments[number]
        for index, source, read in self._numbers:
            inputs[index] = read(inputs[source])
        outputs = self._graph(*inputs)
        return tuple(outputs[index] for index in self._outputs)

    def _with(self, cache: KVCache) -> list[Any]:
        """The inputs with a cache's."""
        inputs = self._of_cache.get(cache)
        if inputs is None:
            inputs = list(self._inputs)
            tensors = [*cache.keys, *cache.values]
            for index, number in self._stored:
                inputs[index] = tensors[number]
            for index, source, read in self._stored_numbers:
                inputs[index] = read(inputs[source])
            self._of_cache[cache] = inputs
        return inputs

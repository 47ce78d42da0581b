"""Trees that grow at random, and the logits of their nodes read one path at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sequoia_opt.engine.model import GrowingPasses, reserved


def logits_after(model: Any, text: list[int]) -> Tensor:
    """The logits after a text, read into a cache of its own."""
    with reserved(model, len(text)) as cache:
        return model.prefill(cache, torch.tensor([text], device=model.device))[0].clone()


def grow_and_compare(
    model: Any,
    passes: GrowingPasses,
    cache: Any,
    seed: int,
    steps: int,
    tolerance: float,
    bound: int = 0,
) -> None:
    """Grow trees at random, accept a random path of each, and compare every node's logits.

    A step begins with up to three tokens of the text that the cache lacks; nodes come in up to
    four passes, and a pass may hold nodes and their children. The bound given to a step is at
    least `bound`.
    """
    random = np.random.default_rng(seed)
    text = random.integers(0, model.vocabulary, 9).tolist()
    model.prefill(cache, torch.tensor([text], device=model.device))
    for _ in range(steps):
        passes.begin(cache, len(text), max(bound, len(text)))
        tokens: list[int] = []
        parents: list[int] = []
        trunk = int(random.integers(1, 4))
        for pass_number in range(int(random.integers(1, 5))):
            first, count = len(tokens), int(random.integers(1, 5))
            if pass_number == 0:
                new = list(range(-1, trunk - 1))
                if random.random() < 0.5:  # the target's pass: the whole tree at once
                    new += sorted(int(random.integers(trunk - 1, trunk + 1)) for _ in range(count))
                    new = [min(parent, node - 1) for node, parent in enumerate(new)]
            else:
                new = sorted(int(random.integers(trunk - 1, first)) for _ in range(count))
            given = random.integers(0, model.vocabulary, len(new)).tolist()
            tokens += given
            parents += new
            rows = int(random.integers(1, len(new) + 1))
            logits = passes.run(given, new, rows)
            assert logits.shape == (rows, model.vocabulary)
            for row in range(rows):
                node = len(tokens) - rows + row
                path = path_to(node, parents)
                alone = logits_after(model, text + [tokens[v] for v in path])
                assert torch.allclose(logits[row], alone, atol=tolerance, rtol=0), (row, parents)
        path = path_to(int(random.integers(trunk - 1, len(tokens))), parents)
        passes.accept(path)
        text += [tokens[node] for node in path]


def path_to(node: int, parents: list[int]) -> list[int]:
    path = []
    while node >= 0:
        path.append(node)
        node = parents[node]
    return path[::-1]

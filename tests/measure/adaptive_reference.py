"""Adaptive greedy decoding written out: every path is read alone, nothing is cached."""

from __future__ import annotations

from typing import Any

import torch

from sequoia_opt.plan.growth import Growth
from sequoia_opt.plan.policy import Policy


class Reference:
    """Decodes with a pair's own models.

    Args:
        target, draft: transformers models.
    """

    def __init__(self, target: Any, draft: Any, policy: Policy) -> None:
        self.target, self.draft, self.policy = target, draft, policy

    def steps(self, prompt: list[int], new_tokens: int) -> list[tuple[list[int], int, list[int]]]:
        """Each step's tokens, the size of its target pass and the widths of its draft passes.

        Args:
            new_tokens: at least so many, the first of which comes before the first step.
        """
        text = [*prompt, self._best(self.target, prompt)]
        taken: list[tuple[list[int], int, list[int]]] = []
        misses = plain = pauses = 0
        pause = self.policy.pause
        while len(text) < len(prompt) + new_tokens:
            if plain:
                plain -= 1
                tokens = [self._best(self.target, text)]
                taken.append((tokens, 1, []))
                text += tokens
                continue
            tokens, size, widths = self._step(text)
            taken.append((tokens, size, widths))
            text += tokens
            if pause is None:
                continue
            misses = misses + 1 if len(tokens) == 1 else 0
            if len(tokens) > 1:
                pauses = 0
            if misses >= pause.misses:
                plain = pause.steps[min(pauses, len(pause.steps) - 1)]
                pauses += 1
        return taken

    def _step(self, text: list[int]) -> tuple[list[int], int, list[int]]:
        growth = Growth(self.policy)
        paths: list[list[int]] = [[]]
        while nodes := growth.next_level():
            rows = []
            for node in nodes:
                values, guesses = self._likely(text + paths[node])
                rows.append(values)
                paths += [[*paths[node], guess] for guess in guesses]
            growth.add(nodes, rows)
        grown = growth.finish(fill=True)
        offered = {tuple(paths[node]) for node in grown.nodes}
        tokens: list[int] = []
        while True:
            tokens.append(self._best(self.target, text + tokens))
            if tuple(tokens) not in offered:
                return tokens, grown.size, growth.widths

    def _likely(self, text: list[int]) -> tuple[list[float], list[int]]:
        with torch.no_grad():
            logits = self.draft(torch.tensor([text]), use_cache=False).logits[0, -1]
        likely = logits.softmax(-1).topk(self.policy.ranks)
        return likely.values.tolist(), likely.indices.tolist()

    @staticmethod
    def _best(model: Any, text: list[int]) -> int:
        with torch.no_grad():
            return int(model(torch.tensor([text]), use_cache=False).logits[0, -1].argmax())

"""Which guesses of a head a text takes, by depth, in steps that begin at each of its tokens.

A step's first guess follows from the target's hidden states, each later one from the head's own
outputs, so that acceptance falls with the depth. The text is followed from every position, at full
width, along its own tokens. Knows forward passes and verifiers. Knows nothing of trees.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from sequoia_opt.engine.drafters import HeadDrafter
from sequoia_opt.engine.pair import Pair
from sequoia_opt.engine.verify import Verifier, node_rule
from sequoia_opt.measure.continuations import Continuation
from sequoia_opt.measure.roots_together import extent, widest_passes
from sequoia_opt.measure.sample_texts import SampleText
from sequoia_opt.measure.text_followers import HeadReader
from sequoia_opt.measure.trials import Sampler
from sequoia_opt.plan.recording import Envelope
from sequoia_opt.plan.tree import IntArray


def follow_paths(
    pair: Pair,
    drafter: HeadDrafter,
    sampler: Sampler,
    texts: Sequence[SampleText],
    continuations: Sequence[Continuation],
    depths: int,
    width: int,
) -> Iterator[int]:
    """Follow a batch of texts, and note their ranks in their tallies, see `Tally.paths`.

    Args:
        sampler: the tallies of these texts.
        width: ranks to offer, W.

    Yields:
        The number of positions followed since the last one.

    Raises:
        SequoiaError: a cache does not fit into memory.
    """
    longest = max(len(text.prompt) + text.new_tokens for text in texts)
    with HeadPaths(pair, drafter, sampler.verifier, depths, width, longest) as paths:
        for text, tally, continuation in zip(texts, sampler.tallies, continuations, strict=True):
            tally.paths = paths.follow(text.prompt, continuation.tokens).tolist()
            yield len(tally.trace)


class HeadPaths:
    """Follows texts of one pair and one verifier.

    Use it as a context manager: its caches are given back at the end.
    """

    def __init__(
        self,
        pair: Pair,
        drafter: HeadDrafter,
        verifier: Verifier,
        depths: int,
        width: int,
        longest: int,
    ) -> None:
        """Reserve caches.

        Args:
            width: ranks to offer, W.
            longest: tokens of the longest text, prompt and continuation.

        Raises:
            SequoiaError: one does not fit into memory.
        """
        self._drafter, self._rule, self._width = drafter, node_rule(verifier), width
        self._path = Envelope(depths, slots=1, ranks=1)
        self._roots, passes = widest_passes(drafter.growing_passes, self._path)
        self._reader = HeadReader(pair, passes, verifier, longest)
        nodes, branches = extent(self._path, self._roots)
        try:
            self._cache = drafter.reserve(pair.machine.capacity_for(longest) + nodes, 1, branches)
        except BaseException:
            self._reader.release()
            raise

    def __enter__(self) -> HeadPaths:
        return self

    def __exit__(self, *_: object) -> None:
        self._drafter.release(self._cache)
        self._reader.release()

    @torch.inference_mode()
    def follow(self, prompt: Sequence[int], tokens: Sequence[int]) -> IntArray:
        """Follow one document.

        Args:
            prompt: its tokens, at least one.
            tokens: the text behind them.

        Returns:
            [depths, positions], see `Tally.paths`; all tokens but the last are positions.
        """
        text = np.array(tokens, np.int64)
        paths = np.zeros((self._path.levels, max(0, len(text) - 1)), np.int64)
        if paths.size:
            self._reader.read(self._cache, prompt, text[:-1])
        for start in range(0, paths.shape[1], self._roots):
            part = paths[:, start : start + self._roots]
            self._follow_from(start, text, part, len(prompt) + start)
        return paths

    def _follow_from(self, start: int, text: IntArray, paths: IntArray, length: int) -> None:
        """Follow the text from some of its positions on.

        Args:
            start: the first of these positions.
            paths: [depths, roots], to be filled.
            length: tokens before the first of them.
        """
        roots = paths.shape[1]
        padded = np.append(text, np.zeros(len(paths), np.int64))
        followed = np.arange(roots)  # whose text has been accepted so far
        parents = np.arange(-1, roots - 1)
        self._reader.begin(self._cache, length, roots)
        for depth, ranks in enumerate(paths):
            followed = followed[start + depth + followed + 1 < len(text)]
            if not followed.size:
                break
            tokens = padded[start + depth : start + depth + roots]
            # All roots go on, so that every pass has the same shape.
            logits = self._reader.passes.run(tokens.tolist(), parents.tolist(), roots)
            positions = start + depth + followed
            said = logits[torch.from_numpy(followed).to(logits.device)]
            guesses = self._rule.guess(said, self._width, self._reader.uniforms).tokens
            _, ranks[followed] = self._reader.taken(
                positions, said, text[positions + 1], guesses.cpu().numpy()
            )
            followed = followed[ranks[followed] > 0]
            parents = np.arange(roots) + roots * depth
        self._reader.passes.accept(range(roots))

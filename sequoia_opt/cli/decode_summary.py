"""What `decode` prints after a text: its speed, and how it compares with the predictions.

Knows generations and results. Knows nothing of how they were measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sequoia_opt.cli.output import out

if TYPE_CHECKING:
    from sequoia_opt.engine.decoder import Generation
    from sequoia_opt.measure.divergence import Divergence
    from sequoia_opt.plan.tree import TokenTree


def generation_summary(
    generation: Generation, tree: TokenTree | None, times_apply: bool = True
) -> None:
    """Print a generation's speed, and its distance from the prediction.

    Args:
        tree: the tree whose prediction is of this; None where it is of something else.
        times_apply: whether the tree's predicted times are of this too.
    """
    out.print(
        f"{len(generation.tokens)} tokens in {generation.steps} steps after the first: "
        f"{generation.tokens_per_step:.2f} tokens per step, "
        f"{generation.tokens_per_second:.1f} tokens/s"
    )
    if tree is not None and not tree.speculates:
        out.print("the tree has one node: plain decoding")
    predicted = None if tree is None else tree.predicted_tokens
    if tree is None or predicted is None or not generation.steps:
        return
    error = _error(generation.tokens_per_step, predicted)
    line = f"predicted: {predicted:.2f} tokens per step ({error})"
    if times_apply and "predicted" in tree.metadata:
        speed = tree.metadata["predicted"]["tokens_per_second"]
        line += f", {speed:.1f} tokens/s ({_error(generation.tokens_per_second, speed)})"
    out.print(line)


def growth_summary(generation: Generation) -> None:
    """Print how large the trees of an adaptive plan grew."""
    if not generation.steps:
        return
    shares = {size: count / generation.steps for size, count in sorted(generation.sizes.items())}
    sizes = ", ".join(f"{size} in {100 * share:.0f}%" for size, share in shares.items())
    levels = sum(level * count for level, count in generation.levels.items()) / generation.steps
    out.print(f"tokens verified: {sizes} of the steps; levels drafted: {levels:.2f} per step")
    if generation.looked_up:
        share = 100 * generation.looked_up / generation.steps
        out.print(f"drafted by lookup before the model: {share:.0f}% of the steps")


def _error(measured: float, predicted: float) -> str:
    return f"measured {measured:.2f}, {100 * (measured / predicted - 1):+.1f}%"


def divergences(differing: Sequence[tuple[int, Divergence]], prompts: int) -> None:
    """Print whether greedy tokens agree with plain decoding's.

    Args:
        differing: the prompts, numbered from 0, whose tokens differ, and where.
        prompts: how many prompts were compared.
    """
    if not differing:
        out.print(f"greedy tokens agree with plain decoding on {_prompts(prompts)}")
    for prompt, divergence in differing:
        out.print(
            f"prompt {prompt + 1}: tokens differ from plain decoding's from token "
            f"{divergence.place + 1} on, where the target's two best logits are "
            f"{divergence.gap:.1e} apart"
        )


def library_divergences(
    differing: Sequence[tuple[int, Divergence]], prompts: int, library: str
) -> None:
    """Print whether greedy tokens agree with the library's own forward pass; see `divergences`.

    Args:
        library: its name.
    """
    if not differing:
        out.print(f"greedy tokens agree with {library} own forward pass on {_prompts(prompts)}")
    for prompt, divergence in differing:
        out.print(
            f"prompt {prompt + 1}: {library} own forward pass has another best token at token "
            f"{divergence.place + 1}, by a logit that is {divergence.gap:.1e} larger"
        )


def _prompts(count: int) -> str:
    return "1 prompt" if count == 1 else f"all {count} prompts"

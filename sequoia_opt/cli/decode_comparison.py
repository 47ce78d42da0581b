"""`decode --compare`: decodes with and without the tree, and compares times and tokens.

Knows how both are run and printed. Knows nothing of options or files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from sequoia_opt.cli.decode_summary import divergences, library_divergences
from sequoia_opt.cli.decoding_options import Decoding, DecodingOptions
from sequoia_opt.cli.tree_defaults import Comparable

if TYPE_CHECKING:
    from sequoia_opt.measure.divergence import Divergence
    from sequoia_opt.measure.methods import Method
    from sequoia_opt.measure.race import Result


@dataclass(frozen=True)
class Comparison:
    """Plain decoding and the tree's on the same prompts.

    Attributes:
        results: of plain decoding, then of the plan if that drafts anything.
        from_plain: the prompts, numbered from 0, whose greedy tokens differ between the two, and
            where; None above temperature 0, where texts are drawn.
        from_library: the same for greedy tokens and the library's own forward pass.
        library: its name.
        prompts: how many were compared.
        checked: how many of them were compared with the library.
    """

    results: list[Result]
    from_plain: list[tuple[int, Divergence]] | None
    from_library: list[tuple[int, Divergence]]
    library: str
    prompts: int
    checked: int

    def document(self) -> dict[str, Any]:
        """The comparison as --json prints it."""
        document: dict[str, Any] = {"results": [asdict(result) for result in self.results]}
        if self.from_plain is not None:
            document["divergences"] = _documents(self.from_plain)
        library = {"prompts": self.checked, "divergences": _documents(self.from_library)}
        return document | {"library": library}


def compare_with_plain(
    decoding: Decoding, prompts: Sequence[list[int]], options: DecodingOptions, repeats: int
) -> Comparison:
    """Decode every prompt plainly and with the tree, and check both against the library.

    Args:
        prompts: token ids.
        repeats: how often each prompt is decoded in each way.
    """
    from sequoia_opt.cli.output import progress
    from sequoia_opt.measure import methods
    from sequoia_opt.measure.divergence import library_divergence
    from sequoia_opt.measure.race import race
    from sequoia_opt.plan.tree import AUTOREGRESSIVE

    pair, logits_options = decoding.pair, decoding.logits_options
    sampling = asdict(decoding.sampling)
    shapes = {"plain": AUTOREGRESSIVE}
    if decoding.tree.speculates:  # a tree of one node is plain decoding
        shapes["tree"] = decoding.tree
    contestants = [
        methods.with_tree(
            pair, name, shape, **sampling, seed=options.seed, logits_options=logits_options
        )
        for name, shape in shapes.items()
    ]
    new_tokens = options.max_new_tokens
    with progress("comparing") as advance:
        raced = race(contestants, prompts, new_tokens, repeats, advance)
    results = raced.results()
    is_greedy = decoding.sampling.temperature == 0
    if is_greedy:
        greedy_texts = [run.tokens for run in raced.runs[-1]]
    else:  # the library can be compared with greedy tokens only
        greedy = methods.with_tree(
            pair, "greedy", decoding.tree, temperature=0.0, logits_options=logits_options
        )
        greedy_texts = [greedy.run(prompts[0], new_tokens).tokens]
    from_library = [
        (index, divergence)
        for index, (prompt, text) in enumerate(zip(prompts, greedy_texts, strict=False))
        if (divergence := library_divergence(pair, prompt, text, logits_options)) is not None
    ]
    from_plain: list[tuple[int, Divergence]] | None = [] if is_greedy else None
    if is_greedy and results[-1].agreement < 1:
        from_plain = _divergences(decoding, contestants, prompts, new_tokens)
    return Comparison(
        results, from_plain, from_library, pair.library.reference, len(prompts), len(greedy_texts)
    )


def _divergences(
    decoding: Decoding, contestants: Sequence[Method], prompts: Sequence[list[int]], new_tokens: int
) -> list[tuple[int, Divergence]]:
    """The prompts whose tokens differ between plain decoding and the tree's, and where."""
    from sequoia_opt.measure.divergence import divergence

    differing = []
    for index, prompt in enumerate(prompts):
        plain, with_tree = (method.run(prompt, new_tokens).tokens for method in contestants)
        difference = divergence(decoding.pair, prompt, plain, with_tree, decoding.logits_options)
        if difference is not None:
            differing.append((index, difference))
    return differing


def _documents(differing: Sequence[tuple[int, Divergence]]) -> list[dict[str, Any]]:
    return [{"prompt": index, **asdict(divergence)} for index, divergence in differing]


def print_comparison(
    comparison: Comparison, decoding: Decoding, new_tokens: int, predicts: Comparable
) -> None:
    """Print a comparison: a table, the predictions, and the divergences.

    Args:
        predicts: which of the tree's predictions apply.
    """
    from sequoia_opt.cli.bench_tables import prediction_lines, race_table
    from sequoia_opt.cli.output import counted, out

    temperature = decoding.sampling.temperature
    prompts = counted(comparison.prompts, "prompt")
    title = f"{prompts}, {new_tokens} tokens each, temperature {temperature:g}"
    race_table(comparison.results, title, greedy=temperature == 0)
    if not decoding.tree.speculates:
        out.print("the tree has one node: plain decoding, so there is nothing to compare")
    elif predicts.tokens:
        prediction_lines(comparison.results[1], decoding.tree, predicts.times)
    if comparison.from_plain is not None and decoding.tree.speculates:
        divergences(comparison.from_plain, comparison.prompts)
    library_divergences(comparison.from_library, comparison.checked, comparison.library)

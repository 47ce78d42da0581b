"""Compares greedy tokens of trees and plain decoding: `python tests/benchmarks/greedy.py FILE…`.

Decodes every prompt of the datasets plainly and with each of a few trees. In float64 the tokens
must be identical. In lower precision they may diverge where the target's two best logits are
closer than rounding; such divergences are counted and printed. Exits with 1 on any other one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sequoia_opt import load_pair
from sequoia_opt.api import load_dataset
from sequoia_opt.engine.decoder import Decoder
from sequoia_opt.measure.divergence import divergence
from sequoia_opt.plan import shapes
from sequoia_opt.plan.tree import AUTOREGRESSIVE, TokenTree
from sequoia_opt.repository import paths

# The largest difference of two logits that rounding explains: forward passes of different widths
# add up in different orders.
ROUNDING = {"float64": 0.0, "float32": 1e-3, "bfloat16": 0.5, "float16": 0.1}


def main(
    datasets: Annotated[list[Path], typer.Argument(help="Datasets with `prompt` or `text`.")],
    dtype: Annotated[str, typer.Option(help="Data type of both models.")] = "float64",
    new_tokens: Annotated[int, typer.Option(help="Tokens to decode for each prompt.")] = 64,
    limit: Annotated[
        int | None, typer.Option(help="Use only this many prompts of each dataset.")
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="Target model.", show_default="bundled")
    ] = None,
    draft: Annotated[str | None, typer.Option(help="Draft model.", show_default="bundled")] = None,
) -> None:
    """Print a row for each dataset and tree."""
    pair = load_pair(target, draft, dtype=dtype)
    trees = {
        "solved": TokenTree.load(paths.bundled_tree(0.0)),
        "4 sequences of 7": shapes.k_sequences(4, 8),
        "3-ary, 3 deep": shapes.k_ary(3, 3),
    }
    failed = False
    print("| dataset | tree | prompts | identical | divergent | largest gap of two best logits |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for path in datasets:
        name, documents = load_dataset(path)
        prompts = [pair.encode(d.prompt or d.text) for d in documents[:limit]]
        plain = Decoder(pair, AUTOREGRESSIVE)
        texts = [plain.generate(prompt, new_tokens, ignore_eos=True).tokens for prompt in prompts]
        for label, tree in trees.items():
            decoder, gaps = Decoder(pair, tree), []
            for prompt, plain_tokens in zip(prompts, texts, strict=True):
                tree_tokens = decoder.generate(prompt, new_tokens, ignore_eos=True).tokens
                if divergent := divergence(pair, prompt, plain_tokens, tree_tokens):
                    gaps.append(divergent.gap)
            largest = max(gaps, default=0.0)
            failed |= bool(gaps) and largest >= ROUNDING[dtype]
            row = [name, label, len(prompts), len(prompts) - len(gaps), len(gaps), f"{largest:.1e}"]
            print("| " + " | ".join(map(str, row)) + " |", flush=True)
    raise typer.Exit(int(failed))


if __name__ == "__main__":
    typer.run(main)

"""Greedy decoding with trees against plain decoding: `python tests/benchmarks/greedy.py FILE…`.

Every prompt of the datasets is decoded plainly and with each of a few trees. In float64 the
tokens must be the same, one for one; in float32 and below texts may part where the target's two
best logits are closer than rounding, which is counted and shown. Exits 1 on any other difference.
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

# Two forwards of different widths add up in another order: so far apart logits may end up.
ROUNDING = {"float64": 0.0, "float32": 1e-3, "bfloat16": 0.5, "float16": 0.1}


def main(
    datasets: Annotated[list[Path], typer.Argument(help="Files with `prompt` or `text`.")],
    dtype: Annotated[str, typer.Option(help="Of both models.")] = "float64",
    new_tokens: Annotated[int, typer.Option(help="Tokens of each prompt.")] = 64,
    limit: Annotated[int | None, typer.Option(help="Prompts of each dataset.")] = None,
    target: Annotated[str | None, typer.Option(help="Default: the bundled pair.")] = None,
    draft: Annotated[str | None, typer.Option(help="Likewise.")] = None,
) -> None:
    """Print a row for each dataset and tree."""
    pair = load_pair(target, draft, dtype=dtype)
    trees = {
        "solved": TokenTree.load(paths.bundled_tree(0.0)),
        "4 sequences of 7": shapes.k_sequences(4, 8),
        "3-ary, 3 deep": shapes.k_ary(3, 3),
    }
    failed = False
    print("| dataset | tree | prompts | the same | parted | largest gap of two best logits |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for path in datasets:
        name, documents = load_dataset(path)
        prompts = [pair.encode(d.prompt or d.text) for d in documents[:limit]]
        plain = Decoder(pair, AUTOREGRESSIVE)
        wanted = [plain.generate(prompt, new_tokens, ignore_eos=True).tokens for prompt in prompts]
        for label, tree in trees.items():
            decoder, gaps = Decoder(pair, tree), []
            for prompt, tokens in zip(prompts, wanted, strict=True):
                found = decoder.generate(prompt, new_tokens, ignore_eos=True).tokens
                if parted := divergence(pair, prompt, tokens, found):
                    gaps.append(parted.gap)
            largest = max(gaps, default=0.0)
            failed |= bool(gaps) and largest >= ROUNDING[dtype]
            row = [name, label, len(prompts), len(prompts) - len(gaps), len(gaps), f"{largest:.1e}"]
            print("| " + " | ".join(map(str, row)) + " |", flush=True)
    raise typer.Exit(int(failed))


if __name__ == "__main__":
    typer.run(main)

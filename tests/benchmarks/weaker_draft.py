"""Writes a draft that guesses worse than another: `python tests/benchmarks/weaker_draft.py FOLDER`.

Each of its matrices gets normal noise, in proportion to the spread of its numbers. The more noise,
the less often its first guess is right; it takes as long as before. Plans for drafts that are
less sure can so be raced without training one.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import torch
import typer
from safetensors.torch import load_file, save_file

from sequoia_opt import demo


def main(
    output: Annotated[Path, typer.Argument(help="Folder to write the draft into.")],
    noise: Annotated[
        float, typer.Option(help="Standard deviation of the noise, in those of the matrix.")
    ] = 0.2,
    draft: Annotated[
        Path | None, typer.Option(help="Folder of a draft; by default bundled.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
) -> None:
    """Write a draft with noise on its matrices."""
    source = draft or Path(demo.resolve(demo.DRAFT_NAME))
    shutil.copytree(source, output)
    generator = torch.Generator().manual_seed(seed)
    weights = load_file(source / "model.safetensors")
    for name, weight in weights.items():
        if weight.ndim == 2:
            exact = weight.float()
            noisy = exact + noise * exact.std() * torch.randn(exact.shape, generator=generator)
            weights[name] = noisy.to(weight.dtype)
    save_file(weights, output / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    typer.run(main)

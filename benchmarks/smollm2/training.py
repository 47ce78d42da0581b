"""Trains a model on windows for some minutes or steps: `fit`, and the options of its commands.

Knows optimisers and schedules. Knows nothing of models and losses.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from data import LENGTH
from torch import Tensor, nn
from windows import Windows

MUON_LR, ADAM_LR, WARM_UP = 0.02, 3e-3, 0.03

Record = dict[str, object]


class Muon(torch.optim.Optimizer):
    """Momentum whose steps are made orthogonal (Jordan et al., 2024).

    torch.optim.Muon always computes in bfloat16, which processors without it are slow at.
    """

    def __init__(self, matrices: list[nn.Parameter], lr: float) -> None:
        super().__init__(matrices, dict(lr=lr))

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Take a step."""
        for group in self.param_groups:
            for matrix in group["params"]:
                momentum = self.state[matrix].setdefault("momentum", torch.zeros_like(matrix))
                momentum.lerp_(matrix.grad, 0.05)
                direction = orthogonal(matrix.grad.lerp(momentum, 0.95))
                scale = max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
                matrix.mul_(1 - group["lr"] * 0.02).sub_(direction, alpha=group["lr"] * scale)


def orthogonal(matrix: Tensor) -> Tensor:
    """About the nearest matrix with orthogonal rows or columns, by Newton-Schulz iteration."""
    rows = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    rows = rows / (rows.norm() + 1e-7)
    for _ in range(5):
        gram = rows @ rows.T
        rows = 3.4445 * rows + (-4.775 * gram + 2.0315 * gram @ gram) @ rows
    return rows.T if matrix.shape[0] > matrix.shape[1] else rows


def fit(
    model: nn.Module,
    loss_of: Callable[[dict[str, np.ndarray]], Tensor],
    measure: Callable[[], Record],
    save: Callable[[Record], None],
    windows: Windows,
    options: argparse.Namespace,
) -> None:
    """Train until the time is over; report and save now and then.

    The rate of learning rises, stays, and falls to 0 in the last `options.decay` of the time.

    Args:
        model: its matrices are trained by Muon, what is an embedding or a head by Adam.
        loss_of: of some windows.
        measure: how good the model is on the held-out windows.
        save: write the model, given the record of its training so far.
    """
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    matrices = [
        p for name, p in trained if p.ndim == 2 and not ("embed" in name or "lm_head" in name)
    ]
    others = [p for _, p in trained if all(p is not matrix for matrix in matrices)]
    optimizers = [
        Muon(matrices, MUON_LR),
        torch.optim.Adam(others, ADAM_LR, betas=(0.9, 0.95), fused=True),
    ]
    random = np.random.default_rng(options.seed)
    started, step, losses, curve = time.perf_counter(), 0, list[float](), list[Record]()
    progress = 0.0
    products = torch.autocast("cpu", torch.bfloat16, enabled=options.bfloat16)
    while progress < 1.0:
        with products:
            loss = loss_of(windows.draw(options.batch, random))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, rate in zip(optimizers, (MUON_LR, ADAM_LR), strict=True):
            factor = min(1.0, (progress + 1e-3) / WARM_UP, (1 - progress) / options.decay)
            optimizer.param_groups[0]["lr"] = rate * options.rate * factor
            with products:
                optimizer.step()
        model.zero_grad()
        losses.append(loss.item())
        step += 1
        minutes = (time.perf_counter() - started) / 60
        progress = step / options.steps if options.steps else minutes / options.minutes
        if step % options.report == 0 or progress >= 1.0:
            windows.refresh()
            point: Record = dict(step=step, minutes=round(minutes, 1), windows=windows.count)
            point |= dict(loss=round(float(np.mean(losses)), 4)) | measure()
            losses = []
            curve.append(point)
            print(json.dumps(point), flush=True)
            save(
                dict(
                    seed=options.seed,
                    steps=step,
                    tokens_per_step=options.batch * (LENGTH - 1),
                    parameters=sum(p.numel() for _, p in trained),
                    training_tokens=windows.count * LENGTH,
                    curve=curve,
                )
            )


def parsed_options(description: str | None, batch: int) -> argparse.Namespace:
    """The options of a training command; the number of threads and the seed are set."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("target", type=Path)
    parser.add_argument("folder", type=Path, help="folder of the windows")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=30, help="how long to train")
    parser.add_argument("--steps", type=int, default=0, help="train for this many steps instead")
    parser.add_argument("--batch", type=int, default=batch, help="windows in a step")
    parser.add_argument("--rate", type=float, default=1.0, help="factor of the learning rates")
    parser.add_argument("--decay", type=float, default=0.7, help="share of the time with a decay")
    parser.add_argument("--report", type=int, default=100, help="steps between two reports")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--bfloat16", action="store_true", help="multiply in bfloat16, for processors that can"
    )
    parser.add_argument("--continue-from", type=Path, help="a saved result to begin with")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    options.output.mkdir(parents=True, exist_ok=True)
    return options


def write_record(folder: Path, name: str, record: Record) -> None:
    """Write how something was trained."""
    (folder / name).write_text(json.dumps(record, indent=1) + "\n")

"""Distils the target into the draft: `python train.py TARGET.gguf FOLDER --minutes 30`.

The draft learns the target's probabilities on the windows that `data.py` writes, while more of
them appear. Knows losses and optimisers. Knows nothing of how the windows came to be.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from data import LENGTH, QUESTION, TEMPLATE
from draft import SIZES, begin_from, build, hidden_states
from torch import Tensor
from transformers import LlamaModel

from sequoia_opt.engine.torch.gguf_model import config_of, model_of

COMMON, OTHERS = 4096, 512  # tokens in a step's loss: the commonest, and a sample of all others
SHARPNESS = 0.3  # weight of the squared probabilities, since greedy decoding needs the best token
QUESTION_WEIGHT = 0.3  # of a question's token in the loss; an answer's has 1
HELD_OUT = 16  # windows of the first file that are only measured on
MUON_LR, ADAM_LR, WARM_UP = 0.02, 3e-3, 0.03


class Windows:
    """All windows that have been written so far, the held-out ones apart.

    Attributes:
        held_out: windows that training never sees.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._names, self._files = folder, set[str](), []
        self.refresh()
        self.held_out = {name: values[:HELD_OUT] for name, values in self._files[0].items()}
        self._files[0] = {name: values[HELD_OUT:] for name, values in self._files[0].items()}

    def refresh(self) -> None:
        """Read the files that are new."""
        for path in sorted(self._folder.glob("??????.npz")):
            if path.name not in self._names:
                self._names.add(path.name)
                with np.load(path) as arrays:
                    self._files.append({name: arrays[name] for name in arrays.files})

    @property
    def count(self) -> int:
        """Windows to train on."""
        return sum(len(file["tokens"]) for file in self._files)

    def counts(self) -> Tensor:
        """How often each token occurs, or is likely, [vocabulary]."""
        total = np.zeros(SIZES["vocab_size"])
        for file in self._files:
            ids, likely = file["ids"].ravel(), np.exp(file["scores"].astype(np.float32)).ravel()
            total += np.bincount(ids, likely, len(total))
            total += 0.5 * np.bincount(file["tokens"].ravel(), minlength=len(total))
        return torch.from_numpy(total)

    def draw(self, count: int, random: np.random.Generator) -> dict[str, np.ndarray]:
        """Random windows."""
        picks = random.integers(self.count, size=count)
        sizes = np.cumsum([len(file["tokens"]) for file in self._files])
        places = np.searchsorted(sizes, picks, side="right")
        rows = [(self._files[f], p - sizes[f]) for f, p in zip(places, picks, strict=True)]
        return {name: np.stack([file[name][row] for file, row in rows]) for name in rows[0][0]}


class Batch(NamedTuple):
    """Windows as tensors, but for the last token's: [texts, length] or [texts, length, likely]."""

    tokens: Tensor
    starts: Tensor
    weights: Tensor
    ids: Tensor
    probabilities: Tensor


def batch_of(windows: dict[str, np.ndarray]) -> Batch:
    """Windows with the weight of each position in the loss, and the target's probabilities."""
    following = torch.from_numpy(windows["kinds"][:, 1:])
    weights = torch.where(following == QUESTION, QUESTION_WEIGHT, 1.0)
    weights[following == TEMPLATE] = 0.0
    likely = torch.from_numpy(windows["scores"][:, :-1].astype(np.float32)).softmax(-1)
    sharp = likely.square() / likely.square().sum(-1, keepdim=True)
    return Batch(
        torch.from_numpy(windows["tokens"][:, :-1].astype(np.int64)),
        torch.from_numpy(windows["starts"][:, :-1].astype(np.int64)),
        weights,
        torch.from_numpy(windows["ids"][:, :-1].astype(np.int64)),
        (1 - SHARPNESS) * likely + SHARPNESS * sharp,
    )


class Distillation:
    """The loss over the commonest tokens, and a sample that stands for the rest."""

    def __init__(self, model: LlamaModel, counts: Tensor) -> None:
        order = counts.argsort(descending=True, stable=True)
        self._model, self._common, self._others = model, order[:COMMON], order[COMMON:]
        self._place = torch.full_like(order, -1)
        self._place[self._common] = torch.arange(COMMON)
        # Each token of the sample stands for this many.
        self._correction = float(np.log(len(self._others) / OTHERS))

    def __call__(self, batch: Batch) -> Tensor:
        """Cross-entropy with the target's probabilities, in nats per token."""
        used = batch.weights > 0
        hidden = hidden_states(self._model, batch.tokens, batch.starts)[used]
        places, probabilities = self._place[batch.ids[used]], batch.probabilities[used]
        probabilities = probabilities * (places >= 0)
        shares = probabilities.sum(1, keepdim=True)
        weights = batch.weights[used] * (shares[:, 0] > 0.5)
        probabilities = probabilities / shares.clamp_min(1e-6)
        sample = self._others[torch.randint(len(self._others), (OTHERS,))]
        rows = self._model.embed_tokens.weight[torch.cat([self._common, sample])]
        logits = hidden @ rows.T
        expected = (probabilities * logits.gather(1, places.clamp_min(0))).sum(1)
        others = logits[:, COMMON:].logsumexp(1) + self._correction
        total = torch.logaddexp(logits[:, :COMMON].logsumexp(1), others)
        return ((total - expected) * weights).sum() / weights.sum()


class Muon(torch.optim.Optimizer):
    """Momentum whose steps are made orthogonal (Jordan et al., 2024), in float32.

    torch.optim.Muon computes in bfloat16, which processors without it are slow at.
    """

    def __init__(self, matrices: list[Tensor], lr: float) -> None:
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


@torch.no_grad()
def agreement(model: LlamaModel, windows: dict[str, np.ndarray]) -> float:
    """Share of the greedy answers' tokens that are the draft's first guess, of all tokens."""
    right, count = 0, 0
    for row in range(len(windows["tokens"])):
        batch = batch_of({name: values[row : row + 1] for name, values in windows.items()})
        used = batch.weights == 1.0
        hidden = hidden_states(model, batch.tokens, batch.starts)[used]
        guesses = (hidden @ model.embed_tokens.weight.T).argmax(1)
        right += int((guesses == batch.ids[used][:, 0]).sum())
        count += len(guesses)
    return right / count


def train(model: LlamaModel, windows: Windows, options: argparse.Namespace) -> None:
    """Train until the time is over; save the model and the record now and then."""
    loss_of = Distillation(model, windows.counts())
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers = [
        Muon(matrices, MUON_LR),
        torch.optim.Adam(others, ADAM_LR, betas=(0.9, 0.95), fused=True),
    ]
    random = np.random.default_rng(options.seed)
    started, step, losses, curve = time.perf_counter(), 0, [], []
    progress = 0.0
    while progress < 1.0:
        loss = loss_of(batch_of(windows.draw(options.batch, random)))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, rate in zip(optimizers, (MUON_LR, ADAM_LR), strict=True):
            factor = min(1.0, (progress + 1e-3) / WARM_UP, (1 - progress) / options.decay)
            optimizer.param_groups[0]["lr"] = rate * factor
            optimizer.step()
        model.zero_grad()
        losses.append(loss.item())
        step += 1
        minutes = (time.perf_counter() - started) / 60
        progress = step / options.steps if options.steps else minutes / options.minutes
        if step % options.report == 0 or progress >= 1.0:
            windows.refresh()
            point = dict(
                step=step,
                minutes=round(minutes, 1),
                windows=windows.count,
                loss=round(float(np.mean(losses)), 4),
                agreement=round(agreement(model, windows.held_out), 4),
            )
            losses = []
            curve.append(point)
            print(json.dumps(point), flush=True)
            save(model, options, curve)


def save(model: LlamaModel, options: argparse.Namespace, curve: list[dict[str, float]]) -> None:
    """Write the draft, and a record of how it was trained."""
    torch.save(dict(sizes=SIZES, weights=model.state_dict()), options.output / "draft.part")
    (options.output / "draft.part").rename(options.output / "draft.pt")
    record = dict(
        seed=options.seed,
        steps=curve[-1]["step"],
        tokens_per_step=options.batch * (LENGTH - 1),
        parameters=sum(p.numel() for p in model.parameters()),
        training_tokens=int(curve[-1]["windows"]) * LENGTH,
        curve=curve,
    )
    (options.output / "training.json").write_text(json.dumps(record, indent=1) + "\n")


def main() -> None:
    """Train a draft."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", type=Path)
    parser.add_argument("folder", type=Path, help="folder of the windows")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=30, help="how long to train")
    parser.add_argument("--steps", type=int, default=0, help="train for this many steps instead")
    parser.add_argument("--batch", type=int, default=8, help="windows in a step")
    parser.add_argument("--decay", type=float, default=0.7, help="share of the time with a decay")
    parser.add_argument("--report", type=int, default=100, help="steps between two reports")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--continue-from", type=Path, help="draft.pt to begin with")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    options.output.mkdir(parents=True, exist_ok=True)
    windows, model = Windows(options.folder), build(SIZES)
    if options.continue_from:
        model.load_state_dict(torch.load(options.continue_from)["weights"])
    else:
        path = str(options.target)
        target = model_of(path, config_of(path), torch.float32)
        begin_from(model, target.get_input_embeddings().weight.detach(), windows.counts())
        del target
    train(model, windows, options)


if __name__ == "__main__":
    main()

"""Trains the bundled pair: `python -m sequoia_opt.demo.train --output FOLDER`.

Three stages, each of which reads the folder that the one before has written: the tokenizer and
the target (`target`); the draft, distilled from the target (`draft`); and the dataset and prompts
from held-out code (`data`). The same seed, interpreter, packages, thread count and torch give the
same files. Knows nothing of trees or of the rest of the program.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, PreTrainedModel

from sequoia_opt.demo import corpus
from sequoia_opt.demo.models import (
    DRAFT,
    TARGET,
    agreement,
    build,
    cross_entropy,
    held_out_loss,
    logits_of,
    save,
)
from sequoia_opt.demo.tokens import encode, train_tokenizer, windows

WINDOW, LONG_WINDOW = 512, 2048  # tokens of a training sequence; the last tenth is long
CHARACTERS_PER_TOKEN = 3  # of code, at most
SOFT_TARGETS = 32  # tokens of each of the target's distributions that the draft learns from


def train_target(
    folder: Path, steps: int, batch_tokens: int, held_out_tokens: int, seed: int
) -> None:
    """Stage 1: the tokenizer and the target."""
    training, held_out = corpus.split()
    tokenizer = train_tokenizer([source for _, source in training])
    order = np.random.default_rng(seed)
    tokens = encode(tokenizer, [source for _, source in training], order)
    short = windows(tokens, WINDOW, batch_tokens // WINDOW, seed)
    long = windows(tokens, LONG_WINDOW, max(1, batch_tokens // LONG_WINDOW), seed + 1)
    torch.manual_seed(seed)
    model = build(TARGET)
    optimise(
        model,
        lambda step: next(long if step >= 0.9 * steps else short),
        lambda batch: cross_entropy(model, batch),
        steps,
        muon_lr=0.02,
        adam_lr=3e-3,
        name="target",
    )
    unseen = encode(tokenizer, [source for _, source in held_out], order)[:held_out_tokens]
    add_to_record(
        folder,
        seed=seed,
        held_out_modules=list(corpus.HELD_OUT_MODULES),
        training_tokens=len(tokens),
        target_steps=steps,
        target_parameters=model.num_parameters(),
        target_held_out_loss=round(held_out_loss(model, unseen), 4),
    )
    save(model, tokenizer, folder / "target")


def train_draft(
    folder: Path,
    steps: int,
    rows: int,
    batch_tokens: int,
    held_out_tokens: int,
    seed: int,
    compiled: bool,
) -> None:
    """Stage 2: the draft, on the target's probabilities.

    Its windows are `rows` of the training text, as many of code that the target has not seen,
    where it is as unsure as on a user's text, and an eighth as many of text that it has written.
    """
    tokenizer = Tokenizer.from_file(str(folder / "target" / "tokenizer.json"))
    target = AutoModelForCausalLM.from_pretrained(folder / "target", dtype=torch.float32)
    target.set_attn_implementation("sdpa_float32")
    training, held_out = corpus.split()
    order = np.random.default_rng(seed)
    tokens = encode(tokenizer, [source for _, source in training], order)
    packages = corpus.package_files(rows * WINDOW * CHARACTERS_PER_TOKEN, seed)
    package_tokens = encode(tokenizer, [source for _, source in packages], order)
    material = torch.cat(
        [
            continuations(target, tokens, max(1, rows // 8), seed + 2),
            next(windows(tokens, WINDOW, rows, seed + 6)),
            next(windows(package_tokens, WINDOW, rows, seed + 7)),
        ]
    )
    ids, probabilities = soft_targets(target, material)
    torch.manual_seed(seed + 4)
    model = build(DRAFT)
    choice = np.random.default_rng(seed + 5)

    def random_rows(step: int) -> torch.Tensor:
        """Indices [batch] of rows of the material."""
        return torch.from_numpy(choice.integers(len(material), size=batch_tokens // WINDOW))

    def distillation(indices: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of the draft with the target's probabilities, in nats per token."""
        logits = logits_of(model, material[indices, :-1])
        target_logits = logits.gather(-1, ids[indices].long())
        expected_logit = (probabilities[indices].float() * target_logits).sum(-1)
        return (logits.logsumexp(-1) - expected_logit).mean()

    optimise(
        model,
        random_rows,
        torch.compile(distillation) if compiled else distillation,
        steps,
        muon_lr=0.02,
        adam_lr=4e-3,
        name="draft",
        decay=0.55,
    )
    unseen = encode(tokenizer, [source for _, source in held_out], order)[:held_out_tokens]
    add_to_record(
        folder,
        draft_steps=steps,
        draft_parameters=model.num_parameters(),
        draft_held_out_loss=round(held_out_loss(model, unseen), 4),
        draft_agreement=round(agreement(target, model, unseen), 4),
    )
    save(model, tokenizer, folder / "draft")


def write_data(folder: Path, seed: int) -> None:
    """Stage 3: the bundled dataset and the bundled prompts, from the held-out modules."""
    _, held_out = corpus.split()
    records = corpus.excerpts(held_out, 7, prompt_chars=800, chars=2200, seed=seed)
    first_of_file = {record["id"].split(":")[0]: record for record in reversed(records)}
    prompts = [first_of_file[path] for path, _ in held_out][:8]
    dataset = [record for record in records if record not in prompts]
    for name, contents in (("prompts", prompts), ("held_out", dataset)):
        lines = (json.dumps(record) + "\n" for record in contents)
        (folder / f"{name}.jsonl").write_text("".join(lines))


def optimise(
    model: PreTrainedModel,
    batches: Callable[[int], torch.Tensor],
    loss_of: Callable[[torch.Tensor], torch.Tensor],
    steps: int,
    muon_lr: float,
    adam_lr: float,
    name: str,
    decay: float = 1.0,
) -> None:
    """Minimise `loss_of(batches(step))`, with Muon for the matrices and Adam for the rest.

    The learning rate rises over the first twentieth of the steps and falls linearly to zero over
    the last `decay` of them.
    """
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers = [
        torch.optim.Muon(matrices, lr=muon_lr, weight_decay=0.02),
        torch.optim.Adam(others, lr=adam_lr, betas=(0.9, 0.95)),
    ]
    warm_up = max(1, steps // 20)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: min(1.0, (step + 1) / warm_up, (steps - step) / (decay * steps)),
        )
        for optimizer in optimizers
    ]
    model.train()
    started = time.perf_counter()
    tokens, recent_losses = 0, []
    for step in range(steps):
        batch = batches(step)
        loss = loss_of(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        model.zero_grad()
        tokens += batch.numel() if batch.ndim > 1 else batch.numel() * WINDOW
        recent_losses.append(loss.item())
        if (step + 1) % 20 == 0 or step + 1 == steps:
            rate = tokens / (time.perf_counter() - started)
            typer.echo(
                f"{name}: step {step + 1}/{steps}, loss {np.mean(recent_losses):.3f}, "
                f"{rate:.0f} tokens/s"
            )
            recent_losses = []


@torch.no_grad()
def continuations(
    target: PreTrainedModel, tokens: torch.Tensor, count: int, seed: int
) -> torch.Tensor:
    """Rows [count, WINDOW + 1]: a quarter of training text, then the target's continuation.

    Half of the rows are greedy and half are sampled at temperature 0.8, since the draft will meet
    both.
    """
    target.eval()
    target.set_attn_implementation("sdpa")  # the fast kernel for float32 weights
    prompts = windows(tokens, WINDOW // 4 - 1, min(64, count), seed)
    rows: list[torch.Tensor] = []
    torch.manual_seed(seed)
    while sum(map(len, rows)) < count:
        sampled = len(rows) % 2 == 1
        prompt = next(prompts)
        rows.append(
            target.generate(  # type: ignore[operator]  # transformers leaves it untyped
                prompt,
                attention_mask=torch.ones_like(prompt),
                do_sample=sampled,
                temperature=0.8 if sampled else None,
                max_new_tokens=WINDOW + 1 - WINDOW // 4,
                min_new_tokens=WINDOW + 1 - WINDOW // 4,
                pad_token_id=0,
            )
        )
        typer.echo(f"continuations: {sum(map(len, rows))}/{count}")
    target.set_attn_implementation("sdpa_float32")
    return torch.cat(rows)[:count]


@torch.no_grad()
def soft_targets(target: PreTrainedModel, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The target's `SOFT_TARGETS` most likely tokens at every position of [count, WINDOW + 1].

    They are computed once rather than in every step, since the target's forward pass takes longer
    than the draft's whole training step. A fifth of the weight is on the squared probabilities:
    greedy decoding depends on the most likely token only, and a draft this small cannot learn
    all of the distribution too.

    Returns:
        Ids (int16) and probabilities (float16, with sum 1), [count, WINDOW, SOFT_TARGETS] each.
    """
    target.eval()
    ids, probabilities = [], []
    for start in range(0, len(rows), 16):
        best = logits_of(target, rows[start : start + 16, :-1]).topk(SOFT_TARGETS, dim=-1)
        ids.append(best.indices.to(torch.int16))
        likely = best.values.softmax(-1)
        sharp = likely.square() / likely.square().sum(-1, keepdim=True)
        probabilities.append((0.8 * likely + 0.2 * sharp).half())
        if start % 256 == 0:
            typer.echo(f"soft targets: {start}/{len(rows)}")
    return torch.cat(ids), torch.cat(probabilities)


def add_to_record(folder: Path, **facts: Any) -> None:
    """Add facts to the pair's training record."""
    path = folder / "training.json"
    record = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(record | facts, indent=2) + "\n")


def main(
    output: Annotated[Path, typer.Option(help="Folder for both models and the data.")],
    stage: Annotated[
        list[str] | None,
        typer.Option(help="Run only this stage: target, draft or data; may be repeated."),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Training steps of the target.")] = 1100,
    draft_steps: Annotated[int, typer.Option(min=2, help="Training steps of the draft.")] = 26000,
    rows: Annotated[
        int, typer.Option(min=1, help="Windows of the training text to distil on.")
    ] = 5760,
    batch_tokens: Annotated[int, typer.Option(min=WINDOW, help="Tokens per training step.")] = 8192,
    held_out_tokens: Annotated[
        int, typer.Option(min=2, help="Held-out tokens to measure the losses on.")
    ] = 10**9,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 2,
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile", help="Compile the draft's loss; pays off after some thousand steps."
        ),
    ] = False,
) -> None:
    """Train the bundled pair on this interpreter's standard library."""
    torch.set_num_threads(threads)
    output.mkdir(parents=True, exist_ok=True)
    stages = stage or ["target", "draft", "data"]
    if "target" in stages:
        train_target(output, steps, batch_tokens, held_out_tokens, seed)
    if "draft" in stages:
        # A model this small gains more from the number of steps than from the tokens in each.
        draft_tokens = max(WINDOW, batch_tokens // 2)
        train_draft(output, draft_steps, rows, draft_tokens, held_out_tokens, seed, compiled)
    if "data" in stages:
        write_data(output, seed)


if __name__ == "__main__":
    typer.run(main)

"""Trains the bundled pair: `python -m sequoia_opt.demo.train --output FOLDER`.

Three stages, each of which reads the folder that the one before has written: the byte-level
BPE tokenizer and the target (`target`); the draft, distilled on the target's probabilities over
the same text, over the target's own continuations of it and over code that the target has not
seen (`draft`); and the files of held-out code (`data`). The same seed, interpreter, packages,
thread count and torch give the same files. Knows nothing of trees or of the rest of the program.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional as F
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from sequoia_opt.demo import corpus

VOCABULARY = 2048
END_OF_TEXT = "<|endoftext|>"
POSITIONS = 8192
CHARACTERS = 3  # of code that a token is made of, or fewer
KEPT = 32  # tokens of each of the target's distributions that the draft learns from
WINDOW, LONG_WINDOW = 512, 2048  # tokens of a training sequence, and in the last tenth

# Deep and thin: depth is what makes a forward slow, and a shallow draft cheap beside it.
TARGET = dict(
    model_type="llama",
    hidden_size=256,
    intermediate_size=704,
    num_hidden_layers=12,
    num_attention_heads=4,
    num_key_value_heads=2,
)
# A GPT-NeoX layer takes half as many operations as a Llama layer, and in a model this small
# operations are what a forward costs. Two layers, not one: copying takes two.
DRAFT = dict(
    model_type="gpt_neox",
    hidden_size=128,
    intermediate_size=512,
    num_hidden_layers=2,
    num_attention_heads=4,
    use_parallel_residual=False,
    hidden_act="gelu_pytorch_tanh",
    rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0},
)


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """A byte-level BPE of `VOCABULARY` tokens; token 0 separates documents."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, texts: list[str], order: np.random.Generator) -> torch.Tensor:
    """All documents in a random order as one row of tokens, each after a separator."""
    encodings = tokenizer.encode_batch([texts[i] for i in order.permutation(len(texts))])
    return torch.tensor([token for e in encodings for token in (0, *e.ids)])


def windows(tokens: torch.Tensor, length: int, count: int, seed: int) -> Iterator[torch.Tensor]:
    """Endless batches [count, length + 1] of `tokens`; each pass is cut and shuffled anew."""
    generator = np.random.default_rng(seed)
    length = min(length, (len(tokens) - 1) // 2)
    waiting: list[int] = []
    while True:
        while len(waiting) < count:
            offset = int(generator.integers(length))
            starts = np.arange(offset, len(tokens) - length - 1, length)
            waiting.extend(int(s) for s in generator.permutation(starts))
        batch, waiting = waiting[:count], waiting[count:]
        yield torch.stack([tokens[s : s + length + 1] for s in batch])


def build(sizes: dict[str, Any]) -> PreTrainedModel:
    """A randomly initialised model of the given architecture and sizes, its embeddings tied."""
    config = AutoConfig.for_model(
        **sizes,
        vocab_size=VOCABULARY,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    model.set_attn_implementation("sdpa_float32")
    return model


def sdpa_float32(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    **arguments: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The library's attention in float32: on CPUs its bfloat16 kernel takes three times as long."""
    output, weights = sdpa_attention_forward(
        module, query.float(), key.float(), value.float(), mask, **arguments
    )
    return output.to(query.dtype), weights


AttentionInterface.register("sdpa_float32", sdpa_float32)


def logits_of(model: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """Logits [batch, length, vocabulary], float32, of a bfloat16 forward."""
    with torch.autocast("cpu", torch.bfloat16):
        return model(input_ids=inputs, use_cache=False).logits.float()


def optimise(
    model: PreTrainedModel,
    batches: Callable[[int], torch.Tensor],
    loss_of: Callable[[torch.Tensor], torch.Tensor],
    steps: int,
    muon_lr: float,
    adam_lr: float,
    name: str,
    falling: float = 1.0,
) -> None:
    """Minimise `loss_of(batches(step))`: Muon for the matrices, Adam for the rest.

    The rate rises over the first twentieth, and falls linearly to nothing over the last
    `falling` of the steps.
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
            lambda step: min(1.0, (step + 1) / warm_up, (steps - step) / (falling * steps)),
        )
        for optimizer in optimizers
    ]
    model.train()
    started = time.perf_counter()
    tokens, recent = 0, []
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
        recent.append(loss.item())
        if (step + 1) % 20 == 0 or step + 1 == steps:
            rate = tokens / (time.perf_counter() - started)
            typer.echo(
                f"{name}: step {step + 1}/{steps}, loss {np.mean(recent):.3f}, {rate:.0f} tokens/s"
            )
            recent = []


def cross_entropy(model: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
    """Mean next-token loss, in nats, of a batch [count, length + 1]."""
    logits = logits_of(model, batch[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


@torch.no_grad()
def held_out_loss(model: torch.nn.Module, tokens: torch.Tensor, window: int = 1024) -> float:
    """Mean next-token loss, in nats, over windows of held-out text."""
    model.eval()
    window = min(window, len(tokens) - 1)
    rows = tokens[: (len(tokens) - 1) // window * window + 1].unfold(0, window + 1, window)
    return float(np.mean([cross_entropy(model, row[None]).item() for row in rows]))


@torch.no_grad()
def continuations(
    target: PreTrainedModel, tokens: torch.Tensor, count: int, seed: int
) -> torch.Tensor:
    """Rows [count, WINDOW + 1]: a quarter of training text, then what the target makes of it.

    Half the rows are greedy, half sampled at temperature 0.8: the draft will meet both.
    """
    target.eval()
    target.set_attn_implementation("sdpa")  # float32 weights: the plain kernel is the fast one
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


def save(model: PreTrainedModel, tokenizer: Tokenizer, folder: Path) -> None:
    """Write model (bfloat16) and tokenizer in the Hugging Face layout."""
    model.bfloat16().save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        model_max_length=POSITIONS,
    ).save_pretrained(folder)


def note(folder: Path, **facts: Any) -> None:
    """Add facts to the pair's training record."""
    path = folder / "training.json"
    record = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(record | facts, indent=2) + "\n")


def train_target(
    folder: Path, steps: int, batch_tokens: int, held_out_tokens: int, seed: int
) -> None:
    """Stage 1: tokenizer and target."""
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
    note(
        folder,
        seed=seed,
        held_out_modules=list(corpus.HELD_OUT_MODULES),
        training_tokens=len(tokens),
        target_steps=steps,
        target_parameters=model.num_parameters(),
        target_held_out_loss=round(held_out_loss(model, unseen), 4),
    )
    save(model, tokenizer, folder / "target")


@torch.no_grad()
def soft_targets(target: PreTrainedModel, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The target's `KEPT` most likely tokens at every place of `rows` [count, WINDOW + 1].

    Kept rather than computed in every step: the target's forward costs more than the draft's
    whole training step. A fifth of the weight is on the squared probabilities: greedy decoding
    asks only for the first place, and a draft this small cannot learn all the others too.

    Returns:
        ids int16 and probabilities float16 (of 1 together), [count, WINDOW, KEPT] each.
    """
    target.eval()
    ids, probabilities = [], []
    for start in range(0, len(rows), 16):
        best = logits_of(target, rows[start : start + 16, :-1]).topk(KEPT, dim=-1)
        ids.append(best.indices.to(torch.int16))
        likely = best.values.softmax(-1)
        sharp = likely.square() / likely.square().sum(-1, keepdim=True)
        probabilities.append((0.8 * likely + 0.2 * sharp).half())
        if start % 256 == 0:
            typer.echo(f"soft targets: {start}/{len(rows)}")
    return torch.cat(ids), torch.cat(probabilities)


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

    Over `rows` windows of the training text, as many of code that the target has not seen, where
    it is less sure, as it will be of a user's text, and an eighth as many that it has written.
    """
    tokenizer = Tokenizer.from_file(str(folder / "target" / "tokenizer.json"))
    target = AutoModelForCausalLM.from_pretrained(folder / "target", dtype=torch.float32)
    target.set_attn_implementation("sdpa_float32")
    training, held_out = corpus.split()
    order = np.random.default_rng(seed)
    tokens = encode(tokenizer, [source for _, source in training], order)
    other = corpus.package_files(rows * WINDOW * CHARACTERS, seed)
    other_tokens = encode(tokenizer, [source for _, source in other], order)
    material = torch.cat(
        [
            continuations(target, tokens, max(1, rows // 8), seed + 2),
            next(windows(tokens, WINDOW, rows, seed + 6)),
            next(windows(other_tokens, WINDOW, rows, seed + 7)),
        ]
    )
    ids, probabilities = soft_targets(target, material)
    torch.manual_seed(seed + 4)
    model = build(DRAFT)
    choice = np.random.default_rng(seed + 5)

    def chosen(step: int) -> torch.Tensor:
        """Places in the material."""
        return torch.from_numpy(choice.integers(len(material), size=batch_tokens // WINDOW))

    def distillation(places: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of the draft with the target's probabilities, nats per token."""
        found = logits_of(model, material[places, :-1])
        wanted = (probabilities[places].float() * found.gather(-1, ids[places].long())).sum(-1)
        return (found.logsumexp(-1) - wanted).mean()

    optimise(
        model,
        chosen,
        torch.compile(distillation) if compiled else distillation,
        steps,
        muon_lr=0.02,
        adam_lr=4e-3,
        name="draft",
        falling=0.55,
    )
    unseen = encode(tokenizer, [source for _, source in held_out], order)[:held_out_tokens]
    note(
        folder,
        draft_steps=steps,
        draft_parameters=model.num_parameters(),
        draft_held_out_loss=round(held_out_loss(model, unseen), 4),
        draft_agreement=round(agreement(target, model, unseen), 4),
    )
    save(model, tokenizer, folder / "draft")


@torch.no_grad()
def agreement(target: torch.nn.Module, draft: torch.nn.Module, tokens: torch.Tensor) -> float:
    """Share of held-out positions where both models' most likely tokens are the same."""
    window = min(1024, len(tokens))
    rows = tokens[: len(tokens) // window * window].view(-1, 1, window)
    same = [(logits_of(target, r).argmax(-1) == logits_of(draft, r).argmax(-1)) for r in rows]
    return float(torch.stack(same).float().mean())


def write_data(folder: Path, seed: int) -> None:
    """Stage 3: the default dataset and the default prompts, from the held-out modules."""
    _, held_out = corpus.split()
    pieces = corpus.excerpts(held_out, 7, prompt_chars=800, chars=2200, seed=seed)
    prompts = {piece["id"].split(":")[0]: piece for piece in reversed(pieces)}
    chosen = [prompts[path] for path, _ in held_out][:8]
    for name, records in (
        ("prompts", chosen),
        ("held_out", [piece for piece in pieces if piece not in chosen]),
    ):
        lines = (json.dumps(record) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text("".join(lines))


def main(
    output: Annotated[Path, typer.Option(help="Folder for both models and the data.")],
    stage: Annotated[
        list[str] | None, typer.Option(help="target, draft or data; all by default.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Training steps of the target.")] = 1100,
    draft_steps: Annotated[int, typer.Option(min=2, help="Training steps of the draft.")] = 26000,
    rows: Annotated[int, typer.Option(min=1, help="Windows to distil on.")] = 5760,
    batch_tokens: Annotated[int, typer.Option(min=WINDOW, help="Tokens of a step.")] = 8192,
    held_out_tokens: Annotated[
        int, typer.Option(min=2, help="Held-out tokens to measure the losses on.")
    ] = 10**9,
    seed: Annotated[int, typer.Option(help="Decides everything random.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 2,
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile", help="Compile the draft's loss; pays from some thousand steps on."
        ),
    ] = False,
) -> None:
    """Train the bundled pair on this interpreter's standard library."""
    torch.set_num_threads(threads)
    output.mkdir(parents=True, exist_ok=True)
    stage = stage or ["target", "draft", "data"]
    if "target" in stage:
        train_target(output, steps, batch_tokens, held_out_tokens, seed)
    if "draft" in stage:
        # A model this small gains more from steps than from tokens in each.
        train_draft(
            output,
            draft_steps,
            rows,
            max(WINDOW, batch_tokens // 2),
            held_out_tokens,
            seed,
            compiled,
        )
    if "data" in stage:
        write_data(output, seed)


if __name__ == "__main__":
    typer.run(main)

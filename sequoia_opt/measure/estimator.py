"""The estimator: how often the target accepts the draft's 1st, 2nd, 3rd … guess on a dataset.

By default on the target's own continuations of the dataset's prompts, which is what decoding
will meet; or teacher-forced on the dataset's text. Knows nothing of trees or time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from sequoia_opt.engine.decoder import check_sampling
from sequoia_opt.engine.models import Pair
from sequoia_opt.engine.runner import PREFILL_CHUNK, Runner
from sequoia_opt.engine.step import at_least_float32, fit_vocabulary
from sequoia_opt.engine.verify import Traversal, Trial, Verifier, make_verifier
from sequoia_opt.errors import SequoiaError
from sequoia_opt.measure.dataset import Document, spread_over
from sequoia_opt.plan.acceptance import Acceptance, bootstrap_rates, fit_monotone

LOGITS_BUDGET = 2**24  # logits held at once: 64 MB in float32

Progress = Callable[[int, int], None]


@dataclass
class Options:
    """What to sample.

    Attributes:
        width: ranks, W.
        max_new_tokens: tokens sampled of each document, at most.
        max_prompt_tokens: a longer prompt keeps its end; of a document without a prompt, the
            first half serves as one, up to this many tokens.
        limit: documents, at most, spread over the dataset.
        batch: documents that run together.
        teacher_forced: on the dataset's text instead of the target's continuations.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    verifier: str = "sequoia"
    width: int = 32
    max_new_tokens: int = 128
    max_prompt_tokens: int = 512
    limit: int | None = None
    batch: int = 16
    teacher_forced: bool = False
    seed: int = 0


@dataclass
class _Sample:
    """A document's tokens and what has been sampled of it."""

    prompt: list[int]
    text: list[int]
    sums: np.ndarray
    trace: list[int] = field(default_factory=list)
    context: float = 0.0

    def record(self, chances: np.ndarray, rank: int, context: int) -> None:
        """Add one position."""
        self.sums += chances
        self.trace.append(rank)
        self.context += context


def estimate(
    pair: Pair,
    documents: Sequence[Document],
    dataset: str,
    options: Options | None = None,
    progress: Progress = lambda done, total: None,
) -> Acceptance:
    """Sample acceptance by rank, with rank traces.

    Args:
        dataset: its name, for the file.
        progress: called with tokens done and to do.

    Raises:
        SequoiaError: options out of range, or nothing to sample.
    """
    options = options or Options()
    check_sampling(options.temperature, options.top_p, options.verifier)
    if options.verifier == Traversal.name:
        raise SequoiaError(
            "verifier: traversal decides on whole paths and has no acceptance by rank; estimate "
            "with sequoia, which drafts as it does, and decode with --verifier traversal"
        )
    for name in ("width", "max_new_tokens", "max_prompt_tokens", "batch"):
        if getattr(options, name) < 1:
            raise SequoiaError(
                f"{name.replace('_', '-')}: found {getattr(options, name)}, expected at least 1"
            )
    verifier = make_verifier(options.verifier, options.temperature, options.top_p)
    width = min(options.width, pair.target.vocabulary, pair.draft.vocabulary)
    documents = spread_over(documents, options.limit or len(documents))
    samples = _prepare(pair, documents, options, width)
    torch.manual_seed(options.seed)
    run = _teacher_forced if options.teacher_forced else _continuations
    total, done = sum(len(s.text) for s in samples), 0
    with torch.inference_mode():
        # Of similar length together, so that little is padded.
        ordered = sorted(samples, key=lambda s: len(s.prompt))
        for start in range(0, len(ordered), options.batch):
            batch = ordered[start : start + options.batch]
            for count in run(pair, verifier, batch, width):
                done += count
                progress(min(done, total), total)
    progress(total, total)
    return _summary(pair, samples, dataset, options, verifier)


def _prepare(
    pair: Pair, documents: Sequence[Document], options: Options, width: int
) -> list[_Sample]:
    """Tokens of each document: a prompt, and the text that follows or room for it."""
    samples = []
    positions = pair.target.positions
    for document in documents:
        prompt = pair.encode(document.prompt) if document.prompt else []
        text = pair.encode(document.text, beginning=not prompt) if document.text else []
        if options.teacher_forced:
            if not prompt:
                prompt, text = text[:1], text[1:]
            if not text:
                continue
        elif not prompt:
            prompt = text[: max(1, len(text) // 2)][: options.max_prompt_tokens]
        room = positions - options.max_new_tokens - 1  # and the first token
        if room < 1:
            raise SequoiaError(
                f"max-new-tokens: found {options.max_new_tokens}, but {pair.target.name} has only "
                f"{positions} positions"
            )
        prompt = prompt[-min(options.max_prompt_tokens, room) :]
        if not options.teacher_forced:
            text = [0] * options.max_new_tokens
        text = text[: options.max_new_tokens]
        samples.append(_Sample(prompt, text, np.zeros(width)))
    if not samples:
        missing = "texts to be teacher-forced on" if options.teacher_forced else "prompts"
        raise SequoiaError(f"the dataset has no {missing}")
    return samples


def _continuations(
    pair: Pair, verifier: Verifier, batch: list[_Sample], width: int
) -> Iterator[int]:
    """Sample along the target's own continuations; yields tokens done as it goes.

    Each position is verified once at full width, and the text goes on with the token that this
    verification emitted. The first token is not counted: decoding takes it from the prompt's own
    forward, and its first step starts after it.
    """
    longest = max(len(s.prompt) for s in batch)
    room = 1 + max(len(s.text) for s in batch)
    pad = torch.tensor([longest - len(s.prompt) for s in batch], device=pair.device)
    rows = [[0] * (longest - len(s.prompt)) + s.prompt for s in batch]
    tokens = torch.tensor(rows, device=pair.device)
    logits: list[Tensor] = []
    for runner in (pair.target, pair.draft):
        runner.reserve(longest + room, len(batch))
        logits.append(_own(runner.prefill(_known(tokens, runner), pad), pair))
    alive = np.ones(len(batch), dtype=np.bool_)
    for position in range(room):
        trial = verifier.trial(logits[0], logits[1], width)
        if position:
            _record(trial, batch, alive, position)
            yield int(alive.sum())
        alive &= ~np.isin(trial.token.cpu().numpy(), list(pair.end_tokens))
        if not alive.any() or position + 1 == room:
            break
        logits = [
            _own(
                runner.extend(_known(trial.token[:, None], runner), longest + position, pad), pair
            )[:, 0]
            for runner in (pair.target, pair.draft)
        ]


def _teacher_forced(
    pair: Pair, verifier: Verifier, batch: list[_Sample], width: int
) -> Iterator[int]:
    """Sample along the dataset's text, in chunks whose logits fit the budget."""
    rows = [s.prompt + s.text for s in batch]
    longest = max(map(len, rows))
    tokens = torch.tensor([r + [0] * (longest - len(r)) for r in rows], device=pair.device)
    chunk = max(1, min(PREFILL_CHUNK, LOGITS_BUDGET // (len(batch) * pair.target.vocabulary)))
    for runner in (pair.target, pair.draft):
        runner.reserve(longest, len(batch))
    readers = [
        runner.read(_known(tokens, runner), keep=0, chunk=chunk)
        for runner in (pair.target, pair.draft)
    ]
    for (start, target), (_, draft) in zip(*readers, strict=True):
        wanted = [
            (row, place)
            for row, sample in enumerate(batch)
            for place in range(target.shape[1])
            if 0 <= start + place + 1 - len(sample.prompt) < len(sample.text)
        ]
        if wanted:
            row, place = (torch.tensor(i, device=pair.device) for i in zip(*wanted, strict=True))
            trial = verifier.trial(
                _own(target[row, place], pair), _own(draft[row, place], pair), width
            )
            chances, ranks = trial.chances.cpu().numpy(), trial.rank.tolist()
            for i, (which, offset) in enumerate(wanted):
                batch[which].record(chances[i], ranks[i], start + offset)
            yield len(wanted)


def _record(trial: Trial, batch: list[_Sample], alive: np.ndarray, position: int) -> None:
    chances, ranks = trial.chances.cpu().numpy(), trial.rank.tolist()
    for i in np.flatnonzero(alive):
        batch[i].record(chances[i], ranks[i], len(batch[i].prompt) + position)


def _known(tokens: Tensor, runner: Runner) -> Tensor:
    """Tokens that the model's embedding table has."""
    return tokens.clamp(max=runner.vocabulary - 1)


def _own(logits: Tensor, pair: Pair) -> Tensor:
    """Logits over the target's vocabulary, at least float32."""
    return fit_vocabulary(at_least_float32(logits), pair.target.vocabulary)


def _summary(
    pair: Pair, samples: list[_Sample], dataset: str, options: Options, verifier: Verifier
) -> Acceptance:
    sums = np.stack([s.sums for s in samples])
    counts = [len(s.trace) for s in samples]
    positions = sum(counts)
    if not positions:
        raise SequoiaError(f"{dataset}: the target ended every document with its first token")
    measured = sums.sum(axis=0) / positions
    low, high = bootstrap_rates(sums, counts)
    rates, fit = fit_monotone(measured, low, high, positions)
    return Acceptance(
        rates=rates,
        low=low,
        high=high,
        traces=[s.trace for s in samples],
        positions=positions,
        target=pair.target_name,
        draft=pair.draft_name,
        dataset=dataset,
        temperature=options.temperature,
        top_p=options.top_p,
        verifier=verifier.name,
        fit=fit,
        measured=None if fit == "raw" else measured,
        context=sum(s.context for s in samples) / positions,
        extra={
            "mode": "teacher-forced" if options.teacher_forced else "continuations",
            "documents": len(samples),
            "seed": options.seed,
            "fingerprints": pair.fingerprints,
        },
    )

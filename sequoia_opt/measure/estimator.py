"""The estimator: how often the target accepts the draft's 1st, 2nd, 3rd … guess on a dataset.

By default on the target's own continuations of the dataset's prompts, which is what decoding
will meet; or teacher-forced on the dataset's text, where one pass of the models serves several
temperatures and verifiers. Knows nothing of trees or time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sequoia_opt.engine.decoder import check_sampling
from sequoia_opt.engine.pair import Pair
from sequoia_opt.engine.sampling import at_least_float32, gumbel
from sequoia_opt.engine.torch.runner import PREFILL_CHUNK
from sequoia_opt.engine.verify import Positions, Traversal, Trial, Verifier, make_verifier
from sequoia_opt.errors import SequoiaError
from sequoia_opt.measure.dataset import Document, spread_over, tell_left_out
from sequoia_opt.measure.encoding import prompt_and_text
from sequoia_opt.measure.journal import Journal
from sequoia_opt.measure.template import PLAIN, Template
from sequoia_opt.plan.acceptance import Acceptance, Sampling, bootstrap_rates, fit_monotone
from sequoia_opt.types import FloatArray

FEWEST_POSITIONS = 100  # that a depth needs for rates of its own
LOGITS_BUDGET = 2**24  # logits held at once: 64 MB in float32

Progress = Callable[[int, int], None]


@dataclass
class Options:
    """What to sample.

    Attributes:
        width: ranks, W.
        depths: how many have rates of their own; 1 for one vector for all.
        max_new_tokens: tokens sampled of each document, at most.
        max_prompt_tokens: a longer prompt keeps its end, and the special tokens that it begins
            with; of a document without a prompt, the first half serves as one, up to this many
            tokens.
        limit: documents, at most, spread over the dataset.
        batch: documents that run together.
        teacher_forced: on the dataset's text instead of the target's continuations.
        template: how prompts are put to the models.
    """

    width: int = 32
    depths: int = 1
    max_new_tokens: int = 128
    max_prompt_tokens: int = 512
    limit: int | None = None
    batch: int = 16
    teacher_forced: bool = False
    seed: int = 0
    template: Template = PLAIN


def fingerprint(documents: Sequence[Document]) -> str:
    """Hash of the documents' content, 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for document in documents:
        parts = [document.prompt, document.text]
        if document.messages or document.tokens:
            parts.append(json.dumps(document.asked, default=str))
        for part in parts:
            digest.update(f"{len(part)}:{part}".encode(errors="surrogatepass"))
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class _Text:
    """A document's tokens."""

    prompt: list[int]
    text: list[int]


@dataclass
class _Tally:
    """What has been sampled of a document, in one way.

    Attributes:
        sums: acceptance by rank, of positions after 0, 1, … accepted ones in a row, the last
            row those after as many and more: [depths, W].
        counts: the positions of each, [depths].
        run: accepted ones in a row before the next position.
    """

    sums: FloatArray
    counts: FloatArray
    trace: list[int] = field(default_factory=list)
    context: float = 0.0
    run: int = 0

    def record(self, chances: FloatArray, ranks: Sequence[int], contexts: Sequence[int]) -> None:
        """Add positions that follow each other.

        Args:
            chances: [positions, W].
            ranks, contexts: of each.
        """
        rows = []
        for rank in ranks:
            rows.append(min(self.run, len(self.counts) - 1))
            self.run = self.run + 1 if rank else 0
        here = np.equal.outer(np.arange(len(self.counts)), rows).astype(float)
        self.sums += here @ chances
        self.counts += here.sum(axis=1)
        self.trace += ranks
        self.context += sum(contexts)


def check_sampled(sampling: Sampling) -> None:
    """Refuse what has no acceptance by rank.

    Raises:
        SequoiaError: its verifier has none, or an option is out of range.
    """
    check_sampling(**asdict(sampling))
    if sampling.verifier == Traversal.name:
        raise SequoiaError(
            "verifier: traversal decides on whole paths and has no acceptance by rank; estimate "
            "with sequoia, which drafts as it does, and decode with --verifier traversal"
        )


def estimate(
    pair: Pair,
    documents: Sequence[Document],
    dataset: str,
    samplings: Sequence[Sampling] = (Sampling(),),
    options: Options | None = None,
    progress: Progress = lambda done, total: None,
    note: Callable[[str], None] = lambda message: None,
    journal: Journal | None = None,
) -> list[Acceptance]:
    """Sample acceptance by rank, with rank traces, for each way to sample.

    What is found for one does not depend on the others, nor on how many processes share the
    documents.

    Args:
        dataset: its name, for the file.
        progress: called with tokens done and to do.
        note: called with what was cut short.
        journal: keeps what was found of each batch, and says when the time is up. Several
            processes keep nothing.

    Raises:
        SequoiaError: options out of range, or nothing to sample.
    """
    options, journal = options or Options(), journal or Journal()
    for sampling in samplings:
        check_sampled(sampling)
    for name in ("width", "depths", "max_new_tokens", "max_prompt_tokens", "batch"):
        if getattr(options, name) < 1:
            raise SequoiaError(
                f"{name.replace('_', '-')}: found {getattr(options, name)}, expected at least 1"
            )
    width = min(options.width, pair.target.vocabulary, pair.draft.vocabulary)
    documents = spread_over(documents, options.limit or len(documents))
    texts = _prepare(pair, documents, options, note)
    ways = [
        _Way(
            _verifier_of(sampling),
            [_Tally(np.zeros((options.depths, width)), np.zeros(options.depths)) for _ in texts],
        )
        for sampling in samplings
    ]
    # Of similar length together, so that little is padded.
    order = sorted(range(len(texts)), key=lambda place: len(texts[place].prompt))
    batches = [
        order[start : start + options.batch] for start in range(0, len(order), options.batch)
    ]
    passes = [ways] if options.teacher_forced else [[way] for way in ways]
    peers = pair.peers
    # Evenly spread over lengths however early the time is up.
    spread = np.random.default_rng(0).permutation(len(batches)).tolist()
    own = spread[peers.rank :: peers.size]
    mine = [place for number in own for place in batches[number]]
    total, done = sum(len(texts[place].text) for place in mine) * len(passes), 0
    sampled: list[int] = []
    run = _teacher_forced if options.teacher_forced else _continuations
    with torch.inference_mode():
        for turn, number in enumerate(own):
            if turn and journal.recall(f"part 0, batch {number}") is None and journal.is_over():
                note(f"{turn} of {len(own)} batches of documents; the time was up")
                break
            places = batches[number]
            batch = [texts[place] for place in places]
            for part, together in enumerate(passes):
                tallies = [_Way(w.verifier, [w.tallies[p] for p in places]) for w in together]
                name = f"part {part}, batch {number}"
                kept = journal.recall(name)
                if kept is not None:
                    with journal.taking_up(name):
                        _restore(tallies, kept)
                    done += sum(len(text.text) for text in batch)
                    continue
                torch.manual_seed(options.seed + number)
                for count in run(pair, tallies, batch, width):
                    done += count
                    progress(min(done, total), total)
                journal.keep(name, [[asdict(t) for t in w.tallies] for w in tallies])
            sampled += places
    progress(total, total)
    for way in ways:
        shares = peers.gather({place: way.tallies[place] for place in sampled})
        found = {place: tally for share in shares for place, tally in share.items()}
        way.tallies[:] = [found[place] for place in sorted(found)]
    return [
        _summary(pair, way, dataset, sampling, options)
        for sampling, way in zip(samplings, ways, strict=True)
    ]


def _verifier_of(sampling: Sampling) -> Verifier:
    cuts = sampling.top_p, sampling.top_k, sampling.min_p
    return make_verifier(sampling.verifier, sampling.temperature, *cuts)


def _restore(ways: Sequence[_Way], kept: list[list[dict[str, Any]]]) -> None:
    """Have the ways' tallies be what was kept of them."""
    for way, found in zip(ways, kept, strict=True):
        for tally, values in zip(way.tallies, found, strict=True):
            tally.sums[:], tally.counts[:] = values["sums"], values["counts"]
            tally.trace[:] = values["trace"]
            tally.context, tally.run = values["context"], values["run"]


@dataclass(frozen=True)
class _Way:
    """One way to sample, and what it found of each document."""

    verifier: Verifier
    tallies: list[_Tally]


def _prepare(
    pair: Pair,
    documents: Sequence[Document],
    options: Options,
    note: Callable[[str], None],
) -> list[_Text]:
    """Tokens of each document: a prompt, and the text that follows or room for it.

    Those that the models cannot read are left out, with a note.
    """
    positions = pair.target.positions
    room = positions - options.max_new_tokens - 1  # and the first token
    if room < 1:
        raise SequoiaError(
            f"max-new-tokens: found {options.max_new_tokens}, but {pair.target.name} has only "
            f"{positions} positions"
        )
    longest = min(options.max_prompt_tokens, room)
    texts: list[_Text] = []
    problems: list[str] = []
    cut = 0
    for number, document in enumerate(documents, start=1):
        try:
            prompt, text = prompt_and_text(pair, document, options.template)
            _check_vocabulary(pair, [*prompt, *text])
        except SequoiaError as error:
            problems.append(f"{document.where or f'document {number}'}: {error}")
            continue
        if options.teacher_forced:
            if not prompt:
                prompt, text = text[:1], text[1:]
            if not text:
                continue
        elif not prompt:
            prompt = text[: max(1, len(text) // 2)][:longest]
        cut += len(prompt) > longest
        prompt = _end_of(prompt, longest, pair)
        if not options.teacher_forced:
            text = [0] * options.max_new_tokens
        text = text[: options.max_new_tokens]
        texts.append(_Text(prompt, text))
    if not texts:
        missing = "texts to be teacher-forced on" if options.teacher_forced else "prompts"
        raise SequoiaError(problems[0] if problems else f"the dataset has no {missing}")
    tell_left_out(problems, note)
    if cut:
        note(f"{cut} prompts of more than {longest} tokens: only their ends are read")
    return texts


def _check_vocabulary(pair: Pair, tokens: Sequence[int]) -> None:
    """Refuse token ids that the target does not have.

    Raises:
        SequoiaError: with the first one.
    """
    unknown = [token for token in tokens if not 0 <= token < pair.target.vocabulary]
    if unknown:
        raise SequoiaError(f"found token {unknown[0]}, expected 0 to {pair.target.vocabulary - 1}")


def _end_of(prompt: list[int], longest: int, pair: Pair) -> list[int]:
    """The last of a prompt's tokens, behind those that begin every text."""
    first = getattr(pair.tokenizer, "bos_token_id", None)
    if len(prompt) <= longest or longest < 2 or prompt[0] != first:
        return prompt[-longest:]
    return [prompt[0], *prompt[1 - longest :]]


def _continuations(pair: Pair, ways: list[_Way], batch: list[_Text], width: int) -> Iterator[int]:
    """Sample along the target's own continuations; yields tokens done as it goes.

    Each position is verified once at full width, and the text goes on with the token that this
    verification emitted. The first token is not counted: decoding takes it from the prompt's own
    forward, and its first step starts after it.

    Args:
        ways: one, since the text depends on it.
    """
    (way,) = ways
    longest = max(len(s.prompt) for s in batch)
    room = 1 + max(len(s.text) for s in batch)
    pad = torch.tensor([longest - len(s.prompt) for s in batch], device=pair.device)
    rows = [[0] * (longest - len(s.prompt)) + s.prompt for s in batch]
    tokens = torch.tensor(rows, device=pair.device)
    reader = _Reader(pair, longest + room, len(batch))
    logits = reader.prefill(tokens, pad)
    alive = np.ones(len(batch), dtype=np.bool_)
    for position in range(room):
        where = Positions(logits[0], logits[1], width, gumbel(torch.rand_like(logits[0])))
        trial = way.verifier.trial(where)
        token = trial.emit()
        if position:
            chances, ranks = _on_host(trial)
            for i in np.flatnonzero(alive):
                context = len(batch[i].prompt) + position
                way.tallies[i].record(chances[i : i + 1], ranks[i : i + 1], [context])
            yield int(alive.sum())
        alive &= ~np.isin(token.cpu().numpy(), list(pair.end_tokens))
        if not alive.any() or position + 1 == room:
            break
        logits = reader.extend(token[:, None], longest + position, pad)
    reader.close()


def _teacher_forced(pair: Pair, ways: list[_Way], batch: list[_Text], width: int) -> Iterator[int]:
    """Sample along the dataset's text, in chunks whose logits fit the budget."""
    rows = [s.prompt + s.text for s in batch]
    longest = max(map(len, rows))
    tokens = torch.tensor([r + [0] * (longest - len(r)) for r in rows], device=pair.device)
    chunk = max(1, min(PREFILL_CHUNK, LOGITS_BUDGET // (len(batch) * pair.target.vocabulary)))
    reader = _Reader(pair, longest, len(batch))
    for start, target, draft in reader.read(tokens, chunk):
        wanted = [
            (row, place)
            for row, sample in enumerate(batch)
            for place in range(target.shape[1])
            if 0 <= start + place + 1 - len(sample.prompt) < len(sample.text)
        ]
        if wanted:
            row, place = (torch.tensor(i, device=pair.device) for i in zip(*wanted, strict=True))
            size = max(1, _trial_logits(pair.device) // pair.target.vocabulary)
            for block in (slice(i, i + size) for i in range(0, len(wanted), size)):
                logits = [e[row[block], place[block]] for e in (target, draft)]
                where = Positions(logits[0], logits[1], width, gumbel(torch.rand_like(logits[0])))
                seed = int(torch.randint(2**62, ()))  # the same for each, whatever others draw
                for way in ways:
                    torch.manual_seed(seed)
                    chances, ranks = _on_host(way.verifier.trial(where))
                    for document, part in _runs([which for which, _ in wanted[block]]):
                        contexts = [start + offset for _, offset in wanted[block][part]]
                        way.tallies[document].record(chances[part], ranks[part], contexts)
                torch.manual_seed(seed + 1)
            yield len(wanted)
    reader.close()


def _runs(values: Sequence[int]) -> Iterator[tuple[int, slice]]:
    """Each run of equal values, and where it is."""
    start = 0
    for value, run in groupby(values):
        end = start + len(list(run))
        yield value, slice(start, end)
        start = end


def _trial_logits(device: torch.device) -> int:
    """Logits of one trial: its many passes over them should stay in a CPU's cache."""
    return 2**19 if device.type == "cpu" else LOGITS_BUDGET


def _on_host(trial: Trial) -> tuple[FloatArray, list[int]]:
    """A trial's chances and ranks."""
    ranks: list[int] = trial.rank.tolist()
    return trial.chances.cpu().numpy(), ranks


class _Reader:
    """Target and drafter reading the same texts: logits of both, over the target's vocabulary."""

    def __init__(self, pair: Pair, capacity: int, batch: int) -> None:
        self._target, self._drafter = pair.target, pair.drafter
        self._caches = (
            self._target.reserve(capacity, batch),
            self._drafter.reserve(capacity, batch),
        )

    def close(self) -> None:
        """Give the caches back."""
        self._target.release(self._caches[0])
        self._drafter.release(self._caches[1])

    def prefill(self, tokens: Tensor, pad: Tensor) -> list[Tensor]:
        """Logits [batch, vocabulary] of both after the prompts [batch, count]."""
        return [
            at_least_float32(self._target.prefill(self._caches[0], tokens, pad)),
            self._drafter.prefill(self._caches[1], tokens, pad),
        ]

    def extend(self, tokens: Tensor, length: int, pad: Tensor) -> list[Tensor]:
        """Logits [batch, vocabulary] of both after one more token [batch, 1] each."""
        return [
            at_least_float32(self._target.extend(self._caches[0], tokens, length, pad))[:, 0],
            self._drafter.extend(self._caches[1], tokens, length, pad)[:, 0],
        ]

    def read(self, tokens: Tensor, chunk: int) -> Iterator[tuple[int, Tensor, Tensor]]:
        """For each chunk of the texts: its start, and logits [batch, chunk, vocabulary] of both."""
        readers = (
            self._target.read(self._caches[0], tokens, keep=0, chunk=chunk),
            self._drafter.read(self._caches[1], tokens, chunk),
        )
        for (start, target), (_, draft) in zip(*readers, strict=True):
            yield start, at_least_float32(target), draft


def _summary(
    pair: Pair, way: _Way, dataset: str, sampling: Sampling, options: Options
) -> Acceptance:
    sums = np.stack([tally.sums for tally in way.tallies])
    counts = np.stack([tally.counts for tally in way.tallies])
    positions = int(counts.sum())
    if not positions:
        raise SequoiaError(f"{dataset}: the target ended every document with its first token")
    # Depth d is met after d - 1 accepted ones, wherever these began.
    sums, counts = (each[:, ::-1].cumsum(axis=1)[:, ::-1] for each in (sums, counts))
    enough = int((counts.sum(axis=0) >= FEWEST_POSITIONS).sum())
    by_depth = [_fitted(sums[:, d], counts[:, d]) for d in range(max(1, enough))]
    rates, fit, measured, low, high = by_depth[0]
    return Acceptance(
        rates=rates,
        low=low,
        high=high,
        by_depth=np.stack([row[0] for row in by_depth]) if options.depths > 1 else None,
        traces=[tally.trace for tally in way.tallies],
        positions=positions,
        target=pair.target_name,
        draft=pair.draft_name,
        dataset=dataset,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        verifier=way.verifier.name,
        fit=fit,
        measured=None if fit == "raw" else measured,
        context=sum(tally.context for tally in way.tallies) / positions,
        extra={
            "mode": "teacher-forced" if options.teacher_forced else "continuations",
            "documents": len(way.tallies),
            "seed": options.seed,
            **options.template.document(),
            "fingerprints": pair.fingerprints,
        },
    )


def _fitted(
    sums: FloatArray, counts: FloatArray
) -> tuple[FloatArray, str, FloatArray, FloatArray, FloatArray]:
    """Rates to plan with, which fit they are, the measurement and its 95 % interval."""
    positions = int(counts.sum())
    measured = sums.sum(axis=0) / positions
    low, high = bootstrap_rates(sums, counts)
    rates, fit = fit_monotone(measured, low, high, positions)
    return rates, fit, measured, low, high

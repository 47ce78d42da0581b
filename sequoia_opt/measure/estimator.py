"""The estimator: how often the target accepts the draft's 1st, 2nd, 3rd … guess on a dataset.

By default it samples the target's own continuations of the dataset's prompts, which decoding will
meet; or it is teacher-forced on the dataset's text, where one pass of the models serves several
temperatures and verifiers. Knows documents, batches and processes. Knows nothing of trees or time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from sequoia_opt.engine.drafters import HeadDrafter, LookupDrafter
from sequoia_opt.engine.pair import Pair
from sequoia_opt.errors import SequoiaError
from sequoia_opt.measure.continuations import Continuation, sample_continuations
from sequoia_opt.measure.dataset import spread_over
from sequoia_opt.measure.drafts_recording import check_recordable, record_drafts
from sequoia_opt.measure.head_paths import follow_paths
from sequoia_opt.measure.journal import Journal
from sequoia_opt.measure.lookup_sampling import check_sampling, record_lookups, sample_lookups
from sequoia_opt.measure.progress import Note, Progress, no_note, no_progress
from sequoia_opt.measure.records import Document
from sequoia_opt.measure.sample_texts import SampleText, prepare_texts
from sequoia_opt.measure.tally import acceptance_of
from sequoia_opt.measure.teacher_forced import sample_teacher_forced
from sequoia_opt.measure.template import PLAIN, Template
from sequoia_opt.measure.trials import Sampler
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.confidence_fit import fit_confidence
from sequoia_opt.plan.draft_passes import OF_HEAD
from sequoia_opt.plan.recording import Envelope, Recording
from sequoia_opt.plan.sampling import Sampling
from sequoia_opt.plan.verifiers import VERIFIERS, check_verifier


@dataclass
class EstimateOptions:
    """What to sample.

    Attributes:
        width: ranks to sample, W.
        depths: number of depths with rates of their own; 1 for one vector for all depths. A head's
            are always told apart along continuations, as deep as drafts are recorded at least.
        max_new_tokens: tokens sampled of each document, at most.
        max_prompt_tokens: tokens of a prompt, at most; a longer one keeps its end, and the token
            that begins every text. The first half of a document without a prompt serves as one.
        limit: number of documents, at most, spread over the dataset.
        batch: documents that run together.
        teacher_forced: sample along the dataset's text instead of the target's continuations.
        seed: of all draws.
        template: how prompts are put to the models.
        envelope: what to record of the drafts along the continuations; None for nothing.
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
    envelope: Envelope | None = None


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


def check_sampled(sampling: Sampling) -> None:
    """Check that acceptance by rank can be sampled.

    Raises:
        SequoiaError: the verifier has no acceptance by rank, or an option is out of range.
    """
    check_verifier(sampling.verifier)
    spec = VERIFIERS[sampling.verifier]
    if not spec.has_rates:
        raise SequoiaError(
            f"verifier: {spec.name} verifies whole paths and has no acceptance by rank; estimate "
            f"with {spec.planned_as}, whose rates its trees are solved with, and decode with "
            f"--verifier {spec.name}"
        )


def estimate(
    pair: Pair,
    documents: Sequence[Document],
    dataset: str,
    samplings: Sequence[Sampling] = (Sampling(),),
    options: EstimateOptions | None = None,
    progress: Progress = no_progress,
    note: Note = no_note,
    journal: Journal | None = None,
) -> list[Acceptance]:
    """Sample acceptance by rank, with rank traces, for each way to choose tokens.

    The result for one way depends neither on the others nor on the number of processes that share
    the documents.

    Args:
        dataset: its name, for the file.
        progress: called with tokens sampled and tokens to sample.
        note: called with a line for everything that was left out.
        journal: records each batch, and says when the time is up. Only a process that is alone
            may give its journal a file.

    Raises:
        SequoiaError: options are out of range, or there is nothing to sample.
    """
    options, journal = options or EstimateOptions(), journal or Journal()
    _check(samplings, options)
    if isinstance(pair.drafter, LookupDrafter):
        for sampling in samplings:
            check_sampling(sampling, options.teacher_forced)
    elif options.envelope is not None:
        check_recordable(pair)
    documents = spread_over(documents, options.limit or len(documents))
    texts = prepare_texts(
        pair,
        documents,
        max_new_tokens=options.max_new_tokens,
        max_prompt_tokens=options.max_prompt_tokens,
        teacher_forced=options.teacher_forced,
        template=options.template,
        note=note,
    )
    width = min(options.width, pair.drafter.width)
    samplers = [
        Sampler.empty(sampling, len(texts), options.depths, width) for sampling in samplings
    ]
    batches = _batches(texts, options.batch)
    sampled = _sample_share(pair, texts, batches, samplers, options, width, progress, note, journal)
    return [
        _acceptance(pair, _gathered(pair, sampler, sampled), dataset, options)
        for sampler in samplers
    ]


def _check(samplings: Sequence[Sampling], options: EstimateOptions) -> None:
    """Check the options.

    Raises:
        SequoiaError: an option is out of range, or a verifier has no acceptance by rank, or
            drafts are to be recorded along a dataset's text.
    """
    for sampling in samplings:
        check_sampled(sampling)
    for name in ("width", "depths", "max_new_tokens", "max_prompt_tokens", "batch"):
        value = getattr(options, name)
        if value < 1:
            raise SequoiaError(f"{name.replace('_', '-')}: found {value}, expected at least 1")
    if options.teacher_forced and options.envelope is not None:
        raise SequoiaError(
            "envelope: drafts are recorded along the target's own continuations, not along a "
            "dataset's text"
        )


def _batches(texts: Sequence[SampleText], size: int) -> list[list[int]]:
    """The texts' numbers in batches of similar prompt length, so that padding is short."""
    by_length = sorted(range(len(texts)), key=lambda number: len(texts[number].prompt))
    return [by_length[start : start + size] for start in range(0, len(by_length), size)]


def _share(count: int, rank: int, processes: int) -> list[int]:
    """The numbers of the batches that this process samples, in order.

    The order is shuffled, so that long and short prompts have been sampled evenly whenever the
    time is up.
    """
    order: list[int] = np.random.default_rng(0).permutation(count).tolist()
    return order[rank::processes]


@torch.inference_mode()
def _sample_share(
    pair: Pair,
    texts: Sequence[SampleText],
    batches: Sequence[Sequence[int]],
    samplers: Sequence[Sampler],
    options: EstimateOptions,
    width: int,
    progress: Progress,
    note: Note,
    journal: Journal,
) -> list[int]:
    """Sample this process's share of the batches until the time is up.

    Returns:
        The numbers of the texts that were sampled.
    """
    share = _share(len(batches), pair.peers.rank, pair.peers.size)
    # Teacher-forced, all samplers share one pass over a text; continuations differ.
    passes = [samplers] if options.teacher_forced else [[sampler] for sampler in samplers]
    # Each token is sampled, then recorded; a head's depths are followed in between.
    is_head = isinstance(pair.drafter, HeadDrafter) and not options.teacher_forced
    turns = 1 + is_head + (options.envelope is not None)
    new_tokens = sum(texts[i].new_tokens for number in share for i in batches[number])
    total = len(passes) * turns * new_tokens
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(min(done, total), total)

    sampled: list[int] = []
    for finished, number in enumerate(share):
        is_recorded = journal.recall(_part_name(0, number)) is not None
        if finished and not is_recorded and journal.time_is_up():
            note(
                f"sampled {finished} of {len(share)} batches of documents: "
                "the time limit was reached"
            )
            break
        batch = [texts[i] for i in batches[number]]
        for pass_number, together in enumerate(passes):
            in_batch = [sampler.restricted_to(batches[number]) for sampler in together]
            name = _part_name(pass_number, number)
            if (tallies := journal.recall(name)) is not None:
                with journal.resuming(name):
                    _restore(in_batch, tallies)
                advance(turns * sum(text.new_tokens for text in batch))
            else:
                torch.manual_seed(options.seed + number)
                for count in _sample(pair, in_batch, batch, width, options):
                    advance(count)
                journal.record(name, _documents(in_batch))
        sampled += batches[number]
    progress(total, total)
    return sampled


def _part_name(pass_number: int, batch_number: int) -> str:
    """The journal's name for one batch's samples in one pass."""
    return f"part {pass_number}, batch {batch_number}"


def _sample(
    pair: Pair,
    samplers: Sequence[Sampler],
    texts: Sequence[SampleText],
    width: int,
    options: EstimateOptions,
) -> Iterator[int]:
    """Sample one batch; yields the number of tokens sampled, or recorded, since the last one."""
    if options.teacher_forced:
        yield from sample_teacher_forced(pair, samplers, texts, width)
        return
    (sampler,) = samplers
    if isinstance(pair.drafter, LookupDrafter):
        recorded = None if options.envelope is None else options.envelope.within(width)
        yield from sample_lookups(pair, pair.drafter, sampler, texts, width, recorded)
        return
    if options.envelope is None and not isinstance(pair.drafter, HeadDrafter):
        yield from sample_continuations(pair, sampler, texts, width)
        return
    envelope = (options.envelope or Envelope()).within(width)
    continuations = [Continuation(envelope.ranks) for _ in texts]
    yield from sample_continuations(pair, sampler, texts, width, continuations)
    if isinstance(pair.drafter, HeadDrafter):
        depths = max(options.depths, envelope.levels, Envelope().levels)
        yield from follow_paths(pair, pair.drafter, sampler, texts, continuations, depths, width)
    if options.envelope is None:
        return
    yield from record_drafts(pair, sampler, texts, continuations, envelope)
    if pair.lookup is not None:
        record_lookups(pair.lookup, sampler, texts, continuations, width)


def _documents(samplers: Sequence[Sampler]) -> list[list[dict[str, Any]]]:
    """The samplers' tallies, for the journal."""
    return [[tally.document() for tally in sampler.tallies] for sampler in samplers]


def _restore(samplers: Sequence[Sampler], recorded: list[list[dict[str, Any]]]) -> None:
    """Fill the samplers' tallies with what the journal recorded of them."""
    for sampler, documents in zip(samplers, recorded, strict=True):
        for tally, document in zip(sampler.tallies, documents, strict=True):
            tally.restore(document)


def _gathered(pair: Pair, sampler: Sampler, sampled: Sequence[int]) -> Sampler:
    """The sampler with the tallies of all processes, without those of texts not sampled.

    Args:
        sampled: numbers of the texts that this process sampled.
    """
    shares = pair.peers.gather({number: sampler.tallies[number] for number in sampled})
    tallies = {number: tally for share in shares for number, tally in share.items()}
    in_order = [tallies[number] for number in sorted(tallies)]
    return Sampler(sampler.sampling, sampler.verifier, in_order)


def _acceptance(pair: Pair, sampler: Sampler, dataset: str, options: EstimateOptions) -> Acceptance:
    """The acceptance file's content, and the recording that belongs to it."""
    acceptance = acceptance_of(
        sampler.tallies,
        sampler.sampling,
        sampler.verifier.name,
        target=pair.target_name,
        draft=pair.draft_name,
        dataset=dataset,
        extra={
            "mode": "teacher-forced" if options.teacher_forced else "continuations",
            "documents": len(sampler.tallies),
            "seed": options.seed,
            **options.template.document(),
            "fingerprints": pair.fingerprints,
            **pair.about_draft,
        },
    )
    recordings = [tally.recording for tally in sampler.tallies if tally.recording is not None]
    if recordings:
        about = {
            "target": pair.target_name,
            "draft": pair.draft_name,
            "dataset": dataset,
            **asdict(replace(sampler.sampling, verifier=sampler.verifier.name)),
            "fingerprints": pair.fingerprints,
            **({"passes": OF_HEAD} if pair.drafter.passes == OF_HEAD else {}),
        }
        acceptance.recording = Recording.joined(recordings, about)
        acceptance.confidence = fit_confidence(acceptance.recording)
    return acceptance

"""Measures the bundled pair: profile, plans, several methods, and whether greedy texts agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from record import Record
from resident import compile_pair

from sequoia_opt import demo
from sequoia_opt.api import load_dataset, load_pair
from sequoia_opt.engine.library import DRAFT, Speculation
from sequoia_opt.engine.pair import Pair
from sequoia_opt.measure import methods, profiler
from sequoia_opt.measure.divergence import divergence
from sequoia_opt.measure.race import Race, race
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.latency import LatencyProfile
from sequoia_opt.plan.plan import Plan
from sequoia_opt.plan.recorded import recording_of
from sequoia_opt.plan.sampling import Sampling
from sequoia_opt.plan.solver import solve
from sequoia_opt.plan.tree import AUTOREGRESSIVE
from sequoia_opt.repository import paths

TOKENS = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64]
CONTEXTS = [128, 512]
ROUNDS = 5
TEMPERATURES, VERIFIER = (0.0, 0.6), "sequoia"
PROMPTS, NEW_TOKENS = 5, 64
PROMPTS_TINY, NEW_TOKENS_TINY = 2, 24


def measure(record: Record, device: str, tiny: bool) -> None:
    """Measure the bundled pair with its acceptance files from the repository."""
    with record.stage("load"):
        pair = load_pair(device=device)
    compile_pair(record, pair)
    with record.stage("profile"):
        tokens = TOKENS[:5] if tiny else TOKENS
        options = profiler.ProfileOptions(
            tokens, CONTEXTS[:1] if tiny else CONTEXTS, repeats=ROUNDS
        )
        measured = profiler.profile(pair, options)
        profile_path, profile = record.save_profile(pair, measured)
    count, new_tokens = (PROMPTS_TINY, NEW_TOKENS_TINY) if tiny else (PROMPTS, NEW_TOKENS)
    prompts = held_out_prompts(pair, count)
    for temperature in TEMPERATURES:
        with record.stage(f"solve, temperature {temperature:g}"):
            acceptance_path = measured_acceptance(temperature)
            acceptance = Acceptance.load(acceptance_path)
            plan, chain = plans(profile, acceptance, acceptance_path)
            record.save_plan(plan, profile_path, acceptance_path)
        with record.stage(f"decode, temperature {temperature:g}"):
            sampling = Sampling(temperature, acceptance.top_p, VERIFIER)
            raced = race(
                methods_to_compare(pair, plan, chain, sampling), prompts, new_tokens, repeats=1
            )
            results = {
                result.name: [result.tokens_per_second, result.speedup]
                for result in raced.results()
            }
            record.note(
                **{
                    f"T{temperature:g}": {
                        "nodes": plan.tree.largest_size,
                        "predicted_speedup": plan.choice.speedup[0],
                        "tokens_per_second_and_speedup": results,
                        **(agreement(pair, prompts, raced) if temperature == 0 else {}),
                    }
                }
            )


def measured_acceptance(temperature: float) -> Path:
    """The repository's acceptance file of the bundled pair and dataset."""
    verifier = "greedy" if temperature == 0 else VERIFIER
    names = demo.TARGET_NAME, demo.DRAFT_NAME, demo.DATASET_NAME
    return paths.PACKAGE.parent / paths.acceptance_path(*names, verifier, temperature, 1.0)


def plans(profile: LatencyProfile, acceptance: Acceptance, path: Path) -> tuple[Plan, Plan]:
    """The plan that `solve-all` finds, which may be adaptive, and the best fixed chain.

    Args:
        path: the acceptance's file, which the recorded drafts lie beside.
    """
    recording = recording_of(acceptance, path)
    return solve(profile, acceptance, recording=recording), solve(
        profile, acceptance, shape="chain"
    )


def held_out_prompts(pair: Pair, count: int) -> list[list[int]]:
    """Prompts of the bundled dataset, on which the pair was not trained."""
    _, documents = load_dataset()
    return [pair.encode(document.prompt) for document in documents[:count]]


def methods_to_compare(
    pair: Pair, plan: Plan, chain: Plan, sampling: Sampling
) -> list[methods.Method]:
    """The methods to compare; plain decoding, the baseline, is the first."""
    options = asdict(sampling)
    return [
        methods.with_tree(pair, "plain", AUTOREGRESSIVE, **options),
        methods.with_tree(pair, "tree", plan.tree, **options),
        methods.with_tree(pair, "chain", chain.tree, **options),
        methods.with_library(pair, "transformers generate", sampling=sampling),
        methods.with_library(pair, "assisted generation", Speculation(DRAFT), sampling),
    ]


def agreement(pair: Pair, prompts: Sequence[list[int]], raced: Race) -> dict[str, float]:
    """Counts of the tree's greedy texts that equal plain decoding's, and the largest gap elsewhere.

    The gap is the difference of the target's two best logits where two texts diverge. One beyond
    rounding means an error.
    """
    plain, tree = ([run.tokens for run in runs] for runs in raced.runs[:2])
    divergences = [
        divergence(pair, prompt, *texts)
        for prompt, texts in zip(prompts, zip(plain, tree, strict=True), strict=True)
    ]
    gaps = [divergent.gap for divergent in divergences if divergent is not None]
    return {
        "texts": len(prompts),
        "equal_texts": len(prompts) - len(gaps),
        "largest_gap": max(gaps, default=0.0),
    }

"""Measures a pair that fits on the device: profile, plan and decoding speed."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from random_models import published_acceptance, write_configs
from rates import memory_rate, weights_read
from record import Record

from sequoia_opt.api import load_pair
from sequoia_opt.engine.pair import Pair
from sequoia_opt.errors import SequoiaError
from sequoia_opt.measure import methods, profiler
from sequoia_opt.measure.race import race
from sequoia_opt.plan.solver import solve
from sequoia_opt.plan.tree import AUTOREGRESSIVE

PROMPT_TOKENS = 128
TOKENS = [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128]
ROUNDS = 5
# The numbers of prompts and of new tokens with this program, and with transformers' `generate`,
# which is several times slower.
OURS, LIBRARY = (6, 160), (2, 32)
OURS_TINY, LIBRARY_TINY = (3, 48), (1, 8)


def measure(
    record: Record, device: str, target: str, draft: str, contexts: list[int], tiny: bool
) -> None:
    """Measure a pair with random weights at the published acceptance rates.

    Args:
        target, draft: names of shapes.
        contexts: context lengths to profile at.
    """
    (prompts, new_tokens), library = (OURS_TINY, LIBRARY_TINY) if tiny else (OURS, LIBRARY)
    with record.stage("load"), TemporaryDirectory() as folder:
        pair = load_pair(*write_configs(Path(folder), target, draft), device, random_weights=True)
    compile_pair(record, pair)
    with record.stage("profile"):
        options = profiler.ProfileOptions(
            TOKENS[:6] if tiny else TOKENS, contexts, verifiers=[], repeats=ROUNDS
        )
        measured = profiler.profile(pair, options, note=lambda line: record.note(left_out=line))
        profile_path, profile = record.save_profile(pair, measured)
    with record.stage("solve"):
        acceptance_path, acceptance = record.save_acceptance(published_acceptance(target, draft))
        plan = solve(profile, acceptance)
        record.save_plan(plan, profile_path, acceptance_path)
    with record.stage("memory bandwidth"):
        copy_rate = memory_rate(pair.device)
        record.note(copy_gb_per_s=copy_rate)
    with record.stage("decode plain and with the tree"):
        rates = acceptance.table(1 + plan.tree.depth)
        contestants = [
            methods.with_tree(pair, name, tree, endless=True, rates=rates)
            for name, tree in (("plain", AUTOREGRESSIVE), ("tree", plan.tree))
        ]
        raced = race(contestants, random_prompts(pair, prompts), new_tokens, repeats=1)
        plain, tree = raced.results()
        record.note(
            plain_ms=plain.ms_per_token,
            bandwidth_share=weights_read(pair.target) / plain.ms_per_token / 1e6 / copy_rate,
            step_ms=tree.ms_per_step,
            tokens_per_step=tree.tokens_per_step,
            tokens_per_second=tree.tokens_per_second,
            overhead_share=1 - profile.forwards_ms(plan.tree, plan.context) / tree.ms_per_step,
            speedup=tree.speedup,
            speedup_interval=[tree.speedup_low, tree.speedup_high],
        )
    with record.stage("decode with transformers' generate"):
        generate = methods.with_library(pair, "transformers generate")
        generate.run(random_prompts(pair, 1)[0], 4)  # to warm up
        runs = [generate.run(prompt, library[1]) for prompt in random_prompts(pair, library[0])]
        generate_ms = 1000 * sum(run.seconds for run in runs) / sum(run.timed for run in runs)
        record.note(
            generate_ms=generate_ms,
            speedup_over_generate=generate_ms * tree.tokens_per_second / 1000,
        )


def compile_pair(record: Record, pair: Pair) -> None:
    """Compile both models on a GPU; if that fails, record it and continue without."""
    if pair.device.type != "cuda":
        return
    with record.stage("compile"):
        try:
            pair.compile()
        except SequoiaError as error:
            record.note(not_compiled=str(error))


def random_prompts(pair: Pair, count: int) -> list[list[int]]:
    """Prompts of random tokens, [count, PROMPT_TOKENS]."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(pair.target.vocabulary, (count, PROMPT_TOKENS), generator=generator)
    prompts: list[list[int]] = tokens.tolist()
    return prompts

"""A target whose layers stay in host memory: how fast they come, its plan, and accelerate's way.

On a CPU, to rehearse, they stay on disk.
"""

from __future__ import annotations

import gc
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from random_models import config_of, published_acceptance, write_configs
from rates import bus_rate, disk_rate
from record import Record
from resident import PROMPT, random_prompts
from transformers import AutoModelForCausalLM

from sequoia_opt.api import load_pair
from sequoia_opt.engine.decoder import Decoder, Generation
from sequoia_opt.engine.pair import Pair
from sequoia_opt.engine.torch.empty_model import random_model
from sequoia_opt.engine.torch.layer_weights import decoder_layers, named_weights, set_weight
from sequoia_opt.engine.torch.memory import free_bytes, weight_bytes
from sequoia_opt.measure import profiler
from sequoia_opt.plan.solver import solve
from sequoia_opt.plan.tree import AUTOREGRESSIVE, TokenTree

# Of the target's weights, what it may take on the device; with a short text's keys and values,
# which are large beside a tiny model.
SHARE, SHARE_TINY = 0.15, 0.9
TOKENS = [1, 128, 512]  # the bus bounds a forward pass, so its time hardly depends on them
PLAIN_STEPS, TREE_STEPS, LIBRARY_STEPS = 6, 16, 3
PIECE, SPARE = 2**28, 4 * 10**9  # bytes of host memory: touched at once, and left to others
SHORT = 2  # steps of each when only rehearsed


def measure(record: Record, device: str, target: str, draft: str, tiny: bool) -> None:
    """Measure a pair of random weights, most of the target's off the device."""
    on_cpu = device == "cpu"
    kind = "float32" if on_cpu else "bfloat16"
    weights = weight_bytes(config_of(target), getattr(torch, kind)) or 0
    budget = int((SHARE_TINY if tiny else SHARE) * weights)
    with TemporaryDirectory() as name:
        folders = write_configs(Path(name), target, draft)
        if on_cpu:
            for folder in folders:
                AutoModelForCausalLM.from_config(config_of(folder.name)).save_pretrained(folder)
        with record.stage("load"):
            if not on_cpu:
                grow_memory(weights + SPARE)
            pair = load_pair(
                *folders,
                device,
                kind,
                random_weights=not on_cpu,
                offload="disk" if on_cpu else "cpu",
                memory_budget=budget,
            )
        _decode(record, pair, folders[0], SHORT if tiny else None)
    budget = pair.memory_budget or budget
    del pair
    gc.collect()
    with record.stage("load with accelerate"), TemporaryDirectory() as name:
        model = accelerates(target, device, kind, budget, Path(name))
        with record.stage("decode with accelerate's offloading"):
            seconds = seconds_of_library(model, SHORT if tiny else LIBRARY_STEPS)
    tree_seconds = record.values["step_ms"] / record.values["predicted_tokens"] / 1000
    record.note(accelerate_s_per_token=seconds, speedup_over_accelerate=seconds / tree_seconds)


def _decode(record: Record, pair: Pair, folder: Path, short: int | None) -> None:
    """What this program makes of the pair.

    Args:
        folder: of the target.
        short: steps of each decoding, if only rehearsed.
    """
    stream = pair.target.stream
    assert stream is not None
    with record.stage("what the layers come over, by itself"):
        on_cpu = pair.device.type == "cpu"
        alone = disk_rate(folder) if on_cpu else bus_rate(len(stream.buffers[0].memory))
        record.note(alone_gb_per_s=alone, streamed_gb=stream.moved_bytes / 1e9)
    with record.stage("decode plain"):
        plain = decoded(pair, AUTOREGRESSIVE, short or PLAIN_STEPS)
        plain_ms = 1000 * plain.seconds / plain.steps
        copied = stream.moved_bytes / plain_ms / 1e6
        record.note(plain_ms=plain_ms, copied_gb_per_s=copied, bus_share=copied / alone)
    with record.stage("profile"):
        tokens = TOKENS[:2] if short else TOKENS
        options = profiler.ProfileOptions(tokens, [PROMPT], verifiers=[], repeats=5, warm_up=0)
        profile = profiler.profile(pair, options)
        profile_path = record.save_profile(pair, profile)
        [curve] = profile.target.curves
        record.note(
            forward_ms=dict(zip(tokens, np.round(curve.median_ms, 2).tolist(), strict=True))
        )
    with record.stage("solve"):
        acceptance = published_acceptance(pair.target_name, pair.draft_name)
        plan = solve(profile, acceptance)
        record.save_plan(plan, profile_path, record.save_acceptance(acceptance))
    with record.stage("decode with the tree"):
        rates = acceptance.table(1 + plan.tree.depth)
        tree = decoded(pair, plan.tree, short or TREE_STEPS, rates=rates)
        step_ms = 1000 * tree.seconds / tree.steps
        record.note(
            step_ms=step_ms,
            tokens_per_step=tree.tokens_per_step,
            steps=tree.steps,
            # The rates are given, so the tokens of a step are known better than by counting.
            speedup=plan.choice.tokens[0] * plain_ms / step_ms,
        )


def decoded(pair: Pair, tree: TokenTree, steps: int, **options: Any) -> Generation:
    """A text decoded in at least so many steps, after one that warms up."""
    decoder = Decoder(pair, tree, **options)
    [prompt] = random_prompts(pair, 1)
    decoder.generate(prompt, 2, ignore_eos=True)
    whole = Generation()
    while whole.steps < steps:
        part = decoder.generate(prompt, 1 + steps, ignore_eos=True)
        whole.steps += part.steps
        whole.verified += part.verified
        whole.seconds += part.seconds
    return whole


def grow_memory(needed: int, seconds: float = 25) -> None:
    """Touch host memory until so many bytes can be had: that of a virtual machine may grow only as
    it is used."""
    held: list[torch.Tensor] = []
    ends, host = time.monotonic() + seconds, torch.device("cpu")
    while time.monotonic() < ends:
        free = free_bytes(host)
        if free is None or free + len(held) * PIECE >= needed:
            break
        if free > 4 * PIECE:
            held.append(torch.ones(PIECE, dtype=torch.uint8))
        else:
            time.sleep(0.1)


def accelerates(target: str, device: str, kind: str, budget: int, folder: Path) -> Any:
    """The same target as accelerate offloads it, with the same share of it on the device.

    Args:
        folder: for what it keeps on disk, when rehearsed on a CPU.
    """
    from accelerate import dispatch_model, infer_auto_device_map

    model: Any = random_model(config_of(target), getattr(torch, kind))
    for layer in decoder_layers(model)[1]:  # each with weights of its own, as in a checkpoint
        for name, tensor in named_weights(layer).items():
            set_weight(layer, name, tensor.detach().clone())
    first: int | str = "cpu" if device == "cpu" else 0
    elsewhere = "disk" if device == "cpu" else "cpu"
    places = infer_auto_device_map(
        model,
        {first: budget, elsewhere: 10**15},
        no_split_module_classes=list(model._no_split_modules),
    )
    return dispatch_model(model, places, main_device=first, offload_dir=str(folder))


def seconds_of_library(model: Any, steps: int) -> float:
    """Median seconds of a token in transformers' `generate`."""
    times: list[float] = []

    def note(*_: object) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter())

    model.register_forward_hook(note)
    tokens = torch.arange(PROMPT)[None].to(model.device if model.device.type != "meta" else "cpu")
    model.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=1 + steps,
        min_new_tokens=1 + steps,
        do_sample=False,
        pad_token_id=0,
    )
    return float(np.median(np.diff(times)))

"""Measures a target offloaded to host memory: streaming rate, plan and speed over accelerate's.

A rehearsal on a CPU offloads it to disk.
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
from resident import PROMPT_TOKENS, random_prompts
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

# The share of the target's weights that it may take on the device, including a short text's KV
# cache, which is large compared with a tiny model.
DEVICE_SHARE, DEVICE_SHARE_TINY = 0.15, 0.9
TOKENS = [1, 128, 512]  # the bus bounds a forward pass, so its time hardly depends on them
PLAIN_STEPS, TREE_STEPS, LIBRARY_STEPS = 6, 16, 3
TOUCHED_BYTES = 2**28  # of host memory in one allocation
SPARE_BYTES = 4 * 10**9  # of host memory, for other processes
TINY_STEPS = 2  # of each kind, in a rehearsal


def measure(record: Record, device: str, target: str, draft: str, tiny: bool) -> None:
    """Measure a pair with random weights, most of the target's off the device."""
    on_cpu = device == "cpu"
    dtype = "float32" if on_cpu else "bfloat16"
    weights = weight_bytes(config_of(target), getattr(torch, dtype)) or 0
    budget = int((DEVICE_SHARE_TINY if tiny else DEVICE_SHARE) * weights)
    with TemporaryDirectory() as name:
        folders = write_configs(Path(name), target, draft)
        if on_cpu:
            for folder in folders:
                AutoModelForCausalLM.from_config(config_of(folder.name)).save_pretrained(folder)
        with record.stage("load"):
            if not on_cpu:
                grow_memory(weights + SPARE_BYTES)
            pair = load_pair(
                *folders,
                device,
                dtype,
                random_weights=not on_cpu,
                offload="disk" if on_cpu else "cpu",
                memory_budget=budget,
            )
        _decode(record, pair, folders[0], TINY_STEPS if tiny else None)
    budget = pair.memory_budget or budget
    del pair
    gc.collect()
    with record.stage("load with accelerate"), TemporaryDirectory() as name:
        model = load_with_accelerate(target, device, dtype, budget, Path(name))
        with record.stage("decode with accelerate's offloading"):
            seconds = library_seconds_per_token(model, TINY_STEPS if tiny else LIBRARY_STEPS)
    tree_seconds = record.values["step_ms"] / record.values["predicted_tokens"] / 1000
    record.note(accelerate_s_per_token=seconds, speedup_over_accelerate=seconds / tree_seconds)


def _decode(record: Record, pair: Pair, folder: Path, tiny_steps: int | None) -> None:
    """Profile the pair and decode with this program, plainly and with the solved tree.

    Args:
        folder: the target's folder.
        tiny_steps: number of steps of each decoding in a rehearsal; None otherwise.
    """
    stream = pair.target.stream
    assert stream is not None
    with record.stage("bandwidth of the disk or the bus"):
        on_cpu = pair.device.type == "cpu"
        bandwidth = disk_rate(folder) if on_cpu else bus_rate(len(stream.buffers[0].memory))
        record.note(alone_gb_per_s=bandwidth, streamed_gb=stream.moved_bytes / 1e9)
    with record.stage("decode plain"):
        plain = decode_steps(pair, AUTOREGRESSIVE, tiny_steps or PLAIN_STEPS)
        plain_ms = 1000 * plain.seconds / plain.steps
        stream_rate = stream.moved_bytes / plain_ms / 1e6
        record.note(
            plain_ms=plain_ms, copied_gb_per_s=stream_rate, bus_share=stream_rate / bandwidth
        )
    with record.stage("profile"):
        tokens = TOKENS[:2] if tiny_steps else TOKENS
        options = profiler.ProfileOptions(
            tokens, [PROMPT_TOKENS], verifiers=[], repeats=5, warm_up=0
        )
        measured = profiler.profile(pair, options)
        profile_path, profile = record.save_profile(pair, measured)
        [curve] = profile.target.curves
        record.note(
            forward_ms=dict(zip(tokens, np.round(curve.median_ms, 2).tolist(), strict=True))
        )
    with record.stage("solve"):
        acceptance_path, acceptance = record.save_acceptance(
            published_acceptance(pair.target_name, pair.draft_name)
        )
        plan = solve(profile, acceptance)
        record.save_plan(plan, profile_path, acceptance_path)
    with record.stage("decode with the tree"):
        rates = acceptance.table(1 + plan.tree.depth)
        tree = decode_steps(pair, plan.tree, tiny_steps or TREE_STEPS, rates=rates)
        step_ms = 1000 * tree.seconds / tree.steps
        record.note(
            step_ms=step_ms,
            tokens_per_step=tree.tokens_per_step,
            steps=tree.steps,
            # Acceptance is simulated from known rates, so the expected tokens per step are more
            # precise than the counted ones.
            speedup=plan.choice.tokens[0] * plain_ms / step_ms,
        )


def decode_steps(pair: Pair, tree: TokenTree, steps: int, **options: Any) -> Generation:
    """Decode at least `steps` steps after one that warms up; returns their sums."""
    decoder = Decoder(pair, tree, **options)
    [prompt] = random_prompts(pair, 1)
    decoder.generate(prompt, 2, ignore_eos=True)
    total = Generation()
    while total.steps < steps:
        generation = decoder.generate(prompt, 1 + steps, ignore_eos=True)
        total.steps += generation.steps
        total.verified += generation.verified
        total.seconds += generation.seconds
    return total


def grow_memory(needed: int, seconds: float = 25) -> None:
    """Touch host memory until `needed` bytes are available.

    The memory of a virtual machine may grow only as it is used.
    """
    blocks: list[torch.Tensor] = []
    deadline, host = time.monotonic() + seconds, torch.device("cpu")
    while time.monotonic() < deadline:
        free = free_bytes(host)
        if free is None or free + len(blocks) * TOUCHED_BYTES >= needed:
            break
        if free > 4 * TOUCHED_BYTES:
            blocks.append(torch.ones(TOUCHED_BYTES, dtype=torch.uint8))
        else:
            time.sleep(0.1)


def load_with_accelerate(target: str, device: str, dtype: str, budget: int, folder: Path) -> Any:
    """The target, offloaded by accelerate with the same budget on the device.

    Args:
        folder: for the weights that it offloads to disk, in a rehearsal on a CPU.
    """
    from accelerate import dispatch_model, infer_auto_device_map

    model: Any = random_model(config_of(target), getattr(torch, dtype))
    # The layers of `random_model` share weights; a checkpoint's do not.
    for layer in decoder_layers(model)[1]:
        for name, tensor in named_weights(layer).items():
            set_weight(layer, name, tensor.detach().clone())
    first: int | str = "cpu" if device == "cpu" else 0
    second = "disk" if device == "cpu" else "cpu"
    device_map = infer_auto_device_map(
        model,
        {first: budget, second: 10**15},
        no_split_module_classes=list(model._no_split_modules),
    )
    return dispatch_model(model, device_map, main_device=first, offload_dir=str(folder))


def library_seconds_per_token(model: Any, steps: int) -> float:
    """The median seconds per token of transformers' `generate`."""
    times: list[float] = []

    def record_time(*_: object) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter())

    model.register_forward_hook(record_time)
    tokens = torch.arange(PROMPT_TOKENS)[None].to(
        model.device if model.device.type != "meta" else "cpu"
    )
    model.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=1 + steps,
        min_new_tokens=1 + steps,
        do_sample=False,
        pad_token_id=0,
    )
    return float(np.median(np.diff(times)))

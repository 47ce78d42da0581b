"""What a target costs whose layers are read from disk: `python tests/benchmarks/offload.py`.

Makes a pair of random weights on the spot and decodes with it, each way in a process of its own:
how fast weights are read beside the disk's own rate, how much memory the process takes, what a
forward takes by its tokens, the tree that pays and its speed at published rates of acceptance,
the same with the target in memory, and accelerate's offloading of it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from safetensors.torch import save_file

from sequoia_opt.engine.decoder import Decoder
from sequoia_opt.engine.models import Pair, load_pair
from sequoia_opt.measure import profiler
from sequoia_opt.plan import shapes
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.solver import solve

DRAFT: dict[str, Any] = dict(
    hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4
)
VOCABULARY, CONTEXT = 2048, 128
BUDGET = 0.15  # of the weights
SIZES = [1, 2, 4, 8, 16, 32, 64, 128]
STEPS, ROUNDS = 4, 3
PIECE = 2**23
OURS, RESIDENT, ACCELERATE = "this program", "in memory", "accelerate"
# What the Sequoia research code publishes: how often a rank is accepted.
PUBLISHED = Path(__file__).parents[1] / "plan" / "sequoia_reference_table.json"


def make(folder: Path, config: Any) -> None:
    """Save a model of random weights in bfloat16, a file for each layer."""
    from transformers import AutoModelForCausalLM

    folder.mkdir()
    config.save_pretrained(folder)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    files: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in model.state_dict().items():
        part = name.split(".")[2] if ".layers." in name else "rest"
        files.setdefault(f"{part}.safetensors", {})[name] = tensor
    places = {name: file for file, tensors in files.items() for name in tensors}
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    noise = torch.randn(2**20).bfloat16() * 0.02
    for file, tensors in files.items():
        filled = {
            name: noise.repeat(1 + t.numel() // len(noise))[: t.numel()].view(t.shape)
            for name, t in tensors.items()
        }
        save_file({name: t.clone() for name, t in filled.items()}, folder / file)
    os.sync()


def resident(peak: bool = False) -> int:
    """Bytes of memory that the process has, or has had since `forget`."""
    wanted = "VmHWM:" if peak else "VmRSS:"
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(wanted))


def forget() -> None:
    """Begin to look for the peak anew."""
    Path("/proc/self/clear_refs").write_text("5")


def disk_rate(folder: Path) -> float:
    """GB/s at which all files can be read, one after another, from the disk itself."""
    piece, total = bytearray(PIECE), 0
    started = time.perf_counter()
    for path in folder.glob("*.safetensors"):
        with path.open("rb", buffering=0) as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while count := stream.readinto(piece):
                total += count
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return total / (time.perf_counter() - started) / 1e9


def run_ours(target: Path, draft: Path, budget: int) -> dict[str, Any]:
    """Decode with this program."""
    empty = load_pair(draft, draft, "cpu", "bfloat16")
    Decoder(empty, shapes.chain(4)).generate(list(range(CONTEXT)), 8, ignore_eos=True)
    before = resident()
    forget()
    pair = load_pair(target, draft, "cpu", "bfloat16", offload="disk", memory_budget=budget)
    stream: Any = pair.target.stream
    decoder = Decoder(pair)
    decoder.generate(list(range(CONTEXT)), 2, ignore_eos=True)
    store = stream.store
    rates, steps, reading = [disk_rate(target)], [], []
    for _ in range(ROUNDS):
        bytes_before, seconds_before = store.read_bytes, store.read_seconds
        steps.append(seconds_a_token(decoder))
        reading.append(
            (store.read_bytes - bytes_before) / (store.read_seconds - seconds_before) / 1e9
        )
        rates.append(disk_rate(target))
    grown = resident(peak=True) - before
    assert pair.target.cache is not None
    caches = sum(t.nbytes for t in (*pair.target.cache.keys, *pair.target.cache.values))
    return {
        "seconds a token": float(np.median(steps)),
        "moved": stream.moved_bytes,
        "streamed": len(stream.streamed),
        "read": float(np.median(reading)),
        "disk": float(np.median(rates)),
        "grown": grown,
        "caches": caches,
        "allowed": budget + stream.buffer_bytes,
        **best_tree(pair),
    }


def run_resident(target: Path, draft: Path, budget: int) -> dict[str, Any]:
    """The same with all weights in memory."""
    return best_tree(load_pair(target, draft, "cpu", "bfloat16"))


def seconds_a_token(decoder: Decoder) -> float:
    """Decode a few steps."""
    found = decoder.generate(list(range(CONTEXT)), STEPS * (decoder.tree.depth + 1), True)
    return found.seconds / found.verified


def best_tree(pair: Pair) -> dict[str, Any]:
    """Profile the pair, solve for the published rates, and decode with the tree and without."""
    options = profiler.Options(SIZES, [CONTEXT], repeats=5, warm_up=0)
    measured = profiler.profile(pair, options)
    vector = np.array(json.loads(PUBLISHED.read_text())["acceptance"])
    published = Acceptance(vector[: np.searchsorted(vector.cumsum(), 1 + 1e-6)])
    plan = solve(measured, published, max_size=SIZES[-1])
    tree = plan.tree
    guessing = Decoder(pair, tree, rates=published.table(1 + tree.depth))
    plain = Decoder(pair)
    times = [(seconds_a_token(plain), seconds_a_token(guessing)) for _ in range(ROUNDS)]
    [curve] = measured.target.curves
    return {
        "forwards": dict(zip(SIZES, curve.median_ms.tolist(), strict=True)),
        "size": tree.size,
        "depth": tree.depth,
        "predicted": float(plan.choice.speedup[0]),
        "speedup": float(np.median([before / after for before, after in times])),
        "plain": float(np.median([before for before, _ in times])),
        "tree": float(np.median([after for _, after in times])),
    }


def run_accelerate(target: Path, draft: Path, budget: int) -> dict[str, Any]:
    """Decode with transformers and accelerate, as much of the model in memory."""
    from accelerate import infer_auto_device_map
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(target)
    with torch.device("meta"):
        shell: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    kept = infer_auto_device_map(
        shell, {"cpu": budget, "disk": 10**15}, no_split_module_classes=shell._no_split_modules
    )
    before = resident()
    forget()
    with tempfile.TemporaryDirectory() as folder:
        model: Any = AutoModelForCausalLM.from_pretrained(
            target, dtype=torch.bfloat16, device_map=kept, offload_folder=folder
        )
        tokens = torch.arange(CONTEXT)[None]
        files = list(target.glob("*.safetensors"))

        def forget_files(*_: object) -> None:
            for path in files:
                with path.open("rb") as stream:
                    os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

        found = {}
        for name, cached in (("seconds a token", False), ("from the page cache", True)):
            times: list[float] = []
            hook = None if cached else model.register_forward_pre_hook(forget_files)
            note = model.register_forward_hook(lambda *_: times.append(time.perf_counter()))
            options: Any = dict(max_new_tokens=STEPS, do_sample=False, pad_token_id=0)
            model.generate(tokens, attention_mask=torch.ones_like(tokens), **options)
            found[name] = float(np.median(np.diff(times)))
            note.remove()
            if hook is not None:
                hook.remove()
    return found | {"grown": resident(peak=True) - before}


def main(
    layers: Annotated[int, typer.Option(help="Of the target.")] = 24,
    hidden: Annotated[int, typer.Option(help="Its width.")] = 2048,
    folder: Annotated[
        Path | None, typer.Option(help="Where to make the models.", show_default="temporary")
    ] = None,
    way: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Print what was measured."""
    if way is not None:  # the process for one of them
        assert folder is not None
        weights = sum(path.stat().st_size for path in (folder / "target").glob("*.safetensors"))
        run = {OURS: run_ours, RESIDENT: run_resident, ACCELERATE: run_accelerate}[way]
        print(json.dumps(run(folder / "target", folder / "draft", int(BUDGET * weights))))
        return
    from transformers import LlamaConfig

    with tempfile.TemporaryDirectory(dir=folder) as name:
        place = Path(name)
        common: Any = dict(vocab_size=VOCABULARY, max_position_embeddings=2048)
        shape: Any = dict(
            hidden_size=hidden,
            intermediate_size=4 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 64,
        )
        make(place / "target", LlamaConfig(**shape, **common))
        make(place / "draft", LlamaConfig(**DRAFT, **common))
        weights = sum(path.stat().st_size for path in (place / "target").glob("*.safetensors"))
        print(f"a target of {weights / 1e9:.2f} GB, {BUDGET:.0%} of it in memory")
        found = {}
        for each in (OURS, RESIDENT, ACCELERATE):
            command = [sys.executable, __file__, "--folder", str(place), "--way", each]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found[each] = json.loads(done.stdout.splitlines()[-1])
    report(found[OURS], found[RESIDENT], found[ACCELERATE])


def report(ours: dict[str, Any], whole: dict[str, Any], other: dict[str, Any]) -> None:
    """Print all ways' numbers."""
    print(
        f"{ours['streamed']} layers are streamed, {ours['moved'] / 1e9:.2f} GB a forward, read at "
        f"{ours['read']:.2f} GB/s; the disk alone gives {ours['disk']:.2f}"
    )
    print(
        f"memory grew by {ours['grown'] / 1e9:.3f} GB, {ours['caches'] / 1e9:.3f} of it keys and "
        f"values; budget and two layers are {ours['allowed'] / 1e9:.3f}; with accelerate by "
        f"{other['grown'] / 1e9:.3f}"
    )
    print(
        f"plain decoding: {ours['seconds a token']:.2f} s a token, accelerate "
        f"{other['seconds a token']:.2f} (from the page cache {other['from the page cache']:.2f})"
    )
    for name, found in (("from disk", ours), (RESIDENT, whole)):
        print(
            f"{name}: at published rates a tree of {found['size']} nodes, {found['depth']} deep, "
            f"predicted {found['predicted']:.2f} times plain decoding, measured "
            f"{found['speedup']:.2f} ({found['tree']:.3f} s a token, plain {found['plain']:.3f})"
        )
    print("| seconds of a forward, by tokens | " + " | ".join(ours["forwards"]) + " |")
    print("| --- |" + " ---: |" * len(ours["forwards"]))
    for name, found in (("from disk", ours), (RESIDENT, whole)):
        times = [f"{ms / 1000:.2f}" for ms in found["forwards"].values()]
        print(f"| {name} | " + " | ".join(times) + " |")


if __name__ == "__main__":
    typer.run(main)

"""What a target costs whose layers are brought in: `python tests/benchmarks/offload.py`.

Makes a pair of random weights on the spot and decodes with it, each way in a process of its own:
how fast layers come, from disk or from host memory, beside what the disk or the bus gives alone;
how much memory they take, also after a long prompt; what a forward takes by its tokens, the tree
that pays and its speed at published rates of acceptance; the same with the target in memory, and
accelerate's offloading of it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from random_models import published_rates
from rates import bus_rate, disk_rate
from safetensors.torch import save_file

from sequoia_opt.api import load_pair
from sequoia_opt.engine.decoder import Decoder
from sequoia_opt.engine.model import reserved
from sequoia_opt.engine.pair import Pair
from sequoia_opt.engine.torch.layer_stream import LayerStream
from sequoia_opt.errors import SequoiaError
from sequoia_opt.measure import profiler
from sequoia_opt.plan import shapes
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.solver import solve

DRAFT: dict[str, Any] = dict(
    hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4
)
VOCABULARY, POSITIONS, CONTEXT = 2048, 4096, 128
BUDGET = 0.15  # of the weights
SIZES = [1, 2, 4, 8, 16, 32, 64, 128]
STEPS, ROUNDS = 4, 3
OURS, RESIDENT, ACCELERATE = "this program", "in memory", "accelerate"


@dataclass(frozen=True)
class Setting:
    """What is measured.

    Attributes:
        folder: of the models.
        device: "cpu" or "cuda".
        offload: where the target's layers are: "disk" or "cpu".
        prompt: tokens of the prompt after which memory is looked at.
        dtype: of the weights, as torch names it.
    """

    folder: Path
    device: str
    offload: str
    prompt: int
    dtype: str

    @property
    def target(self) -> Path:
        return self.folder / "target"

    @property
    def draft(self) -> Path:
        return self.folder / "draft"

    @property
    def weights(self) -> int:
        """Bytes of the target's."""
        return sum(path.stat().st_size for path in self.target.glob("*.safetensors"))

    @property
    def budget(self) -> int:
        """Bytes that the target may take on the device."""
        return int(BUDGET * self.weights)


def make(folder: Path, config: Any, dtype: torch.dtype) -> None:
    """Save a model of random weights, a file for each layer."""
    from transformers import AutoModelForCausalLM

    folder.mkdir()
    config.save_pretrained(folder)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
    files: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in model.state_dict().items():
        part = name.split(".")[2] if ".layers." in name else "rest"
        files.setdefault(f"{part}.safetensors", {})[name] = tensor
    places = {name: file for file, tensors in files.items() for name in tensors}
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    noise = torch.randn(2**20).to(dtype) * 0.02
    for file, tensors in files.items():
        filled = {
            name: noise.repeat(1 + t.numel() // len(noise))[: t.numel()].view(t.shape)
            for name, t in tensors.items()
        }
        save_file({name: t.clone() for name, t in filled.items()}, folder / file)
    os.sync()


def taken(device: str, peak: bool = False) -> int:
    """Bytes of the device's memory that the process has, or has had since `forget`."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()
    wanted = "VmHWM:" if peak else "VmRSS:"
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(wanted))


def forget(device: str) -> None:
    """Begin to look for the peak anew."""
    if device == "cuda":
        torch.cuda.init()
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def alone_rate(setting: Setting, stream: LayerStream) -> float:
    """GB/s that what the layers come over gives when nothing else is done."""
    stream._worker.submit(int).result()  # what was on its way has come
    if setting.offload == "disk":
        return disk_rate(setting.target)
    return bus_rate(len(stream.buffers[0].memory))


def run_ours(setting: Setting) -> dict[str, Any]:
    """Decode with this program."""
    device, draft, dtype = setting.device, setting.draft, setting.dtype
    empty = load_pair(draft, draft, device, dtype)
    Decoder(empty, shapes.chain(4)).generate(text(CONTEXT), 8, ignore_eos=True)
    before = taken(device)
    forget(device)
    pair = load_pair(
        setting.target, draft, device, dtype,
        offload=setting.offload, memory_budget=setting.budget,
    )  # fmt: skip
    stream = pair.target.stream
    assert stream is not None
    decoder = Decoder(pair)
    long = decoder.generate(text(setting.prompt), 2, ignore_eos=True)
    grown = taken(device, peak=True) - before
    with reserved(pair.target, 1) as cache:  # the one that the text has just given back
        caches = sum(t.nbytes for t in (*cache.keys, *cache.values))
    rates, steps = [alone_rate(setting, stream)], []
    for _ in range(ROUNDS):
        steps.append(seconds_a_token(decoder))
        rates.append(alone_rate(setting, stream))
    seconds = float(np.median(steps))
    return {
        "seconds a token": seconds,
        "seconds of the prompt": long.prefill_seconds,
        "moved": stream.moved_bytes,
        "streamed": len(stream.streamed),
        # Over all of the time: it says too whether what is computed hides behind it.
        "coming": stream.moved_bytes / seconds / 1e9,
        "alone": float(np.median(rates)),
        "grown": grown,
        "caches": caches,
        "allowed": setting.budget + stream.buffer_bytes,
        **best_tree(pair),
    }


def run_resident(setting: Setting) -> dict[str, Any]:
    """The same with all weights on the device; nothing where they do not fit."""
    try:
        pair = load_pair(setting.target, setting.draft, setting.device, setting.dtype)
    except SequoiaError as error:
        print(f"not {RESIDENT}: {error}", file=sys.stderr)
        return {}
    return best_tree(pair)


def text(length: int) -> list[int]:
    """A prompt."""
    return [place % VOCABULARY for place in range(length)]


def seconds_a_token(decoder: Decoder) -> float:
    """Decode a few steps."""
    found = decoder.generate(text(CONTEXT), STEPS * (decoder.tree.depth + 1), True)
    return found.seconds / found.verified


def best_tree(pair: Pair) -> dict[str, Any]:
    """Profile the pair, solve for the published rates, and decode with the tree and without."""
    options = profiler.ProfileOptions(SIZES, [CONTEXT], repeats=5, warm_up=0)
    measured = profiler.profile(pair, options)
    published = Acceptance(published_rates())
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


def run_accelerate(setting: Setting) -> dict[str, Any]:
    """Decode with transformers and accelerate, as much of the model on the device."""
    from accelerate import infer_auto_device_map
    from transformers import AutoConfig, AutoModelForCausalLM

    config, dtype = AutoConfig.from_pretrained(setting.target), getattr(torch, setting.dtype)
    with torch.device("meta"):
        shell: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
    first: int | str = 0 if setting.device == "cuda" else "cpu"
    kept = infer_auto_device_map(
        shell,
        {first: setting.budget, setting.offload: 10**15},
        no_split_module_classes=shell._no_split_modules,
    )
    before = taken(setting.device)
    forget(setting.device)
    with tempfile.TemporaryDirectory() as folder:
        model: Any = AutoModelForCausalLM.from_pretrained(
            setting.target, dtype=dtype, device_map=kept, offload_folder=folder
        )
        tokens = torch.tensor([text(CONTEXT)], device=setting.device)
        # Whether they come from the disk or, once read, from the system's memory.
        ways = [("seconds a token", setting.offload == "disk")]
        ways += [("from the page cache", False)] * (setting.offload == "disk")
        found: dict[str, Any] = {}
        for name, anew in ways:
            times: list[float] = []
            hook = model.register_forward_pre_hook(forgetting(setting.target)) if anew else None
            note = model.register_forward_hook(lambda *_: times.append(now(setting.device)))
            options: Any = dict(max_new_tokens=STEPS, do_sample=False, pad_token_id=0)
            model.generate(tokens, attention_mask=torch.ones_like(tokens), **options)
            found[name] = float(np.median(np.diff(times)))
            note.remove()
            if hook is not None:
                hook.remove()
    return found | {"grown": taken(setting.device, peak=True) - before}


def forgetting(folder: Path) -> Any:
    """A hook that has the system forget what it has read of a model's files."""
    files = list(folder.glob("*.safetensors"))

    def hook(*_: object) -> None:
        for path in files:
            with path.open("rb") as stream:
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    return hook


def now(device: str) -> float:
    """The time when all work is done."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


WAYS = {OURS: run_ours, RESIDENT: run_resident, ACCELERATE: run_accelerate}


def main(
    layers: Annotated[int, typer.Option(help="Of the target.")] = 24,
    hidden: Annotated[int, typer.Option(help="Its width.")] = 2048,
    groups: Annotated[int, typer.Option(help="Query heads for each key-value head.")] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    offload: Annotated[str, typer.Option(help="disk; on cuda cpu too, host memory.")] = "disk",
    prompt: Annotated[
        int, typer.Option(min=1, max=POSITIONS - 2, help="Tokens, for the memory.")
    ] = CONTEXT,
    dtype: Annotated[
        str, typer.Option(help="Of the weights: float32 where the processor computes no bfloat16.")
    ] = "bfloat16",
    folder: Annotated[
        Path | None, typer.Option(help="Where to make the models.", show_default="temporary")
    ] = None,
    way: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Print what was measured."""
    if way is not None:  # the process for one of them
        assert folder is not None
        print(json.dumps(WAYS[way](Setting(folder, device, offload, prompt, dtype))))
        return
    from transformers import LlamaConfig

    with tempfile.TemporaryDirectory(dir=folder) as name:
        setting = Setting(Path(name), device, offload, prompt, dtype)
        common: Any = dict(vocab_size=VOCABULARY, max_position_embeddings=POSITIONS)
        shape: Any = dict(
            hidden_size=hidden,
            intermediate_size=4 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 64,
            num_key_value_heads=hidden // 64 // groups,
        )
        kind = getattr(torch, dtype)
        make(setting.target, LlamaConfig(**shape, **common), kind)
        make(setting.draft, LlamaConfig(**DRAFT, **common), kind)
        print(f"a target of {setting.weights / 1e9:.2f} GB, {BUDGET:.0%} of it on the {device}")
        found = {}
        for each in WAYS:
            options = [f"--{key}={value}" for key, value in asdict(setting).items()]
            command = [sys.executable, __file__, *options, "--way", each]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found[each] = json.loads(done.stdout.splitlines()[-1])
    report(setting, found[OURS], found[RESIDENT], found[ACCELERATE])


def report(
    setting: Setting, ours: dict[str, Any], whole: dict[str, Any], other: dict[str, Any]
) -> None:
    """Print all ways' numbers."""
    source = "the disk" if setting.offload == "disk" else "pinned memory"
    print(
        f"{ours['streamed']} layers are streamed, {ours['moved'] / 1e9:.2f} GB a forward, at "
        f"{ours['coming']:.2f} GB/s; {source} alone gives {ours['alone']:.2f}, of which that is "
        f"{ours['coming'] / ours['alone']:.0%}"
    )
    counted = ours["grown"] - ours["caches"]
    holds = "holds" if counted <= ours["allowed"] else "does NOT hold"
    print(
        f"memory grew by {counted / 1e9:.3f} GB with a prompt of {setting.prompt} tokens (read in "
        f"{ours['seconds of the prompt']:.1f} s), keys and values of {ours['caches'] / 1e9:.3f} "
        f"apart; budget and two layers are {ours['allowed'] / 1e9:.3f}: the bound {holds}; with "
        f"accelerate, of {CONTEXT} tokens, by {other['grown'] / 1e9:.3f}"
    )
    cached = other.get("from the page cache")
    print(
        f"plain decoding: {ours['seconds a token']:.3f} s a token, accelerate "
        f"{other['seconds a token']:.3f}"
        + (f" (from the page cache {cached:.3f})" if cached is not None else "")
    )
    ways = [(f"from {source}", ours), *([(RESIDENT, whole)] if whole else [])]
    for name, found in ways:
        print(
            f"{name}: at published rates a tree of {found['size']} nodes, {found['depth']} deep, "
            f"predicted {found['predicted']:.2f} times plain decoding, measured "
            f"{found['speedup']:.2f} ({found['tree']:.3f} s a token, plain {found['plain']:.3f})"
        )
    print("| milliseconds of a forward, by tokens | " + " | ".join(ours["forwards"]) + " |")
    print("| --- |" + " ---: |" * len(ours["forwards"]))
    for name, found in ways:
        print(f"| {name} | " + " | ".join(f"{ms:.1f}" for ms in found["forwards"].values()) + " |")


if __name__ == "__main__":
    typer.run(main)

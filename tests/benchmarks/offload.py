"""Speed and memory of decoding with an offloaded target: `python tests/benchmarks/offload.py`.

Makes a pair with random weights and decodes with it in three processes: offloaded by this program,
with all weights in memory, and offloaded by accelerate. Prints how fast layers are streamed from
the disk or from host memory, against the bandwidth of the disk or the bus; how much memory they
take, also after a long prompt; the time of a forward pass by token count; and the fastest tree
with its speed at published acceptance rates.
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
BUDGET = 0.15  # share of the target's weights that may stay on the device
SIZES = [1, 2, 4, 8, 16, 32, 64, 128]
STEPS, ROUNDS = 4, 3
OURS, RESIDENT, ACCELERATE = "this program", "in memory", "accelerate"


@dataclass(frozen=True)
class Setting:
    """The options of a measurement.

    Attributes:
        folder: the folder that holds both models.
        device: "cpu" or "cuda".
        offload: where the target's layers are: "disk" or "cpu".
        prompt: number of tokens of the prompt after which memory is measured.
        dtype: torch's name for the weights' data type.
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
        """The bytes of the target's weights."""
        return sum(path.stat().st_size for path in self.target.glob("*.safetensors"))

    @property
    def budget(self) -> int:
        """The bytes that the target's weights may take on the device."""
        return int(BUDGET * self.weights)


def make(folder: Path, config: Any, dtype: torch.dtype) -> None:
    """Save a model with random weights, one file for each layer."""
    from transformers import AutoModelForCausalLM

    folder.mkdir()
    config.save_pretrained(folder)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
    files: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in model.state_dict().items():
        part = name.split(".")[2] if ".layers." in name else "rest"
        files.setdefault(f"{part}.safetensors", {})[name] = tensor
    weight_map = {name: file for file, tensors in files.items() for name in tensors}
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    noise = torch.randn(2**20).to(dtype) * 0.02
    for file, tensors in files.items():
        filled = {
            name: noise.repeat(1 + t.numel() // len(noise))[: t.numel()].view(t.shape)
            for name, t in tensors.items()
        }
        save_file({name: t.clone() for name, t in filled.items()}, folder / file)
    os.sync()


def memory_in_use(device: str) -> int:
    """The bytes of the device's memory that this process uses."""
    if device == "cuda":
        return torch.cuda.memory_allocated()
    return _process_status("VmRSS")


def peak_memory(device: str) -> int:
    """The most bytes of the device's memory that this process used since `reset_peak_memory`."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return _process_status("VmHWM")


def _process_status(field: str) -> int:
    """A size in bytes from this process's status file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def reset_peak_memory(device: str) -> None:
    """Start a new record of the peak memory."""
    if device == "cuda":
        torch.cuda.init()
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def idle_bandwidth(setting: Setting, stream: LayerStream) -> float:
    """The bandwidth of the disk or the bus in GB/s while nothing else uses it."""
    stream._worker.submit(int).result()  # wait for the layers that are being fetched
    if setting.offload == "disk":
        return disk_rate(setting.target)
    return bus_rate(len(stream.buffers[0].memory))


def run_ours(setting: Setting) -> dict[str, Any]:
    """Measure this program's offloading."""
    device, draft, dtype = setting.device, setting.draft, setting.dtype
    empty = load_pair(draft, draft, device, dtype)
    Decoder(empty, shapes.chain(4)).generate(text(CONTEXT), 8, ignore_eos=True)
    before = memory_in_use(device)
    reset_peak_memory(device)
    pair = load_pair(
        setting.target, draft, device, dtype,
        offload=setting.offload, memory_budget=setting.budget,
    )  # fmt: skip
    stream = pair.target.stream
    assert stream is not None
    decoder = Decoder(pair)
    long_text = decoder.generate(text(setting.prompt), 2, ignore_eos=True)
    grown = peak_memory(device) - before
    with reserved(pair.target, 1) as cache:  # the cache that `generate` has just released
        caches = sum(t.nbytes for t in (*cache.keys, *cache.values))
    bandwidths, times = [idle_bandwidth(setting, stream)], []
    for _ in range(ROUNDS):
        times.append(seconds_per_token(decoder))
        bandwidths.append(idle_bandwidth(setting, stream))
    seconds = float(np.median(times))
    return {
        "seconds_per_token": seconds,
        "prefill_seconds": long_text.prefill_seconds,
        "moved": stream.moved_bytes,
        "streamed": len(stream.streamed),
        # Per second of the whole pass, so it is lower if streaming does not hide the computation.
        "stream_rate": stream.moved_bytes / seconds / 1e9,
        "idle_bandwidth": float(np.median(bandwidths)),
        "grown": grown,
        "caches": caches,
        "allowed": setting.budget + stream.buffer_bytes,
        **best_tree(pair),
    }


def run_resident(setting: Setting) -> dict[str, Any]:
    """Measure with all weights on the device; returns nothing if they do not fit."""
    try:
        pair = load_pair(setting.target, setting.draft, setting.device, setting.dtype)
    except SequoiaError as error:
        print(f"left out, {RESIDENT}: {error}", file=sys.stderr)
        return {}
    return best_tree(pair)


def text(length: int) -> list[int]:
    """The token ids of a prompt."""
    return [position % VOCABULARY for position in range(length)]


def seconds_per_token(decoder: Decoder) -> float:
    """The seconds per token of a few steps."""
    generation = decoder.generate(text(CONTEXT), STEPS * (decoder.tree.depth + 1), True)
    return generation.seconds / generation.verified


def best_tree(pair: Pair) -> dict[str, Any]:
    """Profile the pair, solve for the published rates, and decode plainly and with the tree."""
    options = profiler.ProfileOptions(SIZES, [CONTEXT], repeats=5, warm_up=0)
    measured = profiler.profile(pair, options)
    published = Acceptance(published_rates())
    plan = solve(measured, published, max_size=SIZES[-1])
    tree = plan.tree
    with_tree = Decoder(pair, tree, rates=published.table(1 + tree.depth))
    plain = Decoder(pair)
    times = [(seconds_per_token(plain), seconds_per_token(with_tree)) for _ in range(ROUNDS)]
    [curve] = measured.target.curves
    return {
        "forwards": dict(zip(SIZES, curve.median_ms.tolist(), strict=True)),
        "size": tree.size,
        "depth": tree.depth,
        "predicted": float(plan.choice.speedup[0]),
        "speedup": float(np.median([plain_s / tree_s for plain_s, tree_s in times])),
        "plain": float(np.median([plain_s for plain_s, _ in times])),
        "tree": float(np.median([tree_s for _, tree_s in times])),
    }


def run_accelerate(setting: Setting) -> dict[str, Any]:
    """Measure accelerate's offloading, with the same share of the model on the device."""
    from accelerate import infer_auto_device_map
    from transformers import AutoConfig, AutoModelForCausalLM

    config, dtype = AutoConfig.from_pretrained(setting.target), getattr(torch, setting.dtype)
    with torch.device("meta"):
        shell: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
    first: int | str = 0 if setting.device == "cuda" else "cpu"
    device_map = infer_auto_device_map(
        shell,
        {first: setting.budget, setting.offload: 10**15},
        no_split_module_classes=shell._no_split_modules,
    )
    before = memory_in_use(setting.device)
    reset_peak_memory(setting.device)
    with tempfile.TemporaryDirectory() as folder:
        model: Any = AutoModelForCausalLM.from_pretrained(
            setting.target, dtype=dtype, device_map=device_map, offload_folder=folder
        )
        tokens = torch.tensor([text(CONTEXT)], device=setting.device)
        results: dict[str, Any] = {}
        if setting.offload == "disk":
            drop_cache = model.register_forward_pre_hook(page_cache_dropper(setting.target))
            results["seconds_per_token"] = library_seconds_per_token(model, tokens, setting.device)
            drop_cache.remove()
            results["seconds_per_token_from_page_cache"] = library_seconds_per_token(
                model, tokens, setting.device
            )
        else:
            results["seconds_per_token"] = library_seconds_per_token(model, tokens, setting.device)
    return results | {"grown": peak_memory(setting.device) - before}


def library_seconds_per_token(model: Any, tokens: torch.Tensor, device: str) -> float:
    """The median seconds per token of transformers' `generate` after the prompt [1, length]."""
    times: list[float] = []
    hook = model.register_forward_hook(lambda *_: times.append(now(device)))
    options: Any = dict(max_new_tokens=STEPS, do_sample=False, pad_token_id=0)
    model.generate(tokens, attention_mask=torch.ones_like(tokens), **options)
    hook.remove()
    return float(np.median(np.diff(times)))


def page_cache_dropper(folder: Path) -> Any:
    """A forward hook that drops a model's files from the system's page cache."""
    files = list(folder.glob("*.safetensors"))

    def hook(*_: object) -> None:
        for path in files:
            with path.open("rb") as stream:
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    return hook


def now(device: str) -> float:
    """The time in seconds, after the device has finished its queued work."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


METHODS = {OURS: run_ours, RESIDENT: run_resident, ACCELERATE: run_accelerate}


def main(
    layers: Annotated[int, typer.Option(help="Layers of the target.")] = 24,
    hidden: Annotated[int, typer.Option(help="Hidden size of the target.")] = 2048,
    groups: Annotated[int, typer.Option(help="Query heads for each key-value head.")] = 1,
    device: Annotated[str, typer.Option(help="Device: cpu or cuda.")] = "cpu",
    offload: Annotated[
        str, typer.Option(help="Place for the target's layers: disk or, with cuda, cpu.")
    ] = "disk",
    prompt: Annotated[
        int,
        typer.Option(
            min=1, max=POSITIONS - 2, help="Tokens of the prompt after which memory is measured."
        ),
    ] = CONTEXT,
    dtype: Annotated[
        str, typer.Option(help="Data type; use float32 on a CPU without bfloat16 instructions.")
    ] = "bfloat16",
    folder: Annotated[
        Path | None, typer.Option(help="Make the models here.", show_default="temporary")
    ] = None,
    method: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Print speed and memory of decoding with an offloaded target."""
    if method is not None:  # this process measures one method
        assert folder is not None
        print(json.dumps(METHODS[method](Setting(folder, device, offload, prompt, dtype))))
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
        torch_dtype = getattr(torch, dtype)
        make(setting.target, LlamaConfig(**shape, **common), torch_dtype)
        make(setting.draft, LlamaConfig(**DRAFT, **common), torch_dtype)
        print(f"a target of {setting.weights / 1e9:.2f} GB, {BUDGET:.0%} of it on the {device}")
        results = {}
        for name in METHODS:
            options = [f"--{key}={value}" for key, value in asdict(setting).items()]
            command = [sys.executable, __file__, *options, "--method", name]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            results[name] = json.loads(done.stdout.splitlines()[-1])
    report(setting, results[OURS], results[RESIDENT], results[ACCELERATE])


def report(
    setting: Setting,
    ours: dict[str, Any],
    resident: dict[str, Any],
    accelerate: dict[str, Any],
) -> None:
    """Print the results of all methods."""
    source = "the disk" if setting.offload == "disk" else "pinned memory"
    print(
        f"{ours['streamed']} layers are streamed, {ours['moved'] / 1e9:.2f} GB per forward pass, "
        f"at {ours['stream_rate']:.2f} GB/s: {ours['stream_rate'] / ours['idle_bandwidth']:.0%} of "
        f"the {ours['idle_bandwidth']:.2f} GB/s of {source}"
    )
    grown_without_cache = ours["grown"] - ours["caches"]
    verdict = "within" if grown_without_cache <= ours["allowed"] else "EXCEEDS"
    print(
        f"memory grew by {grown_without_cache / 1e9:.3f} GB and a KV cache of "
        f"{ours['caches'] / 1e9:.3f} GB after a prompt of {setting.prompt} tokens (prefill "
        f"{ours['prefill_seconds']:.1f} s); {verdict} the bound of {ours['allowed'] / 1e9:.3f} GB, "
        f"which is the budget and two layers; accelerate's grew by {accelerate['grown'] / 1e9:.3f} "
        f"GB after {CONTEXT} tokens"
    )
    cached = accelerate.get("seconds_per_token_from_page_cache")
    print(
        f"plain decoding: {ours['seconds_per_token']:.3f} s/token, with accelerate "
        f"{accelerate['seconds_per_token']:.3f}"
        + (f" ({cached:.3f} from the page cache)" if cached is not None else "")
    )
    results = [(f"from {source}", ours), *([(RESIDENT, resident)] if resident else [])]
    for name, result in results:
        print(
            f"{name}: at published rates, a tree of {result['size']} nodes and depth "
            f"{result['depth']}, predicted {result['predicted']:.2f}x over plain decoding, measured"
            f" {result['speedup']:.2f}x ({result['tree']:.3f} s/token, plain {result['plain']:.3f})"
        )
    print("| forward pass in ms, by tokens | " + " | ".join(ours["forwards"]) + " |")
    print("| --- |" + " ---: |" * len(ours["forwards"]))
    for name, result in results:
        print(f"| {name} | " + " | ".join(f"{ms:.1f}" for ms in result["forwards"].values()) + " |")


if __name__ == "__main__":
    typer.run(main)

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from offloaded_pair import deep, offloaded

from sequoia_opt.api import load_pair
from sequoia_opt.engine.decoder import Decoder
from sequoia_opt.engine.torch.layer_stream import HostStore, LayerBuffer, host_memory
from sequoia_opt.engine.torch.layer_weights import decoder_layers
from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan import shapes


def test_each_forward_pass_reads_each_streamed_layer_once(make_model: Callable[..., Path]) -> None:
    pair = offloaded(make_model)
    stream = pair.target.stream
    decoder = Decoder(pair, shapes.chain(3))
    decoder.generate([4, 5, 6], 8, ignore_eos=True)
    stream._worker.submit(int).result()  # wait until the last layers are loaded
    before = stream.store.read_bytes
    generation = decoder.generate([4, 5, 6], 8, ignore_eos=True)
    stream._worker.submit(int).result()
    passes = generation.steps + 1  # one for the prompt
    # The files are float32 and the buffers float64; padding is not in the files.
    read = stream.store.read_bytes - before
    assert read % passes == 0
    assert 0.9 < 2 * read / passes / stream.moved_bytes <= 1


def test_the_first_layers_of_the_next_pass_are_loaded_early(
    make_model: Callable[..., Path],
) -> None:
    """After a forward pass, the buffers hold the first two layers of the next one."""
    pair = offloaded(make_model)
    stream = pair.target.stream
    Decoder(pair, shapes.chain(3)).generate([4, 5, 6], 4, ignore_eos=True)
    assert [buffer.holds for buffer in stream.buffers] == stream.streamed[:2]


def test_decoding_works_after_an_interrupted_forward_pass(make_model: Callable[..., Path]) -> None:
    pair = offloaded(make_model)
    decoder = Decoder(pair, shapes.chain(3))
    expected = decoder.generate([4, 5, 6], 12, ignore_eos=True).tokens
    layers = decoder_layers(pair.target.model)[1]

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    for last in (0, 3, 6):
        hook = layers[last].register_forward_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            decoder.generate([4, 5, 6], 12, ignore_eos=True)
        hook.remove()
        assert decoder.generate([4, 5, 6], 12, ignore_eos=True).tokens == expected


def test_a_file_that_changes_ends_decoding(make_model: Callable[..., Path], tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    for file in deep(make_model).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    pair = offloaded(make_model, tmp_path)
    with path.open("r+b") as stream:
        stream.write(path.read_bytes())
    decoder = Decoder(pair, shapes.chain(3))
    for _ in range(2):
        with pytest.raises(SequoiaError, match="has changed since it was opened; load it again"):
            decoder.generate([4, 5, 6], 40, ignore_eos=True)


@pytest.mark.parametrize("steps", [1, 2], ids=["read", "resident"])
def test_steps_leave_a_processor_free_for_the_reader(
    make_model: Callable[..., Path], steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts, which compute for longer than reading takes, use all processors, like the draft."""
    monkeypatch.setattr("sequoia_opt.engine.cpu.processors", lambda: [0, 1])
    torch.set_num_threads(2)
    try:
        pair = offloaded(make_model)
        if steps == 2:
            pair = load_pair(deep(make_model), make_model("llama", 1), "cpu", "float64")
        seen: dict[str, list[tuple[int, int]]] = {}
        for runner in (pair.target, pair.draft):
            passes = seen.setdefault(runner.name, [])
            runner.model.register_forward_pre_hook(
                lambda _, __, options, passes=passes: passes.append(
                    (options["input_ids"].shape[1], torch.get_num_threads())
                ),
                with_kwargs=True,
            )
        Decoder(pair, shapes.chain(3)).generate([4, 5, 6, 7, 8], 12, ignore_eos=True)
    finally:
        torch.set_num_threads(1)
    assert set(seen[pair.target.name]) == {(5, 2), (3, steps)}
    assert {threads for _, threads in seen[pair.draft.name]} == {2}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_host_memory_is_pinned_and_released() -> None:
    device = torch.device("cuda")
    memory = host_memory(3_000_000, device)
    assert memory.is_pinned()
    del memory
    again = [host_memory(3_000_000, device) for _ in range(3)]
    assert all(memory.is_pinned() for memory in again)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_memory_with_a_copy_under_way_is_not_reused() -> None:
    """A model may be deleted while the first layers of its next forward pass are loading."""
    device, size = torch.device("cuda"), 2**29
    store = HostStore(device)
    store.add(0, size).fill_(1)
    buffer = LayerBuffer([0], size, store, device, torch.cuda.Stream(device))
    with ThreadPoolExecutor(1) as worker:
        buffer.start_loading(0, worker)
    del buffer, store
    fresh = torch.zeros(size, dtype=torch.uint8, device=device)
    torch.cuda.synchronize()
    assert not fresh.any()


def test_pinned_memory_is_released_after_its_device_has_finished(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[str] = []
    codes = {"register": 0}

    @contextmanager
    def on(device: torch.device) -> Iterator[None]:
        calls.append(f"on {device}")
        yield

    def register(*_: object) -> int:
        calls.append("register")
        return codes["register"]

    def launch(*_: object, **__: object) -> None:
        calls.append("launch")
        raise RuntimeError("the error of the failed call")

    runtime = SimpleNamespace(
        cudaHostRegister=register, cudaHostUnregister=lambda _: calls.append("unregister")
    )
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    monkeypatch.setattr(torch.cuda, "device", on)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: calls.append("wait"))
    monkeypatch.setattr(torch, "ones", launch)
    device = torch.device("cuda:1")
    memory = host_memory(1000, device)
    assert calls == ["on cuda:1", "register"]
    calls.clear()
    del memory
    assert calls == ["on cuda:1", "wait", "unregister"]
    codes["register"] = 2
    calls.clear()
    with pytest.raises(SequoiaError, match=r"could not be pinned \(CUDA error 2\)"):
        host_memory(1000, device)
    assert calls == ["on cuda:1", "register", "launch"]  # the launch cleared the error

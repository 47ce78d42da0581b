from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_tokenizers import save_word_tokenizer
from transformers import PreTrainedTokenizerFast

from sequoia_opt import demo
from sequoia_opt.engine.decoder import Decoder
from sequoia_opt.engine.distributed import PATIENCE, SHARE_PATIENCE, World
from sequoia_opt.engine.load import load_pair
from sequoia_opt.engine.pair import ROLES, short_name
from sequoia_opt.engine.torch import load_pair as loader
from sequoia_opt.engine.torch import memory
from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan import shapes

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SOURCES, SIZES = {"target": "big", "draft": "small"}, {"target": 8 * 10**9, "draft": 10**9}


def load(folders: tuple[Path, Path]) -> Any:
    return load_pair(*folders, device="cpu", dtype="float32")


def add_special_tokens(folder: Path, special_tokens: dict[str, Any]) -> None:
    """Add special tokens to the tokenizer in a model's folder."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.add_special_tokens(special_tokens)
    tokenizer.save_pretrained(folder)


def test_loads_a_pair_of_folders(folders: tuple[Path, Path]) -> None:
    pair = load(folders)
    assert (pair.target_name, pair.draft_name) == ("target", "draft")
    assert pair.dtype == "float32"
    assert pair.end_tokens == {1}
    shapes, contents = zip(*(pair.fingerprints[r].split("-") for r in ROLES), strict=True)
    assert shapes[0] == shapes[1]
    assert contents[0] != contents[1]


def test_different_vocabularies(make_model: Callable[..., Path]) -> None:
    with pytest.raises(SequoiaError, match=r"different vocabularies \(61 and 50 tokens\)"):
        load_pair(make_model("llama"), make_model("llama", vocab_size=50), device="cpu")


def test_different_tokenizers(folders: tuple[Path, Path]) -> None:
    words = [f"w{i}" for i in range(61)]
    save_word_tokenizer(folders[0], words)
    save_word_tokenizer(folders[1], words)
    assert load(folders).encode("w3 w5") == [3, 5]
    save_word_tokenizer(folders[1], words[::-1])
    complaint = "61 of 61 tokens differ, like token 0, 'w0' and 'w60'|60 of 61 tokens differ, like"
    with pytest.raises(SequoiaError, match=f"different tokenizers: ({complaint})"):
        load(folders)


def test_tokenizers_may_differ_in_tokens_that_no_text_has(folders: tuple[Path, Path]) -> None:
    """A token that was added to the draft's, or a reserved token with another name."""
    words = [f"w{i}" for i in range(60)]
    for last, added in (("w60", ["[PAD]"]), ("<|reserved|>", [])):
        save_word_tokenizer(folders[0], [*words, "w60" if added else "<|eot|>"])
        save_word_tokenizer(folders[1], [*words, last])
        for folder, special in zip(folders, (None, *added), strict=False):
            if special is not None:
                add_special_tokens(folder, {"pad_token": special})
        if not added:
            for folder, name in zip(folders, ("<|eot|>", "<|reserved|>"), strict=True):
                add_special_tokens(folder, {"additional_special_tokens": [name]})
        pair = load(folders)
        tokens = Decoder(pair, shapes.k_ary(2, 2)).generate([3, 5], 8, ignore_eos=True).tokens
        assert tokens == Decoder(pair).generate([3, 5], 8, ignore_eos=True).tokens


def test_a_word_that_differs_is_named(folders: tuple[Path, Path]) -> None:
    words = [f"w{i}" for i in range(61)]
    save_word_tokenizer(folders[0], words)
    save_word_tokenizer(folders[1], [*words[:40], "other", *words[41:]])
    with pytest.raises(SequoiaError, match=r"1 of 61 tokens differ, like token 40, 'w40' and 'oth"):
        load(folders)


def test_prompts_need_a_tokenizer(folders: tuple[Path, Path]) -> None:
    with pytest.raises(SequoiaError, match="has no tokenizer"):
        load(folders).encode("text")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [({"dtype": "int4"}, "dtype: found 'int4'"), ({"device": "warp"}, "device 'warp'")],
)
def test_options_out_of_range(
    folders: tuple[Path, Path], options: dict[str, str], complaint: str
) -> None:
    with pytest.raises(SequoiaError, match=complaint):
        load_pair(*folders, **options)


def test_names(tmp_path: Path) -> None:
    assert short_name("meta-llama/Llama-2-7b-hf") == "meta-llama/Llama-2-7b-hf"
    assert short_name(str(tmp_path)) == tmp_path.name


def test_prompts_with_half_a_character_are_refused(folders: tuple[Path, Path]) -> None:
    target, draft = folders
    for folder in (target, draft):
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(demo.FOLDER / "target" / name, folder)
    with pytest.raises(SequoiaError, match="half of a character"):
        load_pair(target, draft, "cpu").encode("a\ud800b")


def test_a_spread_target_takes_its_share_of_each_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: 5 * 10**9)
    loader._check_memory(SOURCES, SIZES, CUDA, "none", parts=2)
    with pytest.raises(SequoiaError, match=r"the weights of big and small take 9\.0 GB"):
        loader._check_memory(SOURCES, SIZES, CUDA, "none", parts=1)
    with pytest.raises(SequoiaError, match=r"take 9\.0 GB"):  # all parts share its memory
        loader._check_memory(SOURCES, SIZES, CPU, "none", parts=2)


def test_host_memory_must_hold_the_offloaded_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    free = {"cuda": 2 * 10**9, "cpu": 7 * 10**9}
    monkeypatch.setattr(memory, "free_bytes", lambda device: free[device.type])
    complaint = "the weights of big take 8.0 GB and 7.0 GB of cpu memory are free; .*--offload disk"
    with pytest.raises(SequoiaError, match=complaint):
        loader._check_memory(SOURCES, SIZES, CUDA, "cpu", parts=1)
    loader._check_memory(SOURCES, SIZES, CUDA, "disk", parts=1)
    free["cpu"] = 9 * 10**9
    loader._check_memory(SOURCES, SIZES, CUDA, "cpu", parts=1)


@pytest.mark.parametrize(
    ("options", "option"),
    [({"random_weights": True}, "--random-weights"), ({"offload": "disk"}, "--offload")],
)
def test_options_that_several_processes_do_not_support_are_named(
    folders: tuple[Path, Path],
    options: dict[str, Any],
    option: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loader, "join", lambda *_: World(0, 2))
    with pytest.raises(SequoiaError, match=f"drop {option}"):
        load_pair(*folders, device="cpu", **options)


def test_several_cpu_processes_on_a_machine_with_a_gpu_are_refused(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers would put the target on the GPUs."""
    monkeypatch.setattr(loader, "join", lambda *_: World(0, 2))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(SequoiaError, match="CUDA_VISIBLE_DEVICES= torchrun"):
        load(folders)


def test_processes_that_share_the_work_wait_longer_for_others(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    timeouts = []

    def join(device: torch.device, patience: Any) -> World:
        timeouts.append(patience)
        raise SequoiaError("do not meet")

    monkeypatch.setattr(loader, "join", join)
    for spread in (True, False):
        with pytest.raises(SequoiaError, match="do not meet"):
            load_pair(*folders, device="cpu", spread=spread)
    assert timeouts == [PATIENCE, SHARE_PATIENCE]
    assert PATIENCE < SHARE_PATIENCE

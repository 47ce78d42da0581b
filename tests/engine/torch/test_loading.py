from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_tokenizers import save_word_tokenizer

from sequoia_opt import demo
from sequoia_opt.engine.load import load_pair
from sequoia_opt.engine.pair import ROLES
from sequoia_opt.engine.torch.loading import fingerprint
from sequoia_opt.errors import SequoiaError
from sequoia_opt.files.names import same_fingerprint


def load(folders: tuple[Path, Path]) -> Any:
    return load_pair(*folders, device="cpu", dtype="float32")


def test_fingerprints_follow_config_and_weights(make_model: Callable[..., Path]) -> None:
    from transformers import AutoConfig

    prints = {
        fingerprint(str(folder), AutoConfig.from_pretrained(folder))
        for folder in (
            make_model("llama"),
            make_model("llama", num_hidden_layers=2),
            make_model("qwen3"),
        )
    }
    assert len(prints) == 3


def test_weights_replaced_in_place_have_another_fingerprint(folders: tuple[Path, Path]) -> None:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folders[0])
    before = fingerprint(str(folders[0]), config)
    assert fingerprint(str(folders[0]), config) == before
    shutil.copy(folders[1] / "model.safetensors", folders[0])
    after = fingerprint(str(folders[0]), config)
    assert after != before
    assert not same_fingerprint({"target": before}, {"target": after})
    without_weights = before.split("-")[0]  # as in files from before fingerprints covered weights
    for current in (before, after):
        assert same_fingerprint({"target": without_weights}, {"target": current})
    assert fingerprint(str(folders[0]), config, weights=False) != without_weights


def test_one_changed_tensor_is_noticed(folders: tuple[Path, Path]) -> None:
    from safetensors.torch import load_file, save_file
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folders[0])
    path = folders[0] / "model.safetensors"
    weights, prints = load_file(path), set()
    for name in ("model.layers.1.mlp.up_proj.weight", "model.norm.weight"):
        prints.add(fingerprint(str(folders[0]), config))
        weights[name] = weights[name] + 0.01
        save_file(weights, path, metadata={"format": "pt"})
    assert len(prints | {fingerprint(str(folders[0]), config)}) == 3


def test_the_bundled_pair_is_the_one_that_was_measured() -> None:
    """Its committed measurements are from before fingerprints covered the weights."""
    from transformers import AutoConfig

    committed = {"target": "f76863a3c80297b6", "draft": "f518eccf47f061d0"}
    current = {
        role: fingerprint(str(demo.FOLDER / role), AutoConfig.from_pretrained(demo.FOLDER / role))
        for role in ROLES
    }
    assert same_fingerprint(committed, current)
    assert not same_fingerprint({"target": committed["draft"]}, {"target": current["target"]})


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (
            {"num_hidden_layers": 10**7},
            r"num_hidden_layers: found 10000000, expected at most 4096",
        ),
        ({"num_hidden_layers": 400}, r"num_hidden_layers: found 400, expected at most \d\d \("),
        ({"hidden_size": 128.5}, r"its config\.json cannot be used \(.*hidden_size"),
        ({"num_attention_heads": 0}, r"its config\.json (describes no model|cannot be used)"),
        (
            {"hidden_size": 2**40, "intermediate_size": 2**40},
            r"its config\.json describes no model",
        ),
        ({"rope_parameters": {"rope_type": 7}}, r"its config\.json"),
    ],
)
def test_unusable_configurations_are_refused(
    folders: tuple[Path, Path], changes: dict[str, Any], complaint: str
) -> None:
    path = folders[0] / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(SequoiaError, match=complaint):
        load(folders)


def test_too_many_layers_are_refused_for_random_weights_too(folders: tuple[Path, Path]) -> None:
    path = folders[0] / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": 10**7}))
    with pytest.raises(SequoiaError, match="found 10000000, expected at most 4096"):
        load_pair(*folders, device="cpu", random_weights=True)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
@pytest.mark.parametrize("offload", ["none", "disk"])
def test_git_lfs_pointers_are_named(folders: tuple[Path, Path], name: str, offload: str) -> None:
    words = [f"w{i}" for i in range(61)]
    for folder in folders:
        save_word_tokenizer(folder, words)
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 18756288\n"
    (folders[0] / name).write_text(pointer)
    with pytest.raises(SequoiaError, match=rf"{name}: is a git-lfs pointer.*git lfs pull"):
        load_pair(*folders, device="cpu", offload=offload)


@pytest.mark.parametrize("offload", ["none", "disk"])
@pytest.mark.parametrize("path", ["../outside.safetensors", "/etc/hostname"])
def test_an_index_that_leads_out_of_its_folder_is_refused(
    folders: tuple[Path, Path], path: str, offload: str
) -> None:
    target = folders[0]
    (target / "model.safetensors").rename(target.parent / "outside.safetensors")
    index = {"metadata": {}, "weight_map": {"model.norm.weight": path}}
    (target / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(SequoiaError, match=r"which leads out of the model's folder"):
        load_pair(*folders, device="cpu", offload=offload)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_weights_that_are_not_finite_are_named(folders: tuple[Path, Path], dtype: str) -> None:
    from safetensors.torch import load_file, save_file

    path, name = folders[0] / "model.safetensors", "model.layers.1.mlp.up_proj.weight"
    weights = load_file(path)
    weights[name] = weights[name].index_fill(0, torch.tensor([3]), torch.nan)
    save_file(weights, path, metadata={"format": "pt"})
    advice = "the file is damaged" if dtype == "float32" else "use --dtype bfloat16 or float32"
    complaint = f"logits are not finite in {dtype}, since its weight {name} is not; {advice}"
    with pytest.raises(SequoiaError, match=complaint):
        load_pair(*folders, device="cpu", dtype=dtype)


def test_the_message_about_overflow_names_another_dtype(folders: tuple[Path, Path]) -> None:
    """The weights are finite, and so are the logits in bfloat16."""
    from safetensors.torch import load_file, save_file

    path = folders[0] / "model.safetensors"
    weights = load_file(path)
    for name in weights:
        if "layers.0.mlp" in name:
            weights[name] = weights[name] * 3e3
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(SequoiaError, match=r"not finite in float16.*--dtype bfloat16 or float32"):
        load_pair(*folders, device="cpu", dtype="float16")
    load_pair(*folders, device="cpu", dtype="bfloat16")


def test_quantised_weights_that_cannot_run_on_a_machine_are_named(
    folders: tuple[Path, Path],
) -> None:
    """Their library fails with an assertion without a message."""
    pytest.importorskip("bitsandbytes")
    path = folders[0] / "config.json"
    quantised = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": quantised}))
    with pytest.raises(SequoiaError, match=r"target.* quantised by bitsandbytes.*(GPU|machine)"):
        load(folders)


def test_missing_weights(folders: tuple[Path, Path]) -> None:
    (folders[1] / "model.safetensors").unlink()
    with pytest.raises(SequoiaError, match=r"draft: no weights; expected model.safetensors"):
        load(folders)


def test_damaged_weights(folders: tuple[Path, Path]) -> None:
    weights = folders[0] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(SequoiaError, match=r"target.*damaged weights"):
        load(folders)


def test_missing_and_damaged_config(folders: tuple[Path, Path]) -> None:
    (folders[0] / "config.json").write_text("{")
    with pytest.raises(SequoiaError, match=r"target: its config\.json cannot be used"):
        load(folders)
    (folders[0] / "config.json").unlink()
    with pytest.raises(SequoiaError, match=r"target: no config.json"):
        load(folders)


def test_missing_folder() -> None:
    with pytest.raises(SequoiaError, match="nowhere/at/all"):
        load_pair("nowhere/at/all", "nowhere/at/all", device="cpu")


@pytest.mark.parametrize("kind", ["t5", "bert_generation_unknown"])
def test_other_kinds_of_model_are_named(folders: tuple[Path, Path], kind: str) -> None:
    config = json.loads((folders[0] / "config.json").read_text())
    (folders[0] / "config.json").write_text(json.dumps(config | {"model_type": kind}))
    with pytest.raises(SequoiaError, match=kind):
        load(folders)


def test_state_space_layers_are_refused_by_name(folders: tuple[Path, Path], tmp_path: Path) -> None:
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(vocab_size=61, hidden_size=16, num_hidden_layers=2, state_size=4)
    MambaForCausalLM(config).save_pretrained(tmp_path / "mamba")
    with pytest.raises(SequoiaError, match="architecture 'mamba'"):
        load_pair(tmp_path / "mamba", folders[1], device="cpu")


def test_linear_attention_layers_are_refused_by_name(folders: tuple[Path, Path]) -> None:
    from transformers import AutoModelForCausalLM

    from sequoia_opt.engine.torch.runner import Runner

    model = AutoModelForCausalLM.from_pretrained(folders[0])
    model.config.layer_types = ["full_attention", "linear_attention", "full_attention"]
    with pytest.raises(SequoiaError, match="linear_attention layers"):
        Runner(model, "hybrid")


def test_weights_that_do_not_belong_to_the_config(folders: tuple[Path, Path]) -> None:
    """Missing weights must not be replaced by random ones."""
    config = json.loads((folders[0] / "config.json").read_text())
    (folders[0] / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    with pytest.raises(SequoiaError, match=r"weights are missing for model\.layers\.3"):
        load(folders)


def test_models_that_shift_positions_are_refused(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    """RoBERTa as a decoder shifts every position by its padding token's id."""
    from transformers import RobertaConfig, RobertaForCausalLM

    config = RobertaConfig(
        vocab_size=61,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        is_decoder=True,
        pad_token_id=1,
        initializer_range=0.5,
    )
    RobertaForCausalLM(config).save_pretrained(tmp_path / "roberta")
    with pytest.raises(SequoiaError, match="architecture 'roberta'"):
        load_pair(tmp_path / "roberta", folders[1], device="cpu", dtype="float32")


def test_rotary_embeddings_that_change_with_length_limit_the_context(
    make_model: Callable[..., Path],
) -> None:
    from transformers import AutoConfig

    from sequoia_opt.engine.torch.support import usable_positions

    config = AutoConfig.from_pretrained(make_model("phi3"))
    assert usable_positions(config) == (256, "")
    config.rope_parameters = {"rope_type": "longrope", "original_max_position_embeddings": 32}
    positions, reason = usable_positions(config)
    assert positions == 32
    assert "rotary embedding (longrope) changes for longer texts" in reason
    config.rope_parameters = {"rope_type": "yarn", "original_max_position_embeddings": 32}
    assert usable_positions(config) == (256, "")


def test_code_that_comes_with_a_model_is_not_run(folders: tuple[Path, Path]) -> None:
    target, draft = folders
    evidence = target / "code_ran"
    (target / "custom.py").write_text(
        f"open({str(evidence)!r}, 'w')\nfrom transformers import LlamaConfig as Custom\n"
    )
    path = target / "config.json"
    config = json.loads(path.read_text())
    config |= {"model_type": "custom", "auto_map": {"AutoConfig": "custom.Custom"}}
    path.write_text(json.dumps(config))
    with pytest.raises(SequoiaError, match="code of its own, which is never run"):
        load_pair(target, draft, "cpu")
    assert not evidence.exists()


def test_weights_that_hold_code_are_not_loaded(folders: tuple[Path, Path]) -> None:
    target, draft = folders
    evidence = target / "code_ran"

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str, str]]:
            return open, (str(evidence), "w")

    (target / "model.safetensors").unlink()
    torch.save({"model.embed_tokens.weight": Evil()}, target / "pytorch_model.bin")
    with pytest.raises(SequoiaError, match="hold code, which is never run"):
        load_pair(target, draft, "cpu")
    assert not evidence.exists()

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_gguf import write_gguf

from sequoia_opt.engine.llama_cpp.load_pair import headers_of, settings_of
from sequoia_opt.engine.load import load_pair
from sequoia_opt.errors import SequoiaError


def test_the_bundled_pair_is_named_as_on_torch() -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    from sequoia_opt import demo
    from sequoia_opt.api import load_pair as load_by_name

    pair = load_by_name(engine="llama.cpp", engine_options={"threads": 1, "gpu_layers": None})
    assert (pair.target_name, pair.draft_name) == (demo.TARGET_NAME, demo.DRAFT_NAME)
    assert (pair.engine, pair.dtype) == ("llama.cpp", "float32")
    assert pair.machine.settings["threads"] == 1
    assert pair.machine.hardware["slug"].endswith("-1-threads")


def test_files_are_named_by_their_stems(pair: Any, bundled_files: dict[str, str]) -> None:
    assert pair.target_name == Path(bundled_files["target"]).stem
    assert set(pair.fingerprints) == {"target", "draft"}
    assert pair.target.vocabulary == pair.drafter.vocabulary


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float32"}, "--dtype: a GGUF file has its number type; drop it, or use --engin"),
        ({"device": "cuda"}, "--device: llama.cpp runs on the device that it was built for"),
        ({"random_weights": True}, "--random-weights: llama.cpp reads weights from a file"),
        ({"offload": "disk"}, "--offload: llama.cpp keeps layers in host memory with --gpu-layers"),
        ({"graphs": True}, "--graphs: llama.cpp keeps its own graphs"),
        ({"engine": "onnx"}, "engine: found 'onnx', expected one of torch, llama.cpp"),
        ({"engine": "torch", "engine_options": {"gpu_layers": 3}}, "gpu-layers: is an option of l"),
        ({"engine": "torch", "engine_options": {"threads": 0}}, "threads: found 0, expected at le"),
    ],
)
def test_options_that_the_engine_does_not_have_are_refused(
    bundled_files: dict[str, str], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(SequoiaError, match=message):
        load_pair(bundled_files["target"], bundled_files["draft"], **options)


def test_a_folder_beside_a_gguf_file_is_refused(bundled_files: dict[str, str]) -> None:
    with pytest.raises(SequoiaError, match=r"llama.cpp runs .gguf files; convert the draft"):
        load_pair(bundled_files["target"], "some-folder")


def test_files_are_checked_without_loading_them(
    bundled_files: dict[str, str], tmp_path: Path
) -> None:
    headers = headers_of(bundled_files)
    assert {role: str(header.path) for role, header in headers.items()} == bundled_files
    with pytest.raises(SequoiaError, match=r"convert the draft with its convert_hf_to_gguf.py$"):
        headers_of({**bundled_files, "draft": "some-folder"})
    with pytest.raises(SequoiaError, match="have different tokenizers"):
        headers_of({**bundled_files, "draft": write_gguf(tmp_path / "other.gguf")})


@pytest.mark.parametrize(("uses_gpu", "layers"), [(True, -1), (False, 0)])
def test_a_gpu_holds_all_layers_unless_told_otherwise(uses_gpu: bool, layers: int) -> None:
    assert settings_of({}, uses_gpu).gpu_layers == layers
    assert settings_of({"gpu_layers": 7}, uses_gpu).gpu_layers == 7


def test_a_draft_of_another_vocabulary_is_refused(
    bundled_files: dict[str, str], tmp_path: Path
) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    other = write_gguf(tmp_path / "other.gguf")
    with pytest.raises(SequoiaError, match=r"have different tokenizers: \d+ of 6 tokens differ"):
        load_pair(bundled_files["target"], other)


def test_what_llama_cpp_cannot_load_is_an_error_of_one_line(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    file = write_gguf(tmp_path / "odd.gguf")
    with pytest.raises(SequoiaError, match=r"odd.gguf: llama.cpp cannot load it \(") as raised:
        load_pair(file, file)
    assert "\n" not in str(raised.value)


def test_a_context_size_limits_the_positions(bundled_files: dict[str, str]) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    from sequoia_opt.engine.decoder import Decoder

    options = {"threads": 1, "context_size": 64}
    small = load_pair(bundled_files["target"], bundled_files["draft"], engine_options=options)
    assert small.positions == 64
    with pytest.raises(SequoiaError, match=r"do not fit the 64 positions .*: --context-size ends"):
        Decoder(small).generate([5] * 60, max_new_tokens=5)

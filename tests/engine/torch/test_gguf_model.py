"""GGUF models on torch: the same numbers as from a folder, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf as package
import numpy as np
import pytest
import torch
from small_gguf import write_gguf
from transformers import AutoModelForCausalLM, LlamaConfig

from sequoia_opt import demo
from sequoia_opt.demo import gguf
from sequoia_opt.engine.decoder import Decoder
from sequoia_opt.engine.gguf_edit import first_layers
from sequoia_opt.engine.gguf_file import fingerprint, read_header
from sequoia_opt.engine.load import load_pair
from sequoia_opt.engine.pair import Pair
from sequoia_opt.engine.torch.gguf_model import config_of, model_of
from sequoia_opt.engine.torch.gguf_reading import _Reader, quickly_read
from sequoia_opt.engine.torch.loading import Loading
from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan.tree import TokenTree

TOKENS = torch.arange(5, 200, 3)[None]
SMALL = dict(
    model_type="llama", hidden_size=64, intermediate_size=96, num_hidden_layers=2,
    num_attention_heads=2, num_key_value_heads=1, vocab_size=2048, max_position_embeddings=131072,
    bos_token_id=0, eos_token_id=0,
)  # fmt: skip


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


def load(target: Path | str, draft: Path | str, **options: Any) -> Pair:
    return load_pair(str(target), str(draft), device="cpu", engine="torch", **options)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes a small random Llama with the bundled tokenizer as folder and as GGUF."""

    def make(change: Callable[[Iterator[Any]], Iterator[Any]] = iter, **config: Any) -> Path:
        folder = tmp_path_factory.mktemp("llama")
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(LlamaConfig(**SMALL | config)).save_pretrained(folder)
        tokenizer = Path(demo.resolve(demo.TARGET_NAME)) / "tokenizer.json"
        (folder / "tokenizer.json").write_bytes(tokenizer.read_bytes())
        tensors = gguf._llama_tensors
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gguf, "_llama_tensors", lambda *given: change(tensors(*given)))
            gguf.write_gguf(folder, folder / "model.gguf", "small")
        return folder

    return make


@pytest.fixture(scope="module")
def pair(bundled_gguf: dict[str, Path]) -> Pair:
    """A GGUF target with a draft from a folder."""
    return load(bundled_gguf["target"], demo.resolve("demo-draft"), dtype="float32")


class TestPairs:
    def test_the_numbers_are_the_same(self, pair: Pair) -> None:
        folder = load(demo.resolve("demo-target"), demo.resolve("demo-draft"), dtype="float32")
        with torch.inference_mode():
            runs = [
                each.target.prefill(each.target.reserve(TOKENS.shape[1]), TOKENS)
                for each in (pair, folder)
            ]
        assert torch.equal(*runs)

    def test_what_the_pair_knows(self, pair: Pair, bundled_gguf: dict[str, Path]) -> None:
        assert pair.target_name == bundled_gguf["target"].stem
        assert pair.fingerprints["target"] == fingerprint(read_header(bundled_gguf["target"]))
        assert pair.end_tokens == {0}
        assert pair.positions == 8192
        prompt = demo.prompts()[0]
        folder = load(demo.resolve("demo-target"), demo.resolve("demo-draft"))
        assert pair.encode(prompt) == folder.encode(prompt)
        assert pair.decode(pair.encode(prompt)) == prompt

    def test_decoding(self, pair: Pair) -> None:
        prompt = pair.encode(demo.prompts()[0])
        plain = Decoder(pair, TokenTree([-1], [0])).generate(prompt, 32)
        tree = Decoder(pair, TokenTree([-1, 0, 0, 1], [0, 1, 2, 1])).generate(prompt, 32)
        assert tree.tokens == plain.tokens
        assert tree.steps < plain.steps

    def test_a_draft_of_the_first_layers(
        self, bundled_gguf: dict[str, Path], tmp_path: Path
    ) -> None:
        draft = first_layers(bundled_gguf["target"], 2, tmp_path / "first-2.gguf")
        pair = load(bundled_gguf["target"], draft, dtype="float64")
        assert (pair.draft_name, pair.dtype) == ("first-2", "float64")
        assert pair.fingerprints["target"] != pair.fingerprints["draft"]
        assert len(pair.draft.model.model.layers) == 2

    def test_random_weights(self, bundled_gguf: dict[str, Path]) -> None:
        pair = load(bundled_gguf["target"], bundled_gguf["target"], random_weights=True)
        assert pair.random_weights
        assert pair.target.parameters == read_header(bundled_gguf["target"]).parameters


def test_scaled_rotary_embeddings(small: Callable[..., Path]) -> None:
    """Llama 3's scaling is a tensor in the file: it divides the frequencies."""
    scaled = {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    }  # fmt: skip

    def with_factors(tensors: Iterator[Any], changed: float = 1.0) -> Iterator[Any]:
        wavelengths = 2 * np.pi * 500000.0 ** (np.arange(0, 32, 2) / 32)
        share = np.clip((8192 / wavelengths - 1) / (4 - 1), 0, 1)
        yield "rope_freqs.weight", (changed / ((1 - share) / 32 + share)).astype(np.float32)
        yield from tensors

    folder = small(with_factors, rope_parameters=scaled)
    path = str(folder / "model.gguf")
    config = config_of(path)
    expected = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = model_of(path, config, torch.float32)
    assert torch.allclose(logits(model), logits(expected), atol=1e-5)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    plain.config.rope_parameters = {"rope_type": "default", "rope_theta": 500000.0}
    plain.model.rotary_emb.__init__(plain.config)
    assert not torch.allclose(logits(model), logits(plain), atol=1e-5)

    other = small(lambda tensors: with_factors(tensors, 1.1), rope_parameters=scaled)
    with pytest.raises(SequoiaError, match=r"rope_freqs.weight: holds a scaling .* use --engine"):
        config_of(str(other / "model.gguf"))


class TestRefused:
    def refused(self, work: Callable[[], Any]) -> str:
        with pytest.raises(SequoiaError) as caught:
            work()
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def test_architectures(self, bundled_gguf: dict[str, Path]) -> None:
        reason = self.refused(lambda: config_of(str(bundled_gguf["draft"])))
        assert "transformers cannot read the architecture 'gptneox' from a GGUF file" in reason
        assert reason.endswith("use --engine llama.cpp")

    def test_files(self, tmp_path: Path) -> None:
        vocabulary = write_gguf(tmp_path / "vocabulary.gguf", weights=False)
        assert "no weights" in self.refused(lambda: config_of(str(vocabulary)))
        write_gguf(tmp_path / "big.gguf", split_max_tensors=1)
        first = str(tmp_path / "big-00001-of-00003.gguf")
        assert "split into 3 files; join them" in self.refused(lambda: config_of(first))
        assert "no such file" in self.refused(lambda: load(tmp_path / "no.gguf", first))

    def test_metadata_that_is_not_read(self, small: Callable[..., Path]) -> None:
        path = small() / "model.gguf"
        path.write_bytes(
            path.read_bytes().replace(b"llama.rope.freq_base", b"llama.rope.freq_bass")
        )
        reason = self.refused(lambda: config_of(str(path)))
        assert "llama.rope.freq_bass: found 10000.0, which transformers does not read" in reason

    def test_weights_that_are_left_over(self, small: Callable[..., Path]) -> None:
        def with_bias(tensors: Iterator[Any]) -> Iterator[Any]:
            yield "blk.0.attn_q.bias", np.ones(64, np.float32)
            yield from tensors

        path = str(small(with_bias) / "model.gguf")
        reason = self.refused(lambda: model_of(path, config_of(path), torch.float32))
        loaded, in_file = map(int, re.findall(r"reads (\d+) of its (\d+)", reason)[0])
        assert in_file - loaded == 64

    def test_weights_that_are_missing(self, small: Callable[..., Path]) -> None:
        def without_one(tensors: Iterator[Any]) -> Iterator[Any]:
            return (entry for entry in tensors if entry[0] != "blk.1.ffn_up.weight")

        path = str(small(without_one) / "model.gguf")
        reason = self.refused(lambda: model_of(path, config_of(path), torch.float32))
        assert "finds no weights for model.layers.1.mlp.up_proj.weight" in reason

    def test_options(self, bundled_gguf: dict[str, Path]) -> None:
        target = bundled_gguf["target"]
        reason = self.refused(lambda: load(target, target, offload="disk"))
        assert "streamed from safetensors files only" in reason
        spread = Loading(torch.device("cpu"), torch.float32, parts=2)
        reason = self.refused(lambda: spread.runner(str(target), config_of(str(target))))
        assert "not spread over processes" in reason


class TestReading:
    def test_as_the_gguf_package_reads(self, tmp_path: Path) -> None:
        path = write_gguf(
            tmp_path / "model.gguf", package.GGMLQuantizationType.Q8_0, arrays={"x": [7, 8]}
        )
        quick, slow = _Reader(read_header(path)), package.GGUFReader(path)
        for key in ("general.name", "llama.block_count", "tiny.flag", "tiny.eps", "x"):
            ours, theirs = quick.fields[key], slow.fields[key]
            assert ours.types == theirs.types
            values = [[part.parts[i].tolist() for i in part.data] for part in (ours, theirs)]
            assert values[0] == values[1]
        assert len(quick.fields["tokenizer.ggml.tokens"].data) == 6
        for ours, theirs in zip(quick.tensors, slow.tensors, strict=True):
            assert (ours.name, ours.tensor_type) == (theirs.name, theirs.tensor_type)
            assert np.array_equal(ours.data, theirs.data)

    def test_the_package_is_as_before_afterwards(self, tmp_path: Path) -> None:
        header = read_header(write_gguf(tmp_path / "model.gguf"))
        before = package.GGUFReader, package.get_tensor_name_map

        def fail() -> None:
            with quickly_read(header):
                assert before[0] is not package.GGUFReader
                raise KeyError

        with pytest.raises(KeyError):
            fail()
        assert before == (package.GGUFReader, package.get_tensor_name_map)

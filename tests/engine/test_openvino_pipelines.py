"""OpenVINO GenAI's pipelines: a stand-in's, and the library's own where it is installed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import openvino_stand_in as stand_in
import pytest

from sequoia_opt.demo.gguf import gguf_of
from sequoia_opt.engine.library import DRAFT, LOOKUP, NO_SPECULATION, Speculation
from sequoia_opt.engine.openvino_pipelines import OpenVinoPipelines, pasted
from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan.chain_replay import ChainRecord

NEW_TOKENS = 24


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model in OpenVINO's format."""
    made = tmp_path / "target"
    made.mkdir()
    (made / "openvino_model.xml").write_text("<net/>")
    (made / "config.json").write_text('{"max_position_embeddings": 99}')
    return made


@pytest.fixture
def pipelines(folder: Path, monkeypatch: pytest.MonkeyPatch) -> OpenVinoPipelines:
    stand_in.install(monkeypatch)
    return OpenVinoPipelines({"target": str(folder), "draft": str(folder)}, threads=2)


@pytest.mark.parametrize("wrong", [1, 2, 3, 5, 30])
def test_a_long_chain_shows_how_shorter_ones_decode(pipelines: Any, wrong: int) -> None:
    """Where the guess is wrong at every place that a number divides."""
    prompt = [7, 8, wrong]
    record = ChainRecord(16, 0.0, [pipelines.counted(Speculation(DRAFT, 16), prompt, NEW_TOKENS)])
    for guesses in (1, 2, 3, 8, 16):
        counted = pipelines.counted(Speculation(DRAFT, guesses), prompt, NEW_TOKENS)
        assert int(record.walk(guesses).steps.sum()) == len(counted.accepted)


def test_chains_end_before_the_last_token(pipelines: Any) -> None:
    counted = pipelines.counted(Speculation(DRAFT, 4), [7, 1], 8)
    assert counted.drafted == [4, 4, 4, 3, 2, 1, 0]
    assert counted.accepted == [0] * 7
    counted = pipelines.counted(Speculation(DRAFT, 4), [7, 9], 8)
    assert (counted.drafted, counted.accepted) == ([4, 1], [4, 1])


def test_a_draft_that_is_not_used_or_drafts_otherwise_is_noticed(
    pipelines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    drafted = 0
    generate = stand_in.Pipeline.generate

    def counting(self: Any, *given: Any) -> Any:
        result = generate(self, *given)
        result.extended_perf_metrics.get_num_draft_tokens = lambda: drafted
        return result

    monkeypatch.setattr(stand_in.Pipeline, "generate", counting)
    assert pipelines.counted(Speculation(DRAFT, 4), [7, 1], 8).drafted == [0] * 7
    drafted = 17
    with pytest.raises(SequoiaError, match="drafted 17 guesses, expected 18"):
        pipelines.counted(Speculation(DRAFT, 4), [7, 1], 8)


def test_each_kind_has_its_pipeline_and_its_settings(pipelines: Any) -> None:
    plain = pipelines.answer(NO_SPECULATION, [5, 6], 6)
    assert (plain.tokens, plain.steps) == ([5, 6, 5, 6, 5, 6], 5)
    assert pipelines.answer(Speculation(DRAFT, 2), [5, 6], 6).steps == 2  # 1 + 3 + 2
    assert pipelines.answer(Speculation(DRAFT, None, 0.3), [5, 6], 6).steps == 1
    assert pipelines.answer(Speculation(LOOKUP, 5), [5, 6], 6).steps == 5
    without, drafting, looking_up = stand_in.made
    assert without.options == {"INFERENCE_NUM_THREADS": 2}
    assert drafting.options["draft_model"][1:] == ("CPU", {"INFERENCE_NUM_THREADS": 2})
    assert looking_up.options["prompt_lookup"]
    assert pipelines.others == [
        Speculation(DRAFT, None, 0.3), Speculation(DRAFT, None, 0.6), Speculation(LOOKUP, 5),
    ]  # fmt: skip


def test_texts_and_conversations_become_tokens(pipelines: Any) -> None:
    assert pipelines.tokens("ab") == [1, 97, 98]
    assert pipelines.tokens("<s>ab") == [1, 97, 98]
    assert pipelines.chat_text([{"role": "user", "content": "hi"}]) == "hi>"
    with pytest.raises(SequoiaError, match=r"chat template fails \(no such role\)"):
        pipelines.chat_text([{"role": "tool", "content": ""}])
    assert pipelines.positions == 99


def test_a_gguf_file_is_converted_and_the_copy_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in.install(monkeypatch)
    with OpenVinoPipelines({"target": str(gguf_of("target"))}, threads=1) as pipelines:
        [conversion] = stand_in.made
        assert Path(conversion.path).resolve() == gguf_of("target").resolve()
        assert Path(conversion.path).name == gguf_of("target").name
        assert pipelines.positions == 8192
        assert not pipelines.has_draft
        pipelines.answer(NO_SPECULATION, [1], 4)
        assert stand_in.made[-1].path == str(Path(conversion.path).parent)
    assert not Path(conversion.path).parent.exists()


def test_what_it_cannot_read(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in.install(monkeypatch)
    with pytest.raises(SequoiaError, match=r"found no openvino_model\.xml"):
        OpenVinoPipelines({"target": str(tmp_path)}, threads=1)
    (tmp_path / "text.gguf").write_text("none")
    with pytest.raises(SequoiaError, match=r"text\.gguf"):
        OpenVinoPipelines({"target": str(folder), "draft": str(tmp_path / "text.gguf")}, threads=1)
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(gguf_of("draft").read_bytes())
    with pytest.raises(SequoiaError, match=r"broken.gguf: .*\(Unsupported quantization type\)"):
        OpenVinoPipelines({"target": str(broken)}, threads=1)
    monkeypatch.setitem(sys.modules, "openvino_genai", None)
    with pytest.raises(SequoiaError, match="pip install openvino-genai"):
        OpenVinoPipelines({"target": str(folder)}, threads=1)


@pytest.mark.parametrize(
    ("speculation", "told"),
    [
        (NO_SPECULATION, {}),
        (Speculation(DRAFT, 3), {"num_assistant_tokens": 3}),
        (
            Speculation(DRAFT, None, 0.3),
            {"num_assistant_tokens": None, "assistant_confidence_threshold": 0.3},
        ),
        (Speculation(LOOKUP, 5), {"num_assistant_tokens": 5, "max_ngram_size": 3}),
    ],
)
def test_the_lines_to_paste_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, speculation: Speculation, told: dict[str, Any]
) -> None:
    stand_in.install(monkeypatch)
    names: dict[str, Any] = {}
    exec(pasted({"target": str(folder), "draft": str(folder)}, speculation, 3), names)
    assert names["pipeline"].path == str(folder)
    assert names["pipeline"].options["INFERENCE_NUM_THREADS"] == 3
    assert vars(names.get("config", type("Empty", (), {})())) == told


def test_the_lines_convert_a_draft_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in.install(monkeypatch)
    draft = tmp_path / "small model.gguf"
    draft.write_text("")
    exec(pasted({"target": "t.gguf", "draft": str(draft)}, Speculation(DRAFT, 3), 1), {})
    conversion, pipeline = stand_in.made
    assert conversion.options == {"enable_save_ov_model": True}
    assert pipeline.options["draft_model"][0] == str(tmp_path)


def test_the_library_itself(tmp_path: Path) -> None:
    """The bundled target in half precision, with its first layers as draft.

    With two threads: with one, OpenVINO 2026.4 divides by zero on processors with AMX, unless it
    computes in float32.
    """
    pytest.importorskip("openvino_genai")
    pytest.importorskip("llama_cpp")
    from sequoia_opt.engine.gguf_edit import first_layers
    from sequoia_opt.engine.llama_cpp.requantize import requantized

    target = str(requantized(gguf_of("target"), "float16", tmp_path / "target.gguf"))
    first_layers(target, 10, tmp_path / "draft.gguf")
    files = {"target": target, "draft": str(tmp_path / "draft.gguf")}
    prompt = list(range(40, 72))
    with OpenVinoPipelines(files, threads=2) as pipelines:
        assert pipelines.tokens("def f(x):")
        plain = pipelines.answer(NO_SPECULATION, prompt, NEW_TOKENS)
        assert (len(plain.tokens), plain.steps) == (NEW_TOKENS, NEW_TOKENS - 1)
        for guesses in (3, 5):  # each checks that as many were drafted as it says
            counted = pipelines.counted(Speculation(DRAFT, guesses), prompt, NEW_TOKENS)
            assert 0 < sum(counted.accepted) < sum(counted.drafted)
        unsure = pipelines.answer(Speculation(DRAFT, None, 0.3), prompt, NEW_TOKENS)
        assert unsure.steps < plain.steps
        lookup = pipelines.answer(Speculation(LOOKUP, 5), [*prompt, *prompt], NEW_TOKENS)
        assert lookup.steps < NEW_TOKENS - 1
    names: dict[str, Any] = {}
    exec(pasted(files, Speculation(DRAFT, None, 0.3), 2), names)
    names["config"].max_new_tokens = 4
    assert names["pipeline"].generate("def f(x):", names["config"])

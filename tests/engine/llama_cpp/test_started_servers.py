"""llama.cpp's own servers on the bundled pair: counted steps, and tuning from end to end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from small_gguf import write_gguf

from sequoia_opt.engine.library import DRAFT, NO_SPECULATION, Speculation
from sequoia_opt.engine.llama_cpp import started_servers
from sequoia_opt.engine.llama_cpp.server_pool import ServerPool
from sequoia_opt.engine.llama_cpp.server_program import Program, program
from sequoia_opt.engine.llama_cpp.settings import Settings
from sequoia_opt.engine.llama_cpp.started_servers import StartedServers
from sequoia_opt.errors import SequoiaError
from sequoia_opt.measure.progress import no_note, no_progress_bar
from sequoia_opt.measure.records import Document
from sequoia_opt.measure.tune.llama_cpp import tune_files
from sequoia_opt.measure.tune.task import Task
from sequoia_opt.measure.tune.tuning import TuneSpec, label_of
from sequoia_opt.plan.chain_replay import ChainRecord

EXACT = {"threads": 1, "flash_attention": "off", "cache_type_k": "f32", "cache_type_v": "f32"}
NEW_TOKENS = 32
DOCUMENTS = [Document(f"def f_{i}(x):\n    ", "") for i in range(3)]


@pytest.fixture(scope="module")
def servers(bundled_files: dict[str, str]) -> Iterator[StartedServers]:
    try:
        program()
    except SequoiaError as error:
        pytest.skip(str(error))
    with StartedServers(bundled_files, Settings(**EXACT)) as started:
        yield started


@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_steps_are_counted_as_the_server_takes_them(
    servers: StartedServers, threshold: float
) -> None:
    """Streamed steps sum up to the answer's totals, and tell how a shorter chain decodes."""
    prompt = servers.client.tokens("def main(args):\n    ")
    long_chain, short = Speculation(DRAFT, 12, threshold), Speculation(DRAFT, 3, threshold)
    counted = servers.counted(long_chain, prompt, NEW_TOKENS)
    answer = servers.answer(long_chain, prompt, NEW_TOKENS)
    assert sum(counted.drafted) == answer.timings.drafted
    assert sum(counted.accepted) == answer.timings.accepted
    assert len(counted.drafted) == answer.steps
    walk = ChainRecord(12, threshold, [counted]).walk(3)
    shorter = servers.answer(short, prompt, NEW_TOKENS)
    assert walk.steps.tolist() == [shorter.steps]
    assert (walk.full + walk.cut)[0] @ range(4) == shorter.timings.drafted
    assert shorter.tokens == answer.tokens == servers.answer(NO_SPECULATION, prompt, 32).tokens


def test_a_text_that_a_server_remembers_is_decoded_by_another(
    servers: StartedServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[str] = []
    monkeypatch.setattr(ServerPool, "end", lambda self, speculation: ended.append(speculation.kind))
    monkeypatch.setattr(ServerPool, "server", lambda self, speculation, tokens: None)
    for prompt in ([1], [2], [1], [2], [1]):
        servers._server(Speculation("ngram-mod"), prompt, 4)
        servers._server(Speculation("ngram-simple"), prompt, 4)
    assert ended == ["ngram-mod", "ngram-mod"]


def test_the_bundled_pair_is_tuned(
    servers: StartedServers, bundled_files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(started_servers, "NGRAM", "ngram-simple")
    spec = TuneSpec(
        new_tokens=24, minutes=1, repeats=1, longest=8, lengths=(1, 3), thresholds=(0.0, 0.5)
    )
    task = Task("d", DOCUMENTS, 2, spec)
    found = tune_files(bundled_files, EXACT, task, no_progress_bar, no_note)
    tuned = found.tuned
    assert tuned.study is not None
    names = [label_of(setting) for setting in tuned.settings]
    assert names[:2] == ["plain", "draft, 3 guesses"]
    assert names[-1] == "ngram-simple"
    assert [result.agreement for result in tuned.results] == [1] * len(names)
    assert tuned.results[0].tokens_per_step == 1
    for setting, result in zip(tuned.settings, tuned.results, strict=True):
        if (prediction := tuned.study.of(setting)) is not None:
            assert prediction.tokens_per_step == pytest.approx(result.tokens_per_step)
    assert found.command.startswith(f"llama-server -m {bundled_files['target']} -t 1 -fa off")
    assert ("--spec-type" in found.command) == (tuned.best != NO_SPECULATION)


def test_another_vocabulary_is_refused(bundled_files: dict[str, str], tmp_path: Path) -> None:
    files = {**bundled_files, "draft": str(write_gguf(tmp_path / "other.gguf"))}
    task = Task("d", DOCUMENTS, 2, TuneSpec())
    with pytest.raises(SequoiaError, match="a draft must share its target's"):
        tune_files(files, EXACT, task, no_progress_bar, no_note)


def test_a_server_that_knows_no_drafts_is_refused(
    bundled_files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    old = Program("llama-server", "1.0", "", frozenset({"none"}))
    monkeypatch.setattr(started_servers, "program", lambda: old)
    with pytest.raises(SequoiaError, match="has no speculation draft-simple"):
        StartedServers(bundled_files, Settings(1))
    with pytest.raises(SequoiaError, match="has no speculation ngram-simple"):
        StartedServers({"target": bundled_files["target"]}, Settings(1))

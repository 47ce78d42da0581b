"""`bench` on llama.cpp: which methods it has, and that they decode the same text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sequoia_opt.engine.llama_cpp import server_library
from sequoia_opt.engine.llama_cpp.server_program import Program, program
from sequoia_opt.errors import SequoiaError
from sequoia_opt.measure import bench
from sequoia_opt.measure.bench import BenchSpec, prepare
from sequoia_opt.measure.divergence import library_divergence
from sequoia_opt.measure.method_names import LIBRARY_METHODS, METHODS, methods_of
from sequoia_opt.measure.methods import with_tree
from sequoia_opt.measure.records import Document
from sequoia_opt.plan import shapes
from sequoia_opt.plan.sampling import Sampling

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

SERVER = LIBRARY_METHODS["llama.cpp"]
ALL = Program("llama-server", "9.9", "", frozenset({"none", "draft-simple", "ngram-simple"}))


def spec(folder: Path, *names: str, **options: Any) -> BenchSpec:
    path = folder / "tree.json"
    tree = shapes.k_ary(2, 2)
    tree.save(path)
    return BenchSpec(
        tree=tree, tree_file=path, sampling=Sampling(), limit=2, max_new_tokens=12, repeats=1,
        methods=names, **options,
    )  # fmt: skip


def documents(count: int = 2) -> list[Document]:
    return [Document(f"def f_{i}(x):\n    ", "") for i in range(count)]


def lacking(reason: str) -> Any:
    def program() -> Program:
        raise SequoiaError(reason)

    return program


def test_the_tree_and_the_server_decode_the_same_text(pair: Any, tmp_path: Path) -> None:
    try:
        program()
    except SequoiaError as error:
        pytest.skip(str(error))
    names = ("plain", "server", "server-draft-1", "server-draft-3", "server-ngram-simple", "tree")
    prepared = prepare(spec(tmp_path, *names), pair, "d", documents())
    assert list(prepared.names) == list(names)
    results = prepared.run().results
    assert [result.name for result in results] == [
        "plain", "llama-server", "llama-server, 1 guess", "llama-server, 3 guesses",
        "llama-server, ngram-simple", "solved tree (7 nodes)",
    ]  # fmt: skip
    assert [result.agreement for result in results] == [1] * len(names)
    assert results[0].tokens_per_step == results[1].tokens_per_step == 1
    assert 1 < results[2].tokens_per_step <= results[3].tokens_per_step <= 4
    assert prepared.settings["library"]["server"] == program().name
    assert not pair.library.pool.servers  # none is left running


def test_each_engine_has_its_own_library() -> None:
    assert set(SERVER) < set(methods_of("llama.cpp"))
    assert not set(SERVER) & set(methods_of("torch"))
    assert set(methods_of("torch")) | set(methods_of("llama.cpp")) == set(METHODS)
    assert "plain" in methods_of("torch")


def test_methods_of_another_engine_are_left_out_or_refused(
    pair: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_library, "program", lambda: ALL)
    notes: list[str] = []
    left = bench.runnable(["plain", "generate", "server", "tree"], pair, 50, notes.append)
    assert left == ["plain", "server", "tree"]
    assert not notes
    with pytest.raises(SequoiaError, match="generate is a method of the engine torch, expected"):
        bench.runnable(["plain", "generate"], pair, 50, notes.append, named=True)


def test_without_a_server_its_methods_are_left_out_or_refused(
    pair: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_library, "program", lacking("llama-server: not found; get one"))
    notes: list[str] = []
    assert bench.runnable(["plain", "server", "tree"], pair, 50, notes.append) == ["plain", "tree"]
    assert notes == ["server is left out: llama-server: not found; get one"]
    with pytest.raises(SequoiaError, match="llama-server: not found; get one"):
        bench.runnable(["plain", "server"], pair, 50, notes.append, named=True)


def test_kinds_that_an_old_server_lacks_are_left_out(
    pair: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_library, "program", lambda: ALL)
    notes: list[str] = []
    names = ["plain", "server", "server-ngram-simple", "server-ngram-mod"]
    assert bench.runnable(names, pair, 50, notes.append, named=True) == names[:3]
    assert notes == ["server-ngram-mod is left out: llama-server 9.9 has no speculation ngram-mod"]


def test_a_server_of_another_build_is_remarked(
    pair: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its speed says little where it lacks instructions that this program's library has."""
    monkeypatch.setattr(server_library, "features", lambda: "CPU : AVX2 AVX512 OPENMP")
    wheel = Program("xllamacpp", "7", "CPU : AVX2 OPENMP", ALL.speculations)
    monkeypatch.setattr(server_library, "program", lambda: wheel)
    notes: list[str] = []
    prepared = prepare(spec(tmp_path, "plain", "server"), pair, "d", documents(), notes.append)
    assert any("xllamacpp 7 was built without AVX512, which this" in note for note in notes)
    assert prepared.settings["library"] == {
        "server": "xllamacpp", "version": "7", "build": "CPU : AVX2 OPENMP",
    }  # fmt: skip
    assert "library" not in prepare(spec(tmp_path, "plain"), pair, "d", documents()).settings


def test_greedy_tokens_are_compared_with_one_forward_pass(
    pair: Any, prompts: list[list[int]]
) -> None:
    prompt = prompts[0]
    tokens = with_tree(pair, "tree", shapes.k_ary(2, 3)).run(prompt, 10).tokens
    assert library_divergence(pair, prompt, tokens) is None
    other = [*tokens[:4], (tokens[4] + 1) % pair.target.vocabulary, *tokens[5:]]
    parted = library_divergence(pair, prompt, other)
    assert parted is not None
    assert (parted.place, parted.gap > 0) == (4, True)

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from sequoia_opt.demo import corpus


def test_no_held_out_file_is_trained_on() -> None:
    training, held_out = corpus.split()
    names = {path for path, _ in training}
    assert {path for path, _ in held_out}
    for module in corpus.HELD_OUT_MODULES:
        assert f"{module}.py" not in names
        assert not any(path.startswith(f"{module}/") for path in names)
    assert not any("test" in Path(path).parts for path in names)
    assert len(names) > 200


def test_excerpts_do_not_overlap() -> None:
    source = "".join(f"def f{i}(x):\n    return x + {i}\n\n\n" for i in range(200))
    pieces = corpus.excerpts([("m.py", source)], 5, prompt_chars=50, chars=300, seed=0)
    assert len(pieces) == 5
    texts = [piece["prompt"] + piece["completion"] for piece in pieces]
    starts = sorted(source.index(text) for text in texts)
    assert all(b - a >= 300 for a, b in pairwise(starts))
    assert all(piece["prompt"].startswith("def f") for piece in pieces)
    assert all(piece["prompt"].endswith("\n") for piece in pieces)


def test_package_files_are_none_of_the_held_out_modules() -> None:
    documents = corpus.package_files(200_000, seed=0)
    assert sum(len(source) for _, source in documents) >= 200_000
    for path, source in documents:
        parts = {part.removesuffix(".py") for part in path.split("/")[1:]}
        assert not parts & {*corpus.HELD_OUT_MODULES, "tests"}
        assert len(source) <= corpus.LONGEST
    assert corpus.package_files(200_000, seed=0) == documents

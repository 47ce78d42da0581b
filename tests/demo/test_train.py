from __future__ import annotations

import json
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from sequoia_opt import demo
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
    places = sorted(source.index(text) for text in texts)
    assert all(b - a >= 300 for a, b in pairwise(places))
    assert all(piece["prompt"].startswith("def f") for piece in pieces)
    assert all(piece["prompt"].endswith("\n") for piece in pieces)


def test_prompts_are_not_in_the_dataset() -> None:
    dataset = [json.loads(line) for line in demo.DATASET.read_text().splitlines()]
    texts = {record["prompt"] for record in dataset}
    assert len(demo.prompts()) == 8
    assert not texts & set(demo.prompts())


def test_the_record_of_the_bundled_pair() -> None:
    record = json.loads((demo.FOLDER / "training.json").read_text())
    assert record["held_out_modules"] == list(corpus.HELD_OUT_MODULES)
    assert record["target_held_out_loss"] < record["draft_held_out_loss"] < 4
    size = sum(
        f.stat().st_size for f in demo.FOLDER.rglob("*") if f.suffix in (".safetensors", ".json")
    )
    assert size < 25e6


def test_training_runs_and_repeats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few steps of each stage on a part of the text, twice: one seed, the same files."""
    import typer

    from sequoia_opt.demo import train

    training, held_out = corpus.split()
    monkeypatch.setattr(corpus, "split", lambda: (training[:60], held_out[:4]))
    # Its iterations are in bfloat16, which takes minutes where a processor has no kernels for it.
    monkeypatch.setattr(torch.optim, "Muon", partial(torch.optim.Muon, ns_steps=1))

    app = typer.Typer()
    app.command()(train.main)
    options = (
        "--steps 2 --draft-steps 3 --rows 2 --batch-tokens 512 --held-out-tokens 64 --threads 1"
    )
    outcomes = []
    for name in ("first", "second"):
        folder = tmp_path / name
        result = CliRunner().invoke(app, ["--output", str(folder), *options.split()])
        assert result.exit_code == 0, result.output
        outcomes.append(
            {
                path.relative_to(folder): path.read_bytes()
                for path in sorted(folder.rglob("*"))
                if path.is_file()
            }
        )
    assert outcomes[0] == outcomes[1]
    names = {str(path) for path in outcomes[0]}
    for model in ("target", "draft"):
        for file in ("config.json", "model.safetensors", "tokenizer.json"):
            assert f"{model}/{file}" in names
    record = json.loads((tmp_path / "first" / "training.json").read_text())
    assert record["target_parameters"] == pytest.approx(10e6, rel=0.1)
    assert 0.3e6 <= record["draft_parameters"] <= 0.7e6

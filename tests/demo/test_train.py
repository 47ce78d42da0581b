from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from sequoia_opt.demo import corpus


def test_training_gives_the_same_files_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few steps of each stage on a part of the text, with the same seed."""
    import typer

    from sequoia_opt.demo import train

    training, held_out = corpus.split()
    monkeypatch.setattr(corpus, "split", lambda: (training[:60], held_out[:4]))
    # Muon's iterations in bfloat16 take minutes on a processor without kernels for it.
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

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Outcome

from sequoia_opt import cli, demo


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    """Runs a command line in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["sequoia-opt", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        captured = capfd.readouterr()
        code = stopped.value.code
        return Outcome(code if isinstance(code, int) else 0, captured.out, captured.err)

    return call


@pytest.fixture
def models(make_model: Callable[..., Path], tmp_path: Path) -> list[str]:
    """Options that name a small pair of two architectures, with the bundled tokenizer."""
    options = []
    for role, architecture in (("target", "qwen3"), ("draft", "gpt_neox")):
        folder = tmp_path / f"small-{role}"
        shutil.copytree(make_model(architecture, vocab_size=2048, spread=0.05), folder)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(demo.FOLDER / "target" / name, folder)
        options += [f"--{role}", str(folder)]
    return options


@pytest.fixture
def few_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Profiles have few token counts where no option names them."""
    monkeypatch.setattr("sequoia_opt.measure.profiler.default_tokens", lambda _: [1, 2, 4, 8, 16])


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    path = tmp_path / "numbers.jsonl"
    records = [{"prompt": f"def f{i}(x):\n", "completion": "    return x\n"} for i in range(3)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path

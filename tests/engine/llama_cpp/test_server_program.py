"""Which server is found, and how it is started: with a stand-in for the executable."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sequoia_opt.engine.library import DRAFT, NO_SPECULATION, Speculation
from sequoia_opt.engine.llama_cpp import server_program
from sequoia_opt.engine.llama_cpp.server_program import ServerOptions, pasted, program
from sequoia_opt.engine.llama_cpp.settings import Settings
from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan.chain_tuning import ChainSetting

HELP = """
-t,    --threads N    threads
--fit [on|off]        fit
--spec-type none,draft-simple,ngram-simple
                      kinds
--spec-draft-n-max N  number of tokens to draft for
                      speculative decoding (default: 5)
--spec-draft-p-min, --draft-p-min P
                      minimum probability (default: 0.25)
"""
SYSTEM = "system_info: n_threads = 2 / 2 | CPU : AVX2 = 1 | AVX512 = 1 | OPENMP = 1 | "


@pytest.fixture(autouse=True)
def _found_anew() -> Iterator[None]:
    program.cache_clear()
    yield
    program.cache_clear()


def executable(folder: Path, help_text: str = HELP) -> None:
    """A program that answers as llama-server does."""
    path = folder / "llama-server"
    path.write_text(
        f"#!{sys.executable}\nimport sys\n"
        f"if '--help' in sys.argv: print({help_text!r})\n"
        "elif '--version' in sys.argv: print('version: 9.9 (abc)', file=sys.stderr)\n"
        f"else: print('0.0 I cmn {SYSTEM}', file=sys.stderr); sys.exit(1)\n"
    )
    path.chmod(0o755)


def options(speculation: Speculation = NO_SPECULATION, **settings: object) -> ServerOptions:
    chosen = Settings(**{"threads": 3, **settings})  # type: ignore[arg-type]
    return ServerOptions("t.gguf", "d.gguf", chosen, 512, speculation)


def values(command: list[str]) -> dict[str, str]:
    """Each option of a command line with what follows it."""
    return dict(zip(command, [*command[1:], ""], strict=True))


def test_an_executable_on_the_path_is_asked_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executable(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = program()
    assert (found.name, found.version) == ("llama-server", "9.9 (abc)")
    assert found.system == "CPU : AVX2 AVX512 OPENMP"
    assert found.speculations == {"none", "draft-simple", "ngram-simple"}
    assert found.default_chain == ChainSetting(5, 0.25)


def test_it_runs_as_this_engine_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executable(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    own = options(gpu_layers=-1, flash_attention="on", cache_type_k="f32", cache_type_v="q8_0")
    found = values(program().command(own, 1234))
    expected = {
        "-m": "t.gguf", "--port": "1234", "-c": "512", "-np": "1", "-t": "3", "-tb": "3",
        "-fa": "on", "-ctk": "f32", "-ctv": "q8_0", "--fit": "off", "--spec-type": "none",
    }  # fmt: skip
    assert {name: found.get(name) for name in expected} == expected
    assert int(found["-ngl"]) > 1000  # all layers
    assert "-md" not in found  # a draft that is not used takes no memory
    assert "--no-webui" not in found  # which this version does not have


def test_guesses_are_drafted_whatever_the_draft_thinks_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executable(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = values(program().command(options(Speculation(DRAFT, 5), gpu_layers=7), 1))
    expected = {
        "--spec-type": "draft-simple", "-md": "d.gguf", "-td": "3", "-ngld": "7", "-ctkd": "f16",
        "--spec-draft-n-max": "5", "--spec-draft-n-min": "0", "--spec-draft-p-min": "0",
    }  # fmt: skip
    assert {name: found.get(name) for name in expected} == expected
    own = values(program().command(options(Speculation(DRAFT)), 1))
    assert "-md" in own
    assert "--spec-draft-n-max" not in own


def test_a_threshold_ends_chains_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executable(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = values(program().command(options(Speculation(DRAFT, 5, 0.6)), 1))
    assert found["--spec-draft-p-min"] == "0.6"


@pytest.mark.parametrize(
    ("speculation", "settings", "expected"),
    [
        (NO_SPECULATION, {}, "llama-server -m 'a b.gguf' -t 3"),
        (
            Speculation(DRAFT, 4, 0.3),
            {"flash_attention": "on", "cache_type_k": "q8_0", "context_size": 4096},
            "llama-server -m 'a b.gguf' -t 3 -fa on -ctk q8_0 -c 4096 -md d.gguf "
            "--spec-type draft-simple --spec-draft-n-max 4 --spec-draft-n-min 0 "
            "--spec-draft-p-min 0.3",
        ),
        (
            Speculation(DRAFT),
            {"gpu_layers": -1},
            "llama-server -m 'a b.gguf' -t 3 -ngl all -md d.gguf --spec-type draft-simple",
        ),
        (Speculation("ngram-mod"), {}, "llama-server -m 'a b.gguf' -t 3 --spec-type ngram-mod"),
    ],
)
def test_a_command_to_paste(
    speculation: Speculation, settings: dict[str, object], expected: str
) -> None:
    files = {"target": "a b.gguf", "draft": "d.gguf"}
    chosen = Settings(**{"threads": 3, **settings})  # type: ignore[arg-type]
    assert pasted(files, chosen, speculation) == expected
    if executable_path := shutil.which("llama-server"):
        _check_options(executable_path, expected)


def _check_options(path: str, command: str) -> None:
    """Every option is one of a server that is there."""
    text = subprocess.run([path, "--help"], capture_output=True, text=True, check=True).stdout
    for option in re.findall(r"(?<= )-[\w-]+", command):
        assert re.search(rf"(?<![\w-]){option}(?![\w-])", text), option


def test_an_old_executable_only_decodes_plainly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executable(tmp_path, "-t,    --threads N    threads")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert program().speculations == {"none"}
    assert "--spec-type" not in program().command(options(), 1)


def test_options_in_the_environment_are_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp reads them like options, and they would differ from the engine's."""
    monkeypatch.setenv("LLAMA_ARG_THREADS", "1")
    monkeypatch.setenv("OTHER", "1")
    found = server_program.environment()
    assert "LLAMA_ARG_THREADS" not in found
    assert found["OTHER"] == "1"


def test_the_wheel_is_the_second_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the wheel, which a process of its own imports."""
    (tmp_path / "xllamacpp.py").write_text(
        "__version__ = '7.0'\n"
        "def get_system_info(): return 'CPU : AVX2 = 1 | '\n"
        "class CommonParams:\n"
        "    class speculative:\n"
        "        class draft: n_max, p_min = 6, 0.75\n"
        "class common_speculative_type:\n"
        "    names = 'NONE', 'DRAFT_SIMPLE', 'NGRAM_MAP_K4V'\n"
        "    __members__ = {f'COMMON_SPECULATIVE_TYPE_{name}': 0 for name in names}\n"
    )
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    found = program()
    assert (found.name, found.version, found.system) == ("xllamacpp", "7.0", "CPU : AVX2")
    assert found.speculations == {"none", "draft-simple", "ngram-map-k4v"}
    assert found.default_chain == ChainSetting(6, 0.75)
    document = json.loads(found.command(options(Speculation(DRAFT, 2)), 5)[-1])
    assert (document["draft"], document["guesses"], document["port"]) == ("d.gguf", 2, 5)
    assert json.loads(found.command(options(), 5)[-1])["draft"] is None


def test_without_a_server_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(server_program.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SequoiaError, match="llama-server: not found; put a llama-server on the"):
        program()


def test_a_program_that_cannot_run_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "llama-server"
    path.write_text("#!/nonexistent/interpreter\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SequoiaError, match=f"{path}: cannot be run"):
        program()

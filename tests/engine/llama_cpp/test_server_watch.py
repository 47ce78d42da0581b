"""How servers end, and what is said of it: with a stand-in for the executable."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from sequoia_opt.engine.llama_cpp.server import LlamaServer, last_error
from sequoia_opt.engine.llama_cpp.server_program import WATCH, ServerOptions, program
from sequoia_opt.engine.llama_cpp.settings import Settings
from sequoia_opt.errors import SequoiaError

OPTIONS = ServerOptions("t.gguf", "d.gguf", Settings(threads=1), 512)
ANSWERING = """
from http.server import BaseHTTPRequestHandler, HTTPServer
class Healthy(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
port = int(sys.argv[sys.argv.index("--port") + 1])
open("server.pid", "w").write(str(os.getpid()))
HTTPServer(("127.0.0.1", port), Healthy).serve_forever()
"""
PARENT = """
import sys
from sequoia_opt.engine.llama_cpp.server import LlamaServer
from test_server_watch import OPTIONS
server = LlamaServer(OPTIONS)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _program_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    program.cache_clear()
    yield
    program.cache_clear()


def executable(work: str) -> None:
    """A llama-server in this folder that does this when it is to serve."""
    path = Path("llama-server")
    path.write_text(
        f"#!{sys.executable}\nimport os, signal, sys\n"
        "if '--help' in sys.argv or '--version' in sys.argv or os.devnull in sys.argv: sys.exit()\n"
        + work
    )
    path.chmod(0o755)


def server_process() -> psutil.Process:
    return psutil.Process(int(Path("server.pid").read_text()))


def has_ended(process: psutil.Process) -> bool:
    """Whether it ends soon; who inherits an orphan need not collect it."""
    deadline = time.monotonic() + 20
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_a_server_ends_when_it_is_closed() -> None:
    executable(ANSWERING)
    with LlamaServer(OPTIONS):
        process = server_process()
        assert process.is_running()
    assert has_ended(process)


def test_a_server_does_not_outlive_a_program_that_is_killed() -> None:
    executable(ANSWERING)
    paths = os.pathsep.join(path for path in (str(Path(__file__).parent), *sys.path) if path)
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": paths},
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"ready\n"
    process = server_process()
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    assert has_ended(process)


@pytest.mark.parametrize(
    ("work", "ending"),
    [
        ("print('cannot: no'); sys.exit(7)", r"\(cannot: no; exit code 7\)"),
        ("sys.exit(3)", r"\(it does not say why; exit code 3\)"),
        ("os.kill(os.getpid(), signal.SIGKILL)", r"\(it does not say why; signal 9\)"),
        ("os.kill(os.getpid(), signal.SIGABRT)", r"\(it does not say why; signal 6\)"),
    ],
)
def test_how_a_server_ended_is_told(work: str, ending: str) -> None:
    executable(work)
    with pytest.raises(SequoiaError, match=rf"does not start with t\.gguf {ending}"):
        LlamaServer(OPTIONS)


def test_a_program_that_cannot_be_run_is_an_error_of_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-P", str(WATCH), "no-such-program"],
        stdin=subprocess.PIPE, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_the_last_error_is_what_others_follow_from() -> None:
    log = [
        "0.00.001 E ggml_cuda_init: failed to initialize CUDA: no device",
        "0.00.002 I srv load_model: loading model 't.gguf'",
        "0.00.003 E gguf_init_from_reader: failed to read key-value pairs",
        "0.00.004 E srv load_model: failed to load model, 't.gguf'",
        "0.00.005 I srv operator(): cleaning up before exit...",
        "0.00.006 E srv init: exiting due to model loading error",
        "",
    ]
    assert last_error(log) == "gguf_init_from_reader: failed to read key-value pairs"
    assert last_error(log[:2]) == "ggml_cuda_init: failed to initialize CUDA: no device"
    assert last_error([" first ", "last ", ""]) == "last"
    assert last_error([]) == "it does not say why"

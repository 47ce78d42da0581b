"""`check` on llama.cpp's own server with the bundled pair."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from llama_server_process import llama_server

from sequoia_opt import demo
from sequoia_opt.engine.library import DRAFT, NO_SPECULATION, Speculation
from sequoia_opt.engine.llama_cpp.server_program import ServerOptions, program
from sequoia_opt.engine.llama_cpp.settings import Settings
from sequoia_opt.errors import SequoiaError
from sequoia_opt.measure.check.checks import CheckSpec, Report, check
from sequoia_opt.measure.check.server import Server

SAMPLES = 30


@contextmanager
def serving(draft: str = "") -> Iterator[Server]:
    """A server of the bundled target, with a draft or without."""
    speculation = Speculation(DRAFT, 4) if draft else NO_SPECULATION
    target = demo.resolve(demo.TARGET_NAME, "llama.cpp")
    with llama_server(ServerOptions(target, draft, Settings(1), 1024, speculation)) as server:
        yield server


@pytest.fixture(autouse=True)
def _server_is_there() -> None:
    try:
        program()
    except SequoiaError as error:
        pytest.skip(str(error))


def checked(server: Server, baseline: Server | None = None) -> Report:
    spec = CheckSpec(prompts=demo.prompts()[:2], new_tokens=24, samples=SAMPLES, repeats=1)
    return check(server, baseline, spec)


def statuses(report: Report) -> dict[str, str]:
    """By check; but for the speed, which no test depends on."""
    return {f.check: f.status.name for f in report.findings if f.check != "speed"}


def test_a_healthy_server_passes_with_and_without_a_baseline() -> None:
    healthy = dict.fromkeys(("greedy", "sampled", "speculation", "acceptance"), "OK")
    with serving(demo.resolve(demo.DRAFT_NAME, "llama.cpp")) as server:
        alone = checked(server)
        assert statuses(alone) == healthy, alone.findings
        assert alone.server["kind"] == "llama.cpp"
        with serving() as other:
            report = checked(server, other)
        assert statuses(report) == healthy, report.findings
        [speed] = [f for f in report.findings if f.check == "speed"]
        assert speed.numbers["tokens_per_second"] > 0


def test_a_server_without_a_draft_is_told() -> None:
    with serving() as server:
        report = checked(server)
    found = statuses(report)
    assert (found["greedy"], found["speculation"]) == ("OK", "FAILED")
    [speculation] = [f for f in report.findings if f.check == "speculation"]
    assert "it was started without" in speculation.sentence

"""llama.cpp's own server on the bundled pair, against this program's decoding."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sequoia_opt.engine.decoder import Decoder
from sequoia_opt.engine.library import DRAFT, NO_SPECULATION, Speculation
from sequoia_opt.engine.llama_cpp.server import LlamaServer
from sequoia_opt.engine.llama_cpp.server_client import sampling_options
from sequoia_opt.engine.llama_cpp.server_library import ServerLibrary
from sequoia_opt.engine.llama_cpp.server_pool import REMEMBERING, ServerPool
from sequoia_opt.engine.llama_cpp.server_program import ServerOptions, program
from sequoia_opt.engine.llama_cpp.settings import Settings
from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan import shapes
from sequoia_opt.plan.sampling import Sampling

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

NEW_TOKENS = 24
SETTINGS = Settings(1, flash_attention="off", cache_type_k="f32", cache_type_v="f32")


@pytest.fixture(scope="module", autouse=True)
def _server_is_there() -> None:
    try:
        program()
    except SequoiaError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def library(bundled_files: dict[str, str], pair: Any) -> Iterator[ServerLibrary]:
    opened = ServerLibrary(bundled_files, pair.target.model, SETTINGS)
    yield opened
    opened.close()


def options(files: dict[str, str], **changes: Any) -> ServerOptions:
    chosen = {"target": files["target"], "draft": files["draft"], "settings": SETTINGS}
    return ServerOptions(**{**chosen, "context": 256, **changes})


@pytest.mark.parametrize("guesses", [None, 1, 4])
def test_it_decodes_the_same_greedy_tokens_in_as_many_steps(
    guesses: int | None, library: ServerLibrary, pair: Any, prompts: list[list[int]]
) -> None:
    speculation = NO_SPECULATION if guesses is None else Speculation(DRAFT, guesses)
    chain = shapes.chain(1 + (guesses or 0))
    decoder = Decoder(pair, chain)
    for prompt in prompts[:2]:
        own = decoder.generate(prompt, NEW_TOKENS, ignore_eos=True)
        found = library.generate(prompt, NEW_TOKENS, Sampling(), speculation)
        assert found.tokens == own.tokens
        assert found.timed == NEW_TOKENS - 1
        assert found.seconds > 0
        assert found.steps == own.steps


@pytest.mark.parametrize("kind", ["ngram-simple", "ngram-cache", "ngram-mod"])
def test_lookup_decodes_the_same_tokens(
    kind: str, library: ServerLibrary, pair: Any, prompts: list[list[int]]
) -> None:
    plain = library.generate(prompts[0], NEW_TOKENS, Sampling())
    first, second = (
        library.generate(prompts[0], NEW_TOKENS, Sampling(), Speculation(kind)) for _ in range(2)
    )
    assert first.tokens == second.tokens == plain.tokens
    assert first.steps == second.steps  # nothing is remembered of the first text


def test_a_server_that_remembers_texts_is_not_asked_twice(library: ServerLibrary) -> None:
    assert not any(speculation.kind in REMEMBERING for speculation in library.pool.servers)


def test_a_longer_text_gets_another_server(
    library: ServerLibrary, prompts: list[list[int]]
) -> None:
    library.generate(prompts[0], 4, Sampling())
    before = library.pool.servers[NO_SPECULATION]
    library.generate(prompts[0], 5, Sampling())
    assert library.pool.servers[NO_SPECULATION] is before
    library.generate(prompts[0] * 30, 4, Sampling())
    after = library.pool.servers[NO_SPECULATION]
    assert after.options.context > before.options.context
    assert before._process.poll() is not None


def test_as_many_servers_run_as_memory_holds(
    bundled_files: dict[str, str],
    pair: Any,
    prompts: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ServerPool, "has_room", lambda self: False)
    library = ServerLibrary(bundled_files, pair.target.model, SETTINGS)
    for speculation in (NO_SPECULATION, Speculation("ngram-simple")):
        library.generate(prompts[0], 4, Sampling(), speculation)
        assert list(library.pool.servers) == [speculation]
    library.close()
    assert not library.pool.servers


def test_it_samples(library: ServerLibrary, prompts: list[list[int]]) -> None:
    sampling = Sampling(temperature=1.5, top_p=0.95, top_k=40, min_p=0.01)
    texts = {tuple(library.generate(prompts[0], NEW_TOKENS, sampling).tokens) for _ in range(4)}
    assert len(texts) > 1


def test_samplers_stand_in_this_programs_order() -> None:
    found = sampling_options(Sampling(temperature=0.5, min_p=0.1, top_p=0.9))
    assert found == {
        "temperature": 0.5, "top_p": 0.9, "min_p": 0.1,
        "samplers": ["temperature", "top_p", "min_p"],
    }  # fmt: skip


def test_text_logits_are_those_of_the_engine(
    library: ServerLibrary, pair: Any, prompts: list[list[int]]
) -> None:
    import torch

    from sequoia_opt.engine.model import reserved

    text = prompts[0]
    found = library.text_logits(text, 7)
    with reserved(pair.target, len(text)) as cache:
        own = pair.target.extend(cache, torch.tensor([text]), 0, keep=7)[0].double()
    assert found.shape == own.shape
    assert torch.allclose(found, own, atol=1e-3)


def test_the_process_ends_with_the_context(bundled_files: dict[str, str]) -> None:
    with LlamaServer(options(bundled_files)) as server:
        assert len(server.generate([5, 6, 7], 4, Sampling()).tokens) == 4
        process = server._process
        assert process.poll() is None
    assert process.poll() is not None


def test_a_prompt_that_does_not_fit_is_refused(bundled_files: dict[str, str]) -> None:
    with (
        LlamaServer(options(bundled_files)) as server,
        pytest.raises(SequoiaError, match="refuses a prompt of 400 tokens"),
    ):
        server.generate([5] * 400, 4, Sampling())


def test_a_server_that_dies_is_noticed(bundled_files: dict[str, str]) -> None:
    with LlamaServer(options(bundled_files)) as server:
        os.kill(server._process.pid, signal.SIGKILL)
        while server._process.poll() is None:
            time.sleep(0.01)
        with pytest.raises(SequoiaError, match="ended, or does not answer with"):
            server.generate([5, 6, 7], 4, Sampling())


def test_why_it_does_not_start_is_told(bundled_files: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(Path(bundled_files["target"]).read_bytes()[:5000])
    with pytest.raises(SequoiaError, match=r"does not start with .*model\.gguf") as raised:
        LlamaServer(options(bundled_files, target=str(path)))
    assert "\n" not in str(raised.value)


def test_a_kind_of_speculation_that_it_lacks_is_named(bundled_files: dict[str, str]) -> None:
    with pytest.raises(SequoiaError, match="has no speculation telepathy, only"):
        LlamaServer(options(bundled_files, speculation=Speculation("telepathy")))

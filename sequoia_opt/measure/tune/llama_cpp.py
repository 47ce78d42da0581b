"""Tunes llama.cpp's server: one that is started for each setting, or one that is running.

Knows files, servers and the command line to print. `tuning` says how settings are tried.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from sequoia_opt.engine.gguf_file import stem
from sequoia_opt.engine.hardware import hardware, own_versions
from sequoia_opt.engine.library import NO_SPECULATION
from sequoia_opt.engine.llama_cpp.load_pair import headers_of, settings_of
from sequoia_opt.engine.llama_cpp.running_server import RunningServer
from sequoia_opt.engine.llama_cpp.server_program import pasted, program, speculation_flags
from sequoia_opt.engine.llama_cpp.started_servers import StartedServers
from sequoia_opt.engine.names import LLAMA_CPP
from sequoia_opt.engine.pair import ROLES
from sequoia_opt.measure.progress import Note, ProgressBar
from sequoia_opt.measure.tune.files import Tried
from sequoia_opt.measure.tune.fixed_settings import study_fixed_settings
from sequoia_opt.measure.tune.prompts import prompts_for
from sequoia_opt.measure.tune.task import Task, TunedEngine, fresh_prompts, mean_context, room
from sequoia_opt.measure.tune.tuning import Tuned, tune

GPU_BACKENDS = ("CUDA", "ROCm", "HIP", "MTL", "Metal", "Vulkan", "SYCL", "MUSA")
UNKNOWN_DRAFT = "DRAFT.gguf"


def tune_files(
    files: Mapping[str, str],
    options: Mapping[str, Any],
    task: Task,
    bar: ProgressBar,
    note: Note,
) -> TunedEngine:
    """Start a server for each setting, and find the fastest.

    Args:
        files: GGUF files of target and, perhaps, draft, by role.
        options: fields of `Settings`; by default all cores, and the GPU if the server has one.

    Raises:
        SequoiaError: a file cannot be read or run, the two do not fit together, there is no
            server, or no prompt is usable.
    """
    known = [header.positions for header in headers_of(files).values() if header.positions]
    most = room(min(known, default=0), task.spec.new_tokens)
    settings = settings_of(options, _uses_gpu())
    with StartedServers(files, settings) as servers:
        prompts = prompts_for(servers.client, task.documents, task.limit, most, note)
        fresh = fresh_prompts(servers.client, task, most, prompts)
        servers.make_room(max(map(len, [*prompts, *fresh])) + task.spec.new_tokens)
        tuned = tune(servers, prompts, task.spec, bar, note, fresh)
    server = program()
    tried = Tried(
        **{role: stem(files[role]) if role in files else "none" for role in ROLES},
        dataset=task.dataset,
        context=mean_context(prompts, tuned.new_tokens),
        hardware=hardware(torch.device("cpu"), settings.threads),
        software=own_versions() | {server.name: server.version},
        engine={"name": LLAMA_CPP, **settings.document()},
        paths=files,
    )
    command = pasted(files, settings, tuned.best)
    return TunedEngine(tuned, command, tried, len(prompts))


def tune_url(
    url: str, api_key: str | None, task: Task, bar: ProgressBar, note: Note
) -> TunedEngine:
    """Find the fastest setting of a running server.

    If the server takes settings with each request, they are tried. No version since 2026 does; for
    these, chains up to the server's own length are only predicted.

    Args:
        url, api_key: see `RunningServer`.

    Raises:
        SequoiaError: it does not answer, is no llama-server, or makes no usable guesses.
    """
    server = RunningServer(url, api_key)
    if not server.takes_settings:
        note(
            f"{url}: the server takes no settings with a request; chains up to its own length are "
            "predicted, and none is tried (for that, tune with --model and --draft)"
        )
    most = room(server.context, task.spec.new_tokens)
    prompts = prompts_for(server.client, task.documents, task.limit, most, note)
    if server.takes_settings:
        fresh = fresh_prompts(server.client, task, most, prompts)
        tuned = tune(server, prompts, task.spec, bar, note, fresh)
    else:
        study = study_fixed_settings(server, prompts, task.spec, bar)
        tuned = Tuned(study, [], [], task.spec.new_tokens)
    tried = Tried(
        target=server.model or "unknown",
        draft="unknown",
        dataset=task.dataset,
        context=mean_context(prompts, tuned.new_tokens),
        hardware={"slug": "served", "name": url},
        software=own_versions(),
        engine={"name": LLAMA_CPP},
        paths={},
    )
    command = "--spec-type none"
    if tuned.best != NO_SPECULATION:
        command = speculation_flags(UNKNOWN_DRAFT, tuned.best)
    return TunedEngine(tuned, command, tried, len(prompts))


def _uses_gpu() -> bool:
    """Whether the server was built for a GPU that it found here."""
    return any(backend in program().system for backend in GPU_BACKENDS)

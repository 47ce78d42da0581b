"""Tunes OpenVINO GenAI's pipelines in this process.

Knows files and the lines to print. `tuning` says how settings are tried.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from sequoia_opt.engine.cpu import computing_threads
from sequoia_opt.engine.gguf_file import stem
from sequoia_opt.engine.hardware import hardware, own_versions
from sequoia_opt.engine.names import GGUF, OPENVINO
from sequoia_opt.engine.openvino_pipelines import PACKAGE, OpenVinoPipelines, pasted
from sequoia_opt.engine.pair import ROLES, short_name
from sequoia_opt.measure.progress import Note, ProgressBar
from sequoia_opt.measure.tune.files import Tried
from sequoia_opt.measure.tune.prompts import prompts_for
from sequoia_opt.measure.tune.task import Task, TunedEngine, fresh_prompts, mean_context, room
from sequoia_opt.measure.tune.tuning import tune


def tune_pipelines(
    files: Mapping[str, str], threads: int | None, task: Task, bar: ProgressBar, note: Note
) -> TunedEngine:
    """Load a pipeline for each kind of speculation, and find the fastest setting.

    Args:
        files: see `OpenVinoPipelines`.
        threads: that compute; None for one for each core.

    Raises:
        SequoiaError: the library is not installed, a file cannot be read, or no prompt is usable.
    """
    threads = threads or computing_threads()
    with OpenVinoPipelines(files, threads) as pipelines:
        most = room(pipelines.positions, task.spec.new_tokens)
        prompts = prompts_for(pipelines, task.documents, task.limit, most, note)
        fresh = fresh_prompts(pipelines, task, most, prompts)
        tuned = tune(pipelines, prompts, task.spec, bar, note, fresh)
    tried = Tried(
        **{role: _name(files[role]) if role in files else "none" for role in ROLES},
        dataset=task.dataset,
        context=mean_context(prompts, tuned.new_tokens),
        hardware=hardware(torch.device("cpu"), threads),
        software=own_versions() | {PACKAGE: pipelines.version},
        engine={"name": OPENVINO, "threads": threads},
        paths=files,
    )
    return TunedEngine(tuned, pasted(files, tuned.best, threads), tried, len(prompts))


def _name(path: str) -> str:
    """A model's name, from its file or folder."""
    return stem(path) if path.lower().endswith(GGUF) else short_name(path)

"""What the benchmarks have in common: a tree, a sampling, prompts, and a record of the settings.

Knows datasets, prompts and what a results file says of a run. Knows nothing of methods or of what
is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from sequoia_opt.engine.names import TORCH
from sequoia_opt.engine.pair import Pair
from sequoia_opt.engine.stream import check_prompt
from sequoia_opt.errors import SequoiaError
from sequoia_opt.files.names import content_fingerprint
from sequoia_opt.measure.dataset import spread_over, tell_left_out
from sequoia_opt.measure.encoding import check_template, opening
from sequoia_opt.measure.progress import Note
from sequoia_opt.measure.records import Document
from sequoia_opt.measure.template import PLAIN, Template
from sequoia_opt.plan.sampling import Sampling
from sequoia_opt.plan.tree import TokenTree

FEW_PROMPTS = 5  # an interval over fewer says little
RANDOM_PROMPT = 128  # tokens of a prompt for models without a tokenizer
RANDOM_DATASET = "random tokens"


@dataclass(frozen=True, kw_only=True)
class ComparisonSpec:
    """What every benchmark needs to know.

    Attributes:
        tree: the solved tree.
        tree_file: the file of that tree, which the results name.
        sampling: how tokens are chosen.
        limit: number of prompts to decode.
        max_new_tokens: new tokens for each prompt.
        repeats: how often each prompt is decoded.
        template: how prompts are put to the models.
        memory_budget: bytes that were asked for as an offloaded target's share of the device;
            None for the default. The results name it.
    """

    tree: TokenTree
    tree_file: Path
    sampling: Sampling
    limit: int = 8
    max_new_tokens: int = 128
    repeats: int = 3
    template: Template = PLAIN
    memory_budget: int | None = None


@dataclass(frozen=True)
class Workload:
    """The prompts to decode.

    Attributes:
        dataset: the dataset's short name, as results have it.
        prompts: token ids of each prompt.
    """

    dataset: str
    prompts: list[list[int]]

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(map(len, self.prompts))


def workload(
    spec: ComparisonSpec, pair: Pair, dataset: str, documents: Sequence[Document], note: Note
) -> Workload:
    """Choose the prompts to decode; random tokens for random models without a tokenizer.

    Args:
        dataset: the dataset's short name.
        note: called with one line for each prompt that is left out, and if there are few prompts.

    Raises:
        SequoiaError: no prompt is usable, or the chat template does not fit.
    """
    if pair.tokenizer is None and pair.random_weights:
        chosen = Workload(RANDOM_DATASET, random_prompts(pair, spec.limit))
    else:
        check_template(pair, documents, spec.template, note)
        prompts = usable_prompts(
            pair, documents, spec.limit, spec.max_new_tokens, spec.template, note
        )
        chosen = Workload(dataset + spec.template.label, prompts)
    warn_of_few(len(chosen.prompts), note)
    return chosen


def random_prompts(pair: Pair, count: int) -> list[list[int]]:
    """Random token ids, the same ones every time."""
    generator = torch.Generator().manual_seed(0)
    shape = (count, min(RANDOM_PROMPT, pair.target.positions // 2))
    prompts: list[list[int]] = torch.randint(
        pair.target.vocabulary, shape, generator=generator
    ).tolist()
    return prompts


def usable_prompts(
    pair: Pair,
    documents: Sequence[Document],
    limit: int,
    new_tokens: int,
    template: Template,
    note: Note,
) -> list[list[int]]:
    """Prompts that the models can continue, spread over the documents.

    A prompt that does not fit is replaced by another document's, and noted.

    Raises:
        SequoiaError: there are none.
    """
    first = spread_over(documents, limit)
    chosen = set(map(id, first))
    others = (document for document in documents if id(document) not in chosen)
    prompts: list[list[int]] = []
    problems: list[str] = []
    reason = "the dataset has no documents"
    for document in (*first, *others):
        if len(prompts) == limit:
            break
        try:
            prompt = opening(pair, document, template)
            check_prompt(pair, prompt, new_tokens)
        except SequoiaError as error:
            reason = str(error)
            problems.append(f"{document.where}: {error}")
        else:
            prompts.append(prompt)
    if not prompts:
        raise SequoiaError(f"no prompt is usable: {reason}")
    if len(problems) > 1:
        tell_left_out(problems, note)
    if problems:
        note(f"{len(problems)} of {len(problems) + len(prompts)} prompts left out: {reason}")
    return prompts


def warn_of_few(prompts: int, note: Note) -> None:
    """Note that few prompts make wide intervals, and one prompt none."""
    if prompts == 1:
        note("1 prompt gives no intervals; raise --limit")
    elif prompts < FEW_PROMPTS:
        note(f"{prompts} prompts are few, so intervals are wide; raise --limit")


def settings_of(
    spec: ComparisonSpec,
    pair: Pair,
    workload: Workload,
    synthetic_file: Path | None = None,
) -> dict[str, Any]:
    """What a results file says of a run besides its results.

    Args:
        synthetic_file: the acceptance file that acceptance is simulated from, if it is.
    """
    settings: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": pair.machine.hardware,
        "software": pair.machine.software,
        "target": pair.target_name,
        "draft": pair.draft_name,
        "dtype": pair.dtype,
        "compile": pair.compiled,
        "graphs": pair.graphs,
    }
    if pair.engine != TORCH:
        settings["engine"] = pair.machine.settings
    if pair.offload != "none":
        settings |= {"offload": pair.offload, "memory_budget": spec.memory_budget}
    if pair.world.size > 1:
        settings["world_size"] = pair.world.size
    settings |= {
        "dataset": workload.dataset,
        "prompts": len(workload.prompts),
        "max_new_tokens": spec.max_new_tokens,
        "repeats": spec.repeats,
        "tree": str(spec.tree_file),
        "fingerprints": {**pair.fingerprints, "tree": content_fingerprint(spec.tree_file)},
    }
    if synthetic_file is not None:
        settings["synthetic_acceptance"] = str(synthetic_file)
    if pair.random_weights:
        settings["random_weights"] = True
    if spec.template.document():
        settings["template"] = spec.template.document()
    return settings | asdict(spec.sampling)

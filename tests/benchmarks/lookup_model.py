"""`lookup+MODEL` beside its parts: `python tests/benchmarks/lookup_model.py [prompts.jsonl …]`.

Datasets are edit prompts (see edit_prompts.py), the bundled held-out code, those that are named,
and a mixture of all. Some prompts of each plan, for the bundled target with a lookup, with the
bundled draft, and with both; others race, in turn, at temperature 0. Speeds count last steps that
the length cuts short in full, as predictions do. In brackets is what is predicted of the plan on
the prompts that race, then on those that it was solved on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated

import typer
from edit_prompts import edit_prompts
from replayed import replayed

from sequoia_opt import demo, load_pair
from sequoia_opt.api import load_dataset
from sequoia_opt.engine.pair import ROLES, Pair
from sequoia_opt.measure.dataset import spread_over
from sequoia_opt.measure.estimator import EstimateOptions, estimate
from sequoia_opt.measure.methods import with_tree
from sequoia_opt.measure.profiler import ProfileOptions, profile
from sequoia_opt.measure.race import race
from sequoia_opt.measure.records import Document
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.draft_names import LOOKUP
from sequoia_opt.plan.joint_times import lookup_profile
from sequoia_opt.plan.latency import LatencyProfile
from sequoia_opt.plan.plan import Plan
from sequoia_opt.plan.recording import LOOKUP_ENVELOPE, Envelope
from sequoia_opt.plan.solver import solve
from sequoia_opt.plan.tree import AUTOREGRESSIVE

BOTH, MIXTURE = f"{LOOKUP}+model", "mixture"
DRAFTS = {LOOKUP: LOOKUP, "model": demo.DRAFT_NAME, BOTH: f"{LOOKUP}+{demo.DRAFT_NAME}"}
CONTEXTS = [128, 512]


@dataclass(frozen=True)
class Drafting:
    """A way to draft on this machine."""

    pair: Pair
    profile: LatencyProfile
    envelope: Envelope

    def acceptance(self, documents: Sequence[Document], name: str, new_tokens: int) -> Acceptance:
        """How often the target accepts its guesses on some documents."""
        options = EstimateOptions(max_new_tokens=new_tokens, envelope=self.envelope)
        (acceptance,) = estimate(self.pair, documents, name, options=options)
        return acceptance

    def plan(self, documents: Sequence[Document], name: str, new_tokens: int) -> Plan:
        """The plan that is solved on some documents."""
        acceptance = self.acceptance(documents, name, new_tokens)
        return solve(self.profile, acceptance, recording=acceptance.recording)


def measured(compile: bool) -> dict[str, Drafting]:
    """Load each way to draft. All share one profile: a machine's drift between several would favour
    one of them."""
    pairs = {name: load_pair(None, draft) for name, draft in DRAFTS.items()}
    if compile:
        for pair in pairs.values():
            pair.compile([role for role in ROLES if role in pair.models])
    both = profile(pairs[BOTH], ProfileOptions(contexts=CONTEXTS))
    ways = {}
    for name, pair in pairs.items():
        for role, model in pair.models.items():  # the profile may have found eager passes faster
            model.compiled = pairs[BOTH].models[role].compiled
        if name == LOOKUP:
            ways[name] = Drafting(pair, lookup_profile(both), LOOKUP_ENVELOPE)
        else:
            ways[name] = Drafting(pair, both, Envelope())
    return ways


def datasets(files: Sequence[Path], count: int) -> dict[str, tuple[list[Document], ...]]:
    """Of each dataset the documents that plan and those that race, `count` of either.

    The mixture has as many, in turn from each dataset.
    """
    found = {
        "edits": [Document(prompt, "") for prompt in edit_prompts()],
        "code": load_dataset()[1],
        **dict(map(load_dataset, files)),
    }
    halves = {
        name: (spread_over(documents[1::2], count), spread_over(documents[::2], count))
        for name, documents in found.items()
    }
    mixed = [
        list(chain.from_iterable(zip(*parts, strict=False)))[:count]
        for parts in zip(*halves.values(), strict=True)
    ]
    return {**halves, MIXTURE: tuple(mixed)}


def main(
    files: Annotated[list[Path] | None, typer.Argument(help="More datasets.")] = None,
    count: Annotated[
        int, typer.Option(help="Prompts of each dataset that plan, and that race.")
    ] = 24,
    new_tokens: Annotated[int, typer.Option(help="Tokens to decode for each prompt.")] = 96,
    compile: Annotated[bool, typer.Option("--compile", help="Compile the models.")] = False,
) -> None:
    """Plan, race, and print a row for each dataset."""
    draftings = measured(compile)
    names = list(draftings)
    print(
        "| dataset | "
        + " | ".join(f"{name}, x plain (predicted on these prompts, on others)" for name in names),
        end="",
    )
    print(f" | {BOTH} over the better part |\n| --- |" + " ---: |" * (len(names) + 1))
    for dataset, (planning, racing) in datasets(files or [], count).items():
        plans = {name: way.plan(planning, dataset, new_tokens) for name, way in draftings.items()}
        pair = draftings[BOTH].pair
        methods = [with_tree(pair, "plain", AUTOREGRESSIVE)]
        methods += [with_tree(way.pair, name, plans[name].tree) for name, way in draftings.items()]
        prompts = [pair.encode(document.prompt) for document in racing]
        raced = race(methods, prompts, new_tokens, repeats=1)
        _, *over_plain = raced.results()
        cells = []
        for (name, way), result in zip(draftings.items(), over_plain, strict=True):
            on_these = replayed(plans[name], way.acceptance(racing, dataset, new_tokens))
            on_others = plans[name].choice.speedup[0]
            cells.append(f"{result.endless_speedup:.2f} ({on_these:.2f}, {on_others:.2f})")
        better = 1 + max(range(2), key=lambda part: over_plain[part].speedup)
        both = raced.results(better)[-1]
        interval = f"{both.speedup_low:.2f}–{both.speedup_high:.2f}"
        print(f"| {dataset} | " + " | ".join([*cells, f"{both.speedup:.2f} ({interval})"]) + " |")


if __name__ == "__main__":
    typer.run(main)

"""Lookup on edit prompts, beside plain decoding and transformers' own prompt lookup.

An edit prompt is a function of the bundled held-out code, then "the same" under another name, whose
body the target is to write: a text that repeats its prompt. Half of the prompts plan, the other
half race, in turn, at temperature 0. Run `python tests/benchmarks/edit_prompts.py`; `-o` keeps the
prompts as datasets and the plan, for `sequoia-opt bench`.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Annotated

import typer
from replayed import replayed

from sequoia_opt import demo, load_pair
from sequoia_opt.engine.library import LOOKUP as LIBRARY_LOOKUP
from sequoia_opt.engine.library import Speculation
from sequoia_opt.engine.pair import Pair
from sequoia_opt.files.atomic import write_text
from sequoia_opt.measure.estimator import EstimateOptions, estimate
from sequoia_opt.measure.methods import with_library, with_tree
from sequoia_opt.measure.profiler import ProfileOptions, profile
from sequoia_opt.measure.race import Race, race
from sequoia_opt.measure.records import Document
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.draft_names import LOOKUP
from sequoia_opt.plan.judge import kind
from sequoia_opt.plan.latency import LatencyProfile
from sequoia_opt.plan.recording import LOOKUP_ENVELOPE
from sequoia_opt.plan.solver import solve
from sequoia_opt.plan.tree import AUTOREGRESSIVE

PROMPTS = 30  # that race; as many more plan, as far as there are functions
CHARACTERS = range(350, 2500)  # of a function
DEFINITION = re.compile(r"( *)(?:async )?def (\w+)\(")
PLAIN, PLAN, LIBRARY = "plain", "lookup plan", "transformers' prompt lookup"


def functions(code: str) -> Iterator[tuple[str, str]]:
    """The names and the sources of the whole functions in a piece of code."""
    lines = code.split("\n")
    for start, line in enumerate(lines):
        begun = DEFINITION.match(line)
        if begun is None:
            continue
        indent = len(begun[1])
        end = start + 1
        while end < len(lines) and (
            not lines[end].strip() or len(lines[end]) - len(lines[end].lstrip()) > indent
        ):
            end += 1
        source = dedent("\n".join(lines[start:end])).rstrip() + "\n"
        if end < len(lines) and _is_whole(source):  # else the excerpt may end inside
            yield begun[2], source


def _is_whole(source: str) -> bool:
    try:
        ast.parse(source)
    except SyntaxError:
        return False
    return True


def edit_prompts() -> list[str]:
    """A prompt for each function of the bundled held-out code that is neither short nor long."""
    prompts = {}
    for line in demo.DATASET.read_text("utf-8").splitlines():
        record = json.loads(line)
        for name, source in functions(record["prompt"] + record["completion"]):
            if len(source) in CHARACTERS:
                first = source.split("\n", 1)[0].replace(f"def {name}(", f"def other_{name}(")
                prompts[source] = f"{source}\n\n# The same under another name.\n{first}\n"
    return list(prompts.values())


def profiled(pair: Pair, prompts: list[str], new_tokens: int) -> LatencyProfile:
    """This machine's forward passes, from the shortest prompt to the end of the longest text."""
    contexts = sorted(len(pair.encode(prompt)) for prompt in prompts)
    return profile(pair, ProfileOptions(contexts=[contexts[0], contexts[-1] + new_tokens]))


def estimated(pair: Pair, prompts: list[str], new_tokens: int) -> Acceptance:
    """How often the target accepts the lookup's guesses on some prompts."""
    options = EstimateOptions(
        max_new_tokens=new_tokens,
        max_prompt_tokens=max(len(pair.encode(prompt)) for prompt in prompts),
        envelope=LOOKUP_ENVELOPE,
    )
    documents = [Document(prompt, "") for prompt in prompts]
    (acceptance,) = estimate(pair, documents, "edits", options=options)
    return acceptance


def print_results(raced: Race, prompts: int) -> None:
    """Print each method's speed over plain decoding and over transformers' prompt lookup."""
    names = [method.name for method in raced.methods]
    over_plain, over_library = (raced.results(names.index(name)) for name in (PLAIN, LIBRARY))
    print(f"| on {prompts} edit prompts | tokens/step | tokens/s | x plain | x {LIBRARY} | same |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for first, second in zip(over_plain, over_library, strict=True):
        ratios = [
            f"{r.speedup:.2f} ({r.speedup_low:.2f}–{r.speedup_high:.2f})" for r in (first, second)
        ]
        row = [first.name, f"{first.tokens_per_step:.2f}", f"{first.tokens_per_second:.1f}"]
        print("| " + " | ".join([*row, *ratios, f"{100 * first.agreement:.0f}%"]) + " |")


def main(
    new_tokens: Annotated[int, typer.Option(help="Tokens to decode for each prompt.")] = 96,
    repeats: Annotated[int, typer.Option(help="Times that each prompt is decoded.")] = 3,
    compile: Annotated[bool, typer.Option("--compile", help="Compile the target.")] = False,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder for prompts and plan.")
    ] = None,
) -> None:
    """Plan, race and print a row for each method."""
    pair = load_pair(None, LOOKUP)
    if compile:
        pair.compile(["target"])
    prompts = edit_prompts()
    racing = prompts[::2][:PROMPTS]
    planning = prompts[1::2]
    measured = profiled(pair, planning, new_tokens)
    acceptance = estimated(pair, planning, new_tokens)
    plan = solve(measured, acceptance, recording=acceptance.recording)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        for name, part in (("planning", planning), ("racing", racing)):
            lines = [json.dumps({"prompt": prompt}) for prompt in part]
            write_text(output / f"edits-{name}.jsonl", "\n".join(lines) + "\n")
        plan.tree.save(output / "plan.json")
    on_racing = replayed(plan, estimated(pair, racing, new_tokens))
    print(
        f"{kind(plan.tree)}, predicted at {plan.choice.speedup[0]:.2f}x on other prompts, "
        f"at {on_racing:.2f}x on those that race"
    )
    methods = [
        with_tree(pair, PLAIN, AUTOREGRESSIVE),
        with_tree(pair, PLAN, plan.tree),
        with_library(pair, LIBRARY, Speculation(LIBRARY_LOOKUP)),
    ]
    print_results(race(methods, [pair.encode(p) for p in racing], new_tokens, repeats), len(racing))


if __name__ == "__main__":
    typer.run(main)

"""What `bench`, `bench-sizes` and `decode --compare` print: methods side by side. No torch.

Knows results. Knows nothing of how they were measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.table import Table

from sequoia_opt.cli.csv_output import flat, print_csv
from sequoia_opt.cli.output import counted, out, show

if TYPE_CHECKING:
    from sequoia_opt.measure.race import Result
    from sequoia_opt.plan.tree import TokenTree

NOTABLE = 0.01  # a share of the speed that is worth a line


def race_table(results: Sequence[Result], title: str, greedy: bool) -> None:
    """Print methods side by side.

    Args:
        greedy: whether texts can be compared; sampled ones differ anyway.
    """
    table = Table(
        title=title, title_justify="left", box=SIMPLE, collapse_padding=True, pad_edge=False
    )
    table.add_column("method", overflow="fold")  # a name that is cut says nothing
    for column in _columns(results, greedy):
        table.add_column(column, justify="right", no_wrap=True)
    for result in results:
        table.add_row(result.name, *_cells(result, greedy))
    show(table)


def race_markdown(results: Sequence[Result], title: str, greedy: bool) -> None:
    """Print methods side by side as Markdown, see `race_table`."""
    columns = ["method", *map(in_one_line, _columns(results, greedy))]
    rows = [[result.name, *_cells(result, greedy)] for result in results]
    out.print("\n".join([*markdown_lines(columns, rows), "", title]), soft_wrap=True)


def markdown_lines(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table whose first column has names and whose others have numbers."""
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def race_csv(results: Sequence[Result], settings: Mapping[str, object]) -> None:
    """Print methods as CSV, each row with all settings, so that rows of several runs can be
    joined."""
    print_csv([{**asdict(result), **flat(settings)} for result in results])


def in_one_line(heading: str) -> str:
    """A column's heading, which has two lines so that a table fits into 80 characters, in one."""
    return heading.replace("\n/", "/").replace("\n", " ")


def _columns(results: Sequence[Result], greedy: bool) -> list[str]:
    ratio = "speedup (95%)" if results[0].name == "plain" else "vs first (95%)"
    same_text = ["same\ntext"] if greedy else []
    return ["tokens\n/step", "tokens\n/s", "ms\n/token", ratio, *same_text, "repeated"]


def _cells(result: Result, greedy: bool) -> list[str]:
    same_text = [f"{100 * result.agreement:.0f}%"] if greedy else []
    return [
        f"{result.tokens_per_step:.2f}",
        f"{result.tokens_per_second:.1f}",
        f"{result.ms_per_token:.2f}",
        f"{result.speedup:.2f}x" + interval_text(result.speedup_low, result.speedup_high),
        *same_text,
        f"{100 * result.repeated:.0f}%",
    ]


def interval_text(low: float | None, high: float | None) -> str:
    """An interval in brackets, after a space; empty without an interval."""
    return "" if low is None or high is None else f" ({low:.2f}–{high:.2f})"


def settings_line(settings: Mapping[str, Any]) -> str:
    """One line with the pair, the settings and the machine of the run."""
    hardware, software = settings["hardware"], settings["software"]
    work = [
        f"{settings['dataset']}: {counted(settings['prompts'], 'prompt')}",
        f"{settings['max_new_tokens']} new tokens each",
        *_sampling_words(settings),
    ]
    if settings["repeats"] > 1:
        work.append(f"{settings['repeats']} repetitions")
    engine = [f"{settings['target']} with {settings['draft']}", settings["dtype"]]
    engine += [settings["engine"]["name"]] if "engine" in settings else []
    engine += [
        word for word, key in (("compiled", "compile"), ("graphs", "graphs")) if settings[key]
    ]
    if "synthetic_acceptance" in settings:
        engine.append(f"acceptance SYNTHETIC from {settings['synthetic_acceptance']}")
    if settings.get("random_weights"):
        engine.append("random weights")
    if "offload" in settings:
        engine.append(f"layers from {settings['offload']}")
    if "world_size" in settings:
        engine.append(f"{settings['world_size']} processes")
    machine = [hardware["name"]]
    if "threads" in hardware:
        machine.append(f"{hardware['threads']} threads")
    packages = ("torch", "transformers", "llama_cpp_python", "ggml")
    versions = [f"{package} {software[package]}" for package in packages if package in software]
    return "; ".join(", ".join(part) for part in (work, engine, machine, versions))


def _sampling_words(settings: Mapping[str, Any]) -> list[str]:
    words = [f"temperature {settings['temperature']:g}"]
    if settings["temperature"] == 0:
        return words
    if settings["top_p"] < 1:
        words.append(f"top-p {settings['top_p']:g}")
    if settings.get("top_k"):
        words.append(f"top-k {settings['top_k']}")
    if settings.get("min_p"):
        words.append(f"min-p {settings['min_p']:g}")
    return [*words, settings["verifier"]]


def prediction_lines(result: Result, tree: TokenTree, times: bool) -> None:
    """Print the tree's predictions and measurements, with 95% intervals where they are known.

    Where two intervals overlap, the difference may be due to the choice of texts.

    Args:
        times: whether the predicted speedup is for this machine and engine.
    """
    predicted = tree.metadata.get("predicted", {})
    tokens = tree.predicted_tokens
    if tokens is not None:
        measured = result.tokens_per_step
        out.print(
            f"tokens per step: predicted {tokens:.2f}{_predicted_interval(predicted, 'tokens')}, "
            f"measured {measured:.2f}{interval_text(result.tokens_low, result.tokens_high)}, "
            f"{100 * (measured / tokens - 1):+.1f}%",
            soft_wrap=True,
        )
    if times and "speedup" in predicted:
        speedup, measured = predicted["speedup"], result.endless_speedup
        low, high = (
            None if end is None else end * (1 + result.surplus)
            for end in (result.speedup_low, result.speedup_high)
        )
        out.print(
            f"speedup: predicted {speedup:.2f}x{_predicted_interval(predicted, 'speedup')}, "
            f"measured {measured:.2f}x{interval_text(low, high)}, "
            f"{100 * (measured / speedup - 1):+.1f}%",
            soft_wrap=True,
        )
        lost = 1 - result.speedup / measured
        if lost > NOTABLE:
            out.print(
                f"{100 * lost:.0f}% of it is lost where the length cuts a text's last step short; "
                "longer texts lose less"
            )


def _predicted_interval(predicted: Mapping[str, float], name: str) -> str:
    """The interval of a predicted quantity, see `interval_text`; empty if it is a point, which
    says that nothing was resampled."""
    low, high = predicted.get(f"{name}_low"), predicted.get(f"{name}_high")
    return "" if low == high else interval_text(low, high)

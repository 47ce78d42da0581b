"""The table at the end of a run: measured numbers and their goals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Row = tuple[str, str, str]
"""A row's label, its measured value, and the goal: a bar or the paper's number."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of a part.

    Attributes:
        title: the part's title.
        state: "done", or what stopped it.
        seconds: the part's duration.
        values: the numbers that the part recorded before it ended.
    """

    title: str
    state: str
    seconds: float
    values: Mapping[str, Any]

    @property
    def is_done(self) -> bool:
        """Whether the part finished."""
        return self.state == "done"


def table(outcomes: Mapping[str, Outcome]) -> str:
    """The outcomes of all parts as a Markdown table, below a line that names the machine."""
    machines = [
        _machine(outcome.values) for outcome in outcomes.values() if "hardware" in outcome.values
    ]
    lines = [*machines[:1], "", "| | measured | goal |", "| --- | --- | --- |"]
    for name, outcome in outcomes.items():
        lines.append(f"| **{outcome.title}** | {outcome.state}, {outcome.seconds:.0f} s | |")
        rows = ROWS.get(name, lambda values: [])(_Values(outcome.values))
        lines += [f"| {label} | {value} | {goal} |" for label, value, goal in rows if value]
    return "\n".join(lines) + "\n"


class _Values(dict[str, Any]):
    """A part's numbers, formatted as text; a missing number gives an empty text."""

    def show(self, *names: str, form: str = "{:.3g}") -> str:
        """The named numbers in a format; empty if one is missing."""
        values = [self.get(name) for name in names]
        return "" if None in values else form.format(*values)


def _tests(values: _Values) -> list[Row]:
    passed = values.show("passed", "skipped", form="{} passed, {} skipped")
    failed = values.get("failed") or []
    return [("outcome", passed + "".join(f"; FAILED {name}" for name in failed), "all pass")]


def _machine(values: Mapping[str, Any]) -> str:
    """One line with the machine and its software versions."""
    versions = [f"{name} {version}" for name, version in values["software"].items()]
    return ", ".join([str(values["hardware"]["name"]), *versions])


def _conditions(values: _Values) -> list[Row]:
    return [
        ("disturbed by", values.show("disturbed", form="{}"), "nothing"),
        ("not compiled", values.show("not_compiled", form="{}"), ""),
    ]


def _step(values: _Values, speedup_goal: str) -> list[Row]:
    return [
        ("tree", values.show("nodes", "depth", form="{} nodes, depth {}"), ""),
        (
            "step: predicted, measured",
            values.show("predicted_step_ms", "step_ms", form="{:.2f}, {:.2f} ms"),
            "within 5%",
        ),
        (
            "tokens per step: predicted, measured",
            values.show("predicted_tokens", "tokens_per_step", form="{:.2f}, {:.2f}"),
            "",
        ),
        (
            "speedup of the tree over plain decoding: predicted, measured",
            values.show("predicted_speedup", "speedup", form="{:.2f}x, {:.2f}x"),
            speedup_goal,
        ),
    ]


def _resident(values: _Values) -> list[Row]:
    return [
        *_conditions(values),
        (
            "plain decoding: predicted, measured",
            values.show("predicted_plain_ms", "plain_ms", form="{:.2f}, {:.2f} ms/token"),
            "",
        ),
        (
            "plain decoding's share of the memory bandwidth",
            values.show("bandwidth_share", "copy_gb_per_s", form="{:.0%} of {:.0f} GB/s"),
            "80%",
        ),
        *_step(values, speedup_goal="2.4x; within 5%"),
        ("overhead's share of a step", values.show("overhead_share", form="{:.1%}"), "8%"),
        (
            "speedup of the tree over transformers' generate",
            values.show("speedup_over_generate", form="{:.2f}x"),
            "4.04x",
        ),
    ]


def _bundled(values: _Values) -> list[Row]:
    rows = _conditions(values)
    for name in ("T0", "T0.6"):
        results = _Values(values.get(name, {}))
        speeds = ", ".join(
            f"{method} {tokens_per_second:.0f} ({speedup:.2f}x)"
            for method, (tokens_per_second, speedup) in results.get(
                "tokens_per_second_and_speedup", {}
            ).items()
        )
        rows.append((f"{name}: tokens/s (speedup over plain)", speeds, ""))
        rows.append(
            (
                f"{name}: tree",
                results.show("nodes", "predicted_speedup", form="{} nodes, predicted {:.2f}x"),
                "within 5%",
            )
        )
    greedy = _Values(values.get("T0", {}))
    equal = greedy.show(
        "equal_texts", "texts", "largest_gap",
        form="{} of {}; where others diverge, the two best logits differ by at most {:.2g}",
    )  # fmt: skip
    return [*rows, ("greedy texts equal to plain decoding's", equal, "all, up to near-ties")]


def _offloaded(values: _Values) -> list[Row]:
    return [
        *_conditions(values),
        (
            "streaming rate of the layers, bandwidth",
            values.show(
                "copied_gb_per_s", "alone_gb_per_s", "bus_share", form="{:.1f}, {:.1f} GB/s: {:.0%}"
            ),
            "90%",
        ),
        ("forward pass by tokens, ms", values.show("forward_ms", form="{}"), ""),
        *_step(values, speedup_goal="within 5%"),
        (
            "speedup of the tree over accelerate's offloading",
            values.show(
                "speedup_over_accelerate", "accelerate_s_per_token",
                form="{:.2f}x ({:.2f} s/token)",
            ),
            "10.33x",
        ),
    ]  # fmt: skip


ROWS = {
    "tests": _tests,
    "7b": _resident,
    "bundled": _bundled,
    "13b-offloaded": _offloaded,
    "8b": _resident,
}

"""The table of one screen that is printed last: what was measured, beside what was hoped for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Row = tuple[str, str, str]
"""What, how much, and the bar or the paper's number."""


@dataclass(frozen=True)
class Outcome:
    """How a part went.

    Attributes:
        title: of the part.
        state: "done", or why not.
        seconds: that it took.
        values: its numbers, as far as it came.
    """

    title: str
    state: str
    seconds: float
    values: Mapping[str, Any]

    @property
    def is_done(self) -> bool:
        """Whether it came to its end."""
        return self.state == "done"


def table(outcomes: Mapping[str, Outcome]) -> str:
    """All parts as Markdown, the machine above them."""
    machines = [_machine(each.values) for each in outcomes.values() if "hardware" in each.values]
    lines = [*machines[:1], "", "| | measured | bar |", "| --- | --- | --- |"]
    for name, outcome in outcomes.items():
        lines.append(f"| **{outcome.title}** | {outcome.state}, {outcome.seconds:.0f} s | |")
        rows = ROWS.get(name, lambda values: [])(_Values(outcome.values))
        lines += [f"| {what} | {much} | {bar} |" for what, much, bar in rows if much]
    return "\n".join(lines) + "\n"


class _Values(dict[str, Any]):
    """A part's numbers, as text; of one that is not there, nothing."""

    def show(self, *names: str, form: str = "{:.3g}") -> str:
        """The numbers in a form, if all are there."""
        values = [self.get(name) for name in names]
        return "" if None in values else form.format(*values)


def _tests(values: _Values) -> list[Row]:
    passed = values.show("passed", "skipped", form="{} passed, {} skipped")
    failed = values.get("failed") or []
    return [("outcome", passed + "".join(f"; FAILED {name}" for name in failed), "all pass")]


def _machine(values: Mapping[str, Any]) -> str:
    """The machine and what runs on it, in a line."""
    versions = [f"{name} {version}" for name, version in values["software"].items()]
    return ", ".join([str(values["hardware"]["name"]), *versions])


def _conditions(values: _Values) -> list[Row]:
    return [
        ("disturbed by", values.show("disturbed", form="{}"), "nothing"),
        ("not compiled", values.show("not_compiled", form="{}"), ""),
    ]


def _step(values: _Values) -> list[Row]:
    return [
        ("tree", values.show("nodes", "depth", form="{} nodes, {} deep"), ""),
        (
            "a step: predicted, measured",
            values.show("predicted_step_ms", "step_ms", form="{:.2f}, {:.2f} ms"),
            "within 5%",
        ),
        (
            "tokens a step: predicted, measured",
            values.show("predicted_tokens", "tokens_per_step", form="{:.2f}, {:.2f}"),
            "",
        ),
        (
            "tree over our plain decoding: predicted, measured",
            values.show("predicted_speedup", "speedup", form="{:.2f}x, {:.2f}x"),
            "2.4x; within 5%",
        ),
    ]


def _resident(values: _Values) -> list[Row]:
    return [
        *_conditions(values),
        (
            "plain decoding: predicted, measured",
            values.show("predicted_plain_ms", "plain_ms", form="{:.2f}, {:.2f} ms a token"),
            "",
        ),
        (
            "share of the copy's bandwidth",
            values.show("bandwidth_share", "copy_gb_per_s", form="{:.0%} of {:.0f} GB/s"),
            "80%",
        ),
        *_step(values),
        ("overhead, share of a step", values.show("overhead_share", form="{:.1%}"), "8%"),
        (
            "tree over transformers' generate",
            values.show("speedup_over_generate", form="{:.2f}x"),
            "4.04x",
        ),
    ]


def _bundled(values: _Values) -> list[Row]:
    rows = _conditions(values)
    for name in ("T0", "T0.6"):
        found = _Values(values.get(name, {}))
        speeds = found.get("tokens_per_second_and_speedup", {})
        said = ", ".join(f"{way} {speed:.0f} ({up:.2f}x)" for way, (speed, up) in speeds.items())
        rows.append((f"{name}: tokens/s (speed over plain)", said, ""))
        rows.append(
            (
                f"{name}: tree",
                found.show("nodes", "predicted_speedup", form="{} nodes, predicted {:.2f}x"),
                "within 5%",
            )
        )
    greedy = _Values(values.get("T0", {}))
    equal = greedy.show(
        "equal_texts", "texts", "largest_gap",
        form="{} of {}; the two best logits at most {:.2g} apart where others part",
    )  # fmt: skip
    return [*rows, ("greedy texts equal to plain decoding's", equal, "all, up to near-ties")]


def _offloaded(values: _Values) -> list[Row]:
    return [
        *_conditions(values),
        (
            "layers come at, alone",
            values.show(
                "copied_gb_per_s", "alone_gb_per_s", "bus_share", form="{:.1f}, {:.1f} GB/s: {:.0%}"
            ),
            "90%",
        ),
        ("a forward pass by tokens, ms", values.show("forward_ms", form="{}"), ""),
        *[row if "plain" not in row[0] else (*row[:2], "within 5%") for row in _step(values)],
        (
            "tree over accelerate's offloading",
            values.show(
                "speedup_over_accelerate", "accelerate_s_per_token",
                form="{:.2f}x ({:.2f} s a token)",
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

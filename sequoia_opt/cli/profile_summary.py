"""What `profile` prints: latencies by context and number of tokens, and the overhead. No torch.

Knows a latency profile. Knows nothing of how it was measured.
"""

from __future__ import annotations

from rich.table import Table

from sequoia_opt.cli.output import digits, out, show
from sequoia_opt.plan.latency import LatencyProfile

SHOWN_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
MOST_COLUMNS = 7  # token counts that fit beside the rest in 80 characters


def profile_summary(profile: LatencyProfile) -> None:
    """Print both models' latencies at each context, and the overhead of a step."""
    name = profile.hardware.get("name", "unknown")
    engine = profile.engine
    runs_in = f" in {engine['name']}" if "name" in engine else ""
    out.print(
        f"{profile.target.model} and {profile.draft.model} on {name}{runs_in}, "
        f"{engine.get('dtype')}, {engine.get('threads')} threads"
    )
    if engine.get("random_weights"):
        out.print("measured with random weights: latency does not depend on them")
    for role, gain in engine.get("compile_gain", {}).items():
        used = "compiled" if role in (engine.get("compile") or []) else "without compiling"
        out.print(f"{role}: {gain:.2f}x as fast when compiled; measured {used}")
    show(_latencies(profile))
    for verifier, overhead in profile.overhead.items():
        rare = [
            (overhead.change_ms, "at another size"),
            (overhead.catch_up_ms, "when the draft catches up"),
        ]
        others = "".join(f" + {ms:.2f} ms {when}" for ms, when in rare if ms)
        out.print(
            f"overhead per step ({verifier}): {overhead.constant_ms:.2f} ms "
            f"{_signed(1000 * overhead.per_token_ms, 0)} µs/node "
            f"{_signed(1000 * overhead.per_level_ms, 0)} µs/level "
            f"{_signed(overhead.drafting_ms, 2)} ms when drafting{others}"
        )
    for line in profile.doubts():
        out.print(line)


def _latencies(profile: LatencyProfile) -> Table:
    """A row for each curve, a column for each number of tokens that fits."""
    table = Table(title="milliseconds per forward pass, by number of tokens", title_justify="left")
    table.add_column("model")
    batched = any(curve.batch > 1 for curve in profile.target.curves)
    if batched:
        table.add_column("batch", justify="right")
    table.add_column("context", justify="right")
    shown = shown_counts(profile.target.curves[0].tokens)
    for count in shown:
        table.add_column(str(count), justify="right")
    for role, model in (("target", profile.target), ("draft", profile.draft)):
        for curve in model.curves:
            times = dict(zip(curve.tokens, curve.median_ms, strict=True))
            cells = [str(curve.batch)] if batched else []
            cells.append(str(curve.context))
            cells += [digits(times[count]) if count in times else "" for count in shown]
            table.add_row(role, *cells)
    return table


def shown_counts(measured: list[int]) -> list[int]:
    """The token counts to show, of those measured: powers of two, or every other one of them."""
    counts = [count for count in SHOWN_TOKENS if count in measured]
    return counts if len(counts) <= MOST_COLUMNS else [*counts[:-1:2], counts[-1]]


def _signed(number: float, decimals: int) -> str:
    """A term of a sum, with its sign apart."""
    sign = "-" if number < 0 else "+"
    return f"{sign} {abs(number):.{decimals}f}"

"""The solver: acceptance rates and latencies in, the tree that decodes fastest out.

The trees of most tokens for every size and depth (`optimum`) and those that trade tokens for
time (`search`) are priced on the measured machine (`objective`); the best of them are judged
again on the rank traces, resampled together with the timings; the smallest of those that the
data cannot tell apart is the answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from sequoia_opt.errors import SequoiaError
from sequoia_opt.files.documents import rounded
from sequoia_opt.plan import shapes
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.best_trees import BestFirst, Family, best_trees
from sequoia_opt.plan.cap_search import BoolArray, CapSearch, hopeful
from sequoia_opt.plan.hill_climb import capped, climb_from
from sequoia_opt.plan.intervals import REPLICATES, TAIL, interval
from sequoia_opt.plan.latency import GREEDY, LatencyProfile, overhead_name
from sequoia_opt.plan.step_times import Objective
from sequoia_opt.plan.tree import AUTOREGRESSIVE, TokenTree
from sequoia_opt.types import FloatArray

ANY_TREE = "tree"
SOLVED = "solved"  # name of the solver's own candidates
DEFAULT_MAX_DEPTH = 32
DEFAULT_CONTEXT = 512
FINALISTS = 32
STARTS = 4  # depth limits that the search starts from
CLIMBS = 4  # trees of most tokens to climb from, where rates rise with the rank
SHOWN_RUNNERS_UP = 4
SHAPES_JUDGED = 6  # trees of each shape that replay decides among
GIVEN_UP = 0.01  # predicted speed that a smaller tree may cost, where the data cannot tell
NEGLIGIBLE = 1e-9  # relative difference of two speeds that is rounding


@dataclass(frozen=True)
class Candidate:
    """A tree and what is predicted of it.

    Attributes:
        name: how it is called in tables.
        expected_tokens: E(T), independence assumed.
        replayed_tokens: tokens per step by replay, None without traces.
        tokens, step_ms: [replicates + 1], the estimate first, then resampled ones: tokens per
            step (by replay where there are traces, else E(T)) and a step's time.
        plain_ms: the same of a step of plain decoding.
    """

    name: str
    tree: TokenTree
    expected_tokens: float
    replayed_tokens: float | None
    tokens: FloatArray
    step_ms: FloatArray
    plain_ms: FloatArray

    @cached_property
    def tokens_per_second(self) -> FloatArray:
        """Speed, [replicates + 1]."""
        return np.asarray(1000 * self.tokens / self.step_ms)

    @cached_property
    def speedup(self) -> FloatArray:
        """Speed over that of plain decoding, [replicates + 1]; of the one-node tree, 1."""
        if self.tree.size == 1:
            return np.ones_like(self.tokens)
        return np.asarray(self.tokens * self.plain_ms / self.step_ms)

    @property
    def is_faster(self) -> bool:
        """Whether it is predicted to beat plain decoding."""
        return bool(self.speedup[0] > 1)

    @property
    def pays(self) -> float:
        """Probability that it is faster than plain decoding."""
        return float((self.speedup[1:] > 1).mean()) if len(self.speedup) > 1 else float("nan")


@dataclass(frozen=True)
class Plan:
    """What the solver found.

    Attributes:
        choice: the smallest tree that the data cannot tell from the fastest, of those within
            1 % of its predicted speed; with a wanted confidence, the tree of largest lower
            bound.
        fastest: the tree of highest predicted speed.
        runners_up: the next best of other sizes.
        baselines: plain decoding and the fastest of each shape that other tools use.
        given: the given trees, in the order in which they were given.
        expected: E*(n, D) as [depth + 1, size + 1], NaN where there is no such tree.
        speed: tokens per second of each of these trees, likewise, independence assumed.
        method: how E*(n, D) was found.
        contexts: weight of each number of cached tokens that the prediction is for.
        may_speculate: whether trees of more than one node were allowed at all.
    """

    choice: Candidate
    fastest: Candidate
    runners_up: list[Candidate]
    baselines: list[Candidate]
    given: list[Candidate]
    expected: FloatArray
    speed: FloatArray
    method: str
    contexts: Mapping[float, float]
    batch: int
    confidence: float | None
    may_speculate: bool
    verifier: str
    profile: LatencyProfile
    acceptance: Acceptance

    @property
    def context(self) -> float:
        """Cached tokens that the prediction is for, on average."""
        return float(sum(context * weight for context, weight in self.contexts.items()))

    @property
    def tree(self) -> TokenTree:
        """The chosen tree, with everything its file says."""
        choice, acceptance, profile = self.choice, self.acceptance, self.profile
        predicted: dict[str, Any] = {}
        for name in ("step_ms", "tokens_per_second", "tokens", "speedup"):
            values = getattr(choice, name)
            if name != "tokens":
                predicted[name] = rounded(values[0])
            low, high = interval(values)
            predicted |= {f"{name}_low": rounded(low), f"{name}_high": rounded(high)}
        if choice.tree.size > 1 and len(choice.speedup) > 1:
            predicted["pays"] = rounded(choice.pays)
        metadata: dict[str, Any] = {
            "expected_tokens": rounded(choice.expected_tokens),
            "replayed_tokens": (
                None if choice.replayed_tokens is None else rounded(choice.replayed_tokens)
            ),
            "predicted": predicted,
            "target": profile.target.model,
            "draft": profile.draft.model,
            "draft_path": profile.draft.extra.get("path"),
            "dataset": acceptance.dataset,
            "temperature": acceptance.temperature,
            "top_p": acceptance.top_p,
            "top_k": acceptance.top_k or None,
            "min_p": acceptance.min_p or None,
            "verifier": self.verifier,
            "context": rounded(self.context),
            "batch": self.batch,
            "hardware": profile.hardware,
            "engine": profile.engine,
        }
        return TokenTree(
            choice.tree.parents,
            choice.tree.ranks,
            {key: value for key, value in metadata.items() if value is not None},
        )


def solve(
    profile: LatencyProfile,
    acceptance: Acceptance,
    *,
    max_size: int | None = None,
    max_depth: int | None = None,
    size: int | None = None,
    depth: int | None = None,
    context: float | Mapping[float, float] | None = None,
    batch: int = 1,
    shape: str = ANY_TREE,
    max_width: int | None = None,
    confidence: float | None = None,
    given: Mapping[str, TokenTree] | None = None,
    replicates: int = REPLICATES,
) -> Plan:
    """The tree that maximises predicted tokens per second, speed(T) = E(T) / t(T, L).

    Args:
        profile: measured latencies of the pair.
        acceptance: measured acceptance of the pair.
        max_size: largest tree to consider; by default the largest size that was measured.
        max_depth: deepest tree to consider.
        size: fix the number of nodes instead of choosing it.
        depth: fix the depth limit instead of choosing it; with `size`, E*(size, depth) is the
            tree.
        context: cached tokens, or the weights of several numbers of them; by default those of
            the acceptance measurement, else 512, within the measured range.
        batch: sequences that are decoded together; the profile must have measured it.
        shape: "tree" for any, else one of `shapes.families`: what an engine can run.
        max_width: most children of a node.
        confidence: maximise the speed-up that is exceeded with this probability, in (0, 1),
            instead of the predicted one.
        given: trees to price beside the answer, by name; none of them can be it.
        replicates: how many times documents and timings are resampled.

    Raises:
        SequoiaError: the profile has no point for what was asked, or for a given tree.
    """
    _check_options(max_size, max_depth, size, depth, max_width, shape, confidence)
    work = overhead_name(
        acceptance.verifier,
        acceptance.temperature,
        acceptance.top_p,
        acceptance.top_k,
        acceptance.min_p,
    )
    if context is None:
        context = default_context(profile, acceptance, batch)
    contexts = context if isinstance(context, Mapping) else {float(context): 1.0}
    if not contexts or not min(contexts.values()) > 0:
        raise SequoiaError("context: found no weights, expected weights above 0")
    objective = Objective(profile, work, contexts, batch, replicates)
    largest = objective.largest
    wanted = max(size or 0, max_size or 0)
    if wanted > largest:
        raise SequoiaError(
            f"the profile of {profile.target.model} has no point past {largest} tokens, "
            f"{wanted} asked for; profile with more --tokens"
        )
    max_size = size or max_size or largest
    deepest = DEFAULT_MAX_DEPTH if max_depth is None else max_depth
    max_depth = min(deepest, max_size - 1) if depth is None else depth
    allowed = np.full(max_size + 1, size is None)
    allowed[0], allowed[max_size] = False, True

    max_depth = min(max_depth, max_size - 1)  # no tree is deeper
    depth = None if depth is None else min(depth, max_depth)
    if max_depth and not np.isfinite(objective.draft_ms[0, 2:3]).any():
        raise SequoiaError(
            f"the profile of {profile.draft.model} has no point for 2 tokens, the first draft "
            "forward of every step; profile with more --tokens"
        )
    table = acceptance.table(max(1, max_depth))[:, :max_width]
    family = best_trees(table, max_size)
    speed = _surface(family, objective, allowed, max_depth, depth)
    if shape != ANY_TREE:
        trees = _of_shape(shape, table[:max_depth], objective, allowed)
    elif size is not None and depth is not None:
        trees = _finalists(family, speed)
    else:
        trees = _finalists(family, speed)
        trees += _searched(family, speed, table[:max_depth], objective, allowed)
    if not trees:
        kind = "tree" if shape == ANY_TREE else shape
        raise SequoiaError(
            f"no {kind} of {'up to ' if size is None else ''}{max_size} nodes is at most "
            f"{max_depth} deep with at most {table.shape[1]} children a node"
        )
    named = [(SOLVED, tree) for tree in dict.fromkeys(trees)]
    named += _baseline_trees(objective, table[:max_depth], max_size)
    judged = _judged(named, objective, acceptance, replicates)
    candidates = [c for c in judged if c.name == SOLVED]
    # What replay says of some trees is not to be compared with what independence promises others.
    candidates = [c for c in candidates if c.replayed_tokens is not None] or candidates
    fastest, choice = _choose(candidates, confidence)
    return Plan(
        choice=choice,
        fastest=fastest,
        runners_up=_runners_up(candidates, choice),
        baselines=_fastest_by_name([c for c in judged if c.name != SOLVED]),
        given=_given(given or {}, objective, acceptance, replicates),
        expected=family.expected,
        speed=speed,
        method="best-first" if isinstance(family, BestFirst) else "dynamic programme",
        contexts=objective.contexts,
        batch=batch,
        confidence=confidence,
        may_speculate=max_depth > 0,
        verifier=GREEDY if acceptance.temperature == 0 else acceptance.verifier,
        profile=profile,
        acceptance=acceptance,
    )


def _check_options(
    max_size: int | None,
    max_depth: int | None,
    size: int | None,
    depth: int | None,
    max_width: int | None,
    shape: str,
    confidence: float | None,
) -> None:
    for name, value, least in (
        ("max_size", max_size, 1), ("size", size, 1), ("max_depth", max_depth, 0),
        ("depth", depth, 0), ("max_width", max_width, 1),
    ):  # fmt: skip
        if value is not None and value < least:
            raise SequoiaError(f"{name}: found {value}, expected at least {least}")
    if shape != ANY_TREE and shape not in shapes.NAMES:
        raise SequoiaError(
            f"shape: found {shape!r}, expected {ANY_TREE}, {', '.join(shapes.NAMES)}"
        )
    if confidence is not None and not 0 < confidence < 1:
        raise SequoiaError(f"confidence: found {confidence:g}, expected more than 0, less than 1")


def default_context(profile: LatencyProfile, acceptance: Acceptance, batch: int) -> float:
    """Cached tokens to solve for: those of the acceptance, within what was measured."""
    low, high = profile.contexts(batch)
    wanted = DEFAULT_CONTEXT if acceptance.context is None else acceptance.context
    return float(min(max(wanted, low), high))


def _surface(
    family: Family, objective: Objective, allowed: BoolArray, max_depth: int, depth: int | None
) -> FloatArray:
    """Tokens per second of each E*(n, D), [max_depth + 1, max_size + 1].

    NaN where there is no such tree, it is not allowed, or a shallower limit has the same.
    """
    expected = family.expected
    sizes = np.broadcast_to(np.arange(expected.shape[1]), expected.shape)
    speed = np.asarray(1000 * expected / objective.steps_ms(sizes, family.widths()))
    speed[:, ~allowed] = np.nan
    speed[max_depth + 1 :] = np.nan
    if depth is None:
        before = np.fmax.accumulate(np.where(np.isnan(expected), -np.inf, expected), axis=0)
        speed[1:][~(expected[1:] > before[:-1] + 1e-12)] = np.nan
    else:
        speed[:depth] = np.nan
    speed[speed == 0] = np.nan  # a forward that was not measured
    return speed


def _finalists(family: Family, speed: FloatArray) -> list[TokenTree]:
    """The fastest trees of most tokens, and the fastest of each depth.

    Replay may favour other depths than independence does.
    """
    places = _ranked(speed)[:FINALISTS]
    places += [(d, int(np.nanargmax(row))) for d, row in enumerate(speed) if np.isfinite(row).any()]
    return [family.tree(n, d) for d, n in dict.fromkeys(places)]


def _ranked(speed: FloatArray) -> list[tuple[int, int]]:
    """The places of an array that are not NaN, by falling value; of equal ones the first first."""
    order = np.argsort(-speed, axis=None, kind="stable")[: np.isfinite(speed).sum()]
    return [divmod(int(i), speed.shape[1]) for i in order]


def _searched(
    family: Family, speed: FloatArray, table: FloatArray, objective: Objective, allowed: BoolArray
) -> list[TokenTree]:
    """Trees that may be faster than those of most tokens."""
    best = float(np.nanmax(speed, initial=0.0)) / 1000
    promising = hopeful(family.expected[: len(table) + 1], objective, best, allowed)
    if not promising[1:].any():
        return []
    depths, sizes = np.nonzero(promising)
    deepest, largest = int(depths.max()), int(sizes.max())
    if not np.isfinite(speed[: deepest + 1, : largest + 1]).any():
        deepest = len(table)  # all there is to start from is deeper: the depth is fixed
    table, allowed = table[:deepest], allowed[: largest + 1]
    starts = _ranked(speed[: deepest + 1, : largest + 1])
    # Where the profile can price none of the trees of most tokens, it may some narrower one.
    limits = list(dict.fromkeys(depth for depth, _ in starts))[:STARTS] or [deepest]
    if isinstance(family, BestFirst):
        return CapSearch(table, objective, allowed).run(limits)
    fullest = [family.tree(size, depth) for depth, size in starts[:CLIMBS]]
    narrower = capped(table, limits, objective, allowed)
    return climb_from(table, [*fullest, *narrower], objective, allowed)


def _of_shape(
    name: str, table: FloatArray, objective: Objective, allowed: BoolArray
) -> list[TokenTree]:
    """The most promising trees of one shape, and plain decoding."""
    found = [AUTOREGRESSIVE] if allowed[1] else []
    if len(table):
        shape = shapes.families(table, len(allowed) - 1)[name]
        found += _fastest_of(shape, objective, allowed)
    return found


def _judged(
    named: Sequence[tuple[str, TokenTree]],
    objective: Objective,
    acceptance: Acceptance,
    replicates: int,
) -> list[Candidate]:
    """Everything predicted of each tree, from resampled documents and timings.

    All trees at once: replay walks through the traces as often as it is asked, not as often as
    there are trees.
    """
    trees = list(dict.fromkeys(tree for _, tree in named))
    tokens = dict(zip(trees, acceptance.replicates(trees, replicates), strict=True))
    return [
        Candidate(
            name=name,
            tree=tree,
            expected_tokens=acceptance.expected_tokens(tree),
            replayed_tokens=float(tokens[tree][0]) if acceptance.can_replay(tree) else None,
            tokens=tokens[tree],
            step_ms=objective.step_ms(tree),
            plain_ms=objective.plain_ms,
        )
        for name, tree in named
    ]


def _given(
    trees: Mapping[str, TokenTree], objective: Objective, acceptance: Acceptance, replicates: int
) -> list[Candidate]:
    for name, tree in trees.items():
        try:
            objective.step_ms(tree)
        except SequoiaError as error:
            raise SequoiaError(f"{name}: {error}") from None
    return _judged(list(trees.items()), objective, acceptance, replicates) if trees else []


def _choose(
    candidates: Sequence[Candidate], confidence: float | None
) -> tuple[Candidate, Candidate]:
    """The fastest candidate, and the one to use."""

    def first(c: Candidate) -> tuple[float, int]:
        return -float(f"{c.tokens_per_second[0]:.9g}"), c.tree.size

    fastest = min(candidates, key=first)
    if confidence is not None:
        return fastest, min(
            candidates,
            key=lambda c: (-float(np.quantile(c.speedup, 1 - confidence)), c.tree.size),
        )
    alike = [c for c in candidates if c.tree.size < fastest.tree.size and _alike(c, fastest)]
    return fastest, min([fastest, *alike], key=lambda c: (c.tree.size, *first(c)))


def _alike(smaller: Candidate, fastest: Candidate) -> bool:
    """Whether the data cannot tell that `fastest` is faster, nor does it promise much more.

    It is not faster in some replicates. These carry the noise of every single timing, so on a
    noisy machine many trees are alike; the best guess is still the best, and is not given up
    for more than a little.
    """
    if smaller.speedup[0] < (1 - GIVEN_UP) * fastest.speedup[0]:
        return False
    slower = fastest.speedup[1:] <= smaller.speedup[1:] * (1 + NEGLIGIBLE)
    return bool(len(slower)) and float(slower.mean()) > TAIL


def _runners_up(candidates: Sequence[Candidate], choice: Candidate) -> list[Candidate]:
    """The fastest candidate of each other size; of the same size, if there is no other."""
    ranking = sorted(
        (c for c in candidates if c is not choice),
        key=lambda c: (-c.tokens_per_second[0], c.tree.size),
    )
    by_size: dict[int, Candidate] = {}
    for candidate in ranking:
        if candidate.tree.size != choice.tree.size:
            by_size.setdefault(candidate.tree.size, candidate)
    return (list(by_size.values()) or ranking)[:SHOWN_RUNNERS_UP]


def _baseline_trees(
    objective: Objective, table: FloatArray, max_size: int
) -> list[tuple[str, TokenTree]]:
    """Plain decoding and the most promising trees of each shape that other tools use."""
    found = [("plain", AUTOREGRESSIVE)]
    if len(table):
        allowed = np.ones(max_size + 1, dtype=bool)
        for name, shape in shapes.families(table, max_size).items():
            trees = _fastest_of(shape, objective, allowed)[:SHAPES_JUDGED]
            found += [(name, tree) for tree in trees]
    return found


def _fastest_by_name(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The fastest candidate of each name."""
    best: dict[str, Candidate] = {}
    for candidate in candidates:
        known = best.setdefault(candidate.name, candidate)
        if candidate.tokens_per_second[0] > known.tokens_per_second[0]:
            best[candidate.name] = candidate
    return list(best.values())


def _fastest_of(shape: shapes.Shapes, objective: Objective, allowed: BoolArray) -> list[TokenTree]:
    """The trees of a shape that speculate at all, the most promising first."""
    speed = shape.expected / objective.steps_ms(shape.sizes, shape.widths)
    speed[:, 0] = np.nan
    speed[~allowed[np.minimum(shape.sizes, len(allowed) - 1)]] = np.nan
    speed[speed == 0] = np.nan  # a forward that was not measured
    return [shape.tree(k, depth) for k, depth in _ranked(speed)[:FINALISTS]]

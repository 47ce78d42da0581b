"""Methods side by side: the same prompts, interleaved, each counted in the same way.

Tokens per second are those after the first, the prompt apart. Knows nothing of how methods
decode, nor of how results are shown.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from sequoia_opt.engine.distributed import ALONE, World
from sequoia_opt.engine.logits_processors import LogitsOptions
from sequoia_opt.engine.model import reserved
from sequoia_opt.engine.pair import Pair
from sequoia_opt.errors import SequoiaError
from sequoia_opt.measure.journal import Journal
from sequoia_opt.measure.methods import Method, Run
from sequoia_opt.measure.progress import Progress

LEAST = 2  # prompts, whatever the time
REPEATED = 4  # tokens of the runs of which the repeated ones are counted


@dataclass(frozen=True)
class Result:
    """What a method did over all prompts.

    Attributes:
        nodes: of its tree; 0 where it has none.
        tokens_per_step, tokens_per_second, ms_per_token, ms_per_step: over all prompts, of the
            median repetition of each.
        tokens_low, tokens_high: 95 % interval of the tokens per step, prompts resampled; of a
            single prompt there is none.
        speedup: ratio to the first method's time, its tokens being as many.
        speedup_low, speedup_high: 95 % interval of the ratio, likewise.
        agreement: share of prompts whose tokens are the first method's.
        prompts: how many were decoded.
        repeated: share of the new texts' runs of 4 tokens that came before in the same text: a
            text that loops flatters every draft.
    """

    name: str
    nodes: int
    tokens_per_step: float
    tokens_low: float | None
    tokens_high: float | None
    tokens_per_second: float
    ms_per_token: float
    ms_per_step: float
    speedup: float
    speedup_low: float | None
    speedup_high: float | None
    agreement: float
    repeated: float
    prompts: int


@dataclass(frozen=True)
class Raced:
    """What every method did with each prompt.

    Attributes:
        runs: of each method, by prompt, the median repetition.
    """

    methods: Sequence[Method]
    runs: Sequence[Sequence[Run]]

    def beside(self, reference: int = 0) -> list[Result]:
        """Every method's result, beside the method of that place.

        Raises:
            SequoiaError: a method had no time that could be compared.
        """
        first = self.runs[reference]
        return [_result(m, runs, first) for m, runs in zip(self.methods, self.runs, strict=True)]


def race(
    methods: Sequence[Method],
    prompts: Sequence[list[int]],
    new_tokens: int,
    repeats: int = 3,
    progress: Progress = lambda done, total: None,
    between: Callable[[], object] = lambda: None,
    note: Callable[[str], None] = lambda message: None,
    journal: Journal | None = None,
    world: World = ALONE,
) -> Raced:
    """Decode every prompt with every method, so that the machine's drift cancels.

    In an order that changes from prompt to prompt: what a method leaves in the caches is another
    one's each time. Each method decodes the first prompt once before anything counts.

    Args:
        between: called before each prompt's turn.
        note: called with what was cut short.
        journal: keeps each prompt's runs, and says when the time is up; two prompts are decoded
            in any case.
        world: the processes that decode.
    """
    journal = journal or Journal()
    runs = {method.name: [[] for _ in prompts] for method in methods}  # type: ignore[var-annotated]
    total, done = len(methods) * (1 + len(prompts) * repeats), 0

    def advance() -> None:
        nonlocal done
        done += 1
        progress(done, total)

    for method in methods:
        method.run(prompts[0], new_tokens)
        advance()
    turns = [(repeat, place) for repeat in range(repeats) for place in range(len(prompts))]
    for number, (repeat, place) in enumerate(turns):
        name = f"repetition {repeat}, prompt {place}"
        kept = journal.recall(name)
        if kept is None and number >= LEAST and journal.time_is_up(world):
            note(f"{number} of {len(turns)} turns of a prompt; the time was up")
            break
        if kept is not None:
            with journal.resuming(name):
                found = {method.name: Run(**kept[method.name]) for method in methods}
            done += len(methods)
        else:
            between()
            found = {}
            for method in random.Random(number).sample(methods, len(methods)):
                found[method.name] = method.run(prompts[place], new_tokens)
                advance()
            journal.record(name, {key: asdict(run) for key, run in found.items()})
        for method in methods:
            runs[method.name][place].append(found[method.name])
    decoded = [place for place, each in enumerate(runs[methods[0].name]) if each]
    return Raced(methods, [[_median(runs[m.name][p]) for p in decoded] for m in methods])


def _median(runs: list[Run]) -> Run:
    """The run of median time."""
    return sorted(runs, key=lambda run: run.seconds)[len(runs) // 2]


def _result(method: Method, runs: Sequence[Run], reference: Sequence[Run]) -> Result:
    tokens = np.array([run.timed for run in runs], dtype=np.float64)
    if not tokens.all():
        raise SequoiaError(
            f"{method.name}: all of a prompt's tokens came at once, in no time that could be "
            "compared; raise --max-new-tokens"
        )
    steps = np.array([run.steps for run in runs], dtype=np.float64)
    verified = np.array([run.verified for run in runs], dtype=np.float64)
    seconds = np.array([run.seconds for run in runs])
    reference_tokens = np.array([run.timed for run in reference], dtype=np.float64)
    reference_seconds = np.array([run.seconds for run in reference])

    def ratio(rows: np.ndarray) -> np.ndarray:
        own = tokens[rows].sum(axis=-1) / seconds[rows].sum(axis=-1)
        other = reference_tokens[rows].sum(axis=-1) / reference_seconds[rows].sum(axis=-1)
        return np.asarray(own / other)

    def per_step(rows: np.ndarray) -> np.ndarray:
        return np.asarray(verified[rows].sum(axis=-1) / steps[rows].sum(axis=-1))

    def ends(of: Callable[[np.ndarray], np.ndarray]) -> tuple[float | None, float | None]:
        if len(runs) < 2:
            return None, None
        resampled = np.random.default_rng(0).integers(len(runs), size=(1000, len(runs)))
        low, high = np.quantile(of(resampled), [0.025, 0.975])
        return float(low), float(high)

    every = np.arange(len(runs))
    low, high = ends(ratio)
    tokens_low, tokens_high = ends(per_step)
    return Result(
        name=method.name,
        nodes=method.nodes,
        tokens_per_step=float(per_step(every)),
        tokens_low=tokens_low,
        tokens_high=tokens_high,
        tokens_per_second=float(tokens.sum() / seconds.sum()),
        ms_per_token=float(1000 * seconds.sum() / tokens.sum()),
        ms_per_step=float(1000 * seconds.sum() / steps.sum()),
        speedup=float(ratio(every)),
        speedup_low=low,
        speedup_high=high,
        agreement=float(
            np.mean(
                [run.tokens == other.tokens for run, other in zip(runs, reference, strict=True)]
            )
        ),
        repeated=repeated([run.tokens for run in runs]),
        prompts=len(runs),
    )


def repeated(texts: Sequence[Sequence[int]], length: int = REPEATED) -> float:
    """Share of all runs of `length` tokens that came before in their text."""
    total = distinct = 0
    for text in texts:
        runs = [tuple(text[i : i + length]) for i in range(len(text) - length + 1)]
        total, distinct = total + len(runs), distinct + len(set(runs))
    return 1 - distinct / total if total else 0.0


@dataclass(frozen=True)
class Divergence:
    """Where two greedy decodings part.

    Attributes:
        place: the first new token that differs.
        gap: how far apart the target's two best logits are there.
    """

    place: int
    gap: float


@torch.inference_mode()
def divergence(
    pair: Pair,
    prompt: list[int],
    first: list[int],
    second: list[int],
    rules: LogitsOptions | None = None,
) -> Divergence | None:
    """Where two greedy decodings of a prompt part, or None.

    In float32 and below two forwards of different widths round differently, and may part
    where the target's two best logits are closer than that rounding.

    Args:
        rules: that both followed.
    """
    differing = [i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b]
    if not differing:
        return None
    tokens = torch.tensor([[*prompt, *first[: differing[0]]]], device=pair.device)
    with reserved(pair.target, tokens.shape[1]) as cache:
        logits = pair.target.prefill(cache, tokens)[:1].double()
    if rules is not None and rules.change_anything:
        ready = rules.processor(pair.device, pair.target.vocabulary)
        new = tokens[0, len(prompt) :]
        logits = ready.apply(logits, ready.seen(tokens[0]), ready.counts(new), len(new) == 0)
    best = logits[0].topk(2).values
    return Divergence(differing[0], float(best[0] - best[1]))


@torch.inference_mode()
def library_divergence(
    pair: Pair, prompt: list[int], tokens: list[int], rules: LogitsOptions | None = None
) -> Divergence | None:
    """Where the library's own forward pass, over the whole text at once, has another best token
    than a greedy decoding; None if nowhere.

    It runs the target as transformers loads it, with its own attention and masks, so it shares
    nothing with this program's engine but the weights.

    Args:
        rules: that the text was decoded by.

    Returns:
        The first such place, and how far the library's best logit is above the decoded token's.
    """
    text = torch.tensor([[*prompt, *tokens[:-1]]], device=pair.device)
    with pair.target.native() as model:
        logits = model(input_ids=text, use_cache=False, logits_to_keep=len(tokens)).logits[0]
    logits = logits[-len(tokens) :].double()
    if rules is not None and rules.change_anything:
        logits = _ruled(logits, rules, prompt, tokens)
    decoded = torch.tensor(tokens, device=pair.device)
    gaps = logits.amax(dim=-1) - logits.gather(1, decoded[:, None])[:, 0]
    differing = gaps.gt(0).nonzero()
    if not len(differing):
        return None
    place = int(differing[0])
    return Divergence(place, float(gaps[place]))


def _ruled(logits: Tensor, rules: LogitsOptions, prompt: list[int], tokens: list[int]) -> Tensor:
    """Logits [tokens, vocabulary] before each token of a text, by the rules of what was said."""
    device = logits.device
    ruled = rules.processor(device, logits.shape[1])
    rows = []
    for place, row in enumerate(logits.split(1)):
        said = torch.tensor(tokens[:place], dtype=torch.long, device=device)
        seen = ruled.seen(torch.tensor([*prompt, *tokens[:place]], device=device))
        rows.append(ruled.apply(row, seen, ruled.counts(said), first=place == 0))
    return torch.cat(rows)

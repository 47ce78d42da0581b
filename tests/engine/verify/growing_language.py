"""Random languages as models whose trees grow, and every course of a step with them.

The models have no weights: their logits are a language's, by the text before. A step's randomness
is replaced by choices, each of which is followed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from enumeration import CPU, METHODS, Groups, Language, Prefix, most_likely, softmax

from sequoia_opt.engine.adaptive_step import AdaptiveStep
from sequoia_opt.engine.drafters import Drafter, ModelDrafter, State
from sequoia_opt.engine.model import Caches, Likeliest
from sequoia_opt.engine.sampling import Cuts
from sequoia_opt.engine.verify import (
    host_rules,
    likely_guesses,
    make_verifier,
    node_rules,
    residual,
)
from sequoia_opt.plan.policy import Policy
from sequoia_opt.plan.tree import TokenTree

PROMPT, ROOT = 1, 0  # a language's texts begin with these


class LanguageModel:
    """A language's target or draft; a cache is the list of the tokens in it."""

    device, positions = CPU, 99

    def __init__(self, language: Language, role: str) -> None:
        self.language, self.role, self.vocabulary = language, role, language.vocabulary

    def growing_passes(self, nodes: int, branches: int, likeliest: bool = False) -> LanguagePasses:
        return LanguagePasses(self, nodes, branches)

    def prefill(
        self, cache: list[int], tokens: torch.Tensor, pad: None = None, held: int = 0
    ) -> torch.Tensor:
        assert held <= len(cache)
        cache[held:] = tokens[0].tolist()
        return torch.zeros(1, self.vocabulary)


class LanguagePasses:
    """See `GrowingPasses`."""

    def __init__(self, model: LanguageModel, nodes: int, branches: int) -> None:
        self._model, self._most, self._branches = model, nodes, branches

    def begin(self, cache: list[int], length: int, bound: int) -> None:
        assert length <= min(len(cache), bound)
        self._cache, self._text = cache, cache[:length]
        self._tokens: list[int] = []
        self._parents: list[int] = []

    def run(self, tokens: Sequence[int], parents: Sequence[int], rows: int) -> torch.Tensor:
        self._tokens += tokens
        self._parents += parents
        count = len(self._tokens)
        assert rows <= len(tokens) == len(parents) <= count <= self._most
        assert all(parent < node for node, parent in enumerate(self._parents))
        assert len(set(range(count)) - set(self._parents)) <= self._branches
        logits = []
        for node in range(count - rows, count):
            path = []
            while node >= 0:
                path.append(self._tokens[node])
                node = self._parents[node]
            prompt, root, *prefix = [*self._text, *reversed(path)]
            assert (prompt, root) == (PROMPT, ROOT)
            target, draft = self._model.language.logits(tuple(prefix))
            logits.append(target if self._model.role == "target" else draft)
        return torch.tensor(np.stack(logits))

    def likeliest(
        self, tokens: Sequence[int], parents: Sequence[int], rows: int, ranks: int
    ) -> Likeliest:
        return Likeliest(*likely_guesses(self.run(tokens, parents, rows).numpy(), ranks))

    def accept(self, path: Sequence[int]) -> None:
        assert [self._parents[node] for node in path] == [-1, *path[:-1]]
        self._cache[:] = [*self._text, *(self._tokens[node] for node in path)]


class Course:
    """One course of what is random: the choices taken, the first ones as given.

    Attributes:
        weight: its probability.
    """

    def __init__(self, given: list[int]) -> None:
        self._given, self.weight = given, 1.0
        self._taken: list[tuple[int, list[int]]] = []  # choices, and those that come after them

    def choose(self, chances: Sequence[float]) -> int:
        possible = [choice for choice, chance in enumerate(chances) if chance > 0]
        number = len(self._taken)
        choice = self._given[number] if number < len(self._given) else possible[0]
        self._taken.append((choice, [other for other in possible if other > choice]))
        self.weight *= chances[choice]
        return choice

    @property
    def next(self) -> list[int] | None:
        """The choices that the next course begins with; None if this was the last one."""
        for number in reversed(range(len(self._taken))):
            if later := self._taken[number][1]:
                return [*(choice for choice, _ in self._taken[:number]), later[0]]
        return None


def courses(run: Callable[[Course], Any]) -> Iterator[tuple[float, Any]]:
    """Every course, its probability and what `run` returns."""
    given: list[int] | None = []
    while given is not None:
        course = Course(given)
        result = run(course)
        yield course.weight, result
        given = course.next


class Game:
    """Steps of a policy on a language, in every course.

    Attributes:
        grown: sizes and levels of the trees that have grown.
        looked_up: whether steps verified a lookup's guesses before the draft's: all there were.

    Args:
        groups: yields every way to draft siblings, see `enumeration.METHODS`.
    """

    def __init__(
        self,
        name: str,
        policy: Policy,
        language: Language,
        temperature: float,
        groups: Callable[..., Groups],
        monkeypatch: pytest.MonkeyPatch,
        cuts: Cuts = Cuts(),  # noqa: B008
    ) -> None:
        self.language, self.temperature, self.cuts = language, temperature, cuts
        target, draft = (LanguageModel(language, role) for role in ("target", "draft"))
        processor = None
        if language.options is not None:
            processor = language.options.processor(CPU, language.vocabulary)
        self.step = AdaptiveStep(
            target,  # type: ignore[arg-type]
            self.drafter(draft),
            TokenTree([-1], [0], policy=policy),
            make_verifier(name, temperature, *cuts),
            processor=processor,
            lookup=self.lookup(),
        )
        self.grown: set[tuple[int, int]] = set()
        self.looked_up: set[bool] = set()
        self._groups, self._course = groups, Course([])
        for method in ("first_passing", "draw", "draw_with_replacement"):
            monkeypatch.setattr(node_rules, method, getattr(self, f"_{method}"))
        monkeypatch.setattr(host_rules, "passes", self._passes)
        monkeypatch.setattr(host_rules.Chances, "draw", lambda row, _: self._choose(row.weights))
        monkeypatch.setattr(
            host_rules.HostResidualRule,
            "draw_guesses",
            lambda _, draft, uniforms: self._draw_guesses(
                draft.weights / draft.total, len(uniforms)
            ),
        )
        for verifier in (residual.Sequoia, residual.SpecInfer):
            monkeypatch.setattr(verifier, "draft", lambda _, *given: self._drafts(*given))

    def drafter(self, draft: LanguageModel) -> Drafter:
        """What drafts."""
        return ModelDrafter(draft, self.language.vocabulary)  # type: ignore[arg-type]

    def lookup(self) -> Drafter | None:
        """What is asked before the drafter."""
        return None

    def index(self) -> Any:
        """The lookup's index of the text, with the prompt."""
        return None

    def draft_cache(self) -> Any:
        """The drafter's cache, with the prompt."""
        return [PROMPT]

    def held_tokens(self, cache: Any) -> list[int]:
        """The tokens in the drafter's cache."""
        tokens: list[int] = cache
        return tokens

    def texts(self, tokens: int, steps: int) -> dict[Prefix, float]:
        """The probability of each text that so many steps emit, or fewer if it is long enough."""
        texts: dict[Prefix, float] = {}
        for weight, text in courses(lambda course: self._play(course, tokens, steps)):
            texts[text] = texts.get(text, 0.0) + weight
        return texts

    def deviation(self, tokens: int, steps: int = 1) -> float:
        """The largest deviation from the target's distribution of the first tokens.

        Texts that are shorter are continued by the target.
        """
        texts: dict[Prefix, float] = {}
        for text, weight in self.texts(tokens, steps).items():
            for whole, chance in self._continued(text[:tokens], tokens):
                texts[whole] = texts.get(whole, 0.0) + weight * chance
        expected = dict(self._continued((), tokens))
        return max(abs(texts.get(text, 0.0) - expected.get(text, 0.0)) for text in texts | expected)

    def _continued(self, text: Prefix, tokens: int) -> Iterator[tuple[Prefix, float]]:
        if len(text) == tokens:
            yield text, 1.0
            return
        target = self._target(text)
        for token in np.flatnonzero(target).tolist():
            for whole, chance in self._continued((*text, token), tokens):
                yield whole, chance * target[token]

    def _target(self, text: Prefix) -> np.ndarray:
        if self.temperature == 0:
            logits = self.language.processed(text)
            return (np.arange(len(logits)) == logits.argmax()).astype(float)
        return self.language.target(text, self.temperature, self.cuts)

    def _play(self, course: Course, most: int, steps: int) -> Prefix:
        self._course = course
        caches, text = Caches([PROMPT], self.draft_cache(), self.index()), []
        first = State(torch.tensor([1]), torch.tensor([PROMPT, ROOT]))
        if (processor := self.step.processor) is not None:
            first.seen = processor.seen(torch.tensor([PROMPT, ROOT]))
            first.counts = processor.counts(torch.tensor([ROOT]))
        state = self.step.started(first)
        while steps and len(text) < most:
            steps -= 1
            (*tokens, accepted, count), state = self.step(caches, state, 99, torch.zeros)
            assert len(tokens) == count == accepted + 1
            text += tokens
            self.grown.add((state.size, state.levels))
            self.looked_up.add(state.looked_up)
            assert caches.target == [PROMPT, ROOT, *text[:-1]]
            held = self.held_tokens(caches.draft)[: state.held]
            assert [*held, *state.lacking] == [PROMPT, ROOT, *text]
        return tuple(text)

    def _drafts(self, logits: torch.Tensor, ranks: int, noise: torch.Tensor) -> torch.Tensor:
        drafts = [softmax(row / self.temperature) for row in logits.numpy()]
        return torch.tensor([self._draw_guesses(draft, ranks) for draft in drafts])

    def _draw_guesses(self, draft: np.ndarray, ranks: int) -> list[int]:
        groups = list(self._groups(draft, ranks))
        chosen = self._course.choose([chance for chance, _ in groups])
        return list(groups[chosen][1])

    def _passes(self, chance: float, uniform: float) -> bool:
        return self._course.choose([chance, 1 - chance]) == 0

    def _first_passing(self, chances: torch.Tensor, uniforms: torch.Tensor) -> int:
        for rank, chance in enumerate(chances.tolist(), start=1):
            if self._passes(chance, 0.0):
                return rank
        return 0

    def _choose(self, weights: np.ndarray) -> int:
        return self._course.choose((weights / weights.sum()).tolist())

    def _draw(self, weights: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
        return torch.tensor([self._choose(weights[0].numpy())])

    def _draw_with_replacement(self, weights: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
        return self._draw(weights, uniforms)[:, None]


Played = TypeVar("Played", bound=Game)


def game_of(
    kind: type[Played],
    name: str,
    policy: Policy,
    monkeypatch: pytest.MonkeyPatch,
    language: Language | None = None,
    temperature: float = 0.8,
    cuts: Cuts = Cuts(),  # noqa: B008
) -> Played:
    """A game with the verifier of that name, or with greedy decoding."""
    return kind(
        name if name in METHODS else "topk",
        policy,
        language or Language(3, seed=policy.depth),
        0.0 if name == "greedy" else temperature,
        METHODS[name][0] if name in METHODS else most_likely,
        monkeypatch,
        cuts,
    )

"""What real decoding accepted: a file that `decode --stats` adds to, and the rates that follow.

A line for each text: the tree, and how often each of its nodes was the last accepted one. That
says which guesses were tried and which of them were accepted. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sequoia_opt.errors import SequoiaError
from sequoia_opt.files.fields import Fields
from sequoia_opt.files.jsonl import Lines, read_lines
from sequoia_opt.plan.acceptance import Acceptance, fit_monotone
from sequoia_opt.plan.tree import TokenTree
from sequoia_opt.types import FloatArray

FORMAT, VERSION = "sequoia-opt/stats", 1
BEGINS = f'{{"format": "{FORMAT}"'
DATASET = "traffic"
RESAMPLES = 1000
# In the lines of texts that were cut so, or whose models are known, and in no others.
NEWER = ("top_k", "min_p", "fingerprints")


@dataclass(frozen=True)
class Setting:
    """What rates are of; texts of different ones are not thrown together.

    Attributes:
        fingerprints: of target and draft; none where a file does not say them.
    """

    target: str
    draft: str
    temperature: float
    top_p: float
    verifier: str
    top_k: int = 0
    min_p: float = 0.0
    fingerprints: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """As it stands in a line: what is newer than the format only where it says something."""
        return {key: value for key, value in asdict(self).items() if key not in NEWER or value}

    @property
    def of_any_models(self) -> Setting:
        """The same of whatever models have these names."""
        return replace(self, fingerprints=())


@dataclass(frozen=True)
class Text:
    """What was accepted while one text was decoded.

    Attributes:
        ended: by node, how many steps it was the last accepted one of.
        context: mean number of cached tokens.
    """

    setting: Setting
    tree: TokenTree
    ended: dict[int, int]
    context: float

    def document(self) -> dict[str, Any]:
        """Its line of a file, as a mapping."""
        return {
            "format": FORMAT,
            "version": VERSION,
            **self.setting.document(),
            "context": round(self.context, 1),
            "parents": list(self.tree.parents),
            "ranks": list(self.tree.ranks),
            "ended": {str(node): count for node, count in sorted(self.ended.items())},
        }

    def tried(self, ranks: int) -> tuple[FloatArray, FloatArray]:
        """How often each rank was tried, all elder ones having failed, and how often it was
        accepted: [ranks] each."""
        tried, accepted = np.zeros(ranks), np.zeros(ranks)
        for node, count in self.ended.items():
            tried[: self.tree.child_counts[node]] += count  # and none was accepted
            while node:
                rank = self.tree.ranks[node]
                tried[:rank] += count
                accepted[rank - 1] += count
                node = self.tree.parents[node]
        return tried, accepted


def add(path: Path, text: Text) -> None:
    """Add a text to a file.

    Raises:
        SequoiaError: it cannot be written.
    """
    with Lines(path, BEGINS, patient=True) as lines:  # other runs add theirs
        lines.add(text.document())


def check(path: Path) -> None:
    """Refuse a file that `add` would: before anything is decoded.

    Raises:
        SequoiaError: it is of something else, or cannot be written.
    """
    Lines(path, BEGINS, patient=True).close()


def load(path: Path) -> list[Text]:
    """All texts of a file.

    Raises:
        SequoiaError: it is missing, or of something else.
    """
    found = read_lines(path)
    if not found:
        raise SequoiaError(f"{path}: has no line that `decode --stats` wrote")
    return [_text(Fields(line, f"{path}: line {n}")) for n, line in enumerate(found, start=1)]


def _text(fields: Fields) -> Text:
    if fields.text("format", "") != FORMAT or fields.integer("version", minimum=1) > VERSION:
        raise fields.fail("format", f"{FORMAT}, version {VERSION} at most")
    setting = Setting(
        fields.text("target"),
        fields.text("draft"),
        fields.number("temperature", 0.0),
        fields.number("top_p", 0.0, 1.0),
        fields.text("verifier"),
        fields.integer("top_k", default=0),
        fields.number("min_p", 0.0, 1.0, default=0.0),
        fingerprints=_fingerprints(fields),
    )
    parents, ranks = fields.integers("parents", minimum=-1), fields.integers("ranks")
    try:
        tree = TokenTree(parents, ranks)
    except SequoiaError as error:
        raise SequoiaError(f"{fields.where}: {error}") from None
    ended = fields.section("ended")
    nodes = {str(node): node for node in range(tree.size)}
    if not set(ended.mapping) <= set(nodes):
        raise fields.fail("ended", f"nodes from 0 to {tree.size - 1}")
    counts = {nodes[node]: ended.integer(node) for node in ended.mapping}
    return Text(setting, tree, counts, fields.number("context", 0.0))


def _fingerprints(fields: Fields) -> tuple[str, ...]:
    given = fields.mapping.get("fingerprints", [])
    if not isinstance(given, list) or not all(isinstance(each, str) for each in given):
        raise fields.fail("fingerprints", "a list of text")
    return tuple(given)


def acceptances(texts: Sequence[Text]) -> list[Acceptance]:
    """The rates of each setting's texts, see `acceptance`.

    Raises:
        SequoiaError: of a setting nothing can be said.
    """
    settings = dict.fromkeys(text.setting.of_any_models for text in texts)
    return [
        acceptance([text for text in texts if text.setting.of_any_models == setting])
        for setting in settings
    ]


def acceptance(texts: Sequence[Text]) -> Acceptance:
    """The rates of all texts together, with intervals: whole texts resampled.

    A rank is tried only where the tree has it and all elder ones have failed. Its chance given
    that is what can be counted; the rates follow as in a life table (Kaplan and Meier, 1958):
    p[k] = h[k] Π (1 - h[j]) over j < k. Ranks that no tree has had are unknown, and left out.

    Raises:
        SequoiaError: they are of different settings, of a verifier without rates, or no guess
            was ever tried.
    """
    settings = {text.setting.of_any_models for text in texts}
    models = {text.setting.fingerprints for text in texts} - {()}
    if len(settings) == 1 and len(models) > 1:
        [setting] = settings
        raise SequoiaError(
            f"stats: found texts of {len(models)} pairs of models that are all named "
            f"{setting.target} and {setting.draft}; keep each pair's in a file of its own"
        )
    if len(settings) > 1:
        first, second, *_ = (asdict(setting) for setting in settings)
        differing = next(key for key in first if first[key] != second[key])
        raise SequoiaError(
            f"stats: found {differing} {first[differing]} and {second[differing]}; rates are of "
            "one pair and one way of sampling"
        )
    [setting] = settings
    if setting.verifier == "traversal" and setting.temperature > 0:
        raise SequoiaError(
            "stats: traversal decides on whole paths, which says nothing of single guesses; "
            "decode with another --verifier"
        )
    width = max(int(text.tree.child_counts.max(initial=0)) for text in texts)
    counts = [text.tried(width) for text in texts] if width else []
    tried, accepted = (np.array([pair[part] for pair in counts]) for part in (0, 1))
    total = tried.sum(axis=0) if width else np.zeros(0)
    known = int(np.argmin(total > 0)) if (total == 0).any() else width
    if not known:
        raise SequoiaError("stats: no guess was ever tried; decode with a tree, and more tokens")
    tried, accepted = tried[:, :known], accepted[:, :known]
    rates = life_table(tried.sum(axis=0), accepted.sum(axis=0))
    weights = np.random.default_rng(0).multinomial(
        len(texts), np.full(len(texts), 1 / len(texts)), size=RESAMPLES
    )
    resampled = life_table(weights @ tried, weights @ accepted)
    low, high = np.quantile(resampled, [0.025, 0.975], axis=0)
    positions = int(total[0])
    fitted, fit = fit_monotone(rates, low, high, positions) if len(texts) > 1 else (rates, "raw")
    known_spread = len(texts) > 1  # of one text there is none
    steps = [sum(text.ended.values()) for text in texts]
    mean = float(np.average([text.context for text in texts], weights=np.maximum(steps, 1)))
    return Acceptance(
        rates=fitted,
        low=low if known_spread else None,
        high=high if known_spread else None,
        positions=positions,
        dataset=DATASET,
        fit=fit,
        measured=rates if fit != "raw" else None,
        context=mean,
        extra={"fingerprints": _by_role(models)} if models else {},
        **setting.document(),
    )


def _by_role(models: set[tuple[str, ...]]) -> dict[str, str]:
    """The one pair's fingerprints."""
    [pair] = models
    return dict(zip(("target", "draft"), pair, strict=False))


def life_table(tried: FloatArray, accepted: FloatArray) -> FloatArray:
    """Rates [..., ranks] of what was counted, see `acceptance`."""
    chance = accepted / np.maximum(tried, 1)
    failed = np.cumprod(1 - chance, axis=-1)
    before = np.concatenate([np.ones_like(failed[..., :1]), failed[..., :-1]], axis=-1)
    return np.asarray(chance * before)

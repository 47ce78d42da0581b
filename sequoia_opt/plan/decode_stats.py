"""What real decoding accepted: the file that `decode --stats` adds to, and the rates it gives.

Each line stands for one text: the tree, and how often each node was the last accepted one. This
says which guesses were tried and which of them were accepted. Lines of adaptive plans are in
`growth_stats`. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sequoia_opt.errors import SequoiaError
from sequoia_opt.files.fields import Fields
from sequoia_opt.files.jsonl import Lines, read_lines
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.intervals import bootstrap
from sequoia_opt.plan.rate_fit import fit_monotone
from sequoia_opt.plan.tree import TokenTree
from sequoia_opt.plan.verifiers import has_rates
from sequoia_opt.types import FloatArray

FORMAT, VERSION = "sequoia-opt/stats", 1
GROWN_VERSION = 2  # of a line of an adaptive plan
BEGINS = f'{{"format": "{FORMAT}"'
DATASET = "traffic"
# Fields that are newer than the format; a line has them only if they are not empty.
NEWER_FIELDS = ("top_k", "min_p", "fingerprints")


@dataclass(frozen=True)
class Setting:
    """What acceptance rates depend on; rates come from texts of one setting.

    Attributes:
        fingerprints: of target and draft; empty if a file does not have them.
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
        """The setting's fields of a line."""
        fields = asdict(self).items()
        return {key: value for key, value in fields if key not in NEWER_FIELDS or value}

    @property
    def without_fingerprints(self) -> Setting:
        """The same setting for any models of these names."""
        return replace(self, fingerprints=())

    @classmethod
    def read(cls, fields: Fields) -> Setting:
        """The setting of a line.

        Raises:
            SequoiaError: a field is missing or malformed.
        """
        fingerprints = fields.mapping.get("fingerprints", [])
        if not isinstance(fingerprints, list) or not all(isinstance(f, str) for f in fingerprints):
            raise fields.fail("fingerprints", "a list of text")
        return cls(
            fields.text("target"),
            fields.text("draft"),
            fields.number("temperature", 0.0),
            fields.number("top_p", 0.0, 1.0),
            fields.text("verifier"),
            fields.integer("top_k", default=0),
            fields.number("min_p", 0.0, 1.0, default=0.0),
            fingerprints=tuple(fingerprints),
        )


@dataclass(frozen=True)
class Text:
    """What was accepted while one text was decoded.

    Attributes:
        ended: by node, the number of steps in which it was the last accepted one.
        context: mean context length.
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
        """How often each rank was tried, after all elder ones had failed, and how often accepted.

        Returns:
            tried, accepted: [ranks].
        """
        tried, accepted = np.zeros(ranks), np.zeros(ranks)
        for node, count in self.ended.items():
            tried[: self.tree.child_counts[node]] += count  # none of its children was accepted
            while node:
                rank = self.tree.ranks[node]
                tried[:rank] += count
                accepted[rank - 1] += count
                node = self.tree.parents[node]
        return tried, accepted


class Line(Protocol):
    """What a line of a file says."""

    def document(self) -> dict[str, Any]:
        """The line as a mapping."""
        ...


def add(path: Path, text: Line) -> None:
    """Add a text to a file.

    Raises:
        SequoiaError: the file cannot be written.
    """
    with Lines(path, BEGINS, patient=True) as lines:  # other runs may be adding to it
        lines.add(text.document())


def check(path: Path) -> None:
    """Refuse a file to which `add` could not add, before anything is decoded.

    Raises:
        SequoiaError: the file holds something else, or cannot be written.
    """
    Lines(path, BEGINS, patient=True).close()


def load(path: Path) -> list[Text]:
    """All texts of a file, decoded with fixed trees.

    Raises:
        SequoiaError: the file is missing, holds something else, or has a text of an adaptive plan.
    """
    return [_read_text(fields) for fields in read_lines_of(path)]


def read_lines_of(path: Path) -> list[Fields]:
    """The lines of a file, at least one, whose format and version are checked.

    Raises:
        SequoiaError: the file is missing, or holds something else.
    """
    lines = read_lines(path)
    if not lines:
        raise SequoiaError(f"{path}: has no line that `decode --stats` wrote")
    checked = [Fields(line, f"{path}: line {number}") for number, line in enumerate(lines, start=1)]
    for fields in checked:
        if fields.text("format", "") != FORMAT:
            raise fields.fail("format", FORMAT)
        if fields.integer("version", minimum=1) > GROWN_VERSION:
            raise fields.fail("version", f"{GROWN_VERSION} at most; a newer sequoia-opt wrote it")
    return checked


def is_grown(fields: Fields) -> bool:
    """Whether a line is of an adaptive plan."""
    return fields.integer("version", minimum=1) == GROWN_VERSION


def _read_text(fields: Fields) -> Text:
    if is_grown(fields):
        raise SequoiaError(
            f"{fields.where}: is of an adaptive plan, whose guesses depend on the draft's "
            "probabilities, which gives no rates; decode with a tree of `solve --static` into "
            "another file"
        )
    setting = Setting.read(fields)
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


def acceptances(texts: Sequence[Text]) -> list[Acceptance]:
    """The rates of each setting among the texts, see `acceptance`.

    Raises:
        SequoiaError: the texts of a setting give no rates.
    """
    settings = dict.fromkeys(text.setting.without_fingerprints for text in texts)
    return [
        acceptance([text for text in texts if text.setting.without_fingerprints == setting])
        for setting in settings
    ]


def acceptance(texts: Sequence[Text]) -> Acceptance:
    """The rates of all texts together, with 95% intervals from resampled texts.

    A rank is tried only if the tree has it and all elder ones have failed. Its chance given
    that is what can be counted; the rates follow as in a life table (Kaplan and Meier, 1958):
    p[k] = h[k] Π (1 - h[j]) over j < k. Ranks that no tree has had are unknown and left out. One
    text alone gives rates without intervals.

    Raises:
        SequoiaError: the texts have different settings or a verifier without rates, or no guess
            was ever tried.
    """
    setting, models = _only_setting(texts)
    fingerprints = dict(zip(("target", "draft"), models, strict=False))
    width = max(int(text.tree.child_counts.max(initial=0)) for text in texts)
    counts = np.array([text.tried(width) for text in texts])  # [texts, 2, width]
    tried, accepted = counts[:, 0], counts[:, 1]
    total = tried.sum(axis=0)
    known = int(np.argmin(total > 0)) if (total == 0).any() else width
    if not known:
        raise SequoiaError("stats: no guess was ever tried; decode with a tree, and more tokens")
    tried, accepted = tried[:, :known], accepted[:, :known]
    rates = life_table(tried.sum(axis=0), accepted.sum(axis=0))
    steps = [sum(text.ended.values()) for text in texts]
    contexts = [text.context for text in texts]
    positions = int(total[0])
    low = high = None
    fitted, fit = rates, "raw"
    if len(texts) > 1:
        low, high = bootstrap(
            lambda weights: life_table(weights @ tried, weights @ accepted), len(texts)
        )
        fitted, fit = fit_monotone(rates, low, high, positions)
    return Acceptance(
        rates=fitted,
        low=low,
        high=high,
        positions=positions,
        dataset=DATASET,
        fit=fit,
        measured=rates if fit != "raw" else None,
        context=float(np.average(contexts, weights=np.maximum(steps, 1))),
        extra={"fingerprints": fingerprints} if fingerprints else {},
        **setting.document(),
    )


def _only_setting(texts: Sequence[Text]) -> tuple[Setting, tuple[str, ...]]:
    """The setting that all texts have, and the fingerprints of its models if any text has them.

    Raises:
        SequoiaError: the texts have different settings or models, or a verifier without rates.
    """
    settings = {text.setting.without_fingerprints for text in texts}
    if len(settings) > 1:
        first, second, *_ = (asdict(setting) for setting in settings)
        differing = next(key for key in first if first[key] != second[key])
        raise SequoiaError(
            f"stats: found {differing} {first[differing]} and {second[differing]}; rates come "
            "from one pair and one sampling"
        )
    [setting] = settings
    models = {text.setting.fingerprints for text in texts} - {()}
    if len(models) > 1:
        raise SequoiaError(
            f"stats: found texts of {len(models)} pairs of models that are all named "
            f"{setting.target} and {setting.draft}; keep each pair's in a file of its own"
        )
    if setting.temperature > 0 and not has_rates(setting.verifier):
        raise SequoiaError(
            f"stats: {setting.verifier} decides on whole paths, which says nothing about single "
            "guesses; decode with another --verifier"
        )
    return setting, next(iter(models), ())


def life_table(tried: FloatArray, accepted: FloatArray) -> FloatArray:
    """Rates from how often each rank was tried and accepted, [..., ranks] all; see `acceptance`."""
    chance = accepted / np.maximum(tried, 1)
    failed = np.cumprod(1 - chance, axis=-1)
    reached = np.concatenate([np.ones_like(failed[..., :1]), failed[..., :-1]], axis=-1)
    return np.asarray(chance * reached)

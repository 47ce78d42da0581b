"""Whether two samples of short texts come from one distribution: a chi-square test.

Rare texts are pooled with others that begin alike, so that expected counts are large enough for
the test's p-values. Knows counts. Knows nothing of servers or of what the texts mean.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, sqrt

import numpy as np

from sequoia_opt.plan.tree import IntArray

LEAST_EXPECTED = 5.0  # the smallest expected count of a cell, Cochran's rule (1954)

Text = tuple[Hashable, ...]
Pair = tuple[int, int]  # how often the first and the second sample have a text


@dataclass(frozen=True)
class Comparison:
    """Two samples of texts after one prompt.

    Attributes:
        cells: how often each sample has each text or pool of texts, [2, cells].
        statistic: chi-square.
        freedom: its degrees of freedom; 0 if everything was pooled into one cell.
        p_value: the probability of at least this statistic if both have the same distribution.
    """

    cells: IntArray
    statistic: float
    freedom: int
    p_value: float

    @property
    def distance(self) -> float:
        """Total variation distance between the two samples' shares of the cells."""
        shares = self.cells / self.cells.sum(axis=1, keepdims=True)
        return float(np.abs(shares[0] - shares[1]).sum() / 2)


@dataclass(frozen=True)
class Verdict:
    """The joint result of the comparisons of several prompts.

    Attributes:
        comparisons: one for each prompt.
        p_value: the smallest p-value of the prompts and of their sum, times the number of tests
            (Bonferroni), which bounds the probability that any of them is so small by chance.
    """

    comparisons: list[Comparison]
    p_value: float

    @property
    def freedom(self) -> int:
        """Degrees of freedom of all prompts together."""
        return sum(comparison.freedom for comparison in self.comparisons)

    @property
    def statistic(self) -> float:
        """Chi-square of all prompts together."""
        return sum(comparison.statistic for comparison in self.comparisons)

    @property
    def distance(self) -> float:
        """Mean total variation distance between the samples; larger than 0 by chance too."""
        return float(np.mean([comparison.distance for comparison in self.comparisons]))

    def detectable(self, level: float, power: float) -> float:
        """The total variation distance after every prompt that would be found.

        With cells' shares p and q, chi-square over all prompts has the noncentrality
        λ = Σ N (p - q)² / m, summed over prompts and cells, where N = n₁ n₂ / (n₁ + n₂) and m are
        the shares in both samples together.
        By Cauchy and Schwarz Σ (p - q)² / m ≥ (Σ |p - q|)² = (2 d)², so that λ ≥ 4 d² Σ N.

        Args:
            level: the p-value below which the caller rejects.
            power: the least probability with which it would be found.

        Returns:
            The distance between the distributions of the cells; infinite if nothing is found.
        """
        if not self.freedom:
            return inf
        shift = _noncentrality(self.freedom, level / (len(self.comparisons) + 1), power)
        sizes = [comparison.cells.sum(axis=1).tolist() for comparison in self.comparisons]
        weight = sum(ours * theirs / (ours + theirs) for ours, theirs in sizes)
        return sqrt(shift / (4 * weight))


def compare(first: Sequence[Text], second: Sequence[Text]) -> Comparison:
    """Test whether two samples of texts after one prompt come from the same distribution.

    Args:
        first, second: the texts, each a tuple of tokens; at least one each.
    """
    cells = np.array(pooled(first, second), dtype=np.int64).T
    sizes, totals = cells.sum(axis=1), cells.sum(axis=0)
    expected = np.outer(sizes, totals) / totals.sum()
    statistic = float((np.square(cells - expected) / expected).sum())
    freedom = cells.shape[1] - 1
    return Comparison(cells, statistic, freedom, _tail(statistic, freedom))


def verdict(comparisons: Sequence[Comparison]) -> Verdict:
    """The joint result of several prompts."""
    statistic = sum(comparison.statistic for comparison in comparisons)
    together = _tail(statistic, sum(comparison.freedom for comparison in comparisons))
    smallest = min(together, *(comparison.p_value for comparison in comparisons))
    return Verdict(list(comparisons), min(1.0, smallest * (len(comparisons) + 1)))


def pooled(first: Sequence[Text], second: Sequence[Text]) -> list[Pair]:
    """Counts of texts in both samples, with rare ones pooled, so that each cell expects at least 5.

    Texts that begin alike are pooled first: a text that is too rare joins the others that share
    all its tokens but the last; if these are still too rare together, they join the rarest cell
    beside them. Pooling depends only on the sum of both samples' counts, so the test does not
    depend on which sample is which.
    """
    smaller = min(len(first), len(second))
    least = LEAST_EXPECTED * (len(first) + len(second)) / smaller
    ours, theirs = Counter(first), Counter(second)
    texts = sorted({*ours, *theirs}, key=repr)  # so that ties never depend on the samples' order
    counts = {text: (ours[text], theirs[text]) for text in texts}
    return _cells(counts, 0, least)


def _cells(counts: Mapping[Text, Pair], place: int, least: float) -> list[Pair]:
    """The cells of texts that are alike up to a place.

    Each cell has at least `least` texts, if all texts together have so many.

    Args:
        least: the smallest total of a cell in both samples together.
    """
    branches: dict[Hashable, dict[Text, Pair]] = {}
    for text, pair in counts.items():
        branch = text[place] if place < len(text) else None
        branches.setdefault(branch, {})[text] = pair
    cells: list[Pair] = []
    rest: Pair = (0, 0)
    for branch, texts in branches.items():
        total = _sum(texts.values())
        if sum(total) < least:
            rest = _sum([rest, total])
        elif branch is None or len(texts) == 1:
            cells.append(total)
        else:
            cells += _cells(texts, place + 1, least)
    if sum(rest) >= least or not cells:
        return [*cells, rest]
    if sum(rest):
        rarest = min(range(len(cells)), key=lambda cell: sum(cells[cell]))
        cells[rarest] = _sum([cells[rarest], rest])
    return cells


def _sum(pairs: Collection[Pair]) -> Pair:
    """The sum of pairs, element by element."""
    return sum(ours for ours, _ in pairs), sum(theirs for _, theirs in pairs)


def _tail(statistic: float, freedom: int) -> float:
    """The probability of at least this chi-square."""
    if freedom == 0:
        return 1.0
    from scipy.special import chdtrc

    return float(chdtrc(freedom, statistic))


def _noncentrality(freedom: int, level: float, power: float) -> float:
    """The noncentrality at which chi-square exceeds its critical value with a probability."""
    from scipy.optimize import brentq
    from scipy.special import chdtri, chndtr

    critical = chdtri(freedom, level)

    def missing(shift: float) -> float:
        return power - (1 - float(chndtr(critical, freedom, shift)))

    most = 10.0
    while missing(most) > 0:
        most *= 2
    return float(brentq(missing, 0.0, most))

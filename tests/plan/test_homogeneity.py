"""The chi-square test of two samples of short texts: its p-values, its pooling and its power."""

from __future__ import annotations

from collections import Counter
from math import inf

import numpy as np
import pytest
from scipy.stats import chi2_contingency

from sequoia_opt.plan.homogeneity import LEAST_EXPECTED, compare, pooled, verdict

Text = tuple[int, ...]


def sample(generator: np.random.Generator, count: int, skew: float = 1.5) -> list[Text]:
    """Texts of two or three tokens out of many, most of them rare."""
    tokens = np.minimum(generator.zipf(skew, (count, 3)), 12)
    return [tuple(row[:2].tolist()) if row[0] == 3 else tuple(row.tolist()) for row in tokens]


def test_without_rare_texts_it_is_the_textbook_test() -> None:
    first, second = [(1,)] * 40 + [(2,)] * 60, [(1,)] * 70 + [(2,)] * 80
    comparison = compare(first, second)
    expected = chi2_contingency([[40, 60], [70, 80]], correction=False)
    assert comparison.statistic == pytest.approx(expected.statistic)
    assert comparison.p_value == pytest.approx(expected.pvalue)
    assert comparison.freedom == 1


@pytest.mark.parametrize(("ours", "theirs"), [(60, 60), (50, 200), (7, 90), (3, 4), (1, 1)])
def test_pooling_keeps_every_text_and_no_cell_is_rare(ours: int, theirs: int) -> None:
    generator = np.random.default_rng(ours)
    for _ in range(50):
        first, second = sample(generator, ours), sample(generator, theirs)
        cells = np.array(pooled(first, second))
        assert cells.sum(axis=0).tolist() == [ours, theirs]
        expected = np.outer(cells.sum(axis=1), [ours, theirs]) / (ours + theirs)
        if len(cells) > 1:
            assert expected.min() >= LEAST_EXPECTED - 1e-9


def test_pooling_does_not_know_which_sample_a_text_is_of() -> None:
    """The cells' totals stay, however the texts are dealt out: that keeps p-values right."""
    generator = np.random.default_rng(0)
    texts = sample(generator, 200)
    totals = set()
    for _ in range(20):
        generator.shuffle(dealt := list(texts))
        cells = pooled(dealt[:100], dealt[100:])
        totals.add(tuple(sorted(sum(cell) for cell in cells)))
    assert len(totals) == 1


def test_rare_texts_are_pooled_with_those_that_begin_alike() -> None:
    rare = [(1, token) for token in range(10)] + [(2, token) for token in range(10)]
    cells = pooled(rare, rare)
    assert cells == [(10, 10), (10, 10)]
    assert sorted(pooled([*rare, (3, 0)], rare)) == [(10, 10), (11, 10)]


def test_false_alarms_are_as_rare_as_the_p_value_says() -> None:
    """Of samples of one distribution, at most a share p has a p-value below p."""
    generator = np.random.default_rng(1)
    runs = 3000
    for ours, theirs in ((60, 60), (40, 120)):
        values = np.array([
            compare(sample(generator, ours), sample(generator, theirs)).p_value
            for _ in range(runs)
        ])  # fmt: skip
        for level in (0.1, 0.01, 0.001):
            spread = np.sqrt(level * (1 - level) / runs)
            assert (values < level).mean() <= level + 3 * spread
        assert (values < 0.5).mean() > 0.3  # and it is not merely cautious


def test_false_alarms_stay_rare_far_out() -> None:
    """The chi-square of small tables at p-values near 1 in 10,000, by a million shuffles."""
    generator = np.random.default_rng(2)
    totals = np.array([10, 10, 11, 12, 15, 20, 30, 40, 60, 92])
    ours = generator.multivariate_hypergeometric(totals, 150, size=1_000_000)
    expected = totals * 150 / totals.sum()
    deviation = np.square(ours - expected)
    statistic = (deviation / expected).sum(axis=1) + (deviation / (totals - expected)).sum(axis=1)
    from scipy.special import chdtri

    for level in (1e-3, 1e-4, 2e-5):
        assert (statistic > chdtri(9, level)).mean() <= 1.1 * level + 3 * np.sqrt(level / 1e6)


def test_several_prompts_are_corrected_for_their_number() -> None:
    alike = compare([(1,)] * 50 + [(2,)] * 50, [(1,)] * 50 + [(2,)] * 50)
    apart = compare([(1,)] * 80 + [(2,)] * 20, [(1,)] * 50 + [(2,)] * 50)
    assert verdict([alike]).p_value == 1.0
    combined = verdict([alike, alike, apart])
    assert combined.p_value == pytest.approx(4 * apart.p_value)
    assert combined.freedom == 3
    assert combined.distance == pytest.approx(0.1)


def test_what_it_says_it_detects_it_detects() -> None:
    generator = np.random.default_rng(3)
    prompts, count, level = 3, 200, 1e-4
    shares = np.array([0.3, 0.25, 0.2, 0.15, 0.1])

    def texts(chances: np.ndarray) -> list[Text]:
        return [(int(token),) for token in generator.choice(5, count, p=chances)]

    def run(distance: float) -> bool:
        moved = shares + distance * np.array([-1, 0, 0, 0.5, 0.5])
        pairs = [compare(texts(shares), texts(moved)) for _ in range(prompts)]
        return verdict(pairs).p_value < level

    healthy = [compare(texts(shares), texts(shares)) for _ in range(prompts)]
    detectable = verdict(healthy).detectable(level, power=0.9)
    assert 0.05 < detectable < 0.3
    assert np.mean([run(detectable) for _ in range(60)]) >= 0.85
    assert not any(run(0.0) for _ in range(60))


def test_texts_that_are_all_rare_say_nothing() -> None:
    texts = Counter({(token,): 1 for token in range(3)})
    comparison = compare(list(texts), list(texts))
    assert (comparison.freedom, comparison.p_value) == (0, 1.0)
    assert verdict([comparison]).detectable(1e-4, power=0.9) == inf

"""Guesses drawn given the text, against trials that draw the guesses first."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import chi2_contingency

from sequoia_opt.engine.verify import Positions, Sequoia, drawn_before, make_verifier

VOCABULARY, ROWS = 4, 60000
LEAST_EXPECTED = 10  # outcomes of a cell; rarer ones share one


def logits(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Those of target and draft."""
    generator = torch.Generator().manual_seed(5)
    target, draft = 1.3 * torch.randn(2, VOCABULARY, generator=generator, dtype=torch.float64)
    if kind == "same":
        return target, target
    if kind == "narrow":  # as many tokens as a node has guesses
        draft = draft.masked_fill(torch.arange(VOCABULARY) > 1, -torch.inf)
    return target, draft


@pytest.mark.parametrize("name", ["sequoia", "specinfer"])
@pytest.mark.parametrize("kind", ["other", "same", "narrow"])
@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_guesses_and_ranks_are_distributed_as_those_of_trials(
    name: str, kind: str, top_p: float
) -> None:
    """Jointly with the emitted tokens."""
    torch.manual_seed(0)
    verifier = make_verifier(name, 0.9, top_p)
    assert isinstance(verifier, Sequoia)
    target, draft = (row.expand(ROWS, -1) for row in logits(kind))
    noise = -torch.empty(ROWS, VOCABULARY, dtype=torch.float64).exponential_().log()
    trial = verifier.trial(Positions(target, draft, 3, noise))
    tokens = trial.emit()
    guesses, ranks = drawn_before(verifier, target, draft, tokens, 3, torch.rand)
    accepted = ranks > 0
    chosen = guesses.gather(1, (ranks - 1).clamp_min(0)[:, None])[:, 0]
    assert torch.equal(chosen[accepted], tokens[accepted])
    assert 0.1 < accepted.double().mean() <= 1

    def outcomes(guesses: torch.Tensor, ranks: torch.Tensor) -> np.ndarray:
        # Guesses past the draft's support are arbitrary tokens.
        exists = torch.arange(3) < (2 if kind == "narrow" and name == "sequoia" else 3)
        parts = [*(guesses * exists).T, ranks, tokens]
        return np.ravel_multi_index([part.numpy() for part in parts], [VOCABULARY] * 5)

    first, second = (
        np.bincount(outcomes(*given), minlength=VOCABULARY**5)
        for given in ((trial.guesses, trial.rank), (guesses, ranks))
    )
    often = first + second >= 2 * LEAST_EXPECTED
    table = np.array([[*of[often], of[~often].sum()] for of in (first, second)])
    table = table[:, table.sum(axis=0) > 0]
    assert table.shape[1] > 3
    assert chi2_contingency(table).pvalue > 1e-3

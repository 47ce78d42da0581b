from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from recordings import make_recording, of_head
from scipy.optimize import isotonic_regression

from sequoia_opt.errors import SequoiaError
from sequoia_opt.files.documents import rounded
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.confidence_fit import (
    Reliability,
    _events,
    _isotonic,
    fit_confidence,
    held_out_documents,
)


def test_the_calibration_recovers_how_much_the_draft_exaggerates() -> None:
    recording = make_recording([200] * 40, levels=2, slots=1, truth=2.0)
    fitted = fit_confidence(recording)
    for said in (0.2, 0.5, 0.8, 0.95):
        rate = fitted.confidence.of(1, [said])[0]
        assert rate == pytest.approx(said**2, abs=0.08)
    assert fitted.reliability.error < 0.02 < fitted.draft_error


def test_there_are_few_bins_with_readable_edges() -> None:
    confidence = fit_confidence(make_recording([200] * 10)).confidence
    assert 6 <= len(confidence.edges) <= 15
    for edge in confidence.edges:
        assert rounded(min(edge, 1 - edge), 2) == pytest.approx(min(edge, 1 - edge))


def test_deeper_acceptance_is_its_own_where_the_data_show_it() -> None:
    """Runs of acceptance go on: deep guesses are accepted more often than first ones."""
    recording = make_recording([400] * 40, levels=2, slots=1)
    generator = np.random.default_rng(1)
    ranks = recording.ranks
    ranks[:] = 0
    for position in range(1, len(ranks)):
        ranks[position] = generator.random() < (0.9 if ranks[position - 1] else 0.3)
    confidence = fit_confidence(recording).confidence
    likely = max(recording.level(0)[:, 0, 0])
    rates = [confidence.of(depth, [likely])[0] for depth in (1, 2, 3)]
    assert rates[1] == pytest.approx(0.9, abs=0.03)
    assert rates[0] < rates[1]
    assert rates[2] == pytest.approx(0.9, abs=0.03)


def test_a_thin_sample_is_shrunk_to_what_all_ranks_and_depths_say() -> None:
    recording = make_recording([12, 12], levels=2, slots=1)
    acceptance = np.array(fit_confidence(recording).confidence.acceptance)
    assert np.abs(acceptance[1] - acceptance[0]).max() < 0.1
    assert np.abs(acceptance[2] - acceptance[0]).max() < 0.1


def test_pool_adjacent_violators() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        values, weights = generator.random(9), generator.random(9) + 0.1
        expected = isotonic_regression(values, weights=weights).x
        assert _isotonic(values, weights) == pytest.approx(expected)


def test_reliability_is_measured_on_the_other_documents() -> None:
    recording = make_recording([50] * 4, levels=2, slots=1)
    fitted = fit_confidence(recording)
    # Each position counts once for each class of depths that it is reached in.
    runs = 0
    for document in held_out_documents(recording):
        run = 0
        for rank in recording.ranks[recording.starts[document] : recording.starts[document + 1]]:
            runs += min(run, 2) + 1
            run = run + 1 if rank else 0
    assert sum(fitted.reliability.guesses) == runs * recording.width_of_node


def test_a_heads_nodes_are_counted_where_a_step_reaches_them() -> None:
    """By what the head says there, not by what it says of their tokens as roots."""
    recording = of_head(make_recording([40, 30, 20, 50], levels=5, slots=3))
    assert recording.path_ranks is not None
    events: Counter[tuple[int, tuple[float, ...], int]] = Counter()
    for start, end in pairwise(recording.starts.tolist()):
        for position in range(start, end):
            slot = 0
            for level in range(min(recording.levels, end - position)):
                said = recording.level(level)[position, slot].tolist()
                rank = int(recording.path_ranks[position, level])
                events[min(level + 1, 3), tuple(said), rank] += 1
                origins = recording.origins[position, level : level + 1].ravel().tolist()
                if not rank or slot * 4 + rank - 1 not in origins:
                    break
                slot = origins.index(slot * 4 + rank - 1)
    probabilities, accepted, depths = _events(recording)
    ranks = np.where(accepted.any(axis=1), 1 + accepted.argmax(axis=1), 0)
    rows = zip(depths.tolist(), map(tuple, probabilities.tolist()), ranks.tolist(), strict=True)
    assert Counter(rows) == events
    assert max(depths) == 3


def test_the_expected_calibration_error() -> None:
    reliability = Reliability.of(np.array([0.11, 0.11, 0.95, 0.95]), np.array([0.0, 0.0, 1.0, 0.0]))
    assert reliability.guesses == (2, 2)
    assert reliability.predicted == (0.11, 0.95)
    assert reliability.accepted == (0.0, 0.5)
    assert reliability.error == pytest.approx((2 * 0.11 + 2 * 0.45) / 4)


def test_an_acceptance_file_keeps_the_calibration(tmp_path: Path) -> None:
    fitted = fit_confidence(make_recording([60] * 4), "a.npz")
    path = tmp_path / "a.yaml"
    Acceptance(np.array([0.5, 0.2]), confidence=fitted).save(path)
    loaded = Acceptance.load(path)
    assert loaded.confidence == fitted
    assert "confidence" not in loaded.extra
    Acceptance(np.array([0.5, 0.2])).save(path)
    assert Acceptance.load(path).confidence is None


def test_a_malformed_calibration_is_refused_in_one_line(tmp_path: Path) -> None:
    fitted = fit_confidence(make_recording([60] * 4), "a.npz")
    path = tmp_path / "a.yaml"
    Acceptance(np.array([0.5, 0.2]), confidence=fitted).save(path)
    text = path.read_text().replace("predicted: [", "predicted: [0.5, ")
    path.write_text(text)
    with pytest.raises(SequoiaError, match="yaml: confidence: reliability: found lists of"):
        Acceptance.load(path)


def test_equal_drafts_have_equal_fingerprints() -> None:
    first, second = make_recording([30] * 2), make_recording([30] * 2)
    assert first.fingerprint == second.fingerprint
    assert first.fingerprint != make_recording([30] * 2, seed=1).fingerprint

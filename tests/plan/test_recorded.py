from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recordings import make_recording

from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.confidence_fit import fit_confidence
from sequoia_opt.plan.recorded import check_recording, named_file, recording_of
from sequoia_opt.plan.recording import Recording


def measured(recording: Recording, **fields: Any) -> Acceptance:
    fitted = fit_confidence(recording, "a.npz")
    return Acceptance(
        np.array([0.5, 0.2]), target="t", draft="d", verifier="greedy", confidence=fitted, **fields
    )


def test_the_recording_lies_beside_the_acceptance_file(tmp_path: Path) -> None:
    recording = make_recording([20] * 2)
    recording.save(tmp_path / "a.npz")
    measured(recording).save(tmp_path / "a.yaml")
    acceptance = Acceptance.load(tmp_path / "a.yaml")
    assert named_file(acceptance, tmp_path / "a.yaml") == tmp_path / "a.npz"
    loaded = recording_of(acceptance, tmp_path / "a.yaml")
    assert loaded is not None
    assert loaded.fingerprint == recording.fingerprint


def test_without_a_recording_there_is_none(tmp_path: Path) -> None:
    plain = Acceptance(np.array([0.5]))
    assert named_file(plain, tmp_path / "a.yaml") is None
    assert recording_of(plain, tmp_path / "a.yaml") is None
    gone = measured(make_recording([20] * 2))
    assert recording_of(gone, tmp_path / "a.yaml") is None


def test_a_name_does_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    acceptance = measured(make_recording([20] * 2))
    assert acceptance.confidence is not None
    away = replace(acceptance.confidence, recording="../../etc/a.npz")
    acceptance = replace(acceptance, confidence=away)
    assert named_file(acceptance, tmp_path / "a.yaml") == tmp_path / "a.npz"


def test_another_recording_is_refused(tmp_path: Path) -> None:
    make_recording([20] * 2, seed=1).save(tmp_path / "a.npz")
    acceptance = measured(make_recording([20] * 2))
    with pytest.raises(SequoiaError, match=r"a\.npz: found the fingerprint \w+, expected \w+"):
        recording_of(acceptance, tmp_path / "a.yaml")


def test_a_recording_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    recording = make_recording([20] * 2)
    path = tmp_path / "a.npz"
    recording.save(path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(SequoiaError, match=r"a\.npz: not a recording, or cut off") as error:
        recording_of(measured(recording), tmp_path / "a.yaml")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("about", "complaint"),
    [
        ({"draft": "other"}, "recording: draft: found other, expected d"),
        ({"temperature": 0.6}, r"recording: temperature: found 0\.6, expected 0\.0"),
        ({"verifier": "topk"}, "recording: verifier: found topk, expected greedy"),
        ({"fingerprints": {"target": "1" * 16, "draft": "2" * 16}}, "found other models"),
    ],
)
def test_a_recording_of_something_else_is_refused(about: dict[str, Any], complaint: str) -> None:
    recording = make_recording([20] * 2)
    models = {"fingerprints": {"target": "1" * 16, "draft": "3" * 16}}
    acceptance = measured(recording, extra=models)
    check_recording(recording, acceptance)
    with pytest.raises(SequoiaError, match=complaint):
        check_recording(replace(recording, about={**recording.about, **about}), acceptance)

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
from sequoia_opt.plan.recorded import recording_of
from sequoia_opt.plan.recording import Envelope, Recording


def same(first: Recording, second: Recording) -> bool:
    return first.fingerprint == second.fingerprint


def test_parts_are_joined_in_order() -> None:
    whole = make_recording([5, 0, 9, 3])
    parts = [whole.of_documents([0, 1]), whole.of_documents([2]), whole.of_documents([3])]
    joined = Recording.joined(parts, {"target": "other"})
    assert same(joined, whole)
    assert joined.about == {"target": "other"}
    assert joined.starts.tolist() == [0, 5, 5, 14, 17]
    swapped = Recording.joined(parts[::-1], {})
    assert not same(swapped, whole)


def test_a_file_is_what_its_content_is(tmp_path: Path) -> None:
    recording = make_recording([4, 6])
    recording.save(tmp_path / "r.npz")
    assert (tmp_path / "r.npz").read_bytes() == recording.content()
    loaded = Recording.load(tmp_path / "r.npz")
    assert same(loaded, recording)
    assert loaded.about["draft"] == "d"
    assert str(loaded.envelope) == "4x4x4"
    assert loaded.envelope.nodes == loaded.probabilities.shape[1]
    with pytest.raises(SequoiaError, match="here: not a recording, or cut off"):
        Recording.of_content(recording.content()[:-40], "here")


@pytest.mark.parametrize(
    "content", [b"", b"text", b"PK\x03\x04" + bytes(40), b"\x93NUMPY\x01\x00v\x00{}"]
)
def test_another_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.npz"
    path.write_bytes(content)
    with pytest.raises(SequoiaError, match="not a recording, or cut off"):
        Recording.load(path)


def test_an_array_of_another_program_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(3))
    np.savez(tmp_path / "b.npz", about=np.array("[]"), probabilities=np.zeros(3))
    for name in ("a.npy", "b.npz"):
        with pytest.raises(SequoiaError, match="not a recording, or cut off"):
            Recording.load(tmp_path / name)


def test_origins_of_slots_that_do_not_exist_are_refused() -> None:
    recording = make_recording([4], levels=3)
    origins = recording.origins.copy()
    origins[2, 0, 1] = 4  # of the second slot of a level that has one
    with pytest.raises(SequoiaError, match="origins: found guesses of slots that do not exist"):
        replace(recording, origins=origins)
    replace(recording, origins=np.where(recording.origins == 0, np.uint8(0), recording.origins))


@pytest.mark.parametrize(
    ("numbers", "complaint"),
    [
        ((0, 4, 4), "levels: found 0, expected at least 1"),
        ((8, 0, 4), "slots: found 0, expected at least 1"),
        ((8, 4, 0), "ranks: found 0, expected at least 1"),
        ((8, 5, 4), "slots: found 5, expected at most 4"),
        ((8, 17, 17), "found 17 slots of 17 ranks, expected a product of at most 256"),
    ],
)
def test_an_envelope_out_of_range_is_refused(numbers: tuple[int, int, int], complaint: str) -> None:
    with pytest.raises(SequoiaError, match=f"envelope: {complaint}"):
        Envelope(*numbers)


@pytest.mark.parametrize("text", ["8", "8x4", "8x4x4x4", "8x4x", "-8x4x4", "8x4x4.0", "a", "٣x1x1"])
def test_text_that_names_no_envelope_is_refused(text: str) -> None:
    with pytest.raises(SequoiaError, match="expected levels, slots and ranks, such as 8x4x4"):
        Envelope.parse(text)
    assert Envelope.parse("6x2x3") == Envelope(6, 2, 3)
    assert str(Envelope(6, 2, 3)) == "6x2x3"


def test_an_envelope_is_no_wider_than_a_node() -> None:
    assert Envelope(8, 4, 4).within(3) == Envelope(8, 3, 3)
    assert Envelope(8, 2, 4).within(3) == Envelope(8, 2, 3)
    assert Envelope(8, 2, 2).within(32) == Envelope(8, 2, 2)


def test_leaves_are_counted_level_by_level() -> None:
    """Of each level all nodes but one may have no node below them."""
    for envelope in (Envelope(1, 4, 4), Envelope(2, 3, 3), Envelope(8, 4, 4), Envelope(5, 1, 2)):
        widths = [1] + [envelope.slots] * (envelope.levels - 1)
        leaves = sum(width - 1 for width in widths[:-1]) + widths[-1]
        assert envelope.leaves == leaves
        assert envelope.nodes == sum(widths)


def test_an_acceptance_file_and_its_recording_go_together(tmp_path: Path) -> None:
    recording, other = make_recording([30, 30]), make_recording([30, 30], seed=1)
    path = tmp_path / "rates.yaml"
    values: dict[str, Any] = {"recording": recording, "confidence": fit_confidence(recording)}
    Acceptance(np.array([0.5]), **values).save(path)
    loaded = Acceptance.load(path)
    assert loaded.confidence is not None
    assert loaded.confidence.recording == "rates.npz"
    found = recording_of(loaded, path)
    assert found is not None
    assert same(found, recording)
    other.save(tmp_path / "rates.npz")
    with pytest.raises(SequoiaError, match=r"rates.npz: found the fingerprint .* estimate both"):
        recording_of(loaded, path)

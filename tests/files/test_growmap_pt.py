from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sequoia_opt.errors import SequoiaError
from sequoia_opt.files import growmap_pt
from sequoia_opt.plan import shapes, tree_formats

DAMAGED_OR_CODE = "never loaded because it could run code"


class Code:
    """A value that would run a function when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("run",)


def test_a_growmap_is_read_as_it_was_written(tmp_path: Path) -> None:
    growmap = tree_formats.growmap(shapes.k_ary(2, 2))
    path = tmp_path / "tree.pt"
    growmap_pt.save_growmap(growmap, path)
    stored = torch.load(path, weights_only=True)
    assert isinstance(stored["mask"], torch.Tensor)
    assert isinstance(stored["depth"], torch.Tensor)
    loaded = growmap_pt.load(path)
    assert isinstance(loaded, dict)
    assert np.array_equal(loaded["mask"], growmap["mask"])
    assert list(loaded["depth"]) == list(growmap["depth"])


def test_a_vector_loses_the_numbers_at_its_ends(tmp_path: Path) -> None:
    path = tmp_path / "rates.pt"
    torch.save(torch.tensor([0.0, 0.5, 0.25, 0.0]), path)
    rates = growmap_pt.load(path)
    assert isinstance(rates, np.ndarray)
    assert rates.tolist() == [0.5, 0.25]


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        (torch.tensor([0.0, 1.5, 0.0]), "rank 1: found 1.5, expected 0 to 1"),
        (torch.tensor([0.0, 0.0]), "neither a growmap nor a vector"),
        ([1, 2], "neither a growmap nor a vector"),
        ({"mask": torch.tensor([1j])}, "not a dense table of real numbers"),
        ({"mask": torch.eye(2).to_sparse()}, "not a dense table of real numbers"),
        (Code(), DAMAGED_OR_CODE),
    ],
)
def test_other_content_is_refused(
    tmp_path: Path, value: object, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "other.pt"
    torch.save(value, path)
    with pytest.raises(SequoiaError, match=f"other.pt: .*{complaint}"):
        growmap_pt.load(path)
    assert capsys.readouterr().out == ""


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "damaged.pt"
    path.write_bytes(b"not a .pt file")
    with pytest.raises(SequoiaError, match=DAMAGED_OR_CODE):
        growmap_pt.load(path)

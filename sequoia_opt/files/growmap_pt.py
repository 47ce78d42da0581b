"""The research code's `.pt` files, in and out; torch is loaded only here."""

from __future__ import annotations

import warnings
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sequoia_opt.errors import SequoiaError
from sequoia_opt.files.atomic import write_bytes
from sequoia_opt.files.documents import read_bytes
from sequoia_opt.types import FloatArray

if TYPE_CHECKING:
    from torch import Tensor


def save_growmap(growmap: dict[str, Any], path: Path) -> None:
    """Write a growmap as the research code reads it: its mask and depths are tensors."""
    import torch

    tensors = {key: torch.tensor(growmap[key]) for key in ("mask", "depth")}
    buffer = BytesIO()
    torch.save(growmap | tensors, buffer)
    write_bytes(path, buffer.getvalue())


def load(path: Path) -> dict[str, Any] | FloatArray:
    """A growmap in plain lists, or a vector of acceptance rates [ranks].

    The research code's vectors have an unused number before the first rank and after the last.

    Raises:
        SequoiaError: neither, or a file that holds more than tensors and plain values.
    """
    import torch

    content = BytesIO(read_bytes(path))
    try:
        with warnings.catch_warnings():  # of what is odd in a file that is refused anyway
            warnings.simplefilter("ignore")
            found = torch.load(content, map_location="cpu", weights_only=True)
    except Exception:  # torch's own reasons end in advice to switch its safety off
        raise SequoiaError(
            f"{path}: is damaged, or holds more than tensors and plain values, which is never "
            "loaded: it could run code"
        ) from None
    tensors = found.values() if isinstance(found, dict) else [found]
    if not all(_is_plain(each) for each in tensors if isinstance(each, torch.Tensor)):
        raise SequoiaError(f"{path}: has a tensor that is no plain table of real numbers")
    if isinstance(found, dict):
        return {k: v.tolist() if isinstance(v, torch.Tensor) else v for k, v in found.items()}
    if isinstance(found, torch.Tensor) and found.ndim == 1 and len(found) > 2:
        rates = np.asarray(found[1:-1].double().numpy())
        for rank, rate in enumerate(rates, start=1):
            if not 0 <= rate <= 1:
                raise SequoiaError(f"{path}: rank {rank}: found {rate:g}, expected 0 to 1")
        return rates
    raise SequoiaError(f"{path}: found neither a growmap nor a vector of acceptance rates")


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor's numbers are there, one by one, and real."""
    import torch

    whole = tensor.layout == torch.strided and tensor.device.type == "cpu"
    return whole and not tensor.is_complex() and not tensor.is_quantized

"""Reads and writes the `.pt` files of Sequoia's research code; loads torch only when called."""

from __future__ import annotations

import warnings
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sequoia_opt.errors import SequoiaError
from sequoia_opt.files.atomic import write_bytes
from sequoia_opt.files.reading import read_bytes
from sequoia_opt.types import FloatArray

if TYPE_CHECKING:
    from torch import Tensor


def save_growmap(growmap: dict[str, Any], path: Path) -> None:
    """Write a growmap as the research code reads it, with its mask and depths as tensors."""
    import torch

    tensors = {key: torch.tensor(growmap[key]) for key in ("mask", "depth")}
    buffer = BytesIO()
    torch.save(growmap | tensors, buffer)
    write_bytes(path, buffer.getvalue())


def load(path: Path) -> dict[str, Any] | FloatArray:
    """A growmap with plain lists in place of tensors, or a vector of acceptance rates [ranks].

    The research code's vectors have an unused number before the first rank and after the last.

    Raises:
        SequoiaError: the file is neither, or holds more than tensors and plain values.
    """
    import torch

    content = BytesIO(read_bytes(path))
    try:
        with warnings.catch_warnings():  # torch warns about oddities of files that it then refuses
            warnings.simplefilter("ignore")
            loaded = torch.load(content, map_location="cpu", weights_only=True)
    except Exception:  # torch's own messages advise to switch its safety off
        raise SequoiaError(
            f"{path}: is damaged, or holds more than tensors and plain values, which is never "
            "loaded because it could run code"
        ) from None
    values = loaded.values() if isinstance(loaded, dict) else [loaded]
    if not all(_is_plain(value) for value in values if isinstance(value, torch.Tensor)):
        raise SequoiaError(f"{path}: has a tensor that is not a dense table of real numbers")
    if isinstance(loaded, dict):
        return {k: v.tolist() if isinstance(v, torch.Tensor) else v for k, v in loaded.items()}
    if isinstance(loaded, torch.Tensor) and loaded.ndim == 1 and len(loaded) > 2:
        rates = np.asarray(loaded[1:-1].double().numpy())
        for rank, rate in enumerate(rates, start=1):
            if not 0 <= rate <= 1:
                raise SequoiaError(f"{path}: rank {rank}: found {rate:g}, expected 0 to 1")
        return rates
    raise SequoiaError(f"{path}: found neither a growmap nor a vector of acceptance rates")


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is dense, in memory and of real numbers."""
    import torch

    is_dense = tensor.layout == torch.strided and tensor.device.type == "cpu"
    return is_dense and not tensor.is_complex() and not tensor.is_quantized

"""Devices and number formats, by the names that options and files have."""

from __future__ import annotations

import torch

from sequoia_opt.engine.distributed import own_device
from sequoia_opt.errors import SequoiaError, one_line

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype in options and files."""
    return str(dtype).removeprefix("torch.")


def advice_for(dtype: torch.dtype) -> str:
    """What to do where logits are not finite in a dtype."""
    if dtype == torch.float16:
        return "use --dtype bfloat16 or float32"
    if dtype == torch.bfloat16:
        return "try --dtype float32"
    return "nothing finite comes out of these weights; load the model that was meant"


def usable_device(device: str | None) -> torch.device:
    """The device of that name; by default CUDA if it is available.

    Raises:
        SequoiaError: it cannot be used.
    """
    try:
        kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
        where = torch.device(own_device(kind))
        torch.empty(1, device=where)
    except (RuntimeError, AssertionError) as error:
        raise SequoiaError(f"device {device!r} cannot be used ({one_line(error)[:120]})") from None
    return where

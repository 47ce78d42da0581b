"""Whether a model computes the same logits on a token tree as in transformers' own forward pass.

Checked when a model is loaded, on a short text at the first and at the last positions that the
model can take: past every length at which a model may change. Knows nothing of drafting or
verifying.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sequoia_opt.engine.torch.support import AbsentCache, architecture_of, reason
from sequoia_opt.errors import SequoiaError

if TYPE_CHECKING:
    from sequoia_opt.engine.torch.runner import Runner

CHECKED_TOKENS = 16
# The largest error of logits, relative to their spread, that is not refused: well above rounding
# (transformers computes softmax in float32 for every model), and well below the error of a wrong
# position or mask.
AGREEMENT = {
    torch.float64: 1e-4,
    torch.float32: 1e-2,
    torch.bfloat16: 0.25,
    torch.float16: 0.1,
}


class LibraryLogits:
    """The logits of transformers' own forward pass for a short text at given positions.

    Attributes:
        tokens: the text [tokens].
        starts: the positions of the text's first token, one for each time it was computed.
        logits: for each of these [tokens, vocabulary], float64.
    """

    def __init__(self, model: torch.nn.Module, name: str, positions: int, vocabulary: int) -> None:
        self._model, self._name = model, name
        self._device = next(model.parameters()).device
        self._last = max(0, positions - CHECKED_TOKENS)
        count = min(CHECKED_TOKENS, positions)
        self.tokens = torch.arange(count, device=self._device) % vocabulary
        self.starts: list[int] = []
        self.logits: list[Tensor] = []

    def compute_first(self) -> None:
        """Run the text at the first positions; shows whether the model runs at all.

        Raises:
            SequoiaError: it does not run, or its logits are not finite.
        """
        try:
            self._compute(0, use_cache=False)
        except (SequoiaError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # any kind; tree attention is not involved yet
            device, dtype = self._device.type, _dtype_name(self._model)
            cause = reason(error) if str(error) else "without an error message"
            quantised: Any = getattr(self._model.config, "quantization_config", None)
            if quantised is not None:
                method = getattr(quantised, "quant_method", "an unnamed method")
                raise SequoiaError(
                    f"{self._name}: its weights, quantised by {getattr(method, 'value', method)}, "
                    f"do not run on the {device}, in transformers either ({cause}); use a GPU, or "
                    "weights that are not quantised, without quantization_config in config.json"
                ) from None
            raise SequoiaError(
                f"{self._name}: does not run on the {device} in {dtype}, in transformers either "
                f"({cause}); try another --dtype or --device"
            ) from None

    def compute_last(self) -> None:
        """Run the text at the last positions, unless these are the first ones.

        Raises:
            SequoiaError: the model does not run there.
        """
        if not self._last:
            return
        positions = torch.arange(len(self.tokens), device=self._device)[None] + self._last
        cache = AbsentCache(self._last, visible=False)
        try:
            self._compute(self._last, position_ids=positions, past_key_values=cache, use_cache=True)
        except (SequoiaError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # any kind
            raise SequoiaError(
                f"{architecture_of(self._model, self._name)} cannot score a token tree: what it "
                f"computes at position {self._last} cannot be checked ({reason(error)})"
            ) from None

    @torch.inference_mode()
    def _compute(self, start: int, **options: Any) -> None:
        """Run the text with eager attention, which every model of transformers has."""
        library: Any = self._model
        library.set_attn_implementation("eager")
        logits = library(input_ids=self.tokens[None], **options).logits[0].double()
        _check_finite(self._model, self._name, logits)
        self.starts.append(start)
        self.logits.append(logits)


def _check_finite(model: torch.nn.Module, name: str, logits: Tensor) -> None:
    """Refuse logits that are not finite, and say whether the weights are the cause."""
    if not bool(logits.isnan().any() or logits.isposinf().any() or logits.isneginf().all()):
        return
    kind: torch.dtype = model.dtype  # type: ignore[assignment]
    dtype = _dtype_name(model)
    advice = advice_for(kind)
    for weight, values in model.named_parameters():
        if values.is_floating_point() and not bool(values.isfinite().all()):
            damaged = "the file is damaged"
            if kind == torch.float16:
                damaged = f"{advice}; if it is not finite there either, the file is damaged"
            raise SequoiaError(
                f"{name}: its logits are not finite in {dtype}, since its weight {weight} is not; "
                f"{damaged}"
            )
    raise SequoiaError(
        f"{name}: its logits are not finite in {dtype}, in transformers either; {advice}"
    )


def advice_for(dtype: torch.dtype) -> str:
    """What to do about logits that are not finite in a dtype."""
    if dtype == torch.float16:
        return "use --dtype bfloat16 or float32"
    if dtype == torch.bfloat16:
        return "try --dtype float32"
    return "the weights cannot give finite logits; check that this is the intended model"


@torch.inference_mode()
def check_agreement(runner: Runner, library: LibraryLogits) -> None:
    """Refuse an architecture whose logits on a tree differ from transformers' own.

    The text is run in two parts, the second as a tree that has a wrong token next to each right
    one. This shows positions that a model counts in its own way, and attention that depends on
    the slot of a token and not on its mask, or that needs a feature unknown to this program.

    Raises:
        SequoiaError: the logits differ by more than rounding.
    """
    count, texts = len(library.tokens), len(library.starts)
    half = count // 2
    levels = count - half
    # Node 2 i is a wrong token at depth i, node 2 i + 1 the right one; paths are of right tokens.
    nodes = np.arange(2 * levels)
    attends = (nodes[:, None] // 2 > nodes // 2) & (nodes % 2 == 1) | np.eye(len(nodes), dtype=bool)
    depths = (nodes // 2).tolist()
    device = library.tokens.device
    starts = torch.tensor(library.starts, device=device)[:, None]
    slots = torch.arange(half + len(nodes), device=device)
    cache = runner.reserve(len(slots), texts)
    if half:
        text = library.tokens[:half].expand(texts, -1)
        order = list(range(half))
        table = runner.mask_table(np.tri(half, dtype=np.bool_), order, order)
        [masks] = table.masks(runner.places(cache, slots[:1], half))
        runner.forward(cache, text, starts + slots[:half], slots[:half], masks, keep=1)
    right = library.tokens[half:]
    tree = torch.stack([(right + count) % runner.vocabulary, right], dim=1).flatten()
    [masks] = runner.mask_table(attends, depths, depths).masks(
        runner.places(cache, torch.tensor([half], device=device), len(slots))
    )
    positions = starts + half + torch.tensor(depths, device=device)
    logits = runner.forward(cache, tree.expand(texts, -1), positions, slots[half:], masks, keep=0)
    for row, expected, start in zip(logits, library.logits, library.starts, strict=True):
        if off := difference(row[1::2].double(), expected[half:], runner.dtype):
            raise SequoiaError(
                f"{architecture_of(runner.model, runner.name)} gives other logits on a tree than "
                f"in transformers' own forward pass ({off}, from position {start}); it is not "
                "supported"
            )


def difference(logits: Tensor, expected: Tensor, dtype: torch.dtype) -> str:
    """How far logits are off, in words; "" if it may be rounding.

    In half precision, rounding can send a token or two of a mixture of experts to another expert,
    which changes their logits by far more. Therefore the median token counts there: a wrong
    position or mask changes it too.

    Args:
        logits, expected: [vocabulary] or [tokens, vocabulary].
        dtype: the model's.
    """
    errors = (logits - expected).abs().amax(dim=-1)
    error = float(errors.median() if dtype.itemsize == 2 else errors.max())
    scale = float((expected - expected.mean()).abs().max())
    agree = error <= AGREEMENT[dtype] * max(scale, 1e-3)
    return "" if agree else f"off by {error:.2g} of {scale:.2g}"


def _dtype_name(model: torch.nn.Module) -> str:
    return str(model.dtype).removeprefix("torch.")

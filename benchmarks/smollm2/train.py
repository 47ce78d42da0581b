"""Distils the target into the draft: `python train.py TARGET.gguf FOLDER -o OUTPUT --minutes 30`.

The draft learns the target's probabilities on the windows that `data.py` writes, while more of
them appear. Knows the draft's loss. Knows nothing of optimisers, or of how the windows came to be.
"""

from __future__ import annotations

import numpy as np
import torch
from draft import SIZES, begin_from, build, hidden_states
from torch import Tensor
from training import Record, fit, parsed_options, write_record
from transformers import LlamaModel
from windows import Windows, batch_of

from sequoia_opt.engine.torch.gguf_model import config_of, model_of

COMMON, OTHERS = 4096, 512  # tokens in a step's loss: the commonest, and a sample of all others


class Distillation:
    """The loss over the commonest tokens, and a sample that stands for the rest."""

    def __init__(self, model: LlamaModel, counts: Tensor) -> None:
        order = counts.argsort(descending=True, stable=True)
        self._model, self._common, self._others = model, order[:COMMON], order[COMMON:]
        self._place = torch.full_like(order, -1)
        self._place[self._common] = torch.arange(COMMON)
        # Each token of the sample stands for this many.
        self._correction = float(np.log(len(self._others) / OTHERS))

    def __call__(self, windows: dict[str, np.ndarray]) -> Tensor:
        """Cross-entropy with the target's probabilities, in nats per token."""
        batch = batch_of(windows)
        used = batch.weights > 0
        hidden = hidden_states(self._model, batch.tokens, batch.starts)[used]
        places, probabilities = self._place[batch.ids[used]], batch.probabilities[used]
        probabilities = probabilities * (places >= 0)
        shares = probabilities.sum(1, keepdim=True)
        weights = batch.weights[used] * (shares[:, 0] > 0.5)
        probabilities = probabilities / shares.clamp_min(1e-6)
        sample = self._others[torch.randint(len(self._others), (OTHERS,))]
        rows = self._model.embed_tokens.weight[torch.cat([self._common, sample])]
        logits = hidden @ rows.T
        expected = (probabilities * logits.gather(1, places.clamp_min(0))).sum(1)
        others = logits[:, COMMON:].logsumexp(1) + self._correction
        total = torch.logaddexp(logits[:, :COMMON].logsumexp(1), others)
        return ((total - expected) * weights).sum() / weights.sum()


@torch.no_grad()
def agreement(model: LlamaModel, windows: dict[str, np.ndarray]) -> float:
    """Share of the answers' positions where the target's best token is the draft's first guess."""
    right, count = 0, 0
    for row in range(len(windows["tokens"])):
        batch = batch_of({name: values[row : row + 1] for name, values in windows.items()})
        used = batch.weights == 1.0
        hidden = hidden_states(model, batch.tokens, batch.starts)[used]
        guesses = (hidden @ model.embed_tokens.weight.T).argmax(1)
        right += int((guesses == batch.ids[used][:, 0]).sum())
        count += len(guesses)
    return right / count


def main() -> None:
    """Train a draft."""
    options = parsed_options(__doc__, batch=8)
    windows, model = Windows(options.folder), build(SIZES)
    counts = windows.counts(SIZES["vocab_size"])
    if options.continue_from:
        model.load_state_dict(torch.load(options.continue_from)["weights"])
    else:
        path = str(options.target)
        target = model_of(path, config_of(path), torch.float32)
        begin_from(model, target.get_input_embeddings().weight.detach(), counts)
        del target

    def measure() -> Record:
        return dict(agreement=round(agreement(model, windows.held_out), 4))

    def save(record: Record) -> None:
        part = options.output / "draft.part"
        torch.save(dict(sizes=SIZES, weights=model.state_dict()), part)
        part.rename(options.output / "draft.pt")
        write_record(options.output, "draft-training.json", record)

    fit(model, Distillation(model, counts), measure, save, windows, options)


if __name__ == "__main__":
    main()

"""Trains an EAGLE-3 head: `python train_head.py TARGET.gguf FOLDER -o OUTPUT --minutes 30`.

The head learns the target's probabilities on the windows and hidden states that `data.py --states`
writes. Knows the head's loss and its files. Knows nothing of optimisers.
"""

from __future__ import annotations

import json

import numpy as np
import torch
from head import STATE_COUNT, TrainedHead, config_of_head
from safetensors.torch import save_file
from torch import Tensor
from training import Record, fit, parsed_options, write_record
from windows import Batch, Windows, batch_of

from sequoia_opt.engine.torch.eagle.head import EagleHead
from sequoia_opt.engine.torch.gguf_model import config_of, model_of

DRAFT_VOCABULARY = 4096
PASSES = 3  # of a training step; the later ones read the head's own outputs
LATER_WEIGHT = 0.8  # of a pass in the loss, for each pass before it


class Distillation:
    """The loss of all passes, over the head's tokens."""

    def __init__(self, head: TrainedHead, ids: Tensor, vocabulary: int) -> None:
        self._head = head
        self.place = torch.full((vocabulary,), -1)
        self.place[ids] = torch.arange(len(ids))
        self._compiled = torch.compile(self._loss)

    def __call__(self, windows: dict[str, np.ndarray]) -> Tensor:
        """Cross-entropy with the target's probabilities, in nats per token."""
        batch = batch_of(windows)
        places = self.place[batch.ids]
        probabilities = batch.probabilities * (places >= 0)
        shares = probabilities.sum(2)
        weights = batch.weights * (shares > 0.5)
        probabilities = probabilities / shares.clamp_min(1e-6)[..., None]
        loss: Tensor = self._compiled(
            batch, states_of(windows), places.clamp_min(0), probabilities, weights
        )
        return loss

    def _loss(
        self, batch: Batch, states: Tensor, places: Tensor, probabilities: Tensor, weights: Tensor
    ) -> Tensor:
        """The loss, given the target's probabilities of some of the head's tokens at each position.

        Rows without weight are computed too, so that all batches have the same shape.
        """
        total, whole = torch.zeros(()), 0.0
        outputs = self._head.outputs(batch.tokens, states, batch.starts, PASSES)
        for number, output in enumerate(outputs):
            logits = self._head.head.logits(output).float()
            expected = (probabilities * logits.gather(2, places)).sum(2)
            losses = logits.logsumexp(2) - expected
            part = LATER_WEIGHT**number
            total = total + part * (losses * weights).sum() / weights.sum()
            whole += part
        return total / whole


def states_of(windows: dict[str, np.ndarray]) -> Tensor:
    """The target's hidden states at all tokens but the last, [texts, length, states x width]."""
    return torch.from_numpy(np.asarray(windows["states"][:, :-1], np.float32))


@torch.no_grad()
def agreement(
    head: TrainedHead, windows: dict[str, np.ndarray], ids: Tensor, passes: int
) -> list[float]:
    """Share of the answers' positions where the target's best token is the head's, by pass."""
    right, count = np.zeros(passes), 0
    for row in range(len(windows["tokens"])):
        one = {name: values[row : row + 1] for name, values in windows.items()}
        batch = batch_of(one)
        used = batch.weights == 1.0
        outputs = head.outputs(batch.tokens, states_of(one), batch.starts, passes)
        for number, output in enumerate(outputs):
            guesses = ids[head.head.logits(output[used]).argmax(1)]
            right[number] += int((guesses == batch.ids[used][:, 0]).sum())
        count += int(used.sum())
    return [round(float(share), 4) for share in right / count]


def published(head: TrainedHead, ids: Tensor) -> dict[str, Tensor]:
    """The weights under SpecForge's names, in float16."""
    weights = {
        name.replace("layers.0.", "midlayer."): values.half().contiguous()
        for name, values in head.folded().items()
    }
    taken = torch.zeros(head.head.config.vocabulary, dtype=torch.bool)
    return weights | {"d2t": ids - torch.arange(len(ids)), "t2d": taken.index_fill(0, ids, True)}


def main() -> None:
    """Train a head."""
    options = parsed_options(__doc__, batch=6)
    windows = Windows(options.folder, with_states=True)
    path = str(options.target)
    target_config = config_of(path)
    target = model_of(path, target_config, torch.float32)
    counts = windows.counts(target_config.vocab_size)
    begun = torch.load(options.continue_from) if options.continue_from else {}
    ids = begun.get("ids", counts.topk(DRAFT_VOCABULARY).indices.sort().values)
    config = config_of_head(target_config, DRAFT_VOCABULARY)
    states = torch.from_numpy(np.asarray(windows.held_out["states"], np.float32))
    scale = states.flatten(0, 1).square().mean(0).sqrt()
    head = TrainedHead(EagleHead(config, STATE_COUNT, target_config.hidden_size), scale)
    embedding = target.get_input_embeddings().weight.detach()
    head.begin_from(embedding, target.model.norm.weight.detach(), ids)
    del target
    if begun:
        head.load_state_dict(begun["weights"])

    def measure() -> Record:
        return dict(agreement=agreement(head, windows.held_out, ids, PASSES))

    def save(record: Record) -> None:
        torch.save(dict(ids=ids, weights=head.state_dict()), options.output / "head.pt")
        folder = options.output / "head"
        folder.mkdir(exist_ok=True)
        save_file(published(head, ids), folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(config.to_dict(), indent=1) + "\n")
        write_record(options.output, "head-training.json", record)

    loss_of = Distillation(head, ids, target_config.vocab_size)
    fit(head, loss_of, measure, save, windows, options)


if __name__ == "__main__":
    main()

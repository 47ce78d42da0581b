from __future__ import annotations

from typing import Any

import numpy as np
import torch

from sequoia_opt.engine.model import reserved
from sequoia_opt.engine.verify import make_verifier
from sequoia_opt.measure.continuations import Continuation
from sequoia_opt.measure.drafts_recording import DraftsRecorder
from sequoia_opt.plan.recording import Envelope


def test_recorded_probabilities_are_those_of_each_path_read_alone(
    pair: Any, prompts: list[list[int]]
) -> None:
    prompt, count = prompts[0], 10
    with torch.inference_mode(), reserved(pair.draft, 256) as cache:

        def chances(text: list[int]) -> np.ndarray:
            logits = pair.drafter.prefill(cache, torch.tensor([text]))
            return logits[0].double().softmax(-1).numpy()

        text = list(prompt)
        for _ in range(count + 1):
            text.append(int(chances(text).argmax()))
        new = text[len(prompt) :]
        # As if the target had said what the draft does.
        guesses = [
            np.argsort(-chances(text[: len(prompt) + i + 1]))[:2].tolist() for i in range(count)
        ]
        envelope = Envelope(4, 2, 2)
        with DraftsRecorder(pair, make_verifier("sequoia", 0.0), envelope, 128) as recorder:
            recording = recorder.record(prompt, Continuation(2, new, guesses), [1] * count)
        for position in (0, 4, count - 1):
            paths = [text[: len(prompt) + position + 1]]
            rows = iter(recording.probabilities[position].astype(float))
            for level in range(4):
                said = [chances(path) for path in paths]
                for one in said:
                    np.testing.assert_allclose(next(rows), np.sort(one)[::-1][:2], atol=2e-3)
                if level < 3:
                    slots, ranks = np.divmod(recording.origins[position, level], 2)
                    paths = [
                        [*paths[slot], int(np.argsort(-said[slot])[rank])]
                        for slot, rank in zip(slots, ranks, strict=True)
                    ]

"""Lets the target write the draft's training data: `python data.py TARGET.gguf FOLDER --seed 0`.

The target completes users' messages that `prompts` begins, then answers them. Windows of
`LENGTH` tokens hold one conversation after the other; with each token goes what the target thought
comes next. One file is written for every `TEXTS` windows, until --files are there. Knows
conversations. Knows nothing of the draft.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import numpy as np
import prompts
import torch
from target import Target
from torch import Tensor

from sequoia_opt.engine.gguf_file import read_header
from sequoia_opt.engine.torch.gguf_tokenizer import tokenizer_of

TEXTS, LENGTH = 128, 384  # windows of a file, and their tokens
HEAD_LAYERS = 2, 15, 27  # whose outputs an EAGLE-3 head reads, as is usual for 30 layers
STATES = ".states.npy"  # ends the name of a file with those outputs
LIKELY = 24  # tokens of each of the target's distributions that are kept
QUESTION_TEMPERATURE, GREEDY_SHARE, ANSWER_TEMPERATURE = 0.85, 0.8, 0.7
MOST_QUESTION, MOST_ANSWER = 90, 190  # tokens
SYSTEM = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n<|im_start|>user\n"
)
ANSWER = "<|im_end|>\n<|im_start|>assistant\n"
# What a token is: of the template, of a question, or of an answer.
TEMPLATE, QUESTION, GREEDY, SAMPLED = range(4)


class Writer:
    """One window: what its next token is, and what part of a conversation that belongs to.

    Attributes:
        start: position at which the conversation begins.
        kind: of the next token.
    """

    def __init__(self, tokenizer: object, choice: random.Random) -> None:
        self._encode = lambda text: tokenizer(text, add_special_tokens=False).input_ids
        self._choice = choice
        self._system, self._answer = self._encode(SYSTEM), self._encode(ANSWER)
        self._end = self._answer[0]
        self._begin(0)

    def _begin(self, position: int) -> None:
        text, is_whole = prompts.opening(self._choice)
        self.start, self.kind = position, QUESTION
        message = self._encode(text)
        self._forced = [(i, TEMPLATE) for i in self._system] + [(i, QUESTION) for i in message]
        self._written = len(message)
        if is_whole:
            self._ask()

    def _ask(self) -> None:
        """End the question; the answer comes next."""
        self._forced += [(i, TEMPLATE) for i in self._answer]
        self.kind = GREEDY if self._choice.random() < GREEDY_SHARE else SAMPLED
        self._written = 0

    @property
    def temperature(self) -> float:
        """Of the next token, unless it is forced."""
        return {QUESTION: QUESTION_TEMPERATURE, SAMPLED: ANSWER_TEMPERATURE}.get(self.kind, 0.0)

    def next(self, drawn: int, is_question_end: bool, position: int) -> tuple[int, int]:
        """The token at a position and its kind, given what the target would write there."""
        if self._forced:
            return self._forced.pop(0)
        self._written += 1
        kind = self.kind
        if kind == QUESTION:
            if drawn == self._end or self._written > MOST_QUESTION:
                self._ask()
                return self._forced.pop(0)
            if is_question_end and self._written > 20:
                self._ask()
            return drawn, kind
        if drawn == self._end or self._written >= MOST_ANSWER:
            self._begin(position + 1)
            return self._end, kind
        return drawn, kind


def draw(logits: Tensor, temperatures: Tensor) -> Tensor:
    """A token [texts] of each row's logits [texts, n]; the best where the temperature is 0."""
    noise = -torch.empty_like(logits).exponential_().log_()
    return (logits + temperatures[:, None] * noise).argmax(1)


def write_windows(target: Target, writers: list[Writer], ends: Tensor) -> dict[str, np.ndarray]:
    """Windows and what the target thought.

    Returns:
        tokens, kinds, starts [TEXTS, LENGTH]; after each token the target's likeliest ids
        (uint16) and their log-probabilities (float16), [TEXTS, LENGTH, LIKELY]; and at each
        token the outputs of the kept layers (float16), [TEXTS, LENGTH, layers x width], if any.
    """
    shape = TEXTS, LENGTH
    tokens, kinds, starts = (np.zeros(shape, kind) for kind in (np.uint16, np.uint8, np.uint16))
    ids = np.zeros((*shape, LIKELY), np.uint16)
    scores = np.zeros((*shape, LIKELY), np.float16)
    all_states = []
    drawn, question_ends = [0] * TEXTS, [False] * TEXTS
    for position in range(LENGTH):
        for row, writer in enumerate(writers):
            starts[row, position] = writer.start
            pair = writer.next(drawn[row], question_ends[row], position)
            tokens[row, position], kinds[row, position] = pair
        inputs = torch.from_numpy(tokens[:, position].astype(np.int64))
        begins = torch.from_numpy(starts[:, position].astype(np.int64))
        logits, states = target.forward(inputs, position, begins)
        if states:
            all_states.append(torch.cat(states, 1).half().numpy())
        best = logits.topk(LIKELY)
        ids[:, position] = best.indices
        scores[:, position] = best.values - logits.logsumexp(1, keepdim=True)
        temperatures = torch.tensor([writer.temperature for writer in writers])
        choice = best.indices.gather(1, draw(best.values, temperatures)[:, None])[:, 0]
        drawn, question_ends = choice.tolist(), ends[choice].tolist()
    windows = dict(tokens=tokens, kinds=kinds, starts=starts, ids=ids, scores=scores)
    return windows | (dict(states=np.stack(all_states, 1)) if all_states else {})


def main() -> None:
    """Write files until there are enough."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--files", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--states", action="store_true", help="keep hidden states for a head (170 MB a file)"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tokenizer = tokenizer_of(read_header(options.target))
    texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
    ends = torch.tensor([text.strip() in ("?", '?"') for text in texts])
    target = Target(options.target, TEXTS, LENGTH, HEAD_LAYERS if options.states else ())
    options.folder.mkdir(parents=True, exist_ok=True)
    for file in range(options.files):
        started = time.perf_counter()
        seed = options.seed * 1000 + file
        torch.manual_seed(seed)
        choice = random.Random(seed)
        writers = [Writer(tokenizer, choice) for _ in range(TEXTS)]
        windows = write_windows(target, writers, ends)
        path = options.folder / f"{seed:06d}.npz"
        if options.states:
            np.save(path.with_suffix(STATES), windows.pop("states"))
        np.savez(path.with_suffix(".part.npz"), **windows)
        path.with_suffix(".part.npz").rename(path)
        rate = TEXTS * LENGTH / (time.perf_counter() - started)
        print(f"{path.name}: {rate:.0f} tokens/s", flush=True)


if __name__ == "__main__":
    main()

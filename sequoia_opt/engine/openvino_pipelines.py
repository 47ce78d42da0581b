"""OpenVINO GenAI's pipelines, one for each kind of their own speculation.

Knows which files the library reads, what its settings are called, and how its steps are counted.
Knows nothing of how settings are chosen.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from sequoia_opt.engine.gguf_file import read_header
from sequoia_opt.engine.library import DRAFT, LOOKUP, NONE, Speculation
from sequoia_opt.engine.names import GGUF
from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan.chain_replay import StepCounts
from sequoia_opt.plan.chain_tuning import ChainSetting

LIBRARY, PACKAGE = "openvino_genai", "openvino-genai"
MODEL_FILE = "openvino_model.xml"
OWN_GUESSES = 5  # of a chain or a lookup where nothing is set
THRESHOLDS = (0.3, 0.6)
NGRAM = 3  # the most tokens that a lookup looks for, as in the library's samples
READ_TOKENS = 2  # new tokens of a text for which the draft reads the prompt


@dataclass(frozen=True)
class Answer:
    """A text that a pipeline decoded.

    Attributes:
        tokens: the new ones.
        steps: forward passes of the target after the prompt's.
        predicted_ms: time of these.
        accepted: guesses that each of them accepted, [steps].
        drafted: guesses of all of them but the last, which the library does not count; 0 where no
            draft model guesses.
    """

    tokens: list[int]
    steps: int
    predicted_ms: float
    accepted: list[int]
    drafted: int


class OpenVinoPipelines:
    """See `TunableEngine` and `Reader`; a context manager that removes converted files.

    A chain has a length or a threshold, not both. All pipelines stay loaded, each with the
    target's weights. The draft reads a prompt in the first step, which an answer's time leaves
    out.

    Attributes:
        positions: tokens that a text may have; 0 if the files do not say so.
        version: the library's.

    Args:
        files: of target and, perhaps, draft, by role: folders in OpenVINO's format, or GGUF files,
            which are converted.
        threads: that compute.

    Raises:
        SequoiaError: the library is not installed, or cannot read a file.
    """

    default_chain = ChainSetting(OWN_GUESSES)
    ends_unsure_chains = False

    def __init__(self, files: Mapping[str, str], threads: int) -> None:
        self._library = _installed(LIBRARY)
        self._tensor = _installed("openvino").Tensor
        self.version = str(self._library.get_version())
        self.has_draft = "draft" in files
        lookup = Speculation(LOOKUP, OWN_GUESSES)
        unsure = [Speculation(DRAFT, None, threshold) for threshold in THRESHOLDS]
        self.others = [*(unsure if self.has_draft else []), lookup]
        self._properties = {"INFERENCE_NUM_THREADS": threads}
        self._converted = TemporaryDirectory(prefix="sequoia-opt-")
        self._pipelines: dict[str, Any] = {}
        self._files, self._read = dict(files), set[tuple[int, ...]]()
        try:
            self._folders = {role: self._folder(role, path) for role, path in files.items()}
            with _named(files["target"]):
                self._tokenizer = self._library.Tokenizer(self._folders["target"])
        except BaseException:
            self._converted.cleanup()
            raise
        known = [_positions(path) for path in files.values()]
        self.positions = min(filter(None, known), default=0)

    def __enter__(self) -> OpenVinoPipelines:
        return self

    def __exit__(self, *_: object) -> None:
        self._pipelines.clear()
        self._converted.cleanup()

    def tokens(self, text: str) -> list[int]:
        """See `Reader`; chat templates write the token of a beginning themselves."""
        begins = self._tokenizer.get_bos_token()
        special = not (begins and text.startswith(begins))
        inputs = self._tokenizer.encode(text, add_special_tokens=special)
        ids: list[int] = inputs.input_ids.data[0].tolist()
        return ids

    def chat_text(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """See `Reader`."""
        plain = [dict(message) for message in messages]
        try:
            return str(self._tokenizer.apply_chat_template(plain, add_generation_prompt=True))
        except RuntimeError as error:
            raise SequoiaError(f"the chat template fails ({_reason(error)})") from None

    def answer(self, speculation: Speculation, prompt: list[int], new_tokens: int) -> Answer:
        """See `TunableEngine`."""
        if speculation.kind == DRAFT and tuple(prompt) not in self._read:
            self._decoded(speculation, prompt, READ_TOKENS)
            self._read.add(tuple(prompt))
        return self._decoded(speculation, prompt, new_tokens)

    def _decoded(self, speculation: Speculation, prompt: list[int], new_tokens: int) -> Answer:
        config = self._library.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = new_tokens, True, False
        for name, value in settings_of(speculation).items():
            setattr(config, name, value)
        steps = _steps_seen(self._library)
        inputs = self._tensor(np.array([prompt], np.int64))
        pipeline = self._pipeline(speculation.kind)
        try:
            result = pipeline.generate(inputs, config, steps)
        except RuntimeError as error:
            raise SequoiaError(f"{LIBRARY}: decoding failed ({_reason(error)})") from None
        tokens, counts, times = list(result.tokens[0]), steps.counts, steps.times
        metrics = result.extended_perf_metrics if speculation.kind == DRAFT else None
        if sum(counts) != len(tokens):
            raise SequoiaError(
                f"{LIBRARY} {self.version}: told {sum(counts)} of {len(tokens)} tokens step by "
                "step, expected all; another version may tell them"
            )
        return Answer(
            tokens=tokens,
            steps=len(counts) - 1,
            predicted_ms=1000 * (times[-1] - times[0]),
            accepted=[count - 1 for count in counts[1:]],
            drafted=0 if metrics is None else metrics.get_num_draft_tokens(),
        )

    def counted(self, speculation: Speculation, prompt: list[int], new_tokens: int) -> StepCounts:
        """See `TunableEngine`; for chains of some length.

        The library tells the guesses of all steps together. Each chain is full, but at the text's
        end: its last token is never guessed.
        """
        assert speculation.guesses is not None
        answer = self.answer(speculation, prompt, new_tokens)
        steps, left = StepCounts(), new_tokens - 1
        for accepted in answer.accepted:
            steps.add(min(speculation.guesses, left - 1), accepted)
            left -= accepted + 1
        expected = sum(steps.drafted[:-1])
        if answer.drafted == 0 < expected:
            return StepCounts([0] * answer.steps, [0] * answer.steps)  # it never drafts
        if answer.drafted != expected:
            raise SequoiaError(
                f"{LIBRARY} {self.version}: drafted {answer.drafted} guesses, expected {expected}; "
                "another version may draft in another way"
            )
        return steps

    def _pipeline(self, kind: str) -> Any:
        """The pipeline of a kind of speculation, loaded when it is first asked for."""
        if kind not in self._pipelines:
            options: dict[str, Any] = dict(self._properties)
            if kind == DRAFT:
                draft = self._library.draft_model
                with _named(self._files["draft"]):
                    folder = self._folders["draft"]
                    options["draft_model"] = draft(folder, "CPU", **self._properties)
            elif kind == LOOKUP:
                options["prompt_lookup"] = True
            models = self._files.values() if kind == DRAFT else [self._files["target"]]
            with _named(" with ".join(models)):
                self._pipelines[kind] = self._library.LLMPipeline(
                    self._folders["target"], "CPU", **options
                )
        return self._pipelines[kind]

    def _folder(self, role: str, path: str) -> str:
        """A model's folder in OpenVINO's format; of a GGUF file, one that is removed at the end."""
        if not path.lower().endswith(GGUF):
            if not (Path(path) / MODEL_FILE).is_file():
                raise SequoiaError(
                    f"{path}: found no {MODEL_FILE}, expected a {GGUF} file, or a folder that "
                    "`optimum-cli export openvino` wrote"
                )
            return path
        parts = read_header(path).parts
        folder = Path(self._converted.name) / role
        folder.mkdir()
        for part in parts:
            os.symlink(os.path.abspath(part), folder / part.name)
        hint = (
            "; it reads Llama and Qwen models of 4, 8 or 16 bits; others have to be converted by "
            "`optimum-cli export openvino`"
        )
        with _named(path, hint):
            first = str(folder / parts[0].name)
            self._library.LLMPipeline(first, "CPU", enable_save_ov_model=True)
        return str(folder)


@contextmanager
def _named(models: str, hint: str = "") -> Iterator[None]:
    """Names the models in errors of the library."""
    try:
        yield
    except (RuntimeError, IndexError, ValueError) as error:
        raise SequoiaError(
            f"{models}: OpenVINO GenAI cannot load it ({_reason(error)}){hint}"
        ) from None


def settings_of(speculation: Speculation) -> dict[str, Any]:
    """The fields of `GenerationConfig` for a setting."""
    if speculation.kind == NONE:
        return {}
    if speculation.threshold:  # the library refuses both
        return {
            "num_assistant_tokens": None,
            "assistant_confidence_threshold": speculation.threshold,
        }
    guesses = {"num_assistant_tokens": speculation.guesses or OWN_GUESSES}
    return guesses | ({"max_ngram_size": NGRAM} if speculation.kind == LOOKUP else {})


def pasted(files: Mapping[str, str], speculation: Speculation, threads: int) -> str:
    """The lines of Python that decode with a setting.

    Args:
        files, threads: see `OpenVinoPipelines`.
    """
    lines = ["import openvino_genai", ""]
    device = f'"CPU", INFERENCE_NUM_THREADS={threads}'
    options = ""
    if speculation.kind == LOOKUP:
        options = ", prompt_lookup=True"
    elif speculation.kind == DRAFT:
        draft = files["draft"]
        if draft.lower().endswith(GGUF):
            lines += [
                f"# Once: converts the draft, and writes {MODEL_FILE} and other files beside it.",
                f'openvino_genai.LLMPipeline({_text(draft)}, "CPU", enable_save_ov_model=True)',
            ]
            draft = os.path.dirname(os.path.abspath(draft))
        lines.append(f"draft = openvino_genai.draft_model({_text(draft)}, {device})")
        options = ", draft_model=draft"
    target = _text(files["target"])
    lines.append(f"pipeline = openvino_genai.LLMPipeline({target}, {device}{options})")
    settings = settings_of(speculation)
    if settings:
        lines.append("config = pipeline.get_generation_config()")
        lines += [f"config.{name} = {value!r}" for name, value in settings.items()]
    return "\n".join(lines)


def _text(path: str) -> str:
    """A path as Python has it."""
    return json.dumps(path, ensure_ascii=False)


def _installed(name: str) -> Any:
    """A module of the library."""
    try:
        return import_module(name)
    except ImportError as error:
        raise SequoiaError(
            f"OpenVINO GenAI is not there ({error}); install it: pip install {PACKAGE}"
        ) from None


def _steps_seen(library: Any) -> Any:
    """A streamer that counts each step's tokens and takes its time."""

    # The base is known only where the library is installed, so its type is Any.
    class Steps(library.StreamerBase):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.counts: list[int] = []
            self.times: list[float] = []

        def write(self, tokens: int | Sequence[int]) -> Any:
            self.counts.append(1 if isinstance(tokens, int) else len(tokens))
            self.times.append(time.perf_counter())
            return library.StreamingStatus.RUNNING

        def end(self) -> None:
            pass

    return Steps()


def _positions(path: str) -> int:
    """The positions of a model; 0 if its files do not say so."""
    if path.lower().endswith(GGUF):
        return read_header(path).positions or 0
    try:
        config = json.loads((Path(path) / "config.json").read_text("utf-8"))
        return int(config.get("max_position_embeddings") or 0)
    except (OSError, ValueError, AttributeError):
        return 0


def _reason(error: Exception) -> str:
    """The last line of an error of the library, which says what was wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__

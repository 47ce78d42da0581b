"""A stand-in for OpenVINO GenAI whose texts and accepted guesses are known.

A prompt's text is its tokens over and over. The draft's guess of a token is right, but at every
place that the prompt's last token divides; a lookup's never is.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest


class StreamerBase:
    pass


class Pipeline:
    """Refuses files whose name says that they are broken."""

    def __init__(self, path: str, device: str, **options: Any) -> None:
        if "broken" in str(Path(path).resolve()):
            raise RuntimeError("Exception from src/x.cpp:7:\nUnsupported quantization type\n\n")
        self.path, self.options = path, options
        made.append(self)
        if options.get("enable_save_ov_model"):
            (Path(path).parent / "openvino_model.xml").write_text("<net/>")

    def generate(self, inputs: Any, config: Any, steps: Any) -> Any:
        """Tell a text step by step: one token or a list of them."""
        prompt = inputs.data[0].tolist()
        text = [prompt[i % len(prompt)] for i in range(config.max_new_tokens)]
        drafts = "draft_model" in self.options
        most = getattr(config, "num_assistant_tokens", len(text))
        steps.write(text[0])
        place, drafted, last = 1, 0, 0
        if most is None:
            most = len(text)
        while place < len(text):
            guesses = min(most, len(text) - 1 - place) if drafts else 0
            wrong = [i for i in range(guesses) if (place + i) % prompt[-1] == 0]
            count = 1 + min([*wrong, guesses])
            drafted, last = drafted + guesses, guesses
            told = text[place : place + count]
            steps.write(told[0] if count == 1 else told)
            place += count
        metrics = SimpleNamespace(get_num_draft_tokens=lambda: drafted - last)
        return SimpleNamespace(tokens=[text], extended_perf_metrics=metrics if drafts else None)

    def get_generation_config(self) -> Any:
        return SimpleNamespace()


class Tokenizer:
    def __init__(self, path: str) -> None:
        assert (Path(path) / "openvino_model.xml").is_file()

    def get_bos_token(self) -> str:
        return "<s>"

    def encode(self, text: str, add_special_tokens: bool = True) -> Any:
        begin = [1] if add_special_tokens else []
        rest = text.replace("<s>", "\x01").encode()
        return SimpleNamespace(input_ids=SimpleNamespace(data=np.array([[*begin, *rest]])))

    def apply_chat_template(
        self, messages: list[dict[str, str]], add_generation_prompt: bool
    ) -> str:
        if messages[0]["role"] == "tool":
            raise RuntimeError("Exception:\nno such role")
        return "".join(message["content"] for message in messages) + ">" * add_generation_prompt


made: list[Pipeline] = []  # since `install`


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put it where the library is imported from."""
    made.clear()
    library = SimpleNamespace(
        get_version=lambda: "2026.4",
        LLMPipeline=Pipeline,
        Tokenizer=Tokenizer,
        GenerationConfig=SimpleNamespace,
        StreamerBase=StreamerBase,
        StreamingStatus=SimpleNamespace(RUNNING=0),
        draft_model=lambda path, device, **options: (path, device, options),
    )
    monkeypatch.setitem(sys.modules, "openvino_genai", library)
    tensor = SimpleNamespace(Tensor=lambda data: SimpleNamespace(data=data))
    monkeypatch.setitem(sys.modules, "openvino", tensor)

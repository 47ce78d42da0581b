"""Loads a target and a draft from GGUF files, and checks that the two fit together.

Knows files, names, settings and vocabularies. Knows nothing of trees.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sequoia_opt.engine.cpu import computing_threads
from sequoia_opt.engine.drafters import FINGERPRINT, Drafter, LookupDrafter, ModelDrafter
from sequoia_opt.engine.gguf_file import (
    GgufHeader,
    check_model,
    fingerprint,
    is_gguf,
    read_header,
    stem,
)
from sequoia_opt.engine.llama_cpp.library import has_gpu
from sequoia_opt.engine.llama_cpp.machine import LlamaMachine
from sequoia_opt.engine.llama_cpp.model import LlamaModel
from sequoia_opt.engine.llama_cpp.server_library import ServerLibrary
from sequoia_opt.engine.llama_cpp.settings import ALL_LAYERS, Settings
from sequoia_opt.engine.llama_cpp.tokenizer import tokenizer_of
from sequoia_opt.engine.names import GGUF
from sequoia_opt.engine.pair import ROLES, Pair
from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan.draft_names import LOOKUP

SAME_TOKENS = 0.05  # share of two vocabularies that may differ, as long as no usual text has them
SPECIAL = (3, 4, 5)  # llama.cpp's types of control, user-defined and unused tokens


def load(sources: Mapping[str, str], options: Mapping[str, Any], names: Mapping[str, str]) -> Pair:
    """Load a pair.

    Args:
        sources: GGUF files, by role; without a draft, a lookup drafts.
        options: fields of `Settings`; by default all processors, and the GPU if there is one.
        names: short names, by role, where they are not to follow from the files.

    Raises:
        SequoiaError: a file cannot be read or run, or the two do not fit together.
    """
    headers = headers_of(sources, otherwise=", or use --engine torch")
    settings = settings_of(options, has_gpu())
    models = {
        role: LlamaModel(Path(sources[role]), header, settings) for role, header in headers.items()
    }
    target, draft = models["target"], models.get("draft")
    drafter: Drafter = LookupDrafter()
    if draft is not None:
        drafter = ModelDrafter(draft, target.vocabulary)
    tokenizer = tokenizer_of(target.model)
    short = {"draft": LOOKUP} | {role: stem(source) for role, source in sources.items()}
    short |= names
    return Pair(
        target=target,
        drafter=drafter,
        machine=LlamaMachine(settings),
        library=ServerLibrary(sources, target.model, settings),
        target_name=short["target"],
        draft_name=short["draft"],
        fingerprints={"draft": FINGERPRINT}
        | {role: fingerprint(header) for role, header in headers.items()},
        tokenizer=tokenizer,
        end_tokens=frozenset() if tokenizer is None else tokenizer.end_tokens,
    )


def headers_of(sources: Mapping[str, str], otherwise: str = "") -> dict[str, GgufHeader]:
    """The headers of a pair's files, by role, once it is known that the files fit together.

    Args:
        otherwise: what to do instead of converting a file of another format, for the error.

    Raises:
        SequoiaError: a file is no GGUF file or no model, or the vocabularies differ.
    """
    for role, source in sources.items():
        if not is_gguf(source):
            raise SequoiaError(
                f"{source}: llama.cpp runs {GGUF} files; convert the {role} with its "
                f"convert_hf_to_gguf.py{otherwise}"
            )
    headers = {role: read_header(source) for role, source in sources.items()}
    for header in headers.values():
        check_model(header)
    if "draft" in headers:
        _check_vocabularies(headers)
    return headers


def settings_of(options: Mapping[str, Any], uses_gpu: bool) -> Settings:
    """The settings that options ask for, with this machine's defaults.

    Args:
        uses_gpu: whether what runs the models has a GPU, which then holds all layers by default.

    Raises:
        SequoiaError: an option is out of range.
    """
    defaults: dict[str, Any] = {
        "threads": computing_threads(),
        "gpu_layers": ALL_LAYERS if uses_gpu else 0,
    }
    return Settings(**defaults | dict(options))


def _check_vocabularies(headers: Mapping[str, GgufHeader]) -> None:
    """Refuse a draft whose token ids mean other tokens than the target's.

    As on torch, tokens that only one has may differ, and so may a few special ones.

    Raises:
        SequoiaError: they do.
    """
    target, draft = (headers[role] for role in ROLES)
    texts = [header.array("tokenizer.ggml.tokens") for header in (target, draft)]
    if texts[0] == texts[1]:
        return
    names = f"target {target.path} and draft {draft.path}"
    if not texts[0] or not texts[1]:
        if target.vocabulary != draft.vocabulary:
            raise SequoiaError(
                f"{names} have different vocabularies ({target.vocabulary} and "
                f"{draft.vocabulary} tokens); a draft must share its target's"
            )
        return
    kinds = [header.array("tokenizer.ggml.token_type") for header in (target, draft)]
    special = {i for own in kinds for i, kind in enumerate(own) if kind in SPECIAL}
    pairs = enumerate(zip(*texts, strict=False))
    differing = [i for i, (first, second) in pairs if first != second]
    usual = [i for i in differing if i not in special]
    common = min(map(len, texts))
    if usual or len(differing) > SAME_TOKENS * common:
        token = (usual or differing)[0]
        raise SequoiaError(
            f"{names} have different tokenizers: {len(differing)} of {common} tokens differ, "
            f"like token {token}, {texts[0][token]!r} and {texts[1][token]!r}; a draft must share "
            "its target's"
        )

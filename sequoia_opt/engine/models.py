"""Loads a pair of models and checks that the two fit together.

Knows names, folders, dtypes, devices and tokenizers. Knows nothing of trees.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerBase,
)
from transformers import logging as transformers_logging
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils.hub import cached_file

from sequoia_opt import demo
from sequoia_opt.engine.checkpoint import Checkpoint
from sequoia_opt.engine.memory import check_fits, weight_bytes
from sequoia_opt.engine.offload import PLACES, Offload, empty_model, place, random_model
from sequoia_opt.engine.runner import Runner
from sequoia_opt.engine.streaming import LayerStream
from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan.files import one_line

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
WEIGHT_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
TOKENIZER_FILES = ("*token*", "vocab.*", "*.model")
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
GENERATION = "generation_config.json"
ROLES = ("target", "draft")
IGNORED_CONFIG = {"_name_or_path", "transformers_version", "dtype", "torch_dtype"}


@dataclass
class Pair:
    """A target and a draft that share a tokenizer, ready to run.

    Attributes:
        target_name, draft_name: short names, as in the files.
        fingerprints: of both, by "target" and "draft".
        tokenizer: None where the models' folders have none.
        end_tokens: tokens that end a text.
        graphs: whether steps are recorded as CUDA graphs and replayed.
        random_weights: whether the models came without their weights, for their speed alone.
        offload: where layers of the target are that do not fit: "none", "cpu" or "disk".
        memory_budget: bytes of the target's weights that may stay on the device, if offloaded.
        user: whose text the buffers hold: a pair runs one generation at a time.
    """

    target: Runner
    draft: Runner
    target_name: str
    draft_name: str
    fingerprints: dict[str, str]
    tokenizer: PreTrainedTokenizerBase | None
    end_tokens: frozenset[int]
    graphs: bool = False
    random_weights: bool = False
    offload: str = "none"
    memory_budget: int | None = None
    user: object = None

    @property
    def device(self) -> torch.device:
        """Where both models are."""
        return self.target.device

    @property
    def dtype(self) -> str:
        """The target's dtype, as in the files."""
        return str(self.target.dtype).removeprefix("torch.")

    @property
    def compiled(self) -> list[str]:
        """The roles whose forwards in a step are compiled graphs."""
        return [role for role in ROLES if getattr(self, role).compiled]

    def compile(self, roles: Collection[str] = ROLES, batch: int = 1) -> None:
        """Run the forwards of these roles as compiled graphs from now on: takes a minute, the
        first time.

        Args:
            batch: sequences of a forward: graphs are for one, or for any larger number.

        Raises:
            SequoiaError: a model cannot be compiled.
        """
        for role in roles:
            getattr(self, role).compile(batch)

    def encode(self, text: str, beginning: bool = True) -> list[int]:
        """Token ids of a text.

        Args:
            beginning: it begins a document, so the tokenizer may put its special tokens before
                it; an empty one is the beginning-of-text token.

        Raises:
            SequoiaError: the models came without a tokenizer, or nothing stands for no text.
        """
        if self.tokenizer is None:
            raise SequoiaError(
                f"{self.target.name}: has no tokenizer; put its tokenizer.json into the folder"
            )
        ids: list[int] = self.tokenizer(text, add_special_tokens=beginning)["input_ids"]
        if beginning and not ids:
            if self.tokenizer.bos_token_id is None:
                raise SequoiaError("the prompt is empty; give at least one token")
            ids = [self.tokenizer.bos_token_id]
        return ids

    def decode(self, tokens: list[int]) -> str:
        """Text of token ids, special ones left out."""
        if self.tokenizer is None:
            raise SequoiaError(f"{self.target.name}: has no tokenizer")
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))


def load_pair(
    target: str | Path | None = None,
    draft: str | Path | None = None,
    device: str | None = None,
    dtype: str | None = None,
    graphs: bool | None = None,
    random_weights: bool = False,
    offload: str = "none",
    memory_budget: int | None = None,
) -> Pair:
    """Load two models by hub id or local folder; by default the bundled pair.

    Args:
        device: "cpu", "cuda", "cuda:1", …; by default CUDA where there is one.
        dtype: a name in DTYPES; by default bfloat16 on CUDA and float32 elsewhere.
        graphs: whether to record steps as CUDA graphs; by default on CUDA.
        random_weights: make the models up from their config.json alone: they are as fast.
        offload: where layers of the target stay that do not fit onto the device: "cpu", in host
            memory, or "disk".
        memory_budget: bytes of the target's weights that may stay on the device, the buffers of
            two layers apart; by default most of what is free.

    Raises:
        SequoiaError: a model cannot be loaded or run, or the two do not fit together.
    """
    target, draft = str(target or demo.TARGET_NAME), str(draft or demo.DRAFT_NAME)
    where = usable_device(device)
    if graphs and where.type != "cuda":
        raise SequoiaError(f"graphs: steps on {where.type} cannot be recorded, only on cuda")
    _check_offload(offload, memory_budget, where, graphs, random_weights)
    if dtype is not None and dtype not in DTYPES:
        raise SequoiaError(f"dtype: found {dtype!r}, expected one of {', '.join(DTYPES)}")
    if where.type == "cuda":
        # Where cuDNN is preferred for attention (from torch 2.11 on, on Hopper and later), it
        # plans anew for every shape, which a tree's change with the text's length.
        torch.backends.cuda.enable_cudnn_sdp(False)
    kind = DTYPES[dtype or ("bfloat16" if where.type == "cuda" else "float32")]
    sources = {"target": demo.resolve(target), "draft": demo.resolve(draft)}
    configs = {role: _load_config(source) for role, source in sources.items()}
    tokenizers = {role: _load_tokenizer(source) for role, source in sources.items()}
    _check_fit(sources, configs, tokenizers)
    whole = [role for role in ROLES if role == "draft" or offload == "none"]
    check_fits(
        sum(weight_bytes(configs[role], kind) or 0 for role in whole),
        where,
        f"the weights of {' and '.join(sources[role] for role in whole)}",
        "use a smaller dtype, another device or smaller models, or --offload",
    )
    runners = {}
    for role in reversed(ROLES):  # what is left after the draft is the target's
        source, config = sources[role], configs[role]
        if random_weights:
            _check_dense(source, config)
        if role not in whole:
            wanted = Offload(offload, memory_budget)
            model, stream = _load_offloaded(source, config, where, kind, wanted, random_weights)
            runners[role] = Runner(model, source, stream)
        elif random_weights:
            runners[role] = Runner(_random_model(config, where, kind), source)
        else:
            runners[role] = Runner(_load_model(source, where, kind), source)
    return Pair(
        target=runners["target"],
        draft=runners["draft"],
        target_name=short_name(target),
        draft_name=short_name(draft),
        fingerprints={role: fingerprint(sources[role], configs[role]) for role in sources},
        tokenizer=tokenizers["target"] or tokenizers["draft"],
        end_tokens=_end_tokens(runners["target"].model, tokenizers["target"]),
        graphs=where.type == "cuda" and offload == "none" if graphs is None else graphs,
        random_weights=random_weights,
        offload=offload,
        memory_budget=memory_budget,
    )


def short_name(name: str) -> str:
    """A model's name for files and tables: a hub id as it is, a folder's last part."""
    return Path(name).resolve().name if Path(name).is_dir() else name


def fingerprint(source: str, config: Any) -> str:
    """Hash of the canonical config and of the weight files' index or header, 16 digits."""
    canonical = {k: v for k, v in config.to_dict().items() if k not in IGNORED_CONFIG}
    digest = hashlib.sha256(json.dumps(canonical, sort_keys=True, default=str).encode())
    for name in WEIGHT_FILES:
        path = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
        if path is not None:
            with open(path, "rb") as stream:
                start = stream.read(8)
                length = int.from_bytes(start, "little") if name == "model.safetensors" else 2**24
                digest.update(start + stream.read(min(length, 2**24)))
            break
    return digest.hexdigest()[:16]


def usable_device(device: str | None) -> torch.device:
    """The device of that name; by default CUDA where there is one.

    Raises:
        SequoiaError: it cannot be used.
    """
    try:
        where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(1, device=where)
    except (RuntimeError, AssertionError) as error:
        raise SequoiaError(f"device {device!r} cannot be used ({one_line(error)[:120]})") from None
    return where


def _load_config(source: str) -> Any:
    if Path(source).is_dir() and not (Path(source) / "config.json").is_file():
        raise SequoiaError(f"{source}: no config.json; expected a Hugging Face model folder")
    try:
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SequoiaError(f"{source}: cannot be loaded ({one_line(error)[:200]})") from None
    kind = config.model_type
    if config.is_encoder_decoder or kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise SequoiaError(f"{source}: architecture {kind!r} is not a decoder-only language model")
    return config


def _load_tokenizer(source: str) -> PreTrainedTokenizerBase | None:
    folder = Path(source)
    if folder.is_dir() and not any(f for p in TOKENIZER_FILES for f in folder.glob(p)):
        return None
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SequoiaError(
            f"{source}: its tokenizer cannot be loaded ({one_line(error)[:200]})"
        ) from None
    return tokenizer


def _check_fit(
    sources: dict[str, str],
    configs: dict[str, Any],
    tokenizers: dict[str, PreTrainedTokenizerBase | None],
) -> None:
    """A draft's token ids must mean what the target's do."""
    names = f"target {sources['target']} and draft {sources['draft']}"
    first, second = tokenizers["target"], tokenizers["draft"]
    if first is not None and second is not None:
        if first.get_vocab() != second.get_vocab():
            raise SequoiaError(
                f"{names} have different tokenizers ({len(first)} and {len(second)} tokens); "
                "a draft must share its target's"
            )
        return
    sizes = [configs[role].get_text_config().vocab_size for role in ("target", "draft")]
    if sizes[0] != sizes[1]:
        raise SequoiaError(
            f"{names} have different vocabularies ({sizes[0]} and {sizes[1]} tokens); "
            "a draft must share its target's"
        )


def _check_weights(source: str) -> None:
    """Refuse a folder without weights."""
    folder = Path(source)
    if folder.is_dir() and not any((folder / name).is_file() for name in WEIGHT_FILES):
        raise SequoiaError(f"{source}: no weights; expected model.safetensors in the folder")


def _load_model(source: str, device: torch.device, dtype: torch.dtype) -> torch.nn.Module:
    _check_weights(source)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, output_loading_info=True
        )
        model, info = loaded
        if info["missing_keys"]:
            missing = sorted(info["missing_keys"])
            raise SequoiaError(
                f"{source}: weights are missing for {missing[0]} and {len(missing) - 1} others; "
                "config.json and the weights do not belong together"
            )
        placed: torch.nn.Module = model.to(device)
        return placed
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise SequoiaError(f"{source}: cannot be loaded ({one_line(error)[:200]})") from None
    except Exception as error:  # safetensors raises its own kind for a damaged file
        if type(error).__module__.startswith("safetensors") or "safetensor" in str(type(error)):
            raise SequoiaError(f"{source}: damaged weights ({one_line(error)[:200]})") from None
        raise


def _check_offload(
    offload: str,
    budget: int | None,
    device: torch.device,
    graphs: bool | None,
    random_weights: bool,
) -> None:
    """Refuse what cannot be offloaded."""
    if offload not in PLACES:
        raise SequoiaError(f"offload: found {offload!r}, expected one of {', '.join(PLACES)}")
    if offload == "none":
        if budget is not None:
            raise SequoiaError("memory budget: nothing is offloaded; add --offload cpu or disk")
        return
    if offload == "cpu" and device.type == "cpu":
        raise SequoiaError(
            "offload: the models run on the cpu, where --offload cpu would leave the weights; "
            "--offload disk reads them as they are used"
        )
    if offload == "disk" and random_weights:
        raise SequoiaError("offload: random weights are on no disk; use --offload cpu on a GPU")
    if graphs:
        raise SequoiaError("graphs: steps of a target that is offloaded cannot be recorded")


def _load_offloaded(
    source: str,
    config: Any,
    device: torch.device,
    dtype: torch.dtype,
    offload: Offload,
    random_weights: bool,
) -> tuple[torch.nn.Module, LayerStream | None]:
    """A model on the device, but for layers that do not fit, and what brings these in."""
    if offload.place == "cpu":
        host = torch.device("cpu")
        loaded = random_model(config, dtype) if random_weights else _load_model(source, host, dtype)
        return loaded, place(loaded, device, offload)
    if getattr(config, "quantization_config", None):
        raise SequoiaError(
            f"{source}: quantised weights are not read from disk as they are; use --offload cpu"
        )
    _check_weights(source)
    model: Any = empty_model(config, dtype)
    if cached_file(source, GENERATION, _raise_exceptions_for_missing_entries=False):
        model.generation_config = GenerationConfig.from_pretrained(source)
    return model, place(model, device, offload, Checkpoint(source))


def _check_dense(source: str, config: Any) -> None:
    """Refuse to make up the weights of a model whose speed depends on them."""
    text = config.get_text_config()
    experts = max(int(getattr(text, name, None) or 0) for name in EXPERTS)
    if experts > 1:
        raise SequoiaError(
            f"{source}: what a mixture of {experts} experts takes depends on its weights, which "
            "route the tokens; load them"
        )


def _random_model(config: Any, device: torch.device, dtype: torch.dtype) -> torch.nn.Module:
    """A model of that architecture, the same every time."""
    kept = torch.random.get_rng_state()
    torch.manual_seed(0)
    with device:
        model: torch.nn.Module = AutoModelForCausalLM.from_config(config, dtype=dtype)
    torch.random.set_rng_state(kept)
    return model


def _end_tokens(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase | None
) -> frozenset[int]:
    """What ends a text, by the model's generation config, its config or the tokenizer."""
    for holder in (getattr(model, "generation_config", None), model.config, tokenizer):
        found = getattr(holder, "eos_token_id", None)
        if found is not None:
            return frozenset(found if isinstance(found, list) else [found])
    return frozenset()


# A table of keys or a progress bar on a user's terminal is noise; what matters is raised.
transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()

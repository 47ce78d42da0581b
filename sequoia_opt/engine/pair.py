"""Loads a pair of models and checks that the two fit together.

Knows names, dtypes, devices and tokenizers; loading.py brings each model in. Knows nothing of
trees.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from sequoia_opt import demo
from sequoia_opt.engine.distributed import ALONE, PATIENCE, SHARE_PATIENCE, World, join, own_device
from sequoia_opt.engine.text import Detokenizer
from sequoia_opt.engine.torch.loading import (
    Loading,
    end_tokens,
    fingerprint,
    load_config,
    load_tokenizer,
)
from sequoia_opt.engine.torch.memory import check_fits, weight_bytes
from sequoia_opt.engine.torch.offload import PLACES, Offload
from sequoia_opt.engine.torch.runner import Runner
from sequoia_opt.errors import SequoiaError, one_line

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
ROLES = ("target", "draft")
SAME_TOKENS = 0.05  # of two vocabularies may differ, if none of them is ordinary text's
# Characters: a tokenizer takes some 200 bytes of memory for each, and no text of that many for
# each position has ever fitted. Shorter ones are tokenized to say how many tokens they have.
LONGEST_TEXT, CHARACTERS_A_POSITION = 2**20, 16
TEMPLATES_OWN = {"messages", "conversation", "chat_template", "tokenize", "add_generation_prompt"}


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
        memory_budget: bytes that an offloaded target may take on the device; None where all of it
            fits.
        world: the processes that the target is spread over.
        peers: those that each have a whole pair, and share out the work.
        user: whose text the buffers hold: a pair runs one generation at a time.
        held: the tokens in both models' first slots, where they are kept for the next text.
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
    world: World = ALONE
    peers: World = ALONE
    user: object = None
    held: list[int] = field(default_factory=list)
    _detokenizer: Detokenizer | None = field(default=None, repr=False, compare=False)

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
        """Token ids of a text, for more to follow.

        Args:
            beginning: it begins a document, so the tokenizer may put its special tokens before
                it; an empty one is the beginning-of-text token. A beginning-of-text token that
                the text itself begins with is not doubled, and a token that the tokenizer puts
                behind every text is left away: nothing is to follow that.

        Raises:
            SequoiaError: the models came without a tokenizer, nothing stands for no text, or the
                text is too long to be tokenized.
        """
        tokenizer = self._known_tokenizer()
        self._check_text(text)
        ids: list[int] = tokenizer(text, add_special_tokens=beginning)["input_ids"]
        if not beginning:
            return ids
        if ids and ids[-1] in self.detokenizer.hidden:
            ids = ids[: len(ids) - self._appended()]
        first = tokenizer.bos_token_id
        doubled = first is not None and ids[:2] == [first, first]
        if doubled and text.startswith(self.detokenizer.spelling(first)):
            ids = ids[1:]
        if not ids:
            if first is None:
                raise SequoiaError("the prompt is empty; give at least one token")
            ids = [first]
        return ids

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any] | None = None
    ) -> str:
        """The chat template's text of a conversation that it is the assistant's turn in.

        Args:
            messages: each with its `role` and `content`.
            options: switches of the template, as enable_thinking.

        Raises:
            SequoiaError: the tokenizer has no chat template, or it does not take the messages or
                the options.
        """
        if self.tokenizer is None or not self.tokenizer.chat_template:
            raise SequoiaError(
                f"{self.target.name}: its tokenizer has no chat template; expected a tokenizer "
                "with one for conversations and --chat, or prompts that are plain text"
            )
        options = dict(options or {})
        try:
            self._check_switches(options)
            return str(
                self.tokenizer.apply_chat_template(
                    [dict(message) for message in messages],
                    tokenize=False,
                    add_generation_prompt=True,
                    **options,
                )
            )
        except SequoiaError:
            raise
        except Exception as error:  # the template's own language raises its own kinds
            raise SequoiaError(
                f"{self.target.name}: its chat template fails ({one_line(error)[:200]}); check "
                "the roles of the messages, --system and --template-option"
            ) from None

    def encode_chat(
        self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any] | None = None
    ) -> list[int]:
        """Token ids of a conversation that it is the assistant's turn in, see `render_chat`."""
        return self.encode(self.render_chat(messages, options), beginning=False)

    @property
    def detokenizer(self) -> Detokenizer:
        """What turns tokens into text.

        Raises:
            SequoiaError: the models came without a tokenizer.
        """
        tokenizer = self._known_tokenizer()
        if self._detokenizer is None or self._detokenizer.tokenizer is not tokenizer:
            self._detokenizer = Detokenizer(tokenizer)
        return self._detokenizer

    def decode(self, tokens: Sequence[int], context: Sequence[int] = ()) -> str:
        """Text of token ids, special ones left out.

        Args:
            context: the tokens before them; by default they begin a text.

        Raises:
            SequoiaError: the models came without a tokenizer.
        """
        return self.detokenizer.text(tokens, context)

    def _known_tokenizer(self) -> PreTrainedTokenizerBase:
        if self.tokenizer is None:
            raise SequoiaError(
                f"{self.target.name}: has no tokenizer; put its tokenizer.json into the folder"
            )
        return self.tokenizer

    def _check_text(self, text: str) -> None:
        """Refuse what is no text, or more than the target could ever read."""
        if re.search("[\ud800-\udfff]", text):
            raise SequoiaError("the prompt is no text: it has half of a character (a surrogate)")
        longest = max(LONGEST_TEXT, CHARACTERS_A_POSITION * self.target.positions)
        if len(text) > longest:
            raise SequoiaError(
                f"the prompt is too long: found {len(text)} characters, expected at most {longest} "
                f"for the {self.target.positions} positions of {self.target.name}"
            )

    def _appended(self) -> int:
        """How many special tokens the tokenizer puts behind every text."""
        tokenizer = self._known_tokenizer()
        bare: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"]
        whole: list[int] = tokenizer("a", add_special_tokens=True)["input_ids"]
        starts = range(len(whole) - len(bare) + 1)
        place = next((i for i in starts if whole[i : i + len(bare)] == bare), None)
        return 0 if place is None else len(whole) - place - len(bare)

    def _check_switches(self, options: Mapping[str, Any]) -> None:
        """Refuse switches that the chat template does not have: they would change nothing."""
        assert self.tokenizer is not None
        template = str(self.tokenizer.get_chat_template())
        for name in options:
            if name in TEMPLATES_OWN or not re.search(rf"\b{re.escape(name)}\b", template):
                raise SequoiaError(
                    f"template-option: found {name}, which the chat template of "
                    f"{self.target.name} does not read; expected a variable of the template, as "
                    "enable_thinking"
                )


def load_pair(
    target: str | Path | None = None,
    draft: str | Path | None = None,
    device: str | None = None,
    dtype: str | None = None,
    graphs: bool | None = None,
    random_weights: bool = False,
    offload: str = "none",
    memory_budget: int | None = None,
    spread: bool = True,
) -> Pair:
    """Load two models by hub id or local folder; by default the bundled pair.

    Args:
        device: "cpu", "cuda", "cuda:1", …; by default CUDA where there is one.
        dtype: a name in DTYPES; by default bfloat16 on CUDA and float32 elsewhere.
        graphs: whether to record steps as CUDA graphs; by default on CUDA.
        random_weights: make the models up from their config.json alone: they are as fast.
        offload: where layers of the target stay that do not fit onto the device: "cpu", in host
            memory, or "disk".
        memory_budget: bytes that an offloaded target may take on the device, with the keys and
            values of a short text, the buffers of two layers apart; by default most of what is
            free.
        spread: under torchrun, spread the target over the processes; else each has all of it.

    Raises:
        SequoiaError: a model cannot be loaded or run, or the two do not fit together.
    """
    target, draft = str(target or demo.TARGET_NAME), str(draft or demo.DRAFT_NAME)
    where = usable_device(device)
    if dtype is not None and dtype not in DTYPES:
        raise SequoiaError(f"dtype: found {dtype!r}, expected one of {', '.join(DTYPES)}")
    kind = DTYPES[dtype or ("bfloat16" if where.type == "cuda" else "float32")]
    _check_offload(offload, memory_budget, where, random_weights)
    world = join(where, PATIENCE if spread else SHARE_PATIENCE)
    parts = world.size if spread else 1
    graphs = _graphs(graphs, where, offload, parts)
    if parts > 1:
        _check_spread(where, offload, random_weights)
    if where.type == "cuda":
        # Where cuDNN is preferred for attention (from torch 2.11 on, on Hopper and later), it
        # plans anew for every shape, which a tree's change with the text's length.
        torch.backends.cuda.enable_cudnn_sdp(False)
    sources = {"target": demo.resolve(target), "draft": demo.resolve(draft)}
    configs = {role: load_config(source, not random_weights) for role, source in sources.items()}
    tokenizers = {role: load_tokenizer(source) for role, source in sources.items()}
    for tokenizer in tokenizers.values():
        if tokenizer is not None:  # a text is what its tokens say, spaces before commas included
            tokenizer.clean_up_tokenization_spaces = False
    _check_fit(sources, configs, tokenizers)
    sizes = {role: _weight_bytes(sources[role], configs[role], kind) for role in ROLES}
    _check_memory(sources, sizes, where, offload, parts)
    plain = Loading(where, kind, random_weights)
    wanted = Offload(offload, memory_budget) if offload != "none" else None
    ways = {"draft": plain, "target": replace(plain, offload=wanted, parts=parts)}
    # The draft first: what is left after it is the target's.
    runners = {role: way.runner(sources[role], configs[role]) for role, way in ways.items()}
    stream = runners["target"].stream
    return Pair(
        target=runners["target"],
        draft=runners["draft"],
        target_name=short_name(target),
        draft_name=short_name(draft),
        fingerprints={
            role: fingerprint(sources[role], configs[role], not random_weights) for role in ROLES
        },
        tokenizer=tokenizers["target"] or tokenizers["draft"],
        end_tokens=end_tokens(runners["target"].model, tokenizers["target"]),
        graphs=graphs,
        random_weights=random_weights,
        offload=offload,
        memory_budget=None if stream is None else stream.budget,
        world=world if spread else ALONE,
        peers=ALONE if spread else world,
    )


def short_name(name: str) -> str:
    """A model's name for files and tables: a hub id as it is, a folder's last part."""
    return Path(name).resolve().name if Path(name).is_dir() else name


def usable_device(device: str | None) -> torch.device:
    """The device of that name; by default CUDA where there is one.

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


def _weight_bytes(source: str, config: Any, dtype: torch.dtype) -> int:
    """What a model's weights take; 0 for quantised ones, which say it nowhere.

    Raises:
        SequoiaError: its configuration describes no model.
    """
    try:
        return weight_bytes(config, dtype) or 0
    except ImportError as error:
        raise SequoiaError(
            f"{source}: cannot be loaded, for want of a package ({one_line(error)[:200]})"
        ) from None
    except Exception as error:  # of many kinds: sizes that do not go together
        reason = f"{type(error).__name__}: {one_line(error)[:160]}"
        raise SequoiaError(f"{source}: its config.json describes no model ({reason})") from None


def _check_fit(
    sources: dict[str, str],
    configs: dict[str, Any],
    tokenizers: dict[str, PreTrainedTokenizerBase | None],
) -> None:
    """Refuse a draft whose token ids mean something else than the target's.

    Ids that only one model has may differ, and so may special or reserved ones, which ordinary text
    does not contain: such a token costs at most a guess, since the text is always the target's.
    """
    names = f"target {sources['target']} and draft {sources['draft']}"
    first, second = tokenizers["target"], tokenizers["draft"]
    if first is not None and second is not None:
        special = set(first.added_tokens_decoder) | set(second.added_tokens_decoder)
        texts = [{i: text for text, i in each.get_vocab().items()} for each in (first, second)]
        differing = sorted(i for i, text in texts[0].items() if texts[1].get(i, text) != text)
        ordinary = [i for i in differing if i not in special]
        common = len(texts[0].keys() & texts[1].keys())
        if ordinary or len(differing) > SAME_TOKENS * common:
            token = (ordinary or differing)[0]
            raise SequoiaError(
                f"{names} have different tokenizers: {len(differing)} of {common} tokens differ, "
                f"like token {token}, {texts[0][token]!r} and {texts[1][token]!r}; a draft must "
                "share its target's"
            )
        return
    sizes = [configs[role].get_text_config().vocab_size for role in ("target", "draft")]
    if sizes[0] != sizes[1]:
        raise SequoiaError(
            f"{names} have different vocabularies ({sizes[0]} and {sizes[1]} tokens); "
            "a draft must share its target's"
        )


def _check_memory(
    sources: dict[str, str], sizes: dict[str, int], device: torch.device, offload: str, parts: int
) -> None:
    """Refuse weights that do not fit where they are to be.

    Args:
        sizes: bytes of each model.
        parts: processes that the target is spread over: on GPUs each has its own memory.
    """
    target = sizes["target"] // (parts if device.type == "cuda" else 1)
    needed, names = sizes["draft"], sources["draft"]
    if offload == "none":
        needed, names = needed + target, f"{sources['target']} and {names}"
    spread = f", the first spread over {parts} processes," if parts > 1 else ""
    check_fits(
        needed,
        device,
        f"the weights of {names}{spread}",
        "use a smaller dtype, another device or smaller models, or --offload",
    )
    if offload == "cpu":
        check_fits(
            target,
            torch.device("cpu"),
            f"the weights of {sources['target']}",
            "use a smaller dtype or a smaller target, or --offload disk",
        )


def _check_spread(device: torch.device, offload: str, random_weights: bool) -> None:
    """Refuse a target that cannot be spread over processes."""
    if offload != "none" or random_weights:
        option = "--random-weights" if random_weights else "--offload"
        raise SequoiaError(
            f"several processes share out a checkpoint's weights; leave {option} away, or run one"
        )
    if device.type == "cpu" and torch.cuda.is_available():
        raise SequoiaError(
            "several processes on the cpu: transformers takes a GPU where it sees one; hide them "
            "from it (CUDA_VISIBLE_DEVICES= torchrun …)"
        )


def _check_offload(
    offload: str,
    budget: int | None,
    device: torch.device,
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


def _graphs(wanted: bool | None, device: torch.device, offload: str, parts: int) -> bool:
    """Whether to record steps: by default where that can be."""
    hindrance = ""
    if device.type != "cuda":
        hindrance = f"steps on {device.type} cannot be recorded, only on cuda"
    elif offload != "none" or parts > 1:
        hindrance = "steps with an offloaded target, or one on several processes, are not recorded"
    if wanted and hindrance:
        raise SequoiaError(f"graphs: {hindrance}")
    return not hindrance if wanted is None else wanted

"""What `decode`, `complete` and `chat` share: the options of decoding, and what they make ready.

Knows options, trees and models. Knows nothing of where texts come from or where they go.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sequoia_opt.cli.engine_options import EngineOptions
from sequoia_opt.cli.loading import load
from sequoia_opt.cli.options import (
    Corpus,
    Device,
    Draft,
    Dtype,
    Graphs,
    Seed,
    Target,
    check_output,
)
from sequoia_opt.cli.tree_defaults import (
    TreeCompile,
    TreeMemoryBudget,
    TreeMinP,
    TreeOffload,
    TreeTemperature,
    TreeTopK,
    TreeTopP,
    TreeVerifier,
    check_world,
    comparable,
    compiled_roles,
    corpus_of,
    models_of,
    offload_of,
    sampling_of,
    tree_for_this_machine,
)
from sequoia_opt.engine.names import engine_for
from sequoia_opt.plan.verifiers import verifier_at

if TYPE_CHECKING:
    from sequoia_opt.engine.decoder import Decoder, Generation
    from sequoia_opt.engine.logits_processors import LogitsOptions
    from sequoia_opt.engine.pair import Pair
    from sequoia_opt.measure.records import Document
    from sequoia_opt.measure.template import Template
    from sequoia_opt.plan.sampling import Sampling
    from sequoia_opt.plan.tree import TokenTree

KeepStatistics = Callable[[int, "Generation"], None]
# Panels of --help.
TEXT, LOGITS, GENERATION_CONFIG = "Text", "Logits", "The target's generation_config.json"
UNPROCESSED = "needs unprocessed logits"


@dataclass(frozen=True)
class DecodingOptions(EngineOptions):
    """How to decode, as the command line says it."""

    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Decode at most this many new tokens.", rich_help_panel=TEXT)
    ] = 128
    stop: Annotated[
        list[str] | None,
        typer.Option(
            help="End the text at this string or special token; may be repeated.",
            show_default="the target's own",
            rich_help_panel=TEXT,
        ),
    ] = None
    ignore_eos: Annotated[
        bool,
        typer.Option(
            "--ignore-eos", help="Continue past end-of-text tokens.", rich_help_panel=TEXT
        ),
    ] = False
    stats: Annotated[
        Path | None,
        typer.Option(
            help="Add what the steps guessed and accepted to this file, for `show`, and with a "
            "fixed tree for `estimate --from-stats`.",
            rich_help_panel=TEXT,
        ),
    ] = None
    temperature: TreeTemperature = None
    top_p: TreeTopP = None
    top_k: TreeTopK = None
    min_p: TreeMinP = None
    verifier: TreeVerifier = None
    seed: Seed = 0
    repetition_penalty: Annotated[
        float | None,
        typer.Option(
            help="Above 1: make the tokens of the prompt and of the new text less likely.",
            show_default="the target's own",
            rich_help_panel=LOGITS,
        ),
    ] = None
    presence_penalty: Annotated[
        float,
        typer.Option(
            help="Subtract this from the logit of each token that the new text has.",
            rich_help_panel=LOGITS,
        ),
    ] = 0.0
    frequency_penalty: Annotated[
        float,
        typer.Option(
            help="Subtract this from a token's logit each time that the new text has it.",
            rich_help_panel=LOGITS,
        ),
    ] = 0.0
    logit_bias: Annotated[
        list[str] | None,
        typer.Option(
            help="Add to the logit of a token: 42=-5; may be repeated.", rich_help_panel=LOGITS
        ),
    ] = None
    generation_config: Annotated[
        bool,
        typer.Option(
            "--generation-config/--no-generation-config",
            help="Apply the target's own penalties, suppressed tokens and stop strings, except "
            "where an option sets them.",
            show_default="apply",
            rich_help_panel=GENERATION_CONFIG,
        ),
    ] = True
    target: Target = None
    draft: Draft = None
    corpus: Corpus = None
    compile: TreeCompile = None
    graphs: Graphs = None
    device: Device = None
    dtype: Dtype = None
    offload: TreeOffload = None
    memory_budget: TreeMemoryBudget = None


@dataclass(frozen=True)
class Decoding:
    """Models and a tree that are ready to decode.

    Attributes:
        tree_path: the file that the tree is from.
        logits_options: the options' and the target's own.
        limits: the keyword arguments of `Decoder.stream`: when a text ends.
        keep_statistics: adds a generation after a prompt of so many tokens to the statistics.
    """

    tree_path: Path
    tree: TokenTree
    pair: Pair
    sampling: Sampling
    logits_options: LogitsOptions
    decoder: Decoder
    limits: dict[str, Any]
    keep_statistics: KeepStatistics


def prepare(
    tree_path: Path | None,
    options: DecodingOptions,
    template: Template,
    documents: Sequence[Document] = (),
    compare: bool = False,
) -> Decoding:
    """Load the tree and the models, and check everything that the options ask for.

    Args:
        tree_path: the bundled pair's tree for this machine if None.
        documents: those that will be decoded, to tell whether the chat template suits them.
        compare: the result will be compared with plain decoding.

    Raises:
        typer.BadParameter: options that exclude each other.
        SequoiaError: a file or a model cannot be used.
    """
    from sequoia_opt.cli.generation_config import merged_logits_options, note_generation_config
    from sequoia_opt.cli.output import note
    from sequoia_opt.plan.tree import TokenTree

    path = tree_path or tree_for_this_machine(
        options.temperature,
        options.compile,
        options.device,
        options.engine or engine_for(filter(None, (options.target, options.draft))),
    )
    tree = TokenTree.load(path)
    check_world(tree)
    sampling = sampling_of(
        tree, options.temperature, options.top_p, options.verifier, options.top_k, options.min_p
    )
    target, draft = models_of(tree, options.target, options.draft)
    from sequoia_opt.engine.decoder import Decoder, check_seed
    from sequoia_opt.engine.own_settings import OwnSettings, own_settings
    from sequoia_opt.measure.encoding import check_template

    check_seed(options.seed)
    logits_options = _logits_options(options)
    if logits_options.change_anything and (compare or options.stats is not None):
        raise typer.BadParameter(
            f"{UNPROCESSED}: drop --repetition-penalty, --presence-penalty, "
            "--frequency-penalty and --logit-bias",
            param_hint="--compare" if compare else "--stats",
        )
    offload, budget = offload_of(tree, options.offload, options.memory_budget)
    pair = load(
        target,
        draft,
        options.device,
        options.dtype,
        compiled_roles(tree, options.compile),
        options.graphs,
        offload=offload,
        memory_budget=budget,
        running=options.on(tree),
        corpus=corpus_of(tree, options.corpus),
    )
    if template.for_all or template.options or documents:
        check_template(pair, documents, template, note)
    config = own_settings(pair) if options.generation_config else OwnSettings()
    logits_options = merged_logits_options(
        logits_options, config, options.repetition_penalty is not None
    )
    if options.stats is not None and logits_options.change_anything:
        raise typer.BadParameter(
            f"{UNPROCESSED}, and generation_config.json of {pair.target_name} has penalties; "
            "add --no-generation-config",
            param_hint="--stats",
        )
    stops = list(config.stop if options.stop is None else options.stop)
    note_generation_config(pair, config, logits_options, sampling, stops)
    decoder = Decoder(
        pair, tree, **asdict(sampling), seed=options.seed, logits_options=logits_options
    )
    limits = {
        "max_new_tokens": options.max_new_tokens,
        "ignore_eos": options.ignore_eos,
        "stop": stops,
    }
    keep = _statistics_keeper(options.stats, pair, path, tree, sampling)
    return Decoding(path, tree, pair, sampling, logits_options, decoder, limits, keep)


def check_stats(options: DecodingOptions, inputs: Sequence[Path | None]) -> None:
    """Find out before long work that the file of statistics cannot be added to.

    Args:
        inputs: the other files that the command reads or writes.
    """
    from sequoia_opt.plan import decode_stats

    check_output(options.stats, inputs=inputs)
    if options.stats is not None and os.path.exists(options.stats):
        decode_stats.check(options.stats)


def _logits_options(options: DecodingOptions) -> LogitsOptions:
    """The logits options that the options set."""
    from sequoia_opt.engine.logits_processors import LogitsOptions

    penalty = options.repetition_penalty
    return LogitsOptions(
        repetition_penalty=1.0 if penalty is None else penalty,
        bias=_biases(options.logit_bias or []),
        frequency_penalty=options.frequency_penalty,
        presence_penalty=options.presence_penalty,
    )


def _biases(options: Sequence[str]) -> dict[int, float]:
    """The bias of each token, from options like 42=-5."""
    biases = {}
    for text in options:
        token, _, bias = text.partition("=")
        try:
            biases[int(token)] = float(bias)
        except ValueError:
            raise typer.BadParameter(
                f"found {text!r}, expected a token's number and its bias, as 42=-5",
                param_hint="--logit-bias",
            ) from None
    return biases


def _statistics_keeper(
    path: Path | None, pair: Pair, tree_path: Path, tree: TokenTree, sampling: Sampling
) -> KeepStatistics:
    """The function that adds a generation to a file of statistics; without one, to nothing."""
    from sequoia_opt.files.names import content_fingerprint
    from sequoia_opt.plan import decode_stats
    from sequoia_opt.plan.growth_stats import Growths, Prediction

    if path is None:
        return lambda prompt_length, generation: None
    setting = decode_stats.Setting(
        pair.target_name,
        pair.draft_name,
        sampling.temperature,
        sampling.top_p,
        verifier_at(sampling.temperature, sampling.verifier),
        sampling.top_k,
        sampling.min_p,
        fingerprints=(pair.fingerprints["target"], pair.fingerprints["draft"]),
    )

    def keep(prompt_length: int, generation: Generation) -> None:
        context = prompt_length + len(generation.tokens) / 2
        decode_stats.add(path, decode_stats.Text(setting, tree, dict(generation.ended), context))

    if tree.policy is None:
        return keep
    plan = content_fingerprint(tree_path)
    predicted = Prediction.of(tree) if comparable(tree, pair, sampling).tokens else None

    def keep_growth(prompt_length: int, generation: Generation) -> None:
        growths = Growths(
            setting=setting,
            plan=plan,
            context=prompt_length + len(generation.tokens) / 2,
            accepted=dict(generation.ended),
            sizes=dict(generation.sizes),
            levels=dict(generation.levels),
            stops=dict(generation.stops),
            guesses=generation.guesses,
            predicted=predicted,
        )
        decode_stats.add(path, growths)

    return keep_growth

"""The options that choose the engine, and how it runs the models.

Knows option names and help texts, and how they go with what a tree was solved for. Knows nothing
of the engines.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sequoia_opt.cli.options import alternatives
from sequoia_opt.engine.llama_cpp.settings import CACHE_TYPES, FLASH_ATTENTION, Settings
from sequoia_opt.engine.names import ENGINES, GGUF, LLAMA_CPP, TORCH
from sequoia_opt.errors import SequoiaError

if TYPE_CHECKING:
    from sequoia_opt.plan.tree import TokenTree

ENGINE = "Engine"  # panel of --help
OF_LLAMA_CPP = "On llama.cpp: "


def _one_of(names: Collection[str]) -> Callable[[str | None], str | None]:
    """What refuses any other name."""

    def checked(name: str | None) -> str | None:
        if name is not None and name not in names:
            raise typer.BadParameter(f"found {name!r}, expected {alternatives(names)}")
        return name

    return checked


@dataclass(frozen=True)
class EngineSettings:
    """How an engine runs the models; None for a tree's or the machine's default."""

    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of threads that compute on the CPU.",
            show_default="one for each core",
            rich_help_panel=ENGINE,
        ),
    ] = None
    gpu_layers: Annotated[
        int | None,
        typer.Option(
            min=-1,
            help=f"{OF_LLAMA_CPP}number of layers to keep on the GPU; -1 for all.",
            show_default="all, if there is a GPU",
            rich_help_panel=ENGINE,
        ),
    ] = None
    flash_attention: Annotated[
        str | None,
        typer.Option(
            help=f"{OF_LLAMA_CPP}flash attention: {', '.join(FLASH_ATTENTION)}.",
            show_default="auto",
            rich_help_panel=ENGINE,
            callback=_one_of(FLASH_ATTENTION),
        ),
    ] = None
    cache_type_k: Annotated[
        str | None,
        typer.Option(
            help=f"{OF_LLAMA_CPP}number type of the keys: {', '.join(CACHE_TYPES)}.",
            show_default="f16",
            rich_help_panel=ENGINE,
            callback=_one_of(CACHE_TYPES),
        ),
    ] = None
    cache_type_v: Annotated[
        str | None,
        typer.Option(
            help=f"{OF_LLAMA_CPP}number type of the values, as of the keys.",
            show_default="f16",
            rich_help_panel=ENGINE,
            callback=_one_of(CACHE_TYPES),
        ),
    ] = None
    context_size: Annotated[
        int | None,
        typer.Option(
            min=0,
            help=f"{OF_LLAMA_CPP}number of tokens that a cache holds; 0 for what each text needs.",
            show_default="0",
            rich_help_panel=ENGINE,
        ),
    ] = None

    @property
    def settings(self) -> dict[str, Any]:
        """The engine's settings that were asked for, by name."""
        values = {name: getattr(self, name) for name in SETTINGS}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class EngineOptions(EngineSettings):
    """The engine and its settings; None for a tree's or the machine's default."""

    engine: Annotated[
        str | None,
        typer.Option(
            help=f"Engine: {' or '.join(ENGINES)}.",
            show_default=f"llama.cpp for {GGUF} files, else torch",
            rich_help_panel=ENGINE,
            callback=_one_of(ENGINES),
        ),
    ] = None

    def on(self, tree: TokenTree) -> EngineOptions:
        """The engine that runs a tree, None to decide by the models; and its settings.

        The tree brings the settings of its engine along. Threads suit one machine alone, so those
        of another one are neither carried over nor compared.

        Raises:
            SequoiaError: an option differs from what the tree was solved for.
        """
        solved = tree.metadata.get("engine", {})
        engine = self.engine or solved.get("name")
        if engine not in (None, *ENGINES):
            raise SequoiaError(
                f"the tree was solved for {engine}, which runs no trees; `sequoia-opt export` "
                "writes its settings, and --engine runs it elsewhere"
            )
        if (engine or TORCH) != solved.get("name", TORCH):
            return EngineOptions(engine=engine, **self.settings)
        carried = {name: solved[name] for name in SETTINGS if name in solved}
        if not _has_its_threads_here(tree):
            carried.pop("threads", None)
        for name, value in self.settings.items():
            if name in carried and carried[name] != value:
                option = name.replace("_", "-")
                solved_for = _THE_MODELS.get((name, carried[name]), carried[name])
                raise SequoiaError(
                    f"--{option}: found {value}, but the tree was solved for {solved_for}; drop "
                    "the option, or profile with it and solve again"
                )
        return EngineOptions(engine=engine, **carried | self.settings)


SETTINGS = [setting.name for setting in fields(Settings)]
"""The names of the engines' settings; torch has the first, threads."""


_THE_MODELS = {("context_size", 0): "the model's own length"}
"""What a tree was solved for where its setting leaves that to the model."""


def _has_its_threads_here(tree: TokenTree) -> bool:
    """Whether a tree was solved for as many threads of this machine's processor.

    Of a GPU's tree, llama.cpp's threads compute the layers that it does not hold; torch's do not
    count.
    """
    from sequoia_opt.engine.cpu import cpu_name

    hardware, engine = (tree.metadata.get(key, {}) for key in ("hardware", "engine"))
    if hardware.get("device") != "cpu":
        return bool(engine.get("name") == LLAMA_CPP)
    return bool(hardware.get("name") == cpu_name())

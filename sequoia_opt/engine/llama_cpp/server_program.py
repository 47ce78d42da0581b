"""The programs that are llama.cpp's own server: an executable, or the wheel `xllamacpp`.

Knows which one is there, what it can do, and the command line that starts it. Knows nothing of
running servers.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from sequoia_opt.engine.library import DRAFT, NO_SPECULATION, NONE, Speculation
from sequoia_opt.engine.llama_cpp.settings import Settings
from sequoia_opt.errors import SequoiaError, one_line
from sequoia_opt.plan.chain_tuning import ChainSetting
from sequoia_opt.plan.export_formats import llama_cpp_flags

INSTALL = "put a llama-server on the PATH, or pip install xllamacpp"
HOST = "127.0.0.1"
PROBE_SECONDS = 60.0
ALL_GPU_LAYERS = 9999  # a number that every version takes for all
KINDS = {NONE: "none", DRAFT: "draft-simple"}
"""llama.cpp's names of kinds of speculation that have another one here."""

DEFAULT_CHAIN = ChainSetting(3)
"""What llama.cpp drafts since May 2026 if it is told nothing."""

CHILD = Path(__file__).with_name("server_child.py")
WATCH = Path(__file__).with_name("server_watch.py")


@dataclass(frozen=True)
class ServerOptions:
    """What a server runs.

    Attributes:
        target, draft: GGUF files.
        settings: threads, GPU layers, flash attention and number types of the cache, as in this
            program's engine.
        context: tokens that it has room for.
        speculation: how it speculates.
    """

    target: str
    draft: str
    settings: Settings
    context: int
    speculation: Speculation = NO_SPECULATION

    @property
    def kind(self) -> str:
        """llama.cpp's name of the kind of speculation."""
        return KINDS.get(self.speculation.kind, self.speculation.kind)


@dataclass(frozen=True)
class Program:
    """A program that is llama.cpp's server.

    Attributes:
        name: as results have it.
        version: its own words.
        system: instruction sets and libraries that it was built with and found here.
        speculations: llama.cpp's names of the kinds of speculation that it has.
        path: of the executable; None for the wheel.
        options: those that it has, of an executable.
        default_chain: what it drafts if it is told nothing.
    """

    name: str
    version: str
    system: str
    speculations: frozenset[str]
    path: str | None = None
    options: frozenset[str] = frozenset()
    default_chain: ChainSetting = DEFAULT_CHAIN

    def command(self, options: ServerOptions, port: int) -> list[str]:
        """The command line that starts it: a server that ends when standard input does."""
        settings, speculation = options.settings, options.speculation
        uses_draft = speculation.kind == DRAFT
        layers = ALL_GPU_LAYERS if settings.gpu_layers < 0 else settings.gpu_layers
        if self.path is None:
            document = {
                **settings.document(),
                "gpu_layers": layers,
                "target": options.target,
                "draft": options.draft if uses_draft else None,
                "context": options.context,
                "speculation": options.kind,
                "guesses": speculation.guesses,
                "threshold": speculation.threshold,
                "port": port,
            }
            return [sys.executable, "-P", str(CHILD), json.dumps(document)]
        threads = str(settings.threads)
        types = settings.cache_type_k, settings.cache_type_v
        command = [
            sys.executable, "-P", str(WATCH), self.path,
            "-m", options.target, "--host", HOST, "--port", str(port),
            "-c", str(options.context), "-np", "1", "-t", threads, "-tb", threads,
            "-ngl", str(layers), "-fa", settings.flash_attention,
            "-ctk", types[0], "-ctv", types[1],
        ]  # fmt: skip
        for option, value in (("--fit", "off"), ("--no-webui", None)):
            if option in self.options:
                command += [option] if value is None else [option, value]
        if "--spec-type" in self.options:
            command += ["--spec-type", options.kind]
        if uses_draft:
            command += ["-md", options.draft, "-ngld", str(layers)]
            command += ["-td", threads, "-tbd", threads, "-ctkd", types[0], "-ctvd", types[1]]
            if speculation.guesses is not None:
                command += ["--spec-draft-n-max", str(speculation.guesses)]
                command += ["--spec-draft-n-min", "0"]
                command += ["--spec-draft-p-min", f"{speculation.threshold:g}"]
        return command


def pasted(files: Mapping[str, str], settings: Settings, speculation: Speculation) -> str:
    """The command line that starts a llama-server with these settings, for people to paste.

    Args:
        files: GGUF files of target and draft, by role.
    """
    usual = Settings(settings.threads)
    layers = "all" if settings.gpu_layers < 0 else settings.gpu_layers
    words = ["llama-server", "-m", shlex.quote(files["target"]), "-t", str(settings.threads)]
    for option, value, default in (
        ("-ngl", layers, usual.gpu_layers),
        ("-fa", settings.flash_attention, usual.flash_attention),
        ("-ctk", settings.cache_type_k, usual.cache_type_k),
        ("-ctv", settings.cache_type_v, usual.cache_type_v),
        ("-c", settings.context_size, usual.context_size),
    ):
        if value != default:
            words += [option, str(value)]
    if speculation != NO_SPECULATION:
        words.append(speculation_flags(files.get("draft", ""), speculation))
    return " ".join(words)


def speculation_flags(draft: str, speculation: Speculation) -> str:
    """The flags of a way to speculate, for people to paste.

    Args:
        draft: GGUF file, where the draft model speculates.
    """
    if speculation.kind == DRAFT and speculation.guesses is not None:
        return llama_cpp_flags(draft, speculation.guesses, speculation.threshold)
    kind = f"--spec-type {KINDS.get(speculation.kind, speculation.kind)}"
    return f"-md {shlex.quote(draft)} {kind}" if speculation.kind == DRAFT else kind


@cache
def program() -> Program:
    """The server that is there: `llama-server` on the PATH, else that of the wheel `xllamacpp`.

    Raises:
        SequoiaError: there is none, or it does not run.
    """
    path = shutil.which("llama-server")
    if path is not None:
        return _executable(path)
    if importlib.util.find_spec("xllamacpp") is not None:
        return _wheel()
    raise SequoiaError(f"llama-server: not found; {INSTALL}")


def _executable(path: str) -> Program:
    """What an executable says of itself."""
    text = _output([path, "--help"])
    version = re.search(r"version: *(.+)", _output([path, "--version"]))
    # It names what it was built for before it looks for the model.
    start = _output([path, "-lv", "4", "-m", os.devnull, "--port", "0"])
    system = re.search(r"system_info:[^|]*\| *(.+)", start)
    kinds = re.search(r"--spec-type[ ]+([a-z0-9,-]+)", text)
    return Program(
        "llama-server",
        version[1].strip() if version else "unknown",
        _features(system[1]) if system else "",
        frozenset(kinds[1].split(",") if kinds else ["none"]),
        path,
        frozenset(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", text)),
        ChainSetting(
            int(_default(text, "n-max", DEFAULT_CHAIN.guesses)),
            float(_default(text, "p-min", DEFAULT_CHAIN.threshold)),
        ),
    )


def _default(text: str, option: str, otherwise: float) -> str | float:
    """The default that a help text gives for an option of chains."""
    match = re.search(rf"--spec-draft-{option}\b.*?\(default: ([\d.]+)\)", text, re.DOTALL)
    return match[1] if match else otherwise


def _wheel() -> Program:
    """What the wheel says of itself."""
    text = _output([sys.executable, "-P", str(CHILD), "{}"])
    try:
        description = json.loads(text.splitlines()[-1])
    except (ValueError, IndexError):
        raise SequoiaError(
            f"xllamacpp: its server does not run ({' '.join(text.split())[-160:]}); {INSTALL}"
        ) from None
    return Program(
        "xllamacpp",
        str(description["version"]),
        _features(description["system"]),
        frozenset(description["speculations"]),
        default_chain=ChainSetting(*description["default_chain"]),
    )


def _output(command: Sequence[str]) -> str:
    """What a program prints, on either stream.

    Raises:
        SequoiaError: it cannot be run, or does not end.
    """
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment(),
            timeout=PROBE_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SequoiaError(
            f"{command[0]}: cannot be run ({one_line(error)[:160]}); {INSTALL}"
        ) from None
    return done.stdout.decode(errors="replace")


def environment() -> dict[str, str]:
    """The environment without variables that are llama.cpp's options too."""
    return {name: value for name, value in os.environ.items() if "LLAMA_ARG_" not in name}


def _features(text: str) -> str:
    """llama.cpp's list of what it was built for, in this program's notation."""
    return " ".join(text.replace(" = 1", "").replace("|", " ").split())

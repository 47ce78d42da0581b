"""Whether a file may be written where one is already: nothing is replaced but its own former self.

A file that this program wrote says what it is and what it was made from. With `-o` a file of the
same kind may be replaced; under a name that follows from models, datasets and options, only one
that was made from the same, since folders of one name are often of different models or texts.
Knows the files' formats, and nothing of how they are made.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote, unquote

from sequoia_opt.errors import SequoiaError
from sequoia_opt.files.atomic import check_writable, is_stream
from sequoia_opt.files.documents import parse_document, plain, read_bytes
from sequoia_opt.plan import acceptance, latency, tree
from sequoia_opt.report import plots

if TYPE_CHECKING:
    from sequoia_opt.engine.pair import Pair

Note = Callable[[str], None]

REPORT, FIGURE = "sequoia-opt/report", "sequoia-opt/figure"
KINDS = {
    latency.FORMAT: "a latency profile",
    acceptance.FORMAT: "acceptance rates",
    tree.FORMAT: "a tree",
    plots.FORMAT: "results of bench",
    REPORT: "a report",
    FIGURE: "a figure of plot",
}
# Of a profile's engine what its file's name does not say, or says only of a default name.
ENGINE = ("graphs", "offload", "world_size", "random_weights", "streamed_layers")
USUAL_ENGINE = {"offload": "none", "world_size": 1}
USUAL_OPTIONS = {"batch": 1, "shape": "tree"}  # of `solve`
OURS = "sequoia-opt/"  # what our formats begin with
BEGINNING = re.compile(rb"\s*\{?\s*['\"]?format['\"]?\s*:\s*['\"]?(sequoia-opt/\w+)['\",\s]")
FORMAT = re.compile(rb"format['\"]?\s*:\s*['\"]?sequoia-opt/\w+")
MARK = re.compile(rb"(sequoia-opt/(?:report|figure)):([\w./~,%-]*);")
# What older versions wrote has no mark, but its own maker's.
UNMARKED = {REPORT: b"plotly", FIGURE: b"atplotlib"}
DISTINCTION = re.compile(r"~[0-9a-f]{6}(?=$|[.~-])")


@dataclass(frozen=True)
class Origin:
    """A model, a dataset or a file that something was made from.

    Attributes:
        name: as the file's name has it.
        source: the folder or file that it was read from; None where the name says it all.
        fingerprint: of its content, if that is known.
    """

    name: str = ""
    source: str | None = None
    fingerprint: str | None = None

    def is_like(self, former: Origin) -> bool:
        """Whether it is what stood in a former file, as far as that says so: the same content, or
        the same place, where the content may have been renewed."""
        if self.name != former.name:
            return False
        if _is_same_content(self.fingerprint, former.fingerprint):
            return True
        if self.source is None or former.source is None:
            # Older files do not say where a model was: its content has to do.
            unknown = not (self.source and self.fingerprint and former.fingerprint)
            return former.source is None and unknown
        return self.source == former.source

    def __str__(self) -> str:
        return self.source or self.name


def _is_same_content(first: str | None, second: str | None) -> bool:
    """Whether two fingerprints are known and the same; one may have a part behind a hyphen that
    the other, which is older, lacks."""
    if not first or not second:
        return False
    shorter, longer = sorted((first, second), key=len)
    return longer == shorter or longer.startswith(f"{shorter}-")


@dataclass(frozen=True)
class Maker:
    """What a file was made from.

    Attributes:
        kind: the file's format.
        origins: by what they are to the file.
        settings: what else makes it another file.
        covers: how much of each thing it has; what has less is no newer version of it.
        asked: options that say how much it should have.
    """

    kind: str
    origins: Mapping[str, Origin] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    covers: Mapping[str, Any] = field(default_factory=dict)
    asked: Mapping[str, Any] = field(default_factory=dict)

    def difference(self, former: Maker) -> str | None:
        """How a former file is of something else, in words; None if this is its newer version."""
        if former.kind != self.kind:
            return f"{KINDS.get(former.kind, 'something else')}, not {KINDS[self.kind]}"
        for what, origin in self.origins.items():
            known = former.origins.get(what)
            if known is not None and not origin.is_like(known):
                return f"{what} {known}, not {origin}"
        for name, value in self.settings.items():
            if name in former.settings and former.settings[name] != value:
                return f"{name} {_short(former.settings[name])}, not {_short(value)}"
        for name, extent in self.covers.items():
            there = former.covers.get(name)
            if there is not None and not extent >= there:  # of sets: is it all of them
                return f"more {name} than this one"
        return None

    @property
    def distinction(self) -> str:
        """What sets the name of this maker's file apart; the same each time it is made again."""
        facts = {what: str(origin) for what, origin in self.origins.items()}
        parts = [facts, plain(self.settings), plain(self.asked)]
        text = json.dumps(parts, sort_keys=True, default=str)
        return f"~{hashlib.sha256(text.encode()).hexdigest()[:6]}"

    @classmethod
    def of(cls, document: Mapping[str, Any], **asked: Any) -> Self:
        """What a profile, acceptance rates or a tree says of itself."""
        makers = {latency.FORMAT: _of_profile, acceptance.FORMAT: _of_rates, tree.FORMAT: _of_tree}
        kind = str(document.get("format"))
        return cls(kind, *makers[kind](document), asked) if kind in makers else cls(kind)

    @classmethod
    def drawn(cls, kind: str, sources: Sequence[Path]) -> Self:
        """What a page or a figure is drawn from."""
        names = (source_of(path) or plain(path) for path in sources)
        return cls(kind, {f"source {place}": Origin(name) for place, name in enumerate(names)})

    @property
    def mark(self) -> str:
        """What a page or a figure carries, since its own format has no fields for it."""
        return f"{self.kind}:{','.join(quote(str(o)) for o in self.origins.values())};"


def _short(value: Any) -> str:
    text = json.dumps(plain(value), default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _section(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A part of a document; empty where there is none."""
    part = document.get(name)
    return part if isinstance(part, Mapping) else {}


def _text(part: Mapping[str, Any], name: str) -> str | None:
    value = part.get(name)
    return value if isinstance(value, str) and value else None


_Parts = tuple[dict[str, Origin], dict[str, Any], dict[str, Any]]


def _of_profile(document: Mapping[str, Any]) -> _Parts:
    origins = {}
    points = set()
    for role in ("target", "draft"):
        part = _section(document, role)
        origins[role] = Origin(
            str(part.get("model")), _text(part, "source"), _text(part, "fingerprint")
        )
        for curve in part.get("latency", []):
            where = role, curve.get("batch"), curve.get("context")
            points |= {(*where, count) for count in curve.get("tokens", [])}
    engine = _section(document, "engine")
    settings = _settings(engine) | {"import of": _imported(document)}
    verifiers = frozenset(_section(document, "overhead"))
    return origins, settings, {"points": frozenset(points), "verifiers": verifiers}


def _of_rates(document: Mapping[str, Any]) -> _Parts:
    sources, prints = _section(document, "sources"), _section(document, "fingerprints")
    origins = {
        role: Origin(str(document.get(role)), _text(sources, role), _text(prints, role))
        for role in ("target", "draft")
    }
    origins["dataset"] = Origin(
        str(document.get("dataset")), _text(sources, "dataset"), _text(prints, "dataset")
    )
    rates = document.get("acceptance")
    covers: dict[str, Any] = {"ranks": len(rates) if isinstance(rates, list) else 0}
    for name, words in (("documents", "documents"), ("max_new_tokens", "tokens a document")):
        if isinstance(document.get(name), int):
            covers[words] = document[name]
    depths = document.get("by_depth")
    covers["depths"] = len(depths) if isinstance(depths, list) else 1
    settings = {"import of": _imported(document)}
    settings |= {"mode": document["mode"]} if "mode" in document else {}
    return origins, settings, covers


def _of_tree(document: Mapping[str, Any]) -> _Parts:
    provenance = _section(document, "provenance")
    origins = {}
    for kind in ("profile", "acceptance"):
        part = _section(provenance, kind)
        origins[kind] = Origin(str(part.get("file")))
        for what, model in _section(part, "from").items():
            known = model if isinstance(model, Mapping) else {}
            name = str(document.get(what))
            origins[what] = Origin(name, _text(known, "source"), _text(known, "fingerprint"))
    for what in ("target", "draft", "dataset"):
        origins.setdefault(what, Origin(str(document.get(what))))
    asked = _section(provenance, "options")
    options = USUAL_OPTIONS | {name: value for name, value in asked.items() if value is not None}
    settings = {"options": json.loads(json.dumps(plain(options))), "import of": _imported(document)}
    return origins, settings | _settings(_section(document, "engine")), {}


def _settings(engine: Mapping[str, Any]) -> dict[str, Any]:
    """How the models were run; None where it is the usual way."""
    given = {name: engine.get(name) or None for name in ENGINE}
    return {name: None if USUAL_ENGINE.get(name) == way else way for name, way in given.items()}


def _imported(document: Mapping[str, Any]) -> str | None:
    """The file that a document was imported from."""
    return _text(_section(document, "provenance"), "imported")


def source_of(name: str | Path | None) -> str | None:
    """Where a model or dataset is read from, as a file keeps it: a folder or file as seen from
    here, else its path; None for a hub's and for the bundled ones, whose names say it all."""
    if name is None or not os.path.exists(name):
        return None
    whole, here = os.path.abspath(name), os.getcwd()
    inside = os.path.commonpath([whole, here]) == here
    path = Path(os.path.relpath(whole) if inside else whole).as_posix()
    return str(plain(path))  # a name may have bytes that are no text


def sources_of(
    target: str | None = None, draft: str | None = None, dataset: str | None = None
) -> dict[str, str]:
    """Where models and a dataset are read from, of those whose names do not say it all."""
    named = {"target": target, "draft": draft, "dataset": dataset}
    sources = {what: source_of(name) for what, name in named.items()}
    return {what: source for what, source in sources.items() if source is not None}


def origins_of(
    pair: Pair, sources: Mapping[str, str], dataset: str | None = None, content: str | None = None
) -> dict[str, Origin]:
    """A pair of models and the dataset that it is measured on.

    Args:
        content: the dataset's fingerprint.
    """
    names = {"target": pair.target_name, "draft": pair.draft_name}
    prints: dict[str, str | None] = dict(pair.fingerprints)
    if dataset is not None:
        names["dataset"], prints["dataset"] = dataset, content
    return {what: Origin(name, sources.get(what), prints[what]) for what, name in names.items()}


def check_named(
    path: Path, kind: str | None, inputs: Sequence[Path | None] = (), force: bool = False
) -> None:
    """Refuse to write a file that a user names where something else is.

    Args:
        kind: format of what is to be written; None where it has none.
        inputs: what the command reads.
        force: replace whatever is there, but for the inputs.

    Raises:
        SequoiaError: it is an input, or holds something else, or cannot be written.
    """
    check_writable(path)
    if is_stream(path):
        return
    if any(one is not None and _is_same(one, path) for one in inputs):
        raise SequoiaError(f"{path}: the command reads this file; name another one to write")
    if kind is None or force or not os.path.exists(path):
        return
    there = kind_of(path)
    if there not in ("", kind):
        raise SequoiaError(
            f"{path}: holds {KINDS.get(there or '', 'something else')}, not {KINDS[kind]}; name "
            "another file with -o, or replace it with --force"
        )


def _is_same(one: Path, other: Path) -> bool:
    """Whether two paths are of one file, be it there or not."""
    if os.path.exists(one) and os.path.exists(other):
        return os.path.samefile(one, other)
    return os.path.realpath(one) == os.path.realpath(other)


def settled(
    path: Path, maker: Maker, force: bool = False, note: Note = lambda message: None
) -> Path:
    """The file to write under a name that nobody chose, see `set_apart`.

    Raises:
        SequoiaError: that name is taken too, or the file cannot be written.
    """
    path = set_apart(path, maker, force, note)
    check_writable(path)
    return path


def set_apart(
    path: Path, maker: Maker, force: bool = False, note: Note = lambda message: None
) -> Path:
    """A path, or one whose name is set apart from it where another maker's file is.

    Args:
        force: replace whatever is there.
        note: called with what is kept, and why.

    Raises:
        SequoiaError: that name is taken too.
    """
    if force or (difference := _difference(path, maker)) is None:
        return path
    other = path.with_name(f"{path.stem}{maker.distinction}{path.suffix}")
    if (second := _difference(other, maker)) is not None:
        raise SequoiaError(
            f"{path} and {other.name} are kept: of {difference}, and of {second}; name a file "
            "with -o, or replace the first with --force"
        )
    note(f"{path} is kept, which is of {difference}; the new file is {other.name}")
    return other


def _difference(path: Path, maker: Maker) -> str | None:
    """How the file at a path is another maker's; None if it is not, or there is none."""
    if is_stream(path) or not os.path.exists(path):
        return None
    kind = kind_of(path)
    if kind == "":
        return None
    if kind in (REPORT, FIGURE):
        return maker.difference(_marked(path) or Maker(kind))
    if kind != maker.kind:
        return maker.difference(Maker(kind or "unknown"))
    try:
        former = Maker.of(parse_document(path))
    except (SequoiaError, TypeError, ValueError, AttributeError):
        return "something that cannot be read"
    return maker.difference(former)


def _marked(path: Path) -> Maker | None:
    """What a page or a figure says that it was made from."""
    marked = MARK.search(read_bytes(path))
    if marked is None:
        return None
    kind, names = (part.decode() for part in marked.groups())
    sources = [unquote(name) for name in names.split(",")]
    return Maker(kind, {f"source {place}": Origin(name) for place, name in enumerate(sources)})


def kind_of(path: Path) -> str | None:
    """The format of a file that this program wrote; "" of an empty file, which is free for
    anything; None of any other."""
    content = read_bytes(path)
    if not content:
        return ""
    if marked := MARK.search(content):
        return marked[1].decode()
    if own := BEGINNING.match(content):  # be it whole or not
        return own[1].decode()
    if FORMAT.search(content):  # or a text that only speaks of it
        with suppress(SequoiaError):
            kind = parse_document(path).get("format")
            if isinstance(kind, str) and kind.startswith(OURS):
                return kind
        return None
    suffixes = {".html": REPORT, ".svg": FIGURE, ".png": FIGURE, ".pdf": FIGURE}
    kind = suffixes.get(path.suffix.lower(), "")
    return kind if kind and UNMARKED[kind] in content else None


def distinction_in(path: Path) -> str:
    """What sets a file's name apart from another of the same models and dataset."""
    return "".join(DISTINCTION.findall(path.name))


def undistinguished(name: str) -> str:
    """A file's name without what sets it apart."""
    return DISTINCTION.sub("", name)

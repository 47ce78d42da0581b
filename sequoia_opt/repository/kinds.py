"""Which kind of file lies at a path: one of this program's formats, or something else.

Knows how each format can be recognised, also in a file that is cut off. Knows nothing of what
files say beyond that.
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

from sequoia_opt.errors import SequoiaError
from sequoia_opt.files.documents import parse_document
from sequoia_opt.files.reading import read_bytes
from sequoia_opt.plan import acceptance, latency, recording, tree
from sequoia_opt.plan.recording import Recording
from sequoia_opt.report import bench_results

REPORT, FIGURE = "sequoia-opt/report", "sequoia-opt/figure"
KINDS = {  # in words, by format
    latency.FORMAT: "a latency profile",
    acceptance.FORMAT: "acceptance rates",
    recording.FORMAT: "a recording of drafts",
    tree.FORMAT: "a tree",
    bench_results.FORMAT: "results of bench",
    REPORT: "a report",
    FIGURE: "a figure of plot",
}
# A page or a figure has no `format` field; it carries this mark: its kind and its sources.
MARK = re.compile(rb"(sequoia-opt/(?:report|figure)):([\w./~,%-]*);")
EMPTY = ""  # the kind of an empty file, which anything may replace
_ZIP = b"PK"
_PREFIX = "sequoia-opt/"  # of every format
_BEGINNING = re.compile(rb"\s*\{?\s*['\"]?format['\"]?\s*:\s*['\"]?(sequoia-opt/\w+)['\",\s]")
_ANYWHERE = re.compile(rb"format['\"]?\s*:\s*['\"]?sequoia-opt/\w+")
# Older versions wrote pages and figures without a mark, but with the name of their library.
_UNMARKED = {
    ".html": (REPORT, b"plotly"),
    ".svg": (FIGURE, b"atplotlib"),
    ".png": (FIGURE, b"atplotlib"),
    ".pdf": (FIGURE, b"atplotlib"),
}


def kind_of(path: Path) -> str | None:
    """The format of a file that this program wrote; `EMPTY` or None for another file.

    Raises:
        SequoiaError: the file cannot be read.
    """
    content = read_bytes(path)
    if not content:
        return EMPTY
    if content.startswith(_ZIP):  # as a recording is
        with suppress(SequoiaError):
            Recording.of_content(content, str(path))
            return recording.FORMAT
    if mark := MARK.search(content):
        return mark[1].decode()
    if beginning := _BEGINNING.match(content):  # also of a file that is cut off
        return beginning[1].decode()
    if _ANYWHERE.search(content):  # an edited file, or a text that only mentions a format
        with suppress(SequoiaError):
            kind = parse_document(path).get("format")
            if isinstance(kind, str) and kind.startswith(_PREFIX):
                return kind
        return None
    kind, library = _UNMARKED.get(path.suffix.lower(), (None, b""))
    return kind if library in content else None

from __future__ import annotations

from pathlib import Path

import pytest
from measured_rates import rates_of
from test_latency import make_profile

from sequoia_opt.plan import acceptance, latency, tree
from sequoia_opt.plan.tree import TokenTree
from sequoia_opt.repository.kinds import EMPTY, FIGURE, REPORT, kind_of


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("empty", "", EMPTY),
        ("notes.md", "of sequoia-opt/tree files", None),
        ("notes.json", "notes: see its docs; format: sequoia-opt/tree is what I use: [\n", None),
        ("other.json", '{"format": "other/tree", "version": 1}', None),
        ("edited.yaml", "# mine\nversion: 1\nformat: sequoia-opt/tree\nsize: 1\n", tree.FORMAT),
        ("page.html", '<meta name="source" content="sequoia-opt/report:tree.json;">', REPORT),
        ("figure.svg", "<svg>sequoia-opt/figure:a.json,b%20c.json;</svg>", FIGURE),
        ("old.html", "<script>plotly</script>", REPORT),
        ("old.svg", "<svg>Matplotlib</svg>", FIGURE),
        ("other.html", "<p>hello</p>", None),
        ("plotly.txt", "plotly", None),
    ],
)
def test_kinds_are_recognised(name: str, content: str, kind: str | None) -> None:
    Path(name).write_text(content)
    assert kind_of(Path(name)) == kind


def test_the_programs_own_files_are_recognised_even_if_cut_off() -> None:
    make_profile().save("p.yaml")
    rates_of().save("a.yaml")
    TokenTree([-1], [0]).save("t.json")
    kinds = {"p.yaml": latency.FORMAT, "a.yaml": acceptance.FORMAT, "t.json": tree.FORMAT}
    for name, kind in kinds.items():
        assert kind_of(Path(name)) == kind
        Path(name).write_bytes(Path(name).read_bytes()[:40])
        assert kind_of(Path(name)) == kind

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "scipy")


@pytest.mark.parametrize(
    "statement",
    [
        "import sequoia_opt",
        "from sequoia_opt import TokenTree, Acceptance, LatencyProfile, solve",
        "import sequoia_opt.cli, sequoia_opt.console, sequoia_opt.repository.paths",
    ],
)
def test_planning_needs_no_torch(statement: str) -> None:
    code = f"{statement}\nimport sys\nprint([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_exists() -> None:
    import sequoia_opt

    for name in sequoia_opt.__all__:
        assert getattr(sequoia_opt, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = sequoia_opt.nothing

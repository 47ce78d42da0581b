from __future__ import annotations

import pytest

from sequoia_opt.engine import adaptive_step


@pytest.fixture(params=["host", "device"])
def rules(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where steps decide: in numpy, or in tensors as on other devices."""
    on_host = request.param == "host"
    monkeypatch.setattr(adaptive_step, "decides_on_host", lambda *_: on_host)
    return str(request.param)

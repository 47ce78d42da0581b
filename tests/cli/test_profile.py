from __future__ import annotations

from collections.abc import Callable

from command_line import Outcome


def test_an_unknown_verifier_is_refused(run: Callable[..., Outcome]) -> None:
    done = run("profile", "--verifiers", "best")
    assert done.code == 1
    assert "verifier: found 'best', expected sequoia or specinfer or topk" in done.err

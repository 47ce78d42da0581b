"""Servers without a connection, for the tests of `check`."""

from __future__ import annotations

from typing import Any, cast

from stand_in_server import OWNERS, StandIn

from sequoia_opt.engine.http_client import HttpClient
from sequoia_opt.measure.check.checks import CheckSpec, Report, check
from sequoia_opt.measure.check.dialects import ANY, DIALECTS
from sequoia_opt.measure.check.server import Server
from sequoia_opt.measure.check.verdict import Finding

PROMPTS = ["abc", "fed", "hij", "bad", "cage", "face", "dig", "jab"]


def server(**options: Any) -> Server:
    """A server that answers without a connection."""
    stand_in = StandIn(**options)
    dialect = DIALECTS.get(OWNERS[stand_in.kind], ANY)
    return Server(cast(HttpClient, stand_in), "letters", dialect, 5.0)


def baseline(**options: Any) -> Server:
    """The same model without speculation, whose steps take a little less time than speculative."""
    return server(**{"guesses": 0, "ms": 0.9, **options})


def run(tested: Server, other: Server | None = None, **options: Any) -> Report:
    """Check a server with few samples."""
    chosen = {"prompts": PROMPTS, "samples": 60, "repeats": 1, **options}
    return check(tested, other, CheckSpec(**chosen))


def findings(report: Report) -> dict[str, Finding]:
    """A report's verdicts by check."""
    return {finding.check: finding for finding in report.findings}


def statuses(report: Report) -> dict[str, str]:
    """A report's statuses by check."""
    return {name: finding.status.name for name, finding in findings(report).items()}

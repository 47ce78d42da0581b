"""What `check` prints: a server, what it was compared with, and a line for each verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sequoia_opt.cli.output import out
from sequoia_opt.measure.check.verdict import Status

if TYPE_CHECKING:
    from sequoia_opt.measure.check.checks import Report
    from sequoia_opt.measure.check.verdict import Finding

STYLES = {Status.OK: "green", Status.FAILED: "bold red", Status.UNCHECKED: "yellow"}
WORDS = {Status.OK: "ok", Status.FAILED: "FAILED", Status.UNCHECKED: "not checked"}


def print_report(report: Report) -> None:
    """Print the verdicts, and how many checks failed."""
    server = report.server
    out.print(f"{server['url']}: {server['kind']}, serving {server['model']}")
    out.print(f"compared with {report.reference or 'nothing'}")
    for finding in report.findings:
        _print_finding(finding)
    failed = [finding.check for finding in report.findings if finding.status is Status.FAILED]
    unchecked = [finding.check for finding in report.findings if finding.status is Status.UNCHECKED]
    if failed:
        out.print(f"failed: {', '.join(failed)}")
    if unchecked:
        out.print(f"could not be checked: {', '.join(unchecked)}")
    if not failed and not unchecked:
        out.print("all checks passed")


def _print_finding(finding: Finding) -> None:
    """Print a check's name, its verdict and its sentence."""
    word = WORDS[finding.status]
    out.print(f"{finding.check:<12} ", end="")
    out.print(f"{word:<12}", style=STYLES[finding.status], end="")
    out.print(finding.sentence)

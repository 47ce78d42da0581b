"""Runs the tests that need a GPU."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from tempfile import TemporaryDirectory

from record import Record

TESTS = Path(__file__).parents[2]
WORKERS = 4
TEST_SECONDS = 80  # time limit of one test, if pytest-timeout is installed


def measure(record: Record) -> None:
    """Run the GPU tests and record how many passed.

    Raises:
        RuntimeError: some failed, or pytest could not run them.
    """
    # pytest collects only these files: the imports of others may not be installed on the machine.
    files = [str(path) for path in TESTS.rglob("test_*.py") if "mark.gpu" in path.read_text()]
    with TemporaryDirectory() as folder, record.stage(f"tests of {len(files)} files"):
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider"]
        # Verbose, so that the log names each test even if the report is never written.
        command += ["-vv", "--junitxml", str(report), *files]
        if importlib.util.find_spec("pytest_timeout"):
            command += ["--timeout", str(TEST_SECONDS), "--timeout-method", "thread"]
        if importlib.util.find_spec("xdist"):
            command += ["-n", str(min(WORKERS, os.cpu_count() or 1))]
        status = subprocess.run(command, cwd=TESTS.parent, check=False).returncode
        if not report.exists():
            raise RuntimeError(f"pytest ended with status {status} and no report")
        outcomes = count_outcomes(report)
    record.note(**outcomes)
    if outcomes["failed"]:
        raise RuntimeError(f"{len(outcomes['failed'])} of the GPU tests failed")


def count_outcomes(report: Path) -> dict[str, int | list[str]]:
    """Counts of the passed and skipped tests in a JUnit report, and the names of failed ones."""
    failed, passed, skipped = [], 0, 0
    for case in ElementTree.parse(report).iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append(f"{case.get('classname')}.{case.get('name')}")
        elif case.find("skipped") is not None:
            skipped += 1
        else:
            passed += 1
    return {"passed": passed, "skipped": skipped, "failed": failed}

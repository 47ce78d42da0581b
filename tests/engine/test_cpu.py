from __future__ import annotations

import platform
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sequoia_opt.engine import cpu
from sequoia_opt.engine.cpu import leave_one_processor_free, processors

INTEL = """\
processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) Processor @ 2.10GHz

processor\t: 1
vendor_id\t: GenuineIntel
model name\t: something else
"""


@pytest.fixture
def _restore_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_this_process_may_run_on_some_processor() -> None:
    numbers = processors()
    assert numbers == sorted(set(numbers))
    assert numbers


@pytest.mark.usefixtures("_restore_threads")
@pytest.mark.parametrize(
    ("count", "threads", "fewer"), [(4, 4, 3), (4, 3, 3), (8, 4, 4), (1, 1, 1)]
)
def test_one_processor_is_left_free(
    count: int, threads: int, fewer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "processors", lambda: list(range(count)))
    torch.set_num_threads(threads)
    with leave_one_processor_free():
        assert torch.get_num_threads() == fewer
    assert torch.get_num_threads() == threads


@pytest.mark.usefixtures("_restore_threads")
def test_all_threads_compute_again_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "processors", lambda: [0, 1])
    torch.set_num_threads(2)
    with pytest.raises(ValueError, match="not a number"), leave_one_processor_free():
        float("not a number")
    assert torch.get_num_threads() == 2


@pytest.fixture
def cpuinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file that stands in for /proc/cpuinfo; missing until it is written."""
    path = tmp_path / "cpuinfo"
    monkeypatch.setattr(cpu, "Path", lambda _: path)
    cpu._cpuinfo.cache_clear()
    yield path
    cpu._cpuinfo.cache_clear()


def test_linux_names_the_cpu(cpuinfo: Path) -> None:
    cpuinfo.write_text(INTEL)
    assert cpu.cpu_name() == "Intel(R) Xeon(R) Processor @ 2.10GHz"
    assert cpu.is_intel()


@pytest.mark.usefixtures("cpuinfo")
def test_other_systems_name_the_cpu_through_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "processor", lambda: "Intel64 Family 6, GenuineIntel")
    assert cpu.cpu_name() == "Intel64 Family 6, GenuineIntel"
    assert cpu.is_intel()
    monkeypatch.setattr(platform, "processor", lambda: "")
    assert cpu.cpu_name() == platform.machine()
    assert not cpu.is_intel()

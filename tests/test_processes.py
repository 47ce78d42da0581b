from __future__ import annotations

import pytest

from sequoia_opt.processes import is_first_process, is_one_of_several


@pytest.mark.parametrize(
    ("environment", "first", "several"),
    [
        ({}, True, False),
        ({"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1"}, True, False),
        ({"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "2"}, True, True),
        ({"LOCAL_RANK": "1", "RANK": "1", "WORLD_SIZE": "2"}, False, True),
        ({"LOCAL_RANK": "0", "RANK": "2", "WORLD_SIZE": "4"}, False, True),  # another machine
        ({"RANK": "1", "WORLD_SIZE": "2"}, True, False),  # another launcher's variables
    ],
)
def test_torchruns_variables_tell_the_first_process(
    environment: dict[str, str], first: bool, several: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LOCAL_RANK", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_first_process() is first
    assert is_one_of_several() is several

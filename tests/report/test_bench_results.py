from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bench_data import RACE, SETTINGS, loaded

from sequoia_opt.errors import SequoiaError
from sequoia_opt.report.bench_results import Results


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"results": []}, "results: expected a list"),
        ({"results": [{"name": "plain"}]}, "results: expected a list"),
        ({"calibration": 3}, "calibration: expected a list"),
        ({"results": [{**RACE[0], "nodes": "one"}]}, "results: expected a list"),
        ({"calibration": [{"temperature": 0, "trees": [{"speedup": 2}]}]}, "calibration: expected"),
        ({"hardware": "fast"}, "hardware: expected"),
        ({"temperature": "warm"}, "temperature: "),
        ({"format": "other"}, "format: found 'other'"),
        ({"target": None}, None),
    ],
)
def test_other_files_are_refused(
    tmp_path: Path, changed: dict[str, Any], message: str | None
) -> None:
    document = SETTINGS | {"temperature": 0, "results": RACE} | changed
    if message is None:
        message = "target: "
        del document["target"]
    path = tmp_path / "f.json"
    path.write_text(json.dumps(document))
    with pytest.raises(SequoiaError, match=message):
        Results.load(path)


def test_the_title_names_the_run(tmp_path: Path) -> None:
    results = loaded(tmp_path / "race.json", 0, RACE, compile=["target"])
    assert results.title == (
        "big with small on a machine, float32, compiled\ncode: 4 prompts, 64 new tokens each"
    )
    synthetic = loaded(tmp_path / "race.json", 0, RACE, synthetic_acceptance="a.yaml")
    assert "SYNTHETIC acceptance" in synthetic.title

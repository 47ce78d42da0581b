from __future__ import annotations

import json

from sequoia_opt import demo
from sequoia_opt.demo import corpus


def test_prompts_are_not_in_the_dataset() -> None:
    dataset = [json.loads(line) for line in demo.DATASET.read_text().splitlines()]
    texts = {record["prompt"] for record in dataset}
    assert len(demo.prompts()) == 8
    assert not texts & set(demo.prompts())


def test_the_training_record_fits_the_bundled_pair() -> None:
    record = json.loads((demo.FOLDER / "training.json").read_text())
    assert record["held_out_modules"] == list(corpus.HELD_OUT_MODULES)
    assert record["target_held_out_loss"] < record["draft_held_out_loss"] < 4
    size = sum(
        f.stat().st_size for f in demo.FOLDER.rglob("*") if f.suffix in (".safetensors", ".json")
    )
    assert size < 25e6


def test_bundled_names_stand_for_folders() -> None:
    assert demo.resolve(demo.TARGET_NAME) == str(demo.FOLDER / "target")
    assert demo.resolve("org/model") == "org/model"


def test_the_readme_states_the_recorded_numbers() -> None:
    record = json.loads((demo.FOLDER / "training.json").read_text())
    text = (demo.FOLDER / "README.md").read_text()
    for role in ("target", "draft"):
        assert f"{record[f'{role}_parameters']:,}" in text
        assert f"{record[f'{role}_steps']:,}" in text
        assert f"{record[f'{role}_held_out_loss']:.2f}" in text
    assert f"{record['draft_agreement']:.2f}" in text
    assert f"{record['training_tokens'] / 1e6:.1f} million tokens" in text
    for path in (demo.DATASET, demo.PROMPTS):
        assert f"`{path.name}`, {len(path.read_text().splitlines())}" in text

from __future__ import annotations

from pathlib import Path

import pytest
from measured_rates import rates_of
from test_latency import make_profile

from sequoia_opt.repository.provenance import Origin, Provenance, source_of


def stated_by(sources: dict[str, str], fingerprints: dict[str, str]) -> Provenance:
    return Provenance.of(
        rates_of(extra={"sources": sources, "fingerprints": fingerprints}).document()
    )


A = stated_by({"dataset": "a/prompts.jsonl", "draft": "run1/x"}, {"dataset": "x", "draft": "d"})


@pytest.mark.parametrize(
    ("provenance", "difference"),
    [
        (A, None),
        # Another text; another model.
        (
            stated_by(
                {"dataset": "b/prompts.jsonl", "draft": "run1/x"}, {"dataset": "y", "draft": "d"}
            ),
            "it was made from dataset a/prompts.jsonl, not b/prompts.jsonl",
        ),
        (
            stated_by(
                {"dataset": "a/prompts.jsonl", "draft": "run2/x"}, {"dataset": "x", "draft": "e"}
            ),
            "it was made from draft run1/x, not run2/x",
        ),
        # The same text, moved; and a text and a model whose content has changed in place.
        (
            stated_by({"dataset": "c.jsonl", "draft": "run1/x"}, {"dataset": "x", "draft": "d"}),
            None,
        ),
        (
            stated_by(
                {"dataset": "a/prompts.jsonl", "draft": "run1/x"}, {"dataset": "z", "draft": "f"}
            ),
            None,
        ),
        # A hub's model with the name of a folder.
        (
            stated_by({"dataset": "a/prompts.jsonl"}, {"dataset": "x", "draft": "f"}),
            "it was made from draft run1/x, not",
        ),
    ],
)
def test_files_of_other_origins_are_told_apart(
    provenance: Provenance, difference: str | None
) -> None:
    stated = provenance.difference(A)
    assert stated is None if difference is None else str(stated).startswith(difference)
    assert (provenance.distinction == A.distinction) == (
        [str(o) for o in provenance.origins.values()] == [str(o) for o in A.origins.values()]
    )


def test_a_lookup_before_a_model_with_another_corpus_makes_another_file() -> None:
    """A bundled model's source is its name."""

    def stated(corpus: str) -> Provenance:
        extra = {"fingerprints": {"draft": f"lookup1{corpus}+ab-cd"}}
        return Provenance.of(rates_of(draft="lookup+x", extra=extra).document())

    first, second, none = map(stated, ("+aaaa", "+bbbb", ""))
    for other in (second, none):
        assert first.difference(other) == "it was made from draft lookup+x with another corpus"
    assert first.difference(stated("+aaaa")) is None
    assert len({one.distinction for one in (first, second, none)}) == 3


def test_older_files_without_the_models_paths_count_as_former_versions() -> None:
    old = Origin("small", None, "d")
    assert Origin("small", None, "other scheme").is_like(old)  # a hub's or the bundled one
    assert Origin("small", "run1/small", "d").is_like(old)
    assert Origin("small", "run1/small", "d-e").is_like(old)  # older files lack the second part
    assert not Origin("small", "run2/small", "d-f").is_like(Origin("small", "run1/small", "d-e"))
    assert not Origin("small", "run1/small", "e").is_like(old)
    assert Origin("small", "run1/small", "e").is_like(Origin("small"))


def test_a_file_with_less_is_not_a_newer_version_of_one_with_more() -> None:
    whole, part = rates_of(), rates_of(extra={"documents": 3})
    assert Provenance.of(whole.document()).difference(Provenance.of(part.document())) is None
    assert "more documents" in str(
        Provenance.of(part.document()).difference(Provenance.of(whole.document()))
    )
    profile, narrow = make_profile(), make_profile()
    narrow.target.curves = narrow.target.curves[:1]
    former = Provenance.of(profile.document())
    assert Provenance.of(profile.document()).difference(former) is None
    assert "more points" in str(Provenance.of(narrow.document()).difference(former))


@pytest.mark.parametrize("setting", ["graphs", "streamed_layers", "random_weights"])
def test_other_engine_settings_make_another_profile(setting: str) -> None:
    profile, other = make_profile(), make_profile()
    other.engine = other.engine | {setting: 7}
    assert setting in str(
        Provenance.of(other.document()).difference(Provenance.of(profile.document()))
    )


def test_sources_below_the_current_folder_are_relative() -> None:
    Path("a").mkdir()
    Path("a/prompts.jsonl").touch()
    assert source_of("a/../a/prompts.jsonl") == "a/prompts.jsonl"
    assert source_of(Path("a").absolute()) == "a"
    assert source_of(Path.cwd().parent) == str(Path.cwd().parent)
    for name in (None, "org/model", "demo-target", "x" * 300, "nul\0"):
        assert source_of(name) is None

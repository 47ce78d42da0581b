"""Reading any file gives a valid result or one clear line of error."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mutations import as_json, as_yaml, cases, damaged, mutated
from small_gguf import write_gguf, write_llama

from sequoia_opt import demo
from sequoia_opt.api import load_dataset
from sequoia_opt.cli import charts, tree_defaults
from sequoia_opt.cli.completions import Completions
from sequoia_opt.cli.options import any_tree
from sequoia_opt.engine import gguf_file
from sequoia_opt.engine.torch import gguf_model, gguf_tokenizer
from sequoia_opt.errors import SequoiaError
from sequoia_opt.files import growmap_pt
from sequoia_opt.measure.journal import Journal
from sequoia_opt.plan import (
    csv_import,
    decode_stats,
    engine_counters,
    export,
    growth_stats,
    shapes,
    tree_formats,
)
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.latency import LatencyProfile
from sequoia_opt.plan.solver import solve
from sequoia_opt.plan.tree import TokenTree
from sequoia_opt.report import page_figures
from sequoia_opt.report.bench_figures import figures
from sequoia_opt.report.bench_results import Results
from sequoia_opt.repository import paths, tree_provenance

ROOT = Path(__file__).parents[2]
PROFILE = LatencyProfile.load(paths.bundled_profile())
RATES = Acceptance.load(paths.bundled_acceptance())
SHORT = Acceptance(
    RATES.rates[:4], RATES.rates[:4] * 0.9, np.minimum(RATES.rates[:4] * 1.1, 1),
    by_depth=np.array([[0.5, 0.2], [0.4, 0.1]]), traces=[[1, 2, 0, 1], [1, 1]],
    traces_by_depth=[[[1, 2, 0, 1]], [[1, 0]]], positions=9, target="t", draft="d", context=3.0,
)  # fmt: skip
TREE = TokenTree.load(paths.bundled_tree(0.0))
TREES = [TREE.document(), shapes.k_ary(2, 2).document(), shapes.chain(1).document()]
TEXT = decode_stats.Text(
    decode_stats.Setting("t", "d", 0.6, 1.0, "sequoia"), shapes.k_ary(2, 2), {0: 3, 4: 2}, 90.0
)
GROWTHS = growth_stats.Growths(
    TEXT.setting, "f00d", 90.0, {0: 1, 2: 1}, {1: 1, 4: 1}, {0: 1, 2: 1}, {"pause": 1, "depth": 1},
    predicted=growth_stats.Prediction(2.0, {1: 0.5, 4: 0.5}, {0: 0.5, 2: 0.5}),
)  # fmt: skip
BENCHES = [
    json.loads(path.read_text())
    for path in sorted((ROOT / "benchmarks").glob("*/humaneval/*.json"))
]


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str, bytes], Path]:
    def write(name: str, content: bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write


def tried(work: Callable[[], Any]) -> Any:
    """The result of `work`, or None if it raises the one error that users see."""
    try:
        return work()
    except SequoiaError as error:
        message = str(error)
    assert message.strip()
    assert "Traceback" not in message
    return None


@cases(1200)
@given(document=mutated(TREES))
def test_trees(document: Any, file: Callable[[str, bytes], Path], tmp_path: Path) -> None:
    path = file("tree.json", as_json(document))
    tree = tried(lambda: TokenTree.load(path))
    if tree is not None:
        tree.save(tmp_path / "again.json")
        assert TokenTree.load(tmp_path / "again.json") == tree
        tried(lambda: paths.input_of(tree, "profile"))
        tried(lambda: (tree_defaults.check_world(tree), tree_defaults.offload_of(tree, None, None)))
        tried(lambda: tree_defaults.compiled_roles(tree, None))
        if tree.size <= 64:
            tried(lambda: charts.tree(tree, SHORT, 9))
            tried(lambda: tree_provenance.plan_again(tree, PROFILE, SHORT))


@cases(1200)
@given(document=mutated([SHORT.document()]))
def test_acceptances(document: Any, file: Callable[[str, bytes], Path], tmp_path: Path) -> None:
    path = file("a.yaml", as_yaml(document))
    rates = tried(lambda: Acceptance.load(path))
    if rates is not None:
        rates.save(tmp_path / "again.yaml")
        again = Acceptance.load(tmp_path / "again.yaml")
        assert again.document() == rates.document()
        rates.replicates([shapes.chain(3)], 10)
        charts.acceptance(rates)


@cases(500)
@given(document=mutated([PROFILE.document()]))
def test_profiles(document: Any, file: Callable[[str, bytes], Path], tmp_path: Path) -> None:
    path = file("p.yaml", as_yaml(document))
    profile = tried(lambda: LatencyProfile.load(path))
    if profile is not None:
        profile.save(tmp_path / "again.yaml")
        again = LatencyProfile.load(tmp_path / "again.yaml")
        assert again.document() == profile.document()
        tried(lambda: solve(profile, SHORT, max_size=6, replicates=5))
        charts.profile(profile)


@cases(900)
@given(document=mutated(BENCHES))
def test_results(document: Any, file: Callable[[str, bytes], Path]) -> None:
    path = file("bench.json", as_json(document))
    results = tried(lambda: Results.load(path))
    if results is not None:
        tried(lambda: figures([results]))
        is_calibration = "calibration" in results.document
        draw = page_figures.calibration if is_calibration else page_figures.measured_speeds
        tried(lambda: draw(results))


@cases(900)
@given(document=mutated([TEXT.document(), GROWTHS.document()]))
def test_statistics(document: Any, file: Callable[[str, bytes], Path]) -> None:
    path = file("decode_stats.jsonl", as_json(document) + b"\n" + as_json(TEXT.document()) + b"\n")
    texts = tried(lambda: decode_stats.load(path))
    if texts is not None:
        tried(lambda: decode_stats.acceptances(texts))
    tried(lambda: growth_stats.load(path))


@cases(600)
@given(document=mutated([{"journal": "about", "value": {"a": 1}}, {"journal": "x", "value": [1]}]))
def test_journals(document: Any, file: Callable[[str, bytes], Path]) -> None:
    content = b'{"journal": "about", "value": {"a": 1}}\n' + as_json(document) + b"\n"
    path = file("journal", content)
    if tried(lambda: Journal(path, {"a": 1}, resume=True)) is None:
        assert path.read_bytes() == content


@cases(600)
@given(document=mutated([{"prompt": "one", "completion": "two", "seed": 0}]))
def test_completions(document: Any, file: Callable[[str, bytes], Path]) -> None:
    content = as_json(document) + b"\n"
    path = file("done.jsonl", content)
    if tried(lambda: Completions(path, ["one", "two"], {"seed": 0})) is None:
        assert path.read_bytes() == content


DATASETS = [
    b'{"prompt": "def f():", "completion": "pass"}\n{"text": "and so on"}\n',
    demo.DATASET.read_bytes()[:3000],
    b'[{"instruction": "a", "input": "b"}, {"conversations": [{"from": "human", "value": "c"}]}]',
    b'{"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]}\n"b"\n[1, 2]\n',
]


@cases(700)
@given(content=damaged(DATASETS), name=st.sampled_from(["d.jsonl", "d.json", "d.txt"]))
def test_datasets(content: bytes, name: str, file: Callable[[str, bytes], Path]) -> None:
    path = file(name, content)
    dataset = tried(lambda: load_dataset(path))
    assert dataset is None or dataset[1]


FILES = {
    "t.json": [TokenTree(TREE.parents, TREE.ranks).document(), *TREES],
    "t.yaml": [SHORT.document()],
}
WHOLE = {
    "t.json": [as_json(document) for document in FILES["t.json"]],
    "t.yaml": [as_yaml(document) for document in FILES["t.yaml"]],
}


@cases(1200)
@given(content=damaged(WHOLE["t.json"]))
def test_damaged_trees(content: bytes, file: Callable[[str, bytes], Path]) -> None:
    path = file("t.json", content)
    tried(lambda: TokenTree.load(path))


@cases(1000)
@given(content=damaged(WHOLE["t.yaml"]))
def test_damaged_acceptances(content: bytes, file: Callable[[str, bytes], Path]) -> None:
    path = file("t.yaml", content)
    tried(lambda: Acceptance.load(path))


EXPORTED = [
    (to, export.export(tree, to)[0].encode())
    for to in export.FORMATS
    for tree in (shapes.chain(4), shapes.k_ary(2, 2))
    if tried(lambda tree=tree, to=to: export.export(tree, to)) is not None
]


PASTED = [
    b'"""Trees."""\na = [[0], [1], [0, 0]]\nb: list = [(0,), (0, 0)]  # deeper\n',
    b"llama-server -m t.gguf -md d.gguf --draft-max 16 --draft-p-min 0.6 \\\n  --port 8080\n",
    b"speculative_config:\n  decoding_type: Medusa\n  max_draft_len: 3\n  medusa_choices:\n"
    b"  - - 0\n  - - 0\n    - 0\n",
    b"sgl.Engine(speculative_num_steps=3, speculative_eagle_topk=1)\n",
]


@cases(1200)
@given(
    content=damaged([*(text for _, text in EXPORTED), *PASTED]),
    ending=st.sampled_from(["json", "txt", "yaml"]),
)
def test_trees_of_other_engines(
    content: bytes, ending: str, file: Callable[[str, bytes], Path]
) -> None:
    path = file(f"other.{ending}", content)
    tree = tried(lambda: any_tree(path))
    assert tree is None or isinstance(tree, TokenTree)


TABLES = [
    b"role,batch,context,tokens,ms\ntarget,1,128,1,3.5\ntarget,1,128,2,4\ndraft,1,128,1,0.4\n"
    b"draft,1,128,2,0.5\n",
    b"role,batch,context,tokens,ms,round_ms\ntarget,1,128,1,3.5,5\ntarget,1,128,2,4,6.5\n"
    b"draft,1,128,1,0.4,\ndraft,1,128,2,0.5,\n",
    b"rank,acceptance\n1,0.6\n2,0.2\n",
    b"0.6,0.2,0.1\n0.5,0.2,0.1\n",
]


@cases(1000)
@given(content=damaged(TABLES))
def test_tables(content: bytes, file: Callable[[str, bytes], Path]) -> None:
    path = file("table.csv", content)

    def read() -> Any:
        rows = csv_import.read_csv(path)
        if csv_import.is_latency_table(rows):
            return csv_import.profile_of(rows, str(path), "t", "d", "m")
        return csv_import.acceptance_rates(rows, str(path))

    tried(read)


COUNTS = [
    b'vllm:spec_decode_num_drafts_total{engine="0",model_name="m"} 9.0\n'
    b'vllm:spec_decode_num_accepted_tokens_per_pos_total{model_name="m",position="0"} 5.0\n',
    b"SpecDecoding metrics: Drafted: 20 tokens, Per-position acceptance rate: 0.800, 0.400, Avg\n",
    b"draft acceptance = 0.60000 (   12 accepted /    20 generated), mean len =  2.20\n"
    b"     acc per pos = (0.800, 0.400)\n",
    b"statistics draft-simple: #calls(b,g,a) = 1 10 10, #gen tokens = 20, #acc tokens = 12, "
    b"#acc rate/pos = (0.800, 0.400)\n",
    b'{"timings": {"draft_n": 20, "draft_n_accepted": 12, "predicted_n": 23}}\n',
    b'{"acceptance_length_histogram": {"0": 2, "1": 4, "2": 4}}',
    b'[{"spec_correct_drafts_histogram": [2, 4, 4], "spec_verify_ct": 10}]',
]


@cases(1000)
@given(content=damaged(COUNTS))
def test_counts_of_engines(content: bytes) -> None:
    def rates() -> Any:
        counts = engine_counters.read(content.decode(errors="replace"), "file")
        return None if counts is None else counts.rates("file")

    read = tried(rates)
    assert read is None or ((read >= 0) & (read <= 1)).all()


@cases(60)
@given(data=st.data())
def test_files_of_the_research_code(data: st.DataObject, tmp_path: Path) -> None:
    """Files of torch.save, which are read without running code."""
    whole = tmp_path / "whole.pt"
    growmap_pt.save_growmap(tree_formats.growmap(shapes.k_ary(2, 2)), whole)
    path = tmp_path / "damaged.pt"
    path.write_bytes(data.draw(damaged([whole.read_bytes()])))
    tried(lambda: growmap_pt.load(path))


@cases(300)
@given(data=st.data())
def test_gguf_headers(data: st.DataObject, tmp_path: Path) -> None:
    whole = tmp_path / "whole.gguf"
    if not whole.exists():
        write_gguf(whole)
    path = tmp_path / "damaged.gguf"
    path.write_bytes(data.draw(damaged([whole.read_bytes()])))

    def read() -> None:
        header = gguf_file.read_header(path)
        gguf_file.check_model(header)
        gguf_file.fingerprint(header)
        for key in header.fields:
            header.array(key)
        for number in (header.vocabulary, header.positions, header.layers, header.parameters):
            assert number >= 0
        assert isinstance(header.dtype, str)

    tried(read)


@cases(40)
@given(data=st.data())
def test_gguf_models_on_torch(data: st.DataObject, tmp_path: Path) -> None:
    """Metadata that may say anything, of a model and its tokenizer."""
    whole = tmp_path / "whole.gguf"
    if not whole.exists():
        write_llama(whole)
    content = whole.read_bytes()
    header = gguf_file.read_header(whole).layouts[0].data
    path = tmp_path / "damaged.gguf"
    path.write_bytes(data.draw(damaged([content[:header]])) + content[header:])

    def load() -> None:
        config = gguf_model.config_of(str(path))
        gguf_tokenizer.tokenizer_of(gguf_file.read_header(path))
        gguf_model.model_of(str(path), config, torch.float32)

    tried(load)

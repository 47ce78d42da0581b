"""Trees as projects publish them, and settings as users paste them."""

from __future__ import annotations

import json

import pytest
import yaml

from sequoia_opt.errors import SequoiaError
from sequoia_opt.plan import shapes
from sequoia_opt.plan.import_settings import read
from sequoia_opt.plan.tree import TokenTree

PATHS = [[0], [0, 0], [1], [0, 1], [2], [0, 0, 0], [1, 0]]
TREE = TokenTree.from_paths([[rank + 1 for rank in path] for path in PATHS])
TUPLES = [tuple(path) for path in PATHS]
LINES = ",\n    ".join(map(str, PATHS)) + ","  # a list over several lines


@pytest.mark.parametrize(
    "text",
    [
        f"my_choices = {PATHS}\n",
        f'"""Trees."""\nimport torch\n\nmy_choices = {TUPLES}  # seven\n',
        f"my_choices: list[list[int]] = [\n    {LINES}\n]\n",
        f"a = {PATHS}\nb = {TUPLES}\nbest = a\n",  # the same under two names
        json.dumps(PATHS),
        f"{PATHS}  # seven nodes",
        f"{TUPLES}",
        f"{[[], *PATHS]}",
        f'python run.py --medusa_choices="{PATHS}" --temperature 0.7',
        f"python run.py --eagle_choices '{PATHS}'",
        f"# was max_draft_len: 3\nmedusa_choices: {PATHS}",
        json.dumps({"speculative_config": {"decoding_type": "Medusa", "medusa_choices": PATHS}}),
        yaml.safe_dump({"speculative_config": {"eagle_choices": PATHS, "max_draft_len": 3}}),
        yaml.dump({"c": {"medusa_choices": PATHS}}, default_flow_style=None),
        f"config={{'num_speculative_tokens': 7, 'speculative_token_tree': str({TUPLES})}}",
        json.dumps({"num_speculative_tokens": 7, "speculative_token_tree": str(TUPLES)}),
        f"MedusaDecodingConfig(max_draft_len=63, num_medusa_heads=4,\n  medusa_choices={PATHS})",
        "medusa_choices=[[0], [0, 0], [1], [0, 1], \\\n   [2], [0, 0, 0], [1, 0]]",
    ],
)
def test_reads_published_lists(text: str) -> None:
    assert read(text, "file") == TREE


def test_one_of_several_lists_is_chosen_by_name() -> None:
    text = f"small = [[0], [1]]\nlarge = {PATHS}\n"
    with pytest.raises(SequoiaError, match=r"2 lists: small \(2 paths\), large \(7 paths\)"):
        read(text, "file")
    assert read(text, "file", "large") == TREE
    assert read(text, "file", "small") == shapes.k_ary(2, 1)
    with pytest.raises(SequoiaError, match=r"found no 'other', expected one .*: small, large"):
        read(text, "file", "other")


def test_ranks_from_1_are_read_with_first_rank() -> None:
    shifted = str([[rank + 1 for rank in path] for path in PATHS])
    with pytest.raises(SequoiaError, match=r"file: .*--first-rank 1"):
        read(shifted, "file")
    assert read(shifted, "file", first_rank=1) == TREE
    with pytest.raises(SequoiaError, match=r"found path \[0\], expected ranks from 1"):
        read("[[0], [1]]", "file", first_rank=1)


@pytest.mark.parametrize(
    ("text", "guesses"),
    [
        ("llama-server -m t.gguf -md d.gguf --draft 16", 16),
        ("--draft-n 8", 8),
        ("llama-server -m t.gguf -md d.gguf --draft-max 16 --draft-min 1 --draft-p-min 0", 16),
        ("--spec-draft-n-max 8 --spec-draft-n-min 2", 8),
        ("LLAMA_ARG_DRAFT_MAX=12", 12),
        ('command: ["llama-server", "-md", "d.gguf", "--draft-max", "16", "--port", "80"]', 16),
        ("command:\n  - llama-server\n  - --draft-max\n  - '16'\n  - --port\n  - '80'\n", 16),
        ("llama-server \\\n  --draft-max \\\n  16 \\\n  -ngld 99 --device-draft CUDA1", 16),
        ("--spec-type mtp:n_max=4,p_min=0.0", 4),
        ('{"prompt":"x","speculative.n_max": 6}', 6),
        ("--speculative-model d --num-speculative-tokens 5", 5),
        ("--num_speculative_tokens=5", 5),
        ("vllm serve big --speculative-config.num_speculative_tokens 5", 5),
        ('--speculative-config \'{"model":"d","num_speculative_tokens":5}\'', 5),
        ('llm = LLM("b", speculative_config={"method": "ngram", "num_speculative_tokens": 5, '
         '"prompt_lookup_max": 4})', 5),
        ("sgl.Engine(speculative_num_steps=3)", 3),
        ('sgl.Engine(model_path="b", speculative_algorithm="STANDALONE", speculative_num_steps=3, '
         "speculative_eagle_topk=1, speculative_num_draft_tokens=4)", 3),
        ("--speculative-num-steps 3 --speculative-num-draft-tokens 4", 3),
        ("speculative_config:\n  decoding_type: DraftTarget\n  max_draft_len: 4\n", 4),
        ("DraftTargetDecodingConfig(max_draft_len=4, speculative_model='d')", 4),
        ("--speculative_decoding_mode draft_tokens_external --max_draft_len 10", 10),
        ("MTPDecodingConfig(num_nextn_predict_layers=3)", 3),
        ("assistant.generation_config.num_assistant_tokens = 6", 6),
        ("model.generate(**x, assistant_model=a, num_assistant_tokens=6)", 6),
        ("mlx_lm.generate --draft-model d --num-draft-tokens 3", 3),
        ("num_speculative_tokens: 3  # 5 was slower: num_speculative_tokens: 5", 3),
        ("--num-speculative-tokens 0", 0),
    ],
)  # fmt: skip
def test_reads_settings_as_users_paste_them(text: str, guesses: int) -> None:
    assert read(text, "file") == shapes.chain(guesses + 1)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        # with Medusa it is the number of a tree's nodes; without a mode nobody knows
        ("speculative_config:\n  decoding_type: Medusa\n  max_draft_len: 63\n", "with medusa"),
        ("MedusaDecodingConfig(max_draft_len=63, num_medusa_heads=4)", "with medusa"),
        ("BuildConfig(max_draft_len=63, speculative_decoding_mode="
         "SpeculativeDecodingMode.MEDUSA)", "with medusa"),
        ("decoding_type: Medusa\nmax_draft_len: 63\nmedusa_choices: null\n", "with medusa"),
        ("max_draft_len: 63", "no decoding_type"),
        ("decoding_type: Lookahead\nmax_draft_len: 8", "with lookahead"),
        ("decoding_type: AUTO\nmax_draft_len: 8", "with auto"),
        # more than one number
        ("decoding_type: NGram\nmax_draft_len: 4\ndraft_len_schedule:\n  4: 4\n  8: 2\n",
         "draft_len_schedule: the length depends"),
        ('{"num_speculative_tokens": 3, "num_speculative_tokens_per_batch_size": '
         "[[1, 64, 3], [65, 128, 1]]}", "per_batch_size: the length depends"),
        ("num_speculative_tokens: 4\nnum_assistant_tokens: 5\n", "chains of 4 and 5 guesses"),
        ("--speculative-num-steps 3 --speculative-num-draft-tokens 16", "tokens: without"),
        ("--speculative-algorithm NGRAM --speculative-num-draft-tokens 12", "without"),
        ("decoding_type: Eagle3\nmax_draft_len: 4\nmax_total_draft_tokens: 12\n",
         "max_total_draft_tokens: this many"),
        # the engine decides
        ("--speculative-num-steps 3 --speculative-eagle-topk 4", "grows this tree itself"),
        ('{"max_draft_len": 3, "dynamic_tree_max_topK": 10}', "grows this tree itself"),
        (f"use_dynamic_tree: true\neagle_choices: {PATHS}", "grows this tree itself"),
        ("--speculative-num-steps 3 --speculative-adaptive", "grows this tree itself"),
        ('{"num_speculative_tokens": 7, "enable_adaptive_verification": true}', "itself"),
        ("llama-speculative --draft-max 8 --draft-p-split 0.1", "grows this tree itself"),
        ('num_assistant_tokens=5, num_assistant_tokens_schedule="heuristic"', "changes"),
        ("--spec-type none --spec-draft-n-max 4", "does not speculate"),
        # unknown to this program, and perhaps relevant
        ("--draft-max 4 --spec-branch-budget 8", "--spec-branch-budget: its effect"),
        ("--num-speculative-tokens 4 --speculative-tree-mode wide", "--speculative-tree-mode: its"),
        ('"draftTokens": 4', "draftTokens: its effect on the tree is not known"),
        ("--num-speculative-tokens many", "found 'many', expected a number"),
        ("--num-speculative-tokens -3", "found -3 guesses"),
        ("--num-speculative-tokens 99999999999", "found 99999999999 guesses, expected 0 to 10000"),
        ("eagle_choices:\n- [0]\n- x\n", "eagle_choices: found no list"),
        ("--medusa_choices mc_sim_7b_63", "--medusa_choices: found no list"),
    ],
)  # fmt: skip
def test_refuses_numbers_that_could_mean_something_else(text: str, named: str) -> None:
    with pytest.raises(SequoiaError, match=r"file: .*" + named):
        read(text, "file")


@pytest.mark.parametrize(
    ("text", "name", "guesses"),
    [
        ("decoding_type: Medusa\nmax_draft_len: 63\n", "max_draft_len", 63),
        ("num_speculative_tokens: 4\nmax_draft_len: 5\n", "max_draft_len", 5),
        ('"draftTokens": 4', "draftTokens", 4),
        ("--draft-max 4 --spec-branch-budget 8", "--draft-max", 4),
        ("--speculative-num-draft-tokens 12", "speculative-num-draft-tokens", 11),  # with the root
    ],
)
def test_a_named_number_is_the_length_of_a_chain(text: str, name: str, guesses: int) -> None:
    assert read(text, "file", name) == shapes.chain(guesses + 1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("--draft-max 16", "less sure than 0.75"),
        ("--draft-max 16 --draft-p-min 0", ""),
        ("--spec-draft-n-max 16 --spec-draft-p-min 0.6", "less sure"),
        ("--spec-draft-n-max 16", ""),
        ("num_assistant_tokens=6", "less sure than 0.4"),
        ("num_assistant_tokens=6, assistant_confidence_threshold=0", ""),
        ("speculative_num_steps=3", "eagle-topk is not set"),
        ("speculative_num_steps=3, speculative_eagle_topk=1", ""),
    ],
)
def test_notes_say_what_ends_a_chain_early(text: str, words: str) -> None:
    notes: list[str] = []
    read(text, "file", note=notes.append)
    assert words in "\n".join(notes)
    assert bool(notes) == bool(words)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[[0], [2]]", r"path \[2\] has no elder sibling: its ranks have a gap"),
        ("[[0], [1, 0]]", r"path \[1, 0\] has no parent \[1\]"),
        ("[[0], [-1]]", r"found path \[-1\]"),
        ("[[0], 3]", "found path 3"),
        ("[]", "found no paths"),
        ("[[0], [", "neither JSON nor"),
        ("[" * 5000, "neither JSON nor"),
        ("hello", "none of the known formats"),
        ('{"Successors": [[1], [2]]}', r"Successors\[1\]: found 2"),
        ('{"Successors": [[1], [], []]}', "node 2 is missing"),
        ('{"Successors": [[1, 2], [2], []]}', "node 2 has two parents"),
        ('{"Successors": [[1], []], "size": 3}', "size: found 3"),
        ('{"Successors": [[1], []], "size": "two"}', "size: found two"),
    ],
)
def test_refuses_other_texts(text: str, complaint: str) -> None:
    with pytest.raises(SequoiaError, match=r"file: .*" + complaint):
        read(text, "file")

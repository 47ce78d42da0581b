"""The settings of other engines: what each says about the tree that the engine drafts.

Knows the settings by name, as they were in vLLM 0.33, SGLang 0.5.23, TensorRT-LLM 1.4.0rc4,
transformers 5.24 and llama.cpp of November 2026, and in the older versions that are named. Knows
nothing of how a text is read.
"""

from __future__ import annotations

import re
from typing import TypeGuard

from sequoia_opt.plan.settings_text import Setting

# The length of a chain: tokens guessed one after another, the root not among them.
LENGTHS = {
    "num_speculative_tokens",  # vLLM
    "spec_draft_n_max",  # llama.cpp
    "draft_max",  # llama.cpp until spring 2026, like the next three
    "draft_n",
    "n_max",
    "draft_n_max",
    "max_draft_len",  # TensorRT-LLM
    "num_nextn_predict_layers",
    "speculative_num_steps",  # SGLang
    "num_assistant_tokens",  # transformers
    "prompt_lookup_num_tokens",
    "num_draft_tokens",  # mlx-lm
    "max_draft_tokens",  # ONNX Runtime GenAI
}
FLAG_LENGTHS = {"draft"}  # llama.cpp's --draft; without dashes the word means other things too
COUNT_WITH_ROOT = "speculative_num_draft_tokens"  # SGLang's number of nodes, the root included
COUNT_OF_GUESSES = "max_total_draft_tokens"  # TensorRT-LLM's number of guesses
TREES = ("medusa_choices", "eagle_choices", "speculative_token_tree")
SCHEDULES = {"num_speculative_tokens_per_batch_size", "draft_len_schedule"}
TOP_KS = ("speculative_eagle_topk", "dynamic_tree_max_topk")
MODES = ("decoding_type", "speculative_decoding_mode")
# TensorRT-LLM's modes in which max_draft_len is the length of a chain. With Medusa it is the
# number of a tree's nodes; for the other modes its documentation does not say.
CHAIN_MODES = {
    "draft_target", "drafttarget", "draft_tokens_external", "eagle", "eagle3", "mtp", "ngram",
    "pard", "sa", "dflash", "dspark",
}  # fmt: skip
# With these the engine decides at each step what it drafts or verifies.
DYNAMIC = {
    "use_dynamic_tree", "speculative_adaptive", "enable_adaptive_verification",
    "speculative_adaptive_config", "draft_p_split", "spec_draft_p_split", "p_split",
    "max_verification_set_size", "max_non_leaves_per_layer", "branching_factor", "tree_depth",
}  # fmt: skip
THRESHOLDS = ("p_min", "draft_p_min", "spec_draft_p_min", "assistant_confidence_threshold")
OLD_LLAMA_CPP = {"draft", "draft_max", "draft_n"}
_KNOWN = {*TREES, *TOP_KS, *DYNAMIC, *SCHEDULES, *MODES, COUNT_WITH_ROOT, COUNT_OF_GUESSES}
_DRAFTERS = {"spec", "speculative", "draft", "drafter", "assistant"}  # if not set to a number
# Names that sound like speculation, and those of them that do not affect the tree's shape.
_SPECULATIVE = re.compile(
    r"spec(?!ial)|draft|assist|medusa|eagle|lookahead|mtp|nextn|tree|choices|verif|guess|ngram"
)
_HARMLESS = re.compile(
    # where the drafter comes from and how it is loaded; Python's names for its parts
    r"(?:^|_)(?:model|tokenizer|path|dir|folder|file|repo|url|revision|device|devices|ngl"
    r"|gpu_layers|threads|threads_batch|poll|prio|cpu_mask|cpu_range|cpu_strict|quantization"
    r"|backend|attention_mode|format|token_map|dtype|ctx_size|parallel_size|max_model_len"
    r"|type_[kv]|override_tensor|cpu_moe|logprobs|vocab|replace)$"
    r"|_draft$|^(?:draft|assistant|drafter|speculative)_?(?:model|tokenizer|llm|engine|config)$"
    # the kind of drafter, and the rule that accepts its guesses
    r"|^(?:spec_type|speculative_(?:algorithm|decoding|config)|use_speculative_decoding"
    r"|draft_sample_method|num_medusa_heads|num_eagle_layers|eagle3_(?:one_model|model_arch"
    r"|layers_to_capture)|mtp_eagle_one_model|use_mtp_vanilla|is_assistant|assistant_early_exit"
    r"|parallel_drafting|disable_padded_drafter_batch|use_heterogeneous_vocab|speculative_use_"
    r"(?:block_verification|rejection_sampling)|speculative_accept_threshold_(?:single|acc))$"
    # when it is not used, or stops early
    r"|^(?:draft_min|draft_n_min|spec_draft_n_min|draft_p_min|spec_draft_p_min"
    r"|assistant_confidence_threshold|num_assistant_tokens_schedule|(?:speculative_)?disable_by_batch_size"
    r"|max_matching_ngram_size|assistant_lookbehind)$"
)


def is_count(value: object) -> TypeGuard[int]:
    """Whether a setting's value is a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)


def mode_name(written: str) -> str:
    """A mode's name for comparisons: `SpeculativeDecodingMode.MEDUSA` is `medusa`."""
    return written.rsplit(".", 1)[-1].lower().replace("-", "_")


def is_length(setting: Setting) -> bool:
    """Whether a setting can be the length of a chain."""
    return setting.name in LENGTHS or (setting.is_flag and setting.name in FLAG_LENGTHS)


def is_unknown(setting: Setting) -> bool:
    """Whether a setting sounds like speculation, is switched on, and has an unknown effect."""
    name = setting.name
    if is_length(setting) or name in _KNOWN:
        return False
    if setting.value is False or isinstance(setting.value, list | dict):
        return False
    if name in _DRAFTERS and not is_count(setting.value):
        return False
    return bool(_SPECULATIVE.search(name)) and not _HARMLESS.search(name)

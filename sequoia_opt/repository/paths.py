"""Default paths: where a command writes its file, and where the next one looks for it.

Knows file names and folders. Knows nothing of when a file may be replaced.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

from sequoia_opt import demo
from sequoia_opt.engine.names import LLAMA_CPP, TORCH
from sequoia_opt.errors import SequoiaError
from sequoia_opt.files.documents import parse_document
from sequoia_opt.files.fields import Fields
from sequoia_opt.files.names import content_fingerprint, safe_name, short_name
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.tree import TokenTree
from sequoia_opt.repository.outputs import distinction_in, undistinguished

ACCEPTANCE = "acceptance"  # folder next to those of the hardware
# Parts of a profile's name. "+" sorts before "-" and ".": of files of the same date, the last by
# name, and so the default, is one without compiled forward passes.
COMPILED = "+compiled"
RANDOM_WEIGHTS = "+random"
ENGINE_MARKS = {TORCH: "", LLAMA_CPP: "+llama-cpp"}
OFFLOADED, TENSOR_PARALLEL = "--offload-", "--tp"
PACKAGE = Path(__file__).parents[1]


def roots() -> list[Path]:
    """Folders that may hold `profiles` and `trees`: the current one, the checkout, the installed
    package."""
    return [Path(), PACKAGE.parent, PACKAGE / "demo"]


def profile_path(
    hardware: str,
    target: str,
    draft: str,
    dtype: str,
    compiled: bool = False,
    random_weights: bool = False,
    offload: str = "none",
    world_size: int = 1,
    engine: str = TORCH,
) -> Path:
    """The default path of a latency profile."""
    setting = safe_name(dtype) + ENGINE_MARKS[engine]
    if compiled:
        setting += COMPILED
    if random_weights:
        setting += RANDOM_WEIGHTS
    if offload != "none":
        setting += OFFLOADED + safe_name(offload)
    if world_size > 1:
        setting += f"{TENSOR_PARALLEL}{world_size}"
    name = short_name(f"{safe_name(target)}--{safe_name(draft)}--{setting}")
    return Path("profiles") / safe_name(hardware) / f"{name}.yaml"


def acceptance_path(
    target: str,
    draft: str,
    dataset: str,
    verifier: str,
    temperature: float,
    top_p: float,
    top_k: int = 0,
    min_p: float = 0.0,
) -> Path:
    """The default path of an acceptance measurement."""
    parts = [safe_name(target), safe_name(draft), safe_name(dataset)]
    parts.append(sampling_name(verifier, temperature, top_p, top_k, min_p))
    return Path("profiles") / ACCEPTANCE / (short_name("--".join(parts)) + ".yaml")


def sampling_name(
    verifier: str, temperature: float, top_p: float, top_k: int = 0, min_p: float = 0.0
) -> str:
    """A verifier and its sampling parameters as a part of a file name."""
    name = f"{safe_name(verifier)}-T{temperature:g}"
    if top_p != 1:
        name += f"-p{top_p:g}"
    if top_k > 0:
        name += f"-k{top_k}"
    if min_p > 0:
        name += f"-m{min_p:g}"
    return name


def tree_path(
    hardware: str, profile: Path, acceptance: Acceptance, rates: Path | None = None
) -> Path:
    """The default path of a tree that was solved from a profile and an acceptance measurement.

    Args:
        rates: the measurement's file; the distinction in its name becomes the tree's.
    """
    sampling = sampling_name(
        acceptance.verifier,
        acceptance.temperature,
        acceptance.top_p,
        acceptance.top_k,
        acceptance.min_p,
    )
    name = f"{profile.stem}--{safe_name(acceptance.dataset)}-{sampling}"
    name = short_name(name) + (distinction_in(rates) if rates else "")
    return Path("trees") / safe_name(hardware) / f"{name}.json"


def bundled_profile() -> Path:
    """The profile of the bundled pair that was measured last.

    Raises:
        SequoiaError: none exists.
    """
    pattern = f"profiles/*/{demo.TARGET_NAME}--{demo.DRAFT_NAME}--*.yaml"
    return _newest(pattern, "sequoia-opt profile", skipped=ACCEPTANCE)


def bundled_acceptance() -> Path:
    """The greedy acceptance of the bundled pair on the bundled dataset.

    Raises:
        SequoiaError: none exists.
    """
    path = acceptance_path(demo.TARGET_NAME, demo.DRAFT_NAME, demo.DATASET_NAME, "greedy", 0.0, 1.0)
    return _newest(path.as_posix(), "sequoia-opt estimate")


def bundled_tree(
    temperature: float, compiled: bool = False, hardware: str = "", engine: str = TORCH
) -> Path:
    """The tree of the bundled pair whose profile is newest, for this temperature if one exists.

    Args:
        compiled: consider only trees for compiled forward passes.
        hardware: this machine's slug; its trees come before others.
        engine: that the tree was solved for.

    Raises:
        SequoiaError: none exists.
    """
    setting = "*" + ENGINE_MARKS[engine] + (COMPILED if compiled else "")
    search = partial(_newest, command="sequoia-opt solve", hardware=hardware, engine=engine)
    pattern = f"trees/*/{demo.TARGET_NAME}--{demo.DRAFT_NAME}--{setting}--{demo.DATASET_NAME}-"
    if temperature == 0:
        return search(pattern + "greedy-T0.json")
    try:
        return search(pattern + f"*-T{temperature:g}.json")
    except SequoiaError:
        return search(pattern + "sequoia-T*.json")


def input_of(tree: TokenTree, kind: str, beside: Path | None = None) -> Path:
    """The profile or acceptance file that a tree was solved from.

    Args:
        kind: "profile" or "acceptance".
        beside: another folder to look in: the tree's own.

    Raises:
        SequoiaError: it is in none of the folders, or has changed since.
    """
    provenance = Fields(tree.metadata.get("provenance", {}), "tree: provenance")
    source = provenance.section(kind).mapping if kind in provenance.mapping else {}
    folder = "profiles/*" if kind == "profile" else f"profiles/{ACCEPTANCE}"
    searches = [(root, f"{folder}/*.yaml") for root in roots()]
    if beside:
        searches.append((beside, "*.yaml"))
    for root, pattern in searches:
        for path in root.glob(pattern):
            # The recorded name is compared, not opened: it could be a pattern or lead elsewhere.
            has_name = path.name == source.get("file")
            if has_name and content_fingerprint(path) == source.get("fingerprint"):
                return path
    raise SequoiaError(
        f"the {kind} that the tree was solved from ({source.get('file', 'unknown')}) is neither in "
        f"profiles nor beside the tree, or has changed since; name it with --{kind}"
    )


def _newest(
    pattern: str,
    command: str,
    skipped: str = "",
    hardware: str = "",
    engine: str | None = None,
) -> Path:
    """The newest file of the first root that has one, by the date that the files state.

    Times of files would not do: those of a checkout say when it was made. Files without a date are
    the oldest, and the name decides among files of one date, those without a distinction first.

    Args:
        pattern: of paths, their names taken without distinctions.
        command: creates such a file.
        skipped: name of a folder to leave out.
        hardware: name of a folder whose files come before others.
        engine: leave out files for other engines.

    Raises:
        SequoiaError: no file matches.
    """

    def rank(path: Path) -> tuple[bool, str, bool, str]:
        is_plain = not distinction_in(path)
        return path.parent.name == hardware, _measured(path), is_plain, str(path)

    left_out = [OFFLOADED, TENSOR_PARALLEL]
    left_out += [mark for of, mark in ENGINE_MARKS.items() if mark and engine not in (None, of)]
    folder, name = pattern.rsplit("/", 1)
    for root in roots():
        matching = [
            path
            for path in root.glob(f"{folder}/*")
            if fnmatchcase(undistinguished(path.name), name)
            and path.parent.name != skipped
            and not any(setting in path.name for setting in left_out)
        ]
        if matching:
            return max(matching, key=rank)
    raise SequoiaError(f"no file matches {pattern}; run `{command}` first, or name a file")


def _measured(path: Path) -> str:
    """When a profile, or the one that a tree was solved from, was measured; empty if unknown."""
    try:
        document = parse_document(path)
    except SequoiaError:  # whoever uses the file will say what is wrong with it
        return ""
    provenance = document.get("provenance")
    profile = provenance.get("profile") if isinstance(provenance, dict) else None
    date = (profile if isinstance(profile, dict) else document).get("date")
    return date if isinstance(date, str) else ""

"""Where files go by default, and where a command that is given none looks for them."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

from sequoia_opt import demo
from sequoia_opt.errors import SequoiaError
from sequoia_opt.files.fields import Fields
from sequoia_opt.files.names import content_fingerprint, safe_name, short_name
from sequoia_opt.plan.acceptance import Acceptance
from sequoia_opt.plan.tree import TokenTree
from sequoia_opt.repository.outputs import distinction_in, undistinguished

ACCEPTANCE = "acceptance"  # folder beside the hardware's
# Sorts before what follows a file without it: of files of one age those of the plain engine count.
COMPILED = "+compiled"
RANDOM = "+random"  # weights
OFFLOADED, SPREAD = "--offload-", "--tp"
PACKAGE = Path(__file__).parents[1]


def roots() -> list[Path]:
    """Folders that hold `profiles` and `trees`: here, then the checkout or the installed copy."""
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
) -> Path:
    """Default file of a latency profile."""
    setting = safe_name(dtype) + COMPILED * compiled + RANDOM * random_weights
    setting += OFFLOADED + safe_name(offload) if offload != "none" else ""
    setting += f"{SPREAD}{world_size}" if world_size > 1 else ""
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
    """Default file of an acceptance measurement."""
    parts = [safe_name(target), safe_name(draft), safe_name(dataset)]
    parts.append(sampling_name(verifier, temperature, top_p, top_k, min_p))
    return Path("profiles") / ACCEPTANCE / (short_name("--".join(parts)) + ".yaml")


def sampling_name(
    verifier: str, temperature: float, top_p: float, top_k: int = 0, min_p: float = 0.0
) -> str:
    """A verifier and its warping as a part of a file name."""
    name = f"{safe_name(verifier)}-T{temperature:g}"
    name += "" if top_p == 1 else f"-p{top_p:g}"
    return name + f"-k{top_k}" * (top_k > 0) + f"-m{min_p:g}" * (min_p > 0)


def tree_path(
    hardware: str, profile: Path, acceptance: Acceptance, rates: Path | None = None
) -> Path:
    """Default file of a tree solved from a profile and an acceptance measurement.

    Args:
        rates: the measurement's file: what sets its name apart sets the tree's apart.
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
    """The newest profile of the bundled pair.

    Raises:
        SequoiaError: there is none.
    """
    pattern = f"profiles/*/{demo.TARGET_NAME}--{demo.DRAFT_NAME}--*.yaml"
    return _newest(pattern, "sequoia-opt profile", skipped=ACCEPTANCE)


def bundled_acceptance() -> Path:
    """The newest greedy measurement of the bundled pair on the bundled dataset."""
    path = acceptance_path(demo.TARGET_NAME, demo.DRAFT_NAME, demo.DATASET_NAME, "greedy", 0.0, 1.0)
    return _newest(path.as_posix(), "sequoia-opt estimate")


def bundled_tree(temperature: float, compiled: bool = False, hardware: str = "") -> Path:
    """The newest tree of the bundled pair, for this temperature if there is one.

    Args:
        compiled: only one for compiled forwards.
        hardware: this machine's slug: trees that were solved for it come before others.
    """
    setting = "*" + COMPILED * compiled
    pattern = f"trees/*/{demo.TARGET_NAME}--{demo.DRAFT_NAME}--{setting}--{demo.DATASET_NAME}-"
    if temperature == 0:
        return _newest(pattern + "greedy-T0.json", "sequoia-opt solve", hardware=hardware)
    try:
        return _newest(pattern + f"*-T{temperature:g}.json", "sequoia-opt solve", hardware=hardware)
    except SequoiaError:
        return _newest(pattern + "sequoia-T*.json", "sequoia-opt solve", hardware=hardware)


def input_of(tree: TokenTree, kind: str, beside: Path | None = None) -> Path:
    """The profile, or the acceptance file, that a tree was solved from.

    Args:
        beside: a folder that it may be in besides its default place: the tree's own.

    Raises:
        SequoiaError: it is not in its default place, or has changed since.
    """
    provenance = Fields(tree.metadata.get("provenance", {}), "tree: provenance")
    source = provenance.section(kind).mapping if kind in provenance.mapping else {}
    folder = "profiles/*" if kind == "profile" else f"profiles/{ACCEPTANCE}"
    places = [(root, f"{folder}/*.yaml") for root in roots()]
    for root, pattern in [*places, *([(beside, "*.yaml")] if beside else [])]:
        for path in root.glob(pattern):
            # The name is not a pattern, nor a way to anywhere else.
            same = path.name == source.get("file")
            if same and content_fingerprint(path) == source.get("fingerprint"):
                return path
    raise SequoiaError(
        f"the {kind} that the tree was solved from ({source.get('file', 'unknown')}) is not here; "
        f"name it with --{kind}"
    )


def _newest(pattern: str, command: str, skipped: str = "", hardware: str = "") -> Path:
    """The newest file of the first root that has one.

    Args:
        pattern: of paths, but for what sets a file's name apart from another of the same models.
        skipped: folder whose files do not count.
        hardware: folder whose files come before others.
    """

    def rank(path: Path) -> tuple[bool, float, bool, str]:
        is_plain = not distinction_in(path)
        return path.parent.name == hardware, path.stat().st_mtime, is_plain, str(path)

    folder, name = pattern.rsplit("/", 1)
    for root in roots():
        found = [
            path
            for path in root.glob(f"{folder}/*")
            if fnmatchcase(undistinguished(path.name), name)
            and path.parent.name != skipped
            and not any(setting in path.name for setting in (OFFLOADED, SPREAD))
        ]
        if found:
            return max(found, key=rank)
    raise SequoiaError(f"no file matches {pattern}; run `{command}` first, or name a file")

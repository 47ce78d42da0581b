"""Recorded drafts: what the draft said at each position of a dataset's continuations.

Beside the acceptance file, as a compressed `.npz`. From it follow the calibration and the replay
of adaptive policies. Knows nothing of policies or times.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sequoia_opt.errors import SequoiaError
from sequoia_opt.files.atomic import write_bytes
from sequoia_opt.plan.draft_passes import OF_HEAD
from sequoia_opt.plan.growth import nested_slots
from sequoia_opt.types import FloatArray

FORMAT, VERSION = "sequoia-opt/recording", 1
ARRAYS = ("probabilities", "origins", "ranks", "starts")
PATH_RANKS = "path_ranks"
LOOKUP = "lookup_"  # what the names of a lookup's arrays begin with, beside a model's
DAMAGED = (
    OSError, ValueError, LookupError, TypeError, AttributeError, EOFError, zipfile.BadZipFile,
    zlib.error,
)  # fmt: skip
"""Errors of reading a damaged recording, or a file of another kind."""

MOST_GUESSES = 256  # of a level, so that a byte tells them apart


@dataclass(frozen=True)
class Envelope:
    """How much of the draft's probabilities is recorded at each position.

    Attributes:
        levels: of the recorded tree.
        slots: nodes of each level but the first, W.
        ranks: guesses of each node, K.

    Raises:
        SequoiaError: a number is out of range.
    """

    levels: int = 8
    slots: int = 4
    ranks: int = 4

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 1:
                raise SequoiaError(f"envelope: {name}: found {value}, expected at least 1")
        if self.slots > self.ranks:  # the second level would have empty slots
            raise SequoiaError(
                f"envelope: slots: found {self.slots}, expected at most {self.ranks}, as many as "
                "a node has ranks"
            )
        if self.slots * self.ranks > MOST_GUESSES:
            raise SequoiaError(
                f"envelope: found {self.slots} slots of {self.ranks} ranks, expected a product of "
                f"at most {MOST_GUESSES}"
            )

    @property
    def nodes(self) -> int:
        """Nodes of the recorded tree: one of the first level, and those of the others."""
        return 1 + (self.levels - 1) * self.slots

    @property
    def leaves(self) -> int:
        """The most leaves that it has: of each level but the last, all nodes but one."""
        return 1 if self.levels == 1 else 1 + (self.levels - 1) * (self.slots - 1)

    def within(self, ranks: int) -> Envelope:
        """As much of it as there is where a node has so many ranks at most."""
        return Envelope(self.levels, min(self.slots, ranks), min(self.ranks, ranks))

    @classmethod
    def parse(cls, text: str) -> Envelope:
        """The envelope that a text such as 8x4x4 names: levels, slots, ranks.

        Raises:
            SequoiaError: it names none.
        """
        parts = text.split("x")
        if len(parts) != 3 or not all(part.isascii() and part.isdecimal() for part in parts):
            raise SequoiaError(
                f"envelope: found {text!r}, expected levels, slots and ranks, such as 8x4x4"
            )
        return cls(*map(int, parts))

    def __str__(self) -> str:
        return f"{self.levels}x{self.slots}x{self.ranks}"


LOOKUP_ENVELOPE = Envelope(levels=16)
"""What is recorded of a lookup, whose levels cost nothing."""


@dataclass(frozen=True)
class Recording:
    """What the draft said.

    At each position the draft grew a tree: its first level has one node, the text's last token,
    and each later level has W slots, filled as `growth.nested_slots` says. Of each slot's node the
    K likeliest guesses are recorded. A lookup may have fewer guesses, and fill fewer slots.

    Attributes:
        probabilities: [positions, 1 + (levels - 1) · W, K], float16: the draft's probabilities of
            a node's K likeliest tokens, in order; level by level. 0 where there is no guess, and
            where a slot is empty.
        origins: [positions, levels - 1, W], which guess a slot's node is: of the slot of the level
            above with the number `origin // K`, the one of rank `1 + origin % K`. A slot whose
            guess does not exist is empty.
        ranks: [positions], which guess a verification of full width accepted, counted from 1; 0 if
            it accepted none, or one past the K-th.
        starts: [documents + 1], where each document's positions begin, and where the last ends.
        about: the pair, the sampling and the fingerprints that it was recorded with.
        path_ranks: [positions, levels], which guess the text is at its own node of each level, 0
            if none. None where that is what `ranks` says of the positions behind: a model's guesses
            depend on the tokens before alone, a lookup's and a head's also on how far the text has
            come.
        lookup: what a lookup guesses at the same positions, of a pair that looks up before its
            model drafts; else None.
    """

    probabilities: NDArray[np.float16]
    origins: NDArray[np.uint8]
    ranks: NDArray[np.uint8]
    starts: NDArray[np.int64]
    about: Mapping[str, Any] = field(default_factory=dict)
    path_ranks: NDArray[np.uint8] | None = None
    lookup: Recording | None = None

    def __post_init__(self) -> None:
        positions = len(self.ranks)
        if self.lookup is not None and not np.array_equal(self.lookup.starts, self.starts):
            raise SequoiaError("recording: lookup: found other documents than the model's")
        along = self.path_ranks
        if along is not None and (
            along.shape != (positions, self.levels)
            or (positions and int(along.max()) > self.width_of_node)
        ):
            raise SequoiaError("recording: path_ranks: found no ranks of all positions and levels")
        if (
            self.probabilities.ndim != 3
            or self.origins.ndim != 3
            or len(self.probabilities) != positions
            or len(self.origins) != positions
            or self.probabilities.shape[1] != 1 + self.origins.shape[1] * self.origins.shape[2]
        ):
            raise SequoiaError("recording: found arrays whose shapes do not belong together")
        starts = self.starts
        if (
            starts.ndim != 1
            or len(starts) < 2
            or starts[0] != 0
            or starts[-1] != positions
            or (np.diff(starts) < 0).any()
        ):
            raise SequoiaError("recording: starts: found positions that do not ascend to the end")
        if positions and int(self.ranks.max()) > self.width_of_node:
            raise SequoiaError(f"recording: ranks: found more than {self.width_of_node}")
        above = np.array([1, *[self.slots] * (self.levels - 2)])[: self.levels - 1]
        if (self.origins // self.width_of_node >= above[:, None]).any():
            raise SequoiaError("recording: origins: found guesses of slots that do not exist")
        probabilities = self.probabilities
        if not ((probabilities >= 0) & (probabilities <= 1)).all():
            raise SequoiaError("recording: probabilities: found numbers that are none")

    @property
    def is_of_head(self) -> bool:
        """Whether a head on the target drafted, which reads its own outputs behind a root."""
        return self.about.get("passes") == OF_HEAD

    @property
    def levels(self) -> int:
        """Levels of each recorded tree."""
        return int(self.origins.shape[1]) + 1

    @property
    def slots(self) -> int:
        """Slots of each level but the first, W."""
        return int(self.origins.shape[2])

    @property
    def width_of_node(self) -> int:
        """Guesses of each node, K."""
        return int(self.probabilities.shape[2])

    @property
    def envelope(self) -> Envelope:
        """How much was recorded."""
        return Envelope(self.levels, self.slots, self.width_of_node)

    @property
    def documents(self) -> int:
        """Number of documents."""
        return len(self.starts) - 1

    @cached_property
    def fingerprint(self) -> str:
        """Hash of what was recorded, 16 hexadecimal digits; acceptance files name it."""
        digest = hashlib.sha256()
        for array in self._arrays.values():
            values = np.ascontiguousarray(array)
            digest.update(f"{values.dtype}{values.shape}".encode())
            digest.update(values.tobytes())
        return digest.hexdigest()[:16]

    @property
    def _arrays(self) -> dict[str, NDArray[Any]]:
        """By name, those that there are."""
        arrays = {name: getattr(self, name) for name in (*ARRAYS, PATH_RANKS)}
        if self.lookup is not None:
            arrays |= {LOOKUP + name: array for name, array in self.lookup._arrays.items()}
        return {name: array for name, array in arrays.items() if array is not None}

    def level(self, number: int) -> FloatArray:
        """The probabilities of a level, from 0: [positions, 1 or W, K]."""
        first = 0 if number == 0 else 1 + (number - 1) * self.slots
        count = 1 if number == 0 else self.slots
        return np.asarray(self.probabilities[:, first : first + count], np.float64)

    def of_documents(self, numbers: Sequence[int]) -> Recording:
        """The recording of some of the documents."""
        spans = [slice(self.starts[n], self.starts[n + 1]) for n in numbers]
        lengths = [span.stop - span.start for span in spans]
        chosen = np.concatenate([np.arange(s.start, s.stop) for s in spans] or [np.zeros(0, int)])
        return Recording(
            self.probabilities[chosen],
            self.origins[chosen],
            self.ranks[chosen],
            np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            self.about,
            None if self.path_ranks is None else self.path_ranks[chosen],
            None if self.lookup is None else self.lookup.of_documents(numbers),
        )

    @classmethod
    def joined(cls, parts: Sequence[Recording], about: Mapping[str, Any]) -> Recording:
        """The documents of several recordings of one envelope, at least one, in order."""
        counts = np.concatenate([np.diff(part.starts) for part in parts])
        along = [part.path_ranks for part in parts if part.path_ranks is not None]
        lookups = [part.lookup for part in parts if part.lookup is not None]
        return cls(
            np.concatenate([part.probabilities for part in parts]),
            np.concatenate([part.origins for part in parts]),
            np.concatenate([part.ranks for part in parts]),
            np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            about,
            np.concatenate(along) if along else None,
            cls.joined(lookups, {}) if lookups else None,
        )

    def save(self, path: str | Path) -> None:
        """Write the file atomically."""
        write_bytes(path, self.content())

    def content(self) -> bytes:
        """The file's bytes."""
        about = {"format": FORMAT, "version": VERSION, **self.about}
        arrays: Any = self._arrays
        content = io.BytesIO()
        np.savez_compressed(
            content,
            about=np.array(json.dumps(about)),
            **arrays,
        )
        return content.getvalue()

    @classmethod
    def load(cls, path: str | Path) -> Recording:
        """Read a recording.

        Raises:
            SequoiaError: the file is missing, cut off or malformed.
        """
        return cls._read(path, path)

    @classmethod
    def of_content(cls, content: bytes, where: str) -> Recording:
        """The recording of a file's bytes.

        Args:
            where: they are from, for messages.

        Raises:
            SequoiaError: they are cut off or malformed.
        """
        return cls._read(io.BytesIO(content), where)

    @classmethod
    def _read(cls, source: str | Path | io.BytesIO, path: str | Path) -> Recording:
        """Read a recording; see `load`."""
        try:
            with np.load(source, allow_pickle=False) as arrays:
                about = json.loads(str(arrays["about"]))
                values = _values(arrays)
                beside = _values(arrays, LOOKUP) if LOOKUP + ARRAYS[0] in arrays else None
        except FileNotFoundError:
            raise SequoiaError(
                f"{path}: no such file; record it with `sequoia-opt estimate`"
            ) from None
        except DAMAGED as error:
            raise SequoiaError(
                f"{path}: not a recording, or cut off ({error}); record it again with "
                "`sequoia-opt estimate`"
            ) from None
        if about.get("format") != FORMAT or about.get("version") != VERSION:
            raise SequoiaError(
                f"{path}: found {about.get('format')!r} version {about.get('version')!r}, expected "
                f"{FORMAT!r} version {VERSION}"
            )
        try:
            lookup = None if beside is None else cls(**_checked(beside, LOOKUP))
            return cls(**_checked(values), about=about, lookup=lookup)
        except SequoiaError as error:
            raise SequoiaError(f"{path}: {error}") from None


def _values(arrays: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A recording's arrays by name, from those of a file whose names begin with a prefix."""
    optional = [PATH_RANKS] if prefix + PATH_RANKS in arrays else []
    return {name: arrays[prefix + name] for name in (*ARRAYS, *optional)}


def _checked(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The arrays, where each has numbers of its kind.

    Raises:
        SequoiaError: one has not.
    """
    kinds = {"probabilities": "f", "origins": "u", "ranks": "u", PATH_RANKS: "u"}
    for name, kind in kinds.items():
        if name in values and values[name].dtype.kind != kind:
            raise SequoiaError(f"{prefix}{name}: found {values[name].dtype}")
    return values


def slots_of(probabilities: FloatArray, products: Sequence[float], width: int) -> list[int]:
    """The origins of the next level's slots, see `Recording.origins`.

    Args:
        probabilities: [nodes, K], of the level's guesses; 0 where a node has fewer.
        products: [nodes], of the draft's probabilities on the path to each node.
        width: W, at most K.
    """
    ranks = probabilities.shape[1]
    reached = (np.asarray(products)[:, None] * probabilities).ravel().tolist()
    counts = (probabilities > 0).sum(axis=1).tolist()
    guesses = [range(node * ranks, node * ranks + count) for node, count in enumerate(counts)]
    slots = nested_slots(guesses, reached, width)
    # Where a slot stays empty the first node's guesses are used up: its next one does not exist.
    return slots + [counts[0]] * (width - len(slots))


def recording_path(acceptance_path: str | Path) -> Path:
    """Where the recording that belongs to an acceptance file is."""
    return Path(acceptance_path).with_suffix(".npz")

"""Resuming long runs: their configuration, their progress, and whether they may be resumed.

A run keeps a *manifest* in the folder of its results: its configuration, which is everything that
the results depend on, and its progress. Results are on the disk before the manifest counts them,
and the manifest is replaced in one step. So the manifest is correct whenever a run is killed.

Results of other kinds (arrays, lines of JSON, checkpoints) can store :func:`configuration_hash`
themselves; :func:`check_resumable` decides for all of them whether an earlier run may be resumed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gls_jax.runs import files

__all__ = ["Manifest", "check_resumable", "configuration_hash", "differing_entries"]

# Keys of the JSON file, in the words of the first version: other keys would orphan its dumps.
_CONFIGURATION, _HASH = "asked", "fingerprint"


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The configuration and the progress of a run.

    Attributes:
        format: version of the run's files; other versions are not read.
        configuration: everything that the results depend on, as JSON.
        progress: counts of the finished work, as JSON.
    """

    format: int
    configuration: dict[str, Any]
    progress: dict[str, Any]

    @property
    def hash(self) -> str:
        """Hash of the format and the configuration."""
        return configuration_hash([self.format, self.configuration])

    def write(self, path: Path) -> None:
        """Replace the file in one step."""
        content = {"format": self.format, _HASH: self.hash, _CONFIGURATION: self.configuration}
        files.write_json(path, content | self.progress)

    @classmethod
    def read(
        cls, path: Path, *, run: str, format: int, is_valid: Callable[[Manifest], bool]
    ) -> Manifest:
        """Read a file written by :meth:`write`.

        Args:
            path: the file.
            run: the kind of run, such as "a dump", for the errors.
            format: the version that the caller reads.
            is_valid: whether the progress is possible for the configuration; `KeyError` and
                `TypeError` count as no.

        Raises:
            FileNotFoundError: no such file.
            ValueError: a broken file, another format, a configuration that its hash does not fit,
                or impossible progress.
        """
        expected = f"the manifest of {run}"
        content = files.read_json(path, expected)
        if not isinstance(content, dict):  # some other JSON file: it lacks every key
            content = {}
        if content.get("format", format) != format:
            raise ValueError(f"{path}: expected format {format}, got {content['format']}")
        # A manifest is trusted only where its parts fit each other: a file that was edited or cut
        # must not lead to results of another configuration.
        try:
            stored_hash = content.pop(_HASH)
            manifest = cls(content.pop("format"), content.pop(_CONFIGURATION), content)
            is_good = stored_hash == manifest.hash and is_valid(manifest)
        except (KeyError, TypeError):
            is_good = False
        if not is_good:
            raise ValueError(
                f"{path}: expected {expected} (format {format}, a configuration with its hash, "
                "possible progress), got another one"
            )
        return manifest


def check_resumable(path: Path, run: str, *, resume: bool, differences: Sequence[str]) -> None:
    """Raise `ValueError` unless the earlier run at `path` may be resumed.

    Args:
        path: the folder or file of the earlier run.
        run: the kind of run, such as "a dump".
        resume: whether the user wants to continue it.
        differences: names of the entries in which its configuration differs from the present one,
            as from :func:`differing_entries`.
    """
    if not resume:
        raise ValueError(
            f"{path}: {run} is here; resume=True or --resume continues it, else give another path"
        )
    if differences:
        raise ValueError(
            f"{path}: expected a run of the same configuration to resume, got {run} of another "
            f"one ({', '.join(differences)}); give another path"
        )


def differing_entries(earlier: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Names of the entries in which two configurations differ.

    Args:
        earlier: read from JSON.
        wanted: JSON-serialisable.
    """
    wanted = json.loads(json.dumps(wanted))  # with lists for tuples, as in the file
    names = sorted({*earlier, *wanted})
    return [name for name in names if earlier.get(name) != wanted.get(name)]


def configuration_hash(configuration: Any, *arrays: np.ndarray) -> str:
    """Short SHA-256 of a JSON-serialisable value, and of arrays that belong to it.

    >>> from gls_jax.runs import resume
    >>> resume.configuration_hash({"seed": 0, "num_drafts": (1, 2)})
    '46586b9cd5d457fb'
    """
    digest = hashlib.sha256(json.dumps(configuration, sort_keys=True).encode())
    for array in arrays:
        digest.update(repr(array.shape).encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]

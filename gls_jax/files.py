"""Files that are written whole or not at all, and read with one clear line when they are broken."""

from __future__ import annotations

import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

__all__ = ["check_folder", "read_arrays", "write_arrays", "write_whole"]


def check_folder(path: Path) -> None:
    """Raise `OSError` where `path` cannot be a folder to write into; nothing is made."""
    ancestor = path
    while not ancestor.exists() and ancestor != ancestor.parent:
        ancestor = ancestor.parent
    if not ancestor.is_dir():
        raise NotADirectoryError(f"{path}: expected a folder that can be written, but {ancestor} is not a folder")
    if not os.access(ancestor, os.W_OK | os.X_OK):
        raise PermissionError(f"{path}: expected a folder that can be written, but {ancestor} is read-only")


def write_whole(path: Path, write: Callable, mode: str = "wb") -> None:
    """Write a file under a temporary name beside `path` and rename it: readers see all of it or nothing.

    Args:
        path: replaced if it exists.
        write: called with the open file.
        mode: of the file.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, mode) as file:
            write(file)
        os.chmod(name, 0o666 & ~_umask())  # mkstemp's files are private
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """An `.npz` file, whole."""
    write_whole(path, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]


def read_arrays(path: Path, expected: str) -> dict[str, np.ndarray]:
    """All arrays of an `.npz` file.

    Args:
        path: the file.
        expected: what it should have been, for the error.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a whole `.npz` file of plain arrays.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected {expected}")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (ValueError, OSError, EOFError, AttributeError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path}: expected {expected}, got a file that cannot be read ({reason})") from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

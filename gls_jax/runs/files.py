"""Files that are written whole or not at all, and read with one clear line when they are broken."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

__all__ = [
    "alone",
    "check_file",
    "check_folder",
    "map_array",
    "read_array",
    "read_arrays",
    "read_json",
    "read_text",
    "write_arrays",
    "write_whole",
]


def check_file(path: Path) -> None:
    """Raise `OSError` where `path` cannot be a file to write; nothing is made."""
    if path.is_dir():
        raise IsADirectoryError(f"{path}: expected a file that can be written, got a folder")
    check_folder(path.parent)


def check_folder(path: Path) -> None:
    """Raise `OSError` where `path` cannot be a folder to write into; nothing is made."""
    ancestor = path
    while not ancestor.exists() and ancestor != ancestor.parent:
        ancestor = ancestor.parent
    if not ancestor.is_dir():
        raise NotADirectoryError(
            f"{path}: expected a folder that can be written, but {ancestor} is not a folder"
        )
    if not os.access(ancestor, os.W_OK | os.X_OK):
        raise PermissionError(
            f"{path}: expected a folder that can be written, but {ancestor} is read-only"
        )


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Keep a second run out of a folder, or from a file; the system lets go of it with the process,
    however that ends.

    Args:
        path: a folder, else a file, beside which a hidden one is held as long.

    Raises:
        BlockingIOError: a run is at work in it.
    """
    try:
        import fcntl
    except ImportError:  # not on Windows
        yield
        return
    if path.is_dir():
        held, handle = path, os.open(path, os.O_RDONLY)
    else:
        held = path.with_name(f".{path.name}.lock")
        handle = os.open(held, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = held.exists() and os.path.samestat(
                held.stat(), os.fstat(handle)
            )  # and not one of a run just ended
        except BlockingIOError:
            ours = False
        except OSError:  # a file system without locks
            ours = True
        if not ours:
            kind = "folder" if held == path else "file"
            raise BlockingIOError(
                f"{path}: expected a {kind} to itself, but another run is at work in it"
            )
        try:
            yield
        finally:
            if held != path:
                held.unlink(missing_ok=True)
    finally:
        os.close(handle)


def write_whole(path: Path, write: Callable[[Any], object], mode: str = "wb") -> None:
    """Write a file under a temporary name beside `path` and rename it: readers see all of it or
    nothing.

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


def read_array(path: Path, expected: str) -> np.ndarray:
    """The array of an `.npy` file.

    Args:
        path: the file.
        expected: what it should have been, for the error.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a whole `.npy` file of plain numbers.
    """
    return np.array(map_array(path, expected))


def map_array(path: Path, expected: str) -> np.memmap:
    """The array of an `.npy` file where it lies, read as it is used; errors as in
    :func:`read_array`.
    """
    # A header that promises more than the file holds takes no memory, and a pickle is never loaded.
    return _read(path, expected, lambda: np.lib.format.open_memmap(path, mode="r"))


def read_arrays(path: Path, expected: str) -> dict[str, np.ndarray]:
    """All arrays of an `.npz` file.

    Args:
        path: the file.
        expected: what it should have been, for the error.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a whole `.npz` file of plain arrays.
    """

    def load() -> dict[str, np.ndarray]:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}

    return _read(path, expected, load)


def read_json(path: Path, expected: str) -> Any:
    """What a JSON file says; errors as in :func:`read_array`."""
    return _read(path, expected, lambda: json.loads(path.read_text(encoding="utf-8")))


def read_text(path: Path) -> str:
    """Text of a file in UTF-8.

    Raises:
        OSError: the file cannot be read.
        ValueError: bytes that are not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: expected a UTF-8 text file, got other bytes") from None


def _read(path: Path, expected: str, load: Callable[[], Any]) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected {expected}")
    try:
        return load()
    except (
        Exception
    ) as error:  # a header is parsed as Python, and raises whatever Python's parsers raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{path}: expected {expected}, got a file that cannot be read ({reason})"
        ) from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

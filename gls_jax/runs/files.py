"""Files that are written whole or not at all; reading a broken one raises a one-line error."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

__all__ = [
    "alone",
    "check_file",
    "check_folder",
    "new_array",
    "one_line",
    "open_array",
    "read_array",
    "read_arrays",
    "read_json",
    "read_text",
    "write_arrays",
    "write_json",
    "write_whole",
]


def check_file(path: Path) -> None:
    """Raise `OSError` if `path` cannot be written as a file; nothing is created."""
    if path.is_dir():
        raise IsADirectoryError(f"{path}: expected a file that can be written, got a folder")
    check_folder(path.parent)


def check_folder(path: Path) -> None:
    """Raise `OSError` if `path` cannot be a folder to write into; nothing is created."""
    # The folder may not exist yet: then its closest existing ancestor is checked.
    existing_path = path
    while not existing_path.exists() and existing_path != existing_path.parent:
        existing_path = existing_path.parent
    if not existing_path.is_dir():
        raise NotADirectoryError(
            f"{path}: expected a folder that can be written, but {existing_path} is not a folder"
        )
    if not os.access(existing_path, os.W_OK | os.X_OK):
        raise PermissionError(
            f"{path}: expected a folder that can be written, but {existing_path} is read-only"
        )


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Lock a folder or a file against a second run.

    The operating system releases the lock when the process ends, however it ends.

    Args:
        path: a folder, which is locked itself; or a file, for which a hidden file in the same
            folder is locked, and removed at the end.

    Raises:
        BlockingIOError: another run has the lock.
    """
    if find_spec("fcntl") is None:  # on Windows, where nothing is locked
        yield
        return
    is_folder = path.is_dir()
    if is_folder:
        lock_path = path
        handle = os.open(path, os.O_RDONLY)
    else:
        lock_path = path.with_name(f".{path.name}.lock")
        handle = os.open(lock_path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if not _try_lock(handle, lock_path):
            kind = "folder" if is_folder else "file"
            raise BlockingIOError(
                f"{path}: expected a {kind} to itself, but another run is using it"
            )
        try:
            yield
        finally:
            if not is_folder:
                lock_path.unlink(missing_ok=True)
    finally:
        os.close(handle)


def _try_lock(handle: int, lock_path: Path) -> bool:
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Another run may have removed the file after this one opened it. A lock on the removed file
        # would not exclude other runs.
        return os.path.samestat(lock_path.stat(), os.fstat(handle))
    except (BlockingIOError, FileNotFoundError):
        return False
    except OSError:  # a file system without locks
        return True


def write_whole(path: Path, write: Callable[[Any], object], mode: str = "wb") -> None:
    """Write a file under a temporary name and rename it, so that readers see all of it or nothing.

    Args:
        path: replaced if it exists.
        write: called with the open file.
        mode: of the file.
    """
    # In the same folder, because a rename is one step only within a file system.
    handle, temporary_name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, mode) as file:
            write(file)
        # mkstemp makes files that only their owner can read.
        os.chmod(temporary_name, 0o666 & ~_umask())
        os.replace(temporary_name, path)
    except BaseException:  # an interrupt, too, leaves no temporary file
        os.unlink(temporary_name)
        raise


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write an `.npz` file, whole."""
    write_whole(path, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, whole."""
    text = json.dumps(value, indent=1) + "\n"
    write_whole(path, lambda file: file.write(text), mode="w")


def read_array(path: Path, expected: str) -> np.ndarray:
    """The array of an `.npy` file.

    Args:
        path: the file.
        expected: what the file should be, for the errors.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a whole `.npy` file of plain numbers.
    """
    return np.array(_map_array(path, expected))


def new_array(path: Path, dtype: Any, shape: tuple[int, ...]) -> np.memmap:
    """A new `.npy` file, memory-mapped, with room on the disk for all of it.

    Without that room, writing into the map would end the process without a word.

    Raises:
        OSError: no room, or the file cannot be written; the file is removed.
    """
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    try:
        if hasattr(os, "posix_fallocate"):
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, max(1, path.stat().st_size))
    except OSError as error:
        path.unlink()
        raise OSError(error.errno, f"{path}: expected room for {array.nbytes} bytes") from None
    return array


def open_array(
    path: Path, name: str, dtype: str, shape: tuple[int, ...], *, writable: bool = False
) -> np.memmap:
    """The array of an `.npy` file, memory-mapped and known to be whole.

    Args:
        path: the file.
        name: what the array is, for the errors.
        dtype, shape: the expected ones.
        writable: whether changes go to the disk.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a broken or shortened file, another shape or dtype.
    """
    expected = f"{name}, {dtype} of shape {list(shape)}"
    # Read-only first: mode "r+" would fill a shortened file up with zeros.
    array = _map_array(path, expected)
    if array.shape != shape or array.dtype != dtype:
        raise ValueError(
            f"{path}: expected {expected}, got {array.dtype} of shape {list(array.shape)}"
        )
    return np.lib.format.open_memmap(path, mode="r+") if writable else array


def read_arrays(path: Path, expected: str) -> dict[str, np.ndarray]:
    """All arrays of an `.npz` file.

    Args:
        path: the file.
        expected: what the file should be, for the errors.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a whole `.npz` file of plain arrays.
    """

    def load() -> dict[str, np.ndarray]:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}

    return _load(path, expected, load)


def read_json(path: Path, expected: str) -> Any:
    """The content of a JSON file; errors as in :func:`read_array`."""
    return _load(path, expected, lambda: json.loads(path.read_text(encoding="utf-8")))


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


def one_line(error: Exception) -> str:
    """Message of another package's error in one line; its type if it has no message."""
    return " ".join(str(error).split()) or type(error).__name__


def _map_array(path: Path, expected: str) -> np.memmap:
    # A memory map, because a header that promises more than the file holds must take no memory, and
    # a pickle must never be loaded.
    return _load(path, expected, lambda: np.lib.format.open_memmap(path, mode="r"))


def _load(path: Path, expected: str, load: Callable[[], Any]) -> Any:
    """Call `load`; any error that it raises becomes a `ValueError` of one line."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected {expected}")
    try:
        return load()
    # NumPy parses a header as Python code, which can raise any of the errors of Python's parser.
    except Exception as error:
        raise ValueError(
            f"{path}: expected {expected}, got a file that cannot be read ({one_line(error)})"
        ) from None


def _umask() -> int:
    mask = os.umask(0)  # it can only be read by setting it
    os.umask(mask)
    return mask

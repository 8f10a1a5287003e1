"""Blobs in files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gls_jax.compression.container import Container, Sizes, sizes, unpack
from gls_jax.runs import files

__all__ = ["read_blob", "write_blob"]


def read_blob(path: Path) -> Container:
    """The container of a blob in a file; `OSError` or `ValueError` if there is none."""
    blob = path.read_bytes()
    try:
        return unpack(blob)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def write_blob(path: Path, encode: Callable[[], bytes]) -> Sizes:
    """Write what `encode` returns to a file, in folders made if missing; returns its sizes.

    A path that cannot be written raises `OSError` before `encode` is called.
    """
    files.check_file(path)
    blob = encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    # Under a temporary name first: a file is whole or not there.
    files.write_whole(path, lambda file: file.write(blob))
    return sizes(blob)

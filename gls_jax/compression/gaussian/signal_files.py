"""Signals in files: what `gls-jax compress` and `gls-jax decompress` read."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gls_jax import files

__all__ = ["read"]

_EXPECTED = "an .npy file of floats of shape [n]"


def read(path: Path) -> np.ndarray:
    """The numbers `f64[n]` of an `.npy` file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another file, shape or type, or values that are not finite.
    """
    array = files.read_array(path, _EXPECTED)
    if array.ndim != 1 or array.dtype.kind not in "fiu":
        raise ValueError(
            f"{path}: expected {_EXPECTED}, got {array.dtype} of shape {list(array.shape)}"
        )
    with np.errstate(over="ignore"):  # of long doubles: said below
        array = array.astype(np.float64)
    if not (finite := np.abs(array) <= np.finfo(np.float32).max).all():
        where = int(np.argmin(finite))
        raise ValueError(f"{path}: expected finite float32 numbers, got {array[where]} at {where}")
    return array

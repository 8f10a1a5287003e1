"""Input validation of list codes, before anything compiles: keys, messages, weights, rows."""

from __future__ import annotations

import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gls_jax import checks
from gls_jax.compression.densities import Density
from gls_jax.compression.list_code import ListCode

__all__ = ["check_density", "check_keys", "check_messages", "check_rows", "check_seed"]

_PROBE_SIZE = 7  # candidates of the shape check: a number that no other axis is likely to have


def check_seed(seed: Any, name: str = "seed") -> int:
    """A seed of the shared randomness as a Python int within `0..2^32 - 1`."""
    return operator.index(checks.seed(seed, name))


def check_keys(keys: Any) -> int:
    """The number of keys; typed threefry keys, one per symbol."""
    checks.keys(keys)
    if keys.ndim != 1:
        raise ValueError(f"keys: expected shape [n], one per symbol, got {list(keys.shape)}")
    return keys.shape[0]


def check_messages(message: Any, num_bins: int) -> np.ndarray:
    """Messages as `i32[n]` within `0..L - 1`."""
    array = np.asarray(message)
    # NumPy makes floats of an empty list.
    if not array.size and array.ndim == 1:
        return array.astype(np.int32)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ValueError(
            f"message: expected ints of shape [n], got {array.dtype} of shape {list(array.shape)}"
        )
    if array.min() < 0 or array.max() >= num_bins:
        raise ValueError(
            f"message: expected bins within 0..{num_bins - 1}, got {array.min()} to {array.max()}"
        )
    return array.astype(np.int32)


def check_rows(rows: Any, count: int, name: str = "rows") -> None:
    """Arrays with one row per symbol; floats are finite."""
    for leaf in jax.tree.leaves(rows):
        shape = getattr(leaf, "shape", None)
        if shape is None or shape[:1] != (count,):
            got = type(leaf).__name__ if shape is None else list(shape)
            raise ValueError(f"{name}: expected arrays of one row per symbol ({count}), got {got}")
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            num_bad = np.sum(~np.isfinite(np.asarray(leaf)))
            if num_bad:
                raise ValueError(f"{name}: expected finite values, got {num_bad} others")


def check_density(code: ListCode, density: Density, shared: Any, rows: Any) -> None:
    """Weights of the right shape, and a bound if the search needs one."""
    if not isinstance(code, ListCode) or not isinstance(density, Density):
        got = f"{type(code).__name__} and {type(density).__name__}"
        raise ValueError(f"code and density: expected a ListCode and a Density, got {got}")
    # Shapes only: nothing is computed.
    row = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), rows)
    candidates = jax.ShapeDtypeStruct((_PROBE_SIZE, code.dimension), jnp.float32)
    shape = jax.eval_shape(density.log_weight, shared, row, candidates).shape
    if shape != (_PROBE_SIZE,):
        raise ValueError(
            "log_weight: expected weights [B] of candidates [B, D], "
            f"got {list(shape)} of [{_PROBE_SIZE}, D]"
        )
    if code.search == "ordered":
        _check_bound(density, shared, row)


def _check_bound(density: Density, shared: Any, row: Any) -> None:
    if density.log_bound is None:
        raise ValueError(
            "search: expected 'dense' for weights without a known bound (Density.log_bound), "
            "got 'ordered'"
        )
    shape = jax.eval_shape(density.log_bound, shared, row).shape
    if shape != ():
        raise ValueError(f"log_bound: expected one number per row, got shape {list(shape)}")

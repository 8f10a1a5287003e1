"""The door of list codes: keys, messages, weights and their rows, checked before anything is
compiled or searched.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gls_jax.compression.code import Density, ListCode

__all__ = ["check_density", "check_keys", "check_messages", "check_rows"]


def check_keys(keys: Any) -> int:
    """How many keys, a typed threefry key a symbol."""
    typed = isinstance(keys, jax.Array) and jnp.issubdtype(keys.dtype, jax.dtypes.prng_key)
    if not typed or keys.ndim != 1 or str(jax.random.key_impl(keys)) != "threefry2x32":
        got = f"{type(keys).__name__}" + (
            f" {keys.dtype} of shape {list(keys.shape)}" if hasattr(keys, "dtype") else ""
        )
        raise ValueError(
            f"keys: expected typed threefry keys of shape [n], one a symbol, got {got}"
        )
    return keys.shape[0]


def check_messages(message: Any, num_bins: int) -> np.ndarray:
    """Messages as `i32[n]` within `0..L - 1`."""
    array = np.asarray(message)
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
    """Arrays with one row a symbol, finite where they are floats."""
    for leaf in jax.tree.leaves(rows):
        if not hasattr(leaf, "shape") or leaf.shape[:1] != (count,):
            got = list(leaf.shape) if hasattr(leaf, "shape") else type(leaf).__name__
            raise ValueError(f"{name}: expected arrays of one row a symbol ({count}), got {got}")
        if jnp.issubdtype(leaf.dtype, jnp.floating) and not np.isfinite(np.asarray(leaf)).all():
            raise ValueError(
                f"{name}: expected finite values, got {np.sum(~np.isfinite(np.asarray(leaf)))} others"
            )


def check_density(code: ListCode, density: Density, shared: Any, rows: Any) -> None:
    """Weights of the right shape, and a bound where the search needs one."""
    if not isinstance(code, ListCode) or not isinstance(density, Density):
        got = f"{type(code).__name__} and {type(density).__name__}"
        raise ValueError(f"code and density: expected a ListCode and a Density, got {got}")
    row = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), rows)
    candidates = jax.ShapeDtypeStruct((7, code.dimension), jnp.float32)
    if (found := jax.eval_shape(density.log_weight, shared, row, candidates).shape) != (7,):
        raise ValueError(
            f"log_weight: expected weights [B] of candidates [B, D], got {list(found)} of [7, D]"
        )
    if code.search == "ordered":
        if density.log_bound is None:
            raise ValueError(
                "search: expected 'dense' for weights without a known bound (Density.log_bound), got 'ordered'"
            )
        if (found := jax.eval_shape(density.log_bound, shared, row).shape) != ():
            raise ValueError(f"log_bound: expected one number a row, got shape {list(found)}")

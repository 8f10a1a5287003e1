"""Random keys: typed, and of the one generator that the races compute."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["key", "keys"]

_KEY_IMPL = "threefry2x32"


def key(value: Any) -> None:
    """One typed threefry key. Another generator would give the other party other noise."""
    keys(value)
    if value.shape != ():
        raise ValueError(
            f"key: expected one key of shape [], got shape {list(value.shape)}; lift with jax.vmap"
        )


def keys(value: Any) -> None:
    """Typed threefry keys of any shape."""
    dtype = getattr(value, "dtype", None)
    is_array = isinstance(value, jax.Array)
    if not (is_array and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)):
        got = type(value).__name__
        if dtype is not None:
            got += f" of dtype {dtype}"
        if dtype == np.uint32:  # what jax.random.PRNGKey makes
            got += f'; an old key becomes one by jax.random.wrap_key_data(key, impl="{_KEY_IMPL}")'
        raise ValueError(f"key: expected a typed key from jax.random.key(seed), got {got}")
    impl = str(jax.random.key_impl(value))
    if impl != _KEY_IMPL:
        raise ValueError(
            f"key: expected impl {_KEY_IMPL!r}, got {impl!r}; "
            f'make it by jax.random.key(seed, impl="{_KEY_IMPL}")'
        )

"""Arrays as users give them: lists, NumPy and JAX arrays become JAX arrays of a type that the library computes in."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["as_array", "flags", "floats", "integers", "known_values", "on_device"]


def known_values(value) -> np.ndarray | None:
    """The values of an array, on the host; None where they are traced or on devices of other
    processes.
    """
    if isinstance(value, jax.core.Tracer):
        return None
    if isinstance(value, jax.Array) and not (
        value.is_fully_addressable or value.is_fully_replicated
    ):
        return None
    with jax.transfer_guard_device_to_host("allow"):  # as jax.device_get, at a quarter of its time
        return np.asarray(value)


def as_array(value: Any, name: str, expected: str) -> jax.Array | np.ndarray:
    """What a user calls an array, in a type that JAX knows; nothing is narrowed yet."""
    if isinstance(value, jax.Array):
        return value
    if np.ma.is_masked(value):
        raise ValueError(
            f"{name}: expected {expected}, got a masked array; fill it by its method `filled`"
        )
    try:
        array = np.asarray(value)
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
        known = jnp.issubdtype(array.dtype, np.number) or array.dtype == bool
    except (TypeError, ValueError):
        known = False
    if known and array.dtype not in (np.longdouble, np.clongdouble):
        return array
    got = f"dtype {value.dtype}" if hasattr(value, "dtype") else type(value).__name__
    rows = " whose rows make no array of numbers" if isinstance(value, (list, tuple)) else ""
    raise ValueError(f"{name}: expected {expected}, got {got}{rows}")


def on_device(array: jax.Array | np.ndarray) -> jax.Array:
    """In the nearest type that JAX has."""
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes inf
        return jnp.asarray(array)


def floats(value: Any, name: str, *, integers: bool = True) -> jax.Array:
    """A float array of at least 32 bits: races and laws are never computed in less."""
    array = on_device(as_array(value, name, "an array of floats"))
    is_integer = jnp.issubdtype(array.dtype, jnp.integer)
    if not (is_integer or jnp.issubdtype(array.dtype, jnp.floating)):
        raise ValueError(f"{name}: expected an array of floats, got dtype {array.dtype}")
    if is_integer and not integers:
        raise ValueError(
            f"{name}: expected an array of floats, got dtype {array.dtype}; of probabilities take jnp.log"
        )
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def integers(value: Any, name: str, shape: str) -> jax.Array:
    """An array of integers of some shape, such as `[K, L]`, as `i32`."""
    array = as_array(value, name, f"integers of shape {shape}")
    if array.ndim != len(shape.split(",")) or not jnp.issubdtype(array.dtype, jnp.integer):
        raise ValueError(
            f"{name}: expected integers of shape {shape}, got {array.dtype} of shape {list(array.shape)}"
        )
    found, limits = known_values(array), np.iinfo(np.int32)
    if found is not None and found.size:
        for extreme in (int(found.min()), int(found.max())):
            if not limits.min <= extreme <= limits.max:  # it would wrap around to another number
                raise ValueError(f"{name}: expected integers of 32 bits, got {extreme}")
    return on_device(array).astype(jnp.int32)


def flags(value: Any, name: str, size: int) -> jax.Array:
    """`bool[size]`."""
    array = as_array(value, name, f"bool of shape [{size}]")
    if array.shape != (size,) or array.dtype != jnp.bool_:
        raise ValueError(
            f"{name}: expected bool of shape [{size}], got {array.dtype} of shape {list(array.shape)}"
        )
    return on_device(array)

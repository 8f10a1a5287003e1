"""Arrays that users pass: lists, NumPy and JAX arrays become JAX arrays of a supported type."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["as_array", "flags", "floats", "has_shape", "integers", "known_values", "on_device"]


def known_values(value: Any) -> np.ndarray | None:
    """The values of an array on the host, or None where they are not known.

    That is where they are traced, or on devices of other processes.
    """
    if isinstance(value, jax.core.Tracer):
        return None
    if isinstance(value, jax.Array) and not (
        value.is_fully_addressable or value.is_fully_replicated
    ):
        return None
    # The same as jax.device_get, in a quarter of its time.
    with jax.transfer_guard_device_to_host("allow"):
        return np.asarray(value)


def as_array(value: Any, name: str, expected: str) -> jax.Array | np.ndarray:
    """The argument as an array of a type that JAX knows; nothing is narrowed yet."""
    if isinstance(value, jax.Array):
        return value
    # NumPy would silently take the numbers under the mask.
    if np.ma.is_masked(value):
        raise ValueError(
            f"{name}: expected {expected}, got a masked array; fill it by its method `filled`"
        )
    try:
        array = np.asarray(value)
        # JAX knows the byte order of this machine only.
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
        is_supported = jnp.issubdtype(array.dtype, np.number) or array.dtype == bool
    except (TypeError, ValueError):
        is_supported = False
    if is_supported and array.dtype not in (np.longdouble, np.clongdouble):
        return array
    got = f"dtype {value.dtype}" if hasattr(value, "dtype") else type(value).__name__
    if isinstance(value, (list, tuple)):
        got += " whose rows make no array of numbers"
    raise ValueError(f"{name}: expected {expected}, got {got}")


def on_device(array: jax.Array | np.ndarray) -> jax.Array:
    """A JAX array of the nearest type that JAX has."""
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes inf
        return jnp.asarray(array)


def floats(value: Any, name: str, *, integers: bool = True) -> jax.Array:
    """A float array of at least 32 bits; the library computes in no smaller type."""
    array = on_device(as_array(value, name, "an array of floats"))
    is_integer = jnp.issubdtype(array.dtype, jnp.integer)
    if not (is_integer or jnp.issubdtype(array.dtype, jnp.floating)):
        raise ValueError(f"{name}: expected an array of floats, got dtype {array.dtype}")
    if is_integer and not integers:
        raise ValueError(
            f"{name}: expected an array of floats, got dtype {array.dtype}; "
            "of probabilities take jnp.log"
        )
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def integers(value: Any, name: str, shape: str) -> jax.Array:
    """An array `i32` of integers with as many axes as `shape` has, such as `[K, L]`."""
    expected = f"integers of shape {shape}"
    array = as_array(value, name, expected)
    if array.ndim != len(shape.split(",")) or not jnp.issubdtype(array.dtype, jnp.integer):
        raise ValueError(
            f"{name}: expected {expected}, got {array.dtype} of shape {list(array.shape)}"
        )
    known = known_values(array)
    if known is not None and known.size:
        limits = np.iinfo(np.int32)
        for extreme in (int(known.min()), int(known.max())):
            if not limits.min <= extreme <= limits.max:  # it would wrap around to another number
                raise ValueError(f"{name}: expected integers of 32 bits, got {extreme}")
    return on_device(array).astype(jnp.int32)


def has_shape(array: jax.Array, name: str, *sizes: int | None) -> None:
    """`ValueError` unless the array has these sizes; None stands for any, and is shown as N."""
    shape = array.shape
    fits = len(shape) == len(sizes) and all(
        size in (None, own) for own, size in zip(shape, sizes, strict=True)
    )
    if not fits:
        expected = ", ".join("N" if size is None else str(size) for size in sizes)
        raise ValueError(f"{name}: expected shape [{expected}], got {list(shape)}")


def flags(value: Any, name: str, size: int) -> jax.Array:
    """An array `bool[size]`."""
    expected = f"bool of shape [{size}]"
    array = as_array(value, name, expected)
    if array.shape != (size,) or array.dtype != jnp.bool_:
        raise ValueError(
            f"{name}: expected {expected}, got {array.dtype} of shape {list(array.shape)}"
        )
    return on_device(array)

"""Sizes, indices, names and devices: all that is known before tracing."""

from __future__ import annotations

import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gls_jax.typing import Index

__all__ = ["active_of", "count", "counts", "index", "local_devices", "one_of", "seed"]


def count(value: Any, name: str) -> int:
    """A positive Python int; sizes shape arrays, so they cannot be traced."""
    try:
        # `True` is an int to Python, but hardly meant as a size.
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        got = "a traced value" if isinstance(value, jax.core.Tracer) else repr(value)
        raise ValueError(
            f"{name}: expected an int of at least 1 known before tracing, got {got}"
        ) from None
    if number < 1:
        raise ValueError(f"{name}: expected an int of at least 1, got {number}")
    return number


def counts(values: Any, name: str) -> tuple[int, ...]:
    """A sequence of positive ints, at least one."""
    try:
        numbers = tuple(values)
    except TypeError:
        raise ValueError(f"{name}: expected a sequence of ints, got {values!r}") from None
    if not numbers:
        raise ValueError(f"{name}: expected at least one K, got none")
    return tuple(count(number, name) for number in numbers)


def index(value: Any, name: str, last: int = 2**32 - 2) -> Index:
    """One index from 0 to `last`, an int or a traced integer.

    A float is refused: cut to an int, it would reuse random numbers.
    """
    # A traced value has a type and a shape only.
    if isinstance(value, jax.core.Tracer):
        is_index = value.shape == () and jnp.issubdtype(value.dtype, jnp.integer)
        got = f"{value.dtype} of shape {list(value.shape)}"
    else:
        got = repr(value)
        try:
            is_index = not isinstance(value, bool) and 0 <= operator.index(value) <= last
        except TypeError:
            is_index = False
            # The representation of an array would be long.
            if np.ndim(value) or value is None:
                got = type(value).__name__
    if not is_index:
        raise ValueError(f"{name}: expected one int within 0..{last}, got {got}")
    return value


def seed(value: Any, name: str = "seed") -> Index:
    """The seed of a key, from 0 to 2^32 - 1, an int or a traced integer."""
    return index(value, name, last=2**32 - 1)


def active_of(num_active: Any, num_drafts: Any) -> tuple[int, int]:
    """Number of active drafts, at most that of all drafts, and the latter."""
    num_drafts = count(num_drafts, "num_drafts")
    num_active = count(num_active, "num_active")
    if num_active > num_drafts:
        raise ValueError(
            f"num_active: expected at most num_drafts ({num_drafts}), got {num_active}"
        )
    return num_active, num_drafts


def one_of(value: Any, names: tuple[str, ...], name: str) -> str:
    """One of several names."""
    if value not in names:
        raise ValueError(f"{name}: expected one of {', '.join(names)}, got {value!r}")
    return value


def local_devices(values: Any) -> list[jax.Device]:
    """Devices of this process, at least one, each at most once."""
    try:
        devices = list(values)
    except TypeError:
        raise ValueError(f"devices: expected a sequence of devices, got {values!r}") from None
    are_local = all(map(_is_local_device, devices))
    if not devices or not are_local or len(set(devices)) < len(devices):
        raise ValueError(f"devices: expected some of this process, each once, got {devices}")
    return devices


def _is_local_device(value: Any) -> bool:
    return isinstance(value, jax.Device) and value.process_index == jax.process_index()

"""Darts: shared points under curves."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from gls_jax import checks
from gls_jax.races import threefry
from gls_jax.races.keys import words
from gls_jax.typing import Index

__all__ = ["darts"]


def darts(
    key: PRNGKeyArray, start: Index, count: int, num_items: int
) -> tuple[Int[Array, " count"], Float[Array, " count"]]:
    """Darts number `start` to `start + count - 1`, uniform on items x (0, 1).

    Dart `t` is a function of `(key, t, num_items)` alone. It lies under the curve `p` where
    ``height < p[item]``: with probability `1 / N`, whatever the law, and then its item is a sample
    of `p`. Item and height are the whole and the fractional part of `N u`, `u` of 64 bits: neither
    notices steps of `N / 2^64`, and a curve of 1e-12 is hit at its right rate.

    Args:
        key: one typed threefry key: a stream's, not the position's, where others draw from the same
            position.
        start: number of the first dart, at least 0; may be traced. ``start + count`` is at most
            2^31.
        count: how many, static.
        num_items: `N`, static.

    Returns:
        `(items i32[count], heights f32[count])`.

    Raises:
        ValueError: `key` is not one typed threefry key, a size is below 1 or `start` below 0.

    >>> import jax
    >>> from gls_jax import races
    >>> key = races.stream_key(jax.random.key(0), 0)
    >>> items, heights = races.darts(key, 0, 8, 10)
    >>> bool((items[5:] == races.darts(key, 5, 3, 10)[0]).all())
    True
    """
    checks.key(key)
    count, num_items = checks.count(count, "count"), checks.count(num_items, "num_items")
    checks.index(start, "start", last=2**31 - count)
    numbers = jnp.asarray(start).astype(jnp.uint32) + jnp.arange(count, dtype=jnp.uint32)
    item, more, least = threefry.scale(*threefry.threefry2x32(words(key), numbers), num_items)
    return item.astype(jnp.int32), threefry.uniform(more, least)

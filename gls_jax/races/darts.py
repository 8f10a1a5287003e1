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
    key: PRNGKeyArray,
    start: Index,
    count: int,
    num_categories: int,
) -> tuple[Int[Array, " count"], Float[Array, " count"]]:
    """Darts number `start` to `start + count - 1`, uniform on categories x (0, 1).

    Dart `t` is a function of `(key, t, num_categories)` alone. It lies under the curve `p` where
    ``height < p[category]``. That has probability `1 / N` for every distribution `p`, and the
    category of such a dart is a sample of `p`. Category and height are the integer and the
    fractional part of `N u`, where `u` is uniform with 64 bits. The steps of `N / 2^64` are too
    small to matter: a curve of 1e-12 is hit at its right rate.

    Args:
        key: one typed threefry key: a stream's, not the position's, where others draw from the same
            position.
        start: number of the first dart, at least 0; may be traced. ``start + count`` is at most
            2^31.
        count: how many, static.
        num_categories: `N`, static.

    Returns:
        `(categories i32[count], heights f32[count])`.

    Raises:
        ValueError: `key` is not one typed threefry key, a size is below 1 or `start` below 0.

    >>> import jax
    >>> from gls_jax import races
    >>> key = races.stream_key(jax.random.key(0), 0)
    >>> categories, heights = races.darts(key, 0, 8, 10)
    >>> bool((categories[5:] == races.darts(key, 5, 3, 10)[0]).all())
    True
    """
    checks.key(key)
    count = checks.count(count, "count")
    num_categories = checks.count(num_categories, "num_categories")
    checks.index(start, "start", last=2**31 - count)
    numbers = jnp.asarray(start).astype(jnp.uint32) + jnp.arange(count, dtype=jnp.uint32)
    high, low = threefry.threefry2x32(words(key), numbers)
    category, *height_words = threefry.scale(high, low, num_categories)
    return category.astype(jnp.int32), threefry.uniform(*height_words)

"""Threefry-2x32, written out, and the numbers that are made of its words."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt32

__all__ = ["Words", "high_product", "scale", "threefry2x32", "uniform"]

_ROTATIONS = (
    (13, 15, 26, 6),
    (17, 29, 16, 24),
)

Words = tuple[UInt32[Array, "..."], UInt32[Array, "..."]]
"""Two words of 32 bits: a key, or a block of random bits."""


def threefry2x32(
    key: Words,
    counter: UInt32[Array, ...],
    branch: int = 0,
) -> Words:
    """Threefry-2x32 (Salmon et al. 2011) of the 64-bit counter `(branch, counter)`, elementwise.

    Branch 0 gives, bit for bit, what `jax.random.fold_in` and `jax.random.bits` compute (tested).
    Other branches are independent noise under the same key.

    It is written out for two reasons. On a CPU, JAX runs the rounds as a loop over whole arrays,
    which takes three to four times as long as one fused pass. And a pass over the categories needs
    the noise of ONE category at a time.
    """
    first, second = key
    words = (first, second, first ^ second ^ jnp.uint32(0x1BD11BDA))
    x = first + jnp.full_like(counter, branch)
    y = second + counter
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            x = x + y
            y = (y << rotation) | (y >> (32 - rotation))
            y = y ^ x
        # The key words are added cyclically, and with them the number of the group.
        x = x + words[(group + 1) % 3]
        y = y + words[(group + 2) % 3] + (group + 1)
    return x, y


def uniform(
    high: UInt32[Array, ...],
    low: UInt32[Array, ...],
) -> Float[Array, ...]:
    """A uniform number strictly between 0 and 1 from 64 bits, with all digits that float32 has."""
    fraction = (low.astype(jnp.float32) + 0.5) * 2.0**-32
    # One part in 2^24 less than 2^-32: float32 rounds the last values of `high` up to 2^32, and the
    # result must stay below 1.
    unit = 2.0**-32 * (1 - 2.0**-24)
    return (high.astype(jnp.float32) + fraction) * unit


def scale(
    high: UInt32[Array, ...],
    low: UInt32[Array, ...],
    size: int,
) -> tuple[UInt32[Array, ...], ...]:
    """``(high * 2^32 + low) * size`` as three words.

    The first word is an index below `size`, without the bias of ``high % size``.
    """
    factor = jnp.uint32(size)
    low_of_high = high * factor
    middle = low_of_high + high_product(low, factor)
    carry = (middle < low_of_high).astype(jnp.uint32)
    return high_product(high, factor) + carry, middle, low * factor


def high_product(
    a: UInt32[Array, ...],
    b: UInt32[Array, ""],
) -> UInt32[Array, ...]:
    """Upper word of the 64-bit product ``a * b``."""
    # Long multiplication with halves of 16 bits, whose products fit into 32.
    a_high, a_low = a >> 16, a & 0xFFFF
    b_high, b_low = b >> 16, b & 0xFFFF
    low = a_low * b_low
    middle = a_high * b_low + (low >> 16)
    other_middle = a_low * b_high + (middle & 0xFFFF)
    return a_high * b_high + (middle >> 16) + (other_middle >> 16)

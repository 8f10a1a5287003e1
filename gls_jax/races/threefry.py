"""Threefry-2x32, written out, and what becomes of its words."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt32

__all__ = ["Words", "high_product", "scale", "threefry2x32", "uniform"]

Words = tuple[UInt32[Array, "..."], UInt32[Array, "..."]]


def threefry2x32(key: Words, counter: UInt32[Array, ...], branch: int = 0) -> Words:
    """Threefry-2x32 (Salmon et al. 2011) of the 64-bit counter `(branch, counter)`, elementwise.

    In branch 0 bit for bit what `jax.random.fold_in` and `jax.random.bits` compute (tested);
    written out because on a CPU JAX runs the rounds as a loop over whole arrays, three to four
    times slower than one fused pass, and because a pass over items needs the clock of ONE item.
    Other branches are other noise under the same key.
    """
    words = (*key, key[0] ^ key[1] ^ jnp.uint32(0x1BD11BDA))
    x = words[0] + jnp.full_like(counter, branch)
    y = words[1] + counter
    for group in range(5):
        for rotation in ((13, 15, 26, 6), (17, 29, 16, 24))[group % 2]:
            x = x + y
            y = ((y << jnp.uint32(rotation)) | (y >> jnp.uint32(32 - rotation))) ^ x
        x = x + words[(group + 1) % 3]
        y = y + words[(group + 2) % 3] + jnp.uint32(group + 1)
    return x, y


def uniform(bits: UInt32[Array, ...], more: UInt32[Array, ...]) -> Float[Array, ...]:
    fraction = (more.astype(jnp.float32) + 0.5) * jnp.float32(2.0**-32)
    # One part in 2^24 less than 2^-32: float32 rounds the last `bits` up to 2^32, and u must stay
    # below 1.
    return (bits.astype(jnp.float32) + fraction) * jnp.float32(2.0**-32 * (1 - 2.0**-24))


def scale(
    high: UInt32[Array, ...], low: UInt32[Array, ...], size: int
) -> tuple[UInt32[Array, ...], ...]:
    """``(high * 2^32 + low) * size`` as three words: the first is an index without the bias of
    ``high % size``.
    """
    factor = jnp.uint32(size)
    below = high * factor
    middle = below + high_product(low, factor)
    carry = (middle < below).astype(jnp.uint32)
    return high_product(high, factor) + carry, middle, low * factor


def high_product(a: UInt32[Array, ...], b: UInt32[Array, ""]) -> UInt32[Array, ...]:
    """Upper word of the 64-bit product, from halves of 16 bits."""
    half, mask = jnp.uint32(16), jnp.uint32(0xFFFF)
    low, high = (a & mask) * (b & mask), (a >> half) * (b >> half)
    left = (a >> half) * (b & mask) + (low >> half)
    right = (a & mask) * (b >> half) + (left & mask)
    return high + (left >> half) + (right >> half)

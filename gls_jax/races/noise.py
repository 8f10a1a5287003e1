"""Clocks: `S[k, i] ~ Exp(1)` of stream `k` and item `i`, and who wins with them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt32

from gls_jax import checks
from gls_jax.loops import varying_like
from gls_jax.races import threefry
from gls_jax.races.keys import stream_words

__all__ = [
    "LIGHTEST",
    "arrivals",
    "exponentials",
    "exponentials_from_bits",
    "first_arrivals",
    "uniforms",
    "weights",
    "winner",
]

LIGHTEST = -80.0
"""Log-probabilities below this (2e-35) count as zero: their arrival times would leave float32."""

_ITEMS_PER_STEP = 2  # of `first_arrivals`; measured on XLA:CPU


def exponentials(key: PRNGKeyArray, num_streams: int, num_items: int) -> Float[Array, "K N"]:
    """Clocks of `num_streams` races over `num_items` items.

    The draw at `[k, i]` does not depend on `num_streams` or `num_items`. The 32 bits of
    ``jax.random.bits(jax.random.fold_in(key, k), (num_items,))`` are the leading bits of a uniform
    `u`, the other word of their block gives 32 more, and ``S = -log1p(-u)``: never 0, smallest
    value ``2**-65``. ``jax.random.exponential`` is exactly 0 with probability ``2**-23`` in
    float32, and a zero clock beats every weight; with 32 bits alone an item of probability ``1e-8``
    would hardly ever be the first of a thousand streams.

    Args:
        key: one typed threefry key.
        num_streams: number of races `K`, static.
        num_items: number of items `N`, static.

    Returns:
        `f32[K, N]`, independent Exp(1).

    Raises:
        ValueError: `key` is not one typed threefry key, or a size is below 1.

    >>> import jax
    >>> from gls_jax import races
    >>> key = jax.random.key(0)
    >>> clocks = races.exponentials(key, 3, 5)
    >>> bool((clocks[:2, :4] == races.exponentials(key, 2, 4)).all())
    True
    """
    checks.key(key)
    streams = stream_words(key, jnp.arange(checks.count(num_streams, "num_streams")))
    items = jnp.arange(checks.count(num_items, "num_items"), dtype=jnp.uint32)
    return _clock((streams[0][:, None], streams[1][:, None]), items)


def exponentials_from_bits(
    bits: UInt32[Array, "*shape"], more: UInt32[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """Exp(1) from 64 random bits: ``u = (bits + (more + 1/2) / 2**32) / 2**32``, ``-log1p(-u)``,
    from 2^-65 to 16.7.
    """
    return -jnp.log1p(-threefry.uniform(bits, more))


def uniforms(key: PRNGKeyArray, count: int) -> Float[Array, " count"]:
    """Uniforms within (0, 1), the `u = 1 - exp(-S)` behind the clocks of stream 0.

    `jax.random.uniform` is a multiple of 2^-23 and often exactly 0, so ``u < p`` is wrong for small
    `p`; these have 64 bits.

    Args:
        key: one typed threefry key.
        count: how many, static.

    Returns:
        `f32[count]`, from 2^-65 to 1 - 2^-24.

    >>> import jax
    >>> from gls_jax import races
    >>> u = races.uniforms(jax.random.key(0), 1000)
    >>> bool(((0 < u) & (u < 1)).all())
    True
    """
    checks.key(key)
    counter = jnp.arange(checks.count(count, "count"), dtype=jnp.uint32)
    high, low = threefry.threefry2x32(stream_words(key, 0), counter)
    return threefry.uniform(high ^ low, low)


def weights(log_weights: Float[Array, "*k N"]) -> Float[Array, "*k N"]:
    """`exp`, with 0 below :data:`LIGHTEST`: what a race, and every exact formula, takes an item's
    weight to be.
    """
    return jnp.where(log_weights < LIGHTEST, 0, jnp.exp(log_weights))  # NaN stays NaN


def arrivals(
    clocks: Float[Array, "*k N"], log_weights: Float[Array, "*#k N"]
) -> Float[Array, "*k N"]:
    """Arrival times ``S[k, i] / w_i``: the smallest wins, and an item of weight 0 never arrives
    (`inf`).
    """
    return clocks * _inverse(log_weights)  # clocks are never 0, so 0 * inf cannot happen


def winner(arrivals: Float[Array, "*k N"]) -> Int[Array, "*k"]:
    """First index of the minimum along the last axis: `argmin`, several times faster when fused on
    XLA:CPU.
    """
    size = arrivals.shape[-1]
    first = jnp.min(arrivals, axis=-1, keepdims=True)
    return jnp.min(
        jnp.where(arrivals == first, jnp.arange(size, dtype=jnp.int32), size - 1), axis=-1
    )


def first_arrivals(
    key: PRNGKeyArray, num_streams: int, *log_weights: Float[Array, "*k N"]
) -> tuple[tuple[Float[Array, " K"], Int[Array, " K"]], ...]:
    """Winners of every stream's race under several laws, in one pass over the items and `O(K)`
    memory.

    The same clocks as :func:`exponentials`; what a Monte Carlo trial needs instead of the `[K, N]`
    array.

    Args:
        key: one typed threefry key.
        num_streams: `K`.
        *log_weights: laws, each `[N]` (every stream runs under it) or `[K, N]` (one law a stream).

    Returns:
        For each law `(arrival f32[K], item i32[K])`: when the first item arrives, and which.

    >>> import jax, jax.numpy as jnp
    >>> from gls_jax import races
    >>> key, log_p = jax.random.key(1), jnp.log(jnp.array([0.2, 0.3, 0.5]))
    >>> ((_, items),) = races.first_arrivals(key, 4, log_p)
    >>> bool((items == races.winner(races.arrivals(races.exponentials(key, 4, 3), log_p))).all())
    True
    """
    checks.key(key)
    if not log_weights:
        raise ValueError("log_weights: expected at least one law, got none")
    streams = stream_words(key, jnp.arange(checks.count(num_streams, "num_streams")))
    num_items = log_weights[0].shape[-1]
    columns = tuple(jnp.moveaxis(_inverse(w), -1, 0) for w in log_weights)

    def step(carry, column):
        item, inverses = column
        clock = _clock(streams, item.astype(jnp.uint32))
        after = []
        for (first, leader), inverse in zip(carry, inverses, strict=True):
            arrival = clock * inverse
            ahead = arrival < first
            after.append((jnp.where(ahead, arrival, first), jnp.where(ahead, item, leader)))
        return tuple(after), None

    start = (jnp.full(num_streams, jnp.inf, jnp.float32), jnp.zeros(num_streams, jnp.int32))
    items = jnp.arange(num_items, dtype=jnp.int32)
    unroll = min(_ITEMS_PER_STEP, num_items)
    carry = varying_like((start,) * len(log_weights), streams, columns)
    return jax.lax.scan(step, carry, (items, columns), unroll=unroll)[0]


def _inverse(log_weights: Float[Array, "*k N"]) -> Float[Array, "*k N"]:
    return jnp.where(log_weights >= LIGHTEST, jnp.exp(-log_weights), jnp.inf).astype(jnp.float32)


def _clock(stream: threefry.Words, item: UInt32[Array, ...]) -> Float[Array, ...]:
    high, low = threefry.threefry2x32(stream, item)
    return exponentials_from_bits(high ^ low, low)

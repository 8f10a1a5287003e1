"""Races: the only place where shared noise is drawn.

Stream ``k`` gives item ``i`` a clock ``S[k, i] ~ Exp(1)``; the item with the smallest ``S[k, i] / p_i`` is a sample of
``p``. Whoever holds the key holds the clocks, and that is all two parties ever share.

Clocks are counter based: ``S[k, i]`` is a function of ``(key, k, i)`` alone. A padded vocabulary, one more stream, a
vmapped batch or a sharded axis therefore changes nobody's clocks, and :func:`leaders` can run a race without ever
holding the ``[K, N]`` array. :func:`darts` are counter based in the same way: points under curves instead of clocks.

Key tree: request key -> :func:`position_key` -> stream. :func:`private_key` is the one branch that no stream uses;
noise that must be independent of the clocks (acceptance tests, residual draws) comes from there.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt32

from gls_jax import checks

__all__ = [
    "LIGHTEST",
    "arrivals",
    "clocks_from_bits",
    "darts",
    "exponentials",
    "leaders",
    "position_key",
    "private_key",
    "stream_key",
    "uniforms",
    "weights",
    "winner",
]

LIGHTEST = -80.0
"""Log-probabilities below this (2e-35) count as zero: their arrival times would leave float32."""

_PRIVATE = 0xFFFFFFFF  # the last fold: stream indices never reach it
_ITEMS_PER_STEP = 2  # of `leaders`; measured on XLA:CPU

Words = tuple[UInt32[Array, "..."], UInt32[Array, "..."]]


def position_key(key: PRNGKeyArray, position) -> PRNGKeyArray:
    """Key of the races at one position.

    Args:
        key: key of the request.
        position: absolute index of the token or block (never a round, batch slot or device), `[]` integer.

    Returns:
        The position's key.

    >>> import jax
    >>> from gls_jax import races
    >>> request = jax.random.key(0)
    >>> [races.exponentials(races.position_key(request, t), 1, 1).shape for t in range(2)]
    [(1, 1), (1, 1)]
    """
    checks.key(key)
    return jax.random.fold_in(key, checks.index(position, "position"))


def stream_key(key: PRNGKeyArray, stream) -> PRNGKeyArray:
    """Key of one stream: `S[k]` are the draws of `stream_key(key, k)`."""
    checks.key(key)
    return jax.random.fold_in(key, checks.index(stream, "stream"))


def private_key(key: PRNGKeyArray) -> PRNGKeyArray:
    """Key for noise that is independent of every clock of `key`: a fold that no stream uses."""
    checks.key(key)
    return jax.random.fold_in(key, _PRIVATE)


def exponentials(key: PRNGKeyArray, num_streams: int, num_items: int) -> Float[Array, "K N"]:
    """Clocks of `num_streams` races over `num_items` items.

    The draw at `[k, i]` does not depend on `num_streams` or `num_items`. The 32 bits of
    ``jax.random.bits(jax.random.fold_in(key, k), (num_items,))`` are the leading bits of a uniform `u`, the other word
    of their block gives 32 more, and ``S = -log1p(-u)``: never 0, smallest value ``2**-65``.
    ``jax.random.exponential`` is exactly 0 with probability ``2**-23`` in float32, and a zero clock beats every weight;
    with 32 bits alone an item of probability ``1e-8`` would hardly ever be the first of a thousand streams.

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
    streams = _stream_words(key, checks.count(num_streams, "num_streams"))
    items = jnp.arange(checks.count(num_items, "num_items"), dtype=jnp.uint32)
    return _clock((streams[0][:, None], streams[1][:, None]), items)


def clocks_from_bits(bits: UInt32[Array, "*shape"], more: UInt32[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Exp(1) from 64 random bits: ``u = (bits + (more + 1/2) / 2**32) / 2**32``, ``-log1p(-u)``, from 2^-65 to 16.7."""
    return -jnp.log1p(-_uniform(bits, more))


def uniforms(key: PRNGKeyArray, count: int) -> Float[Array, " count"]:
    """Uniforms within (0, 1), the `u = 1 - exp(-S)` behind the clocks of stream 0.

    `jax.random.uniform` is a multiple of 2^-23 and often exactly 0, so ``u < p`` is wrong for small `p`; these have 64
    bits.

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
    high, low = _threefry2x32(_stream_words(key, 1), counter)
    return _uniform(high ^ low, low)


def darts(key: PRNGKeyArray, start, count: int, num_items: int) -> tuple[Int[Array, " count"], Float[Array, " count"]]:
    """Darts number `start` to `start + count - 1`, uniform on items x (0, 1).

    Dart `t` is a function of `(key, t, num_items)` alone. It lies under the curve `p` where ``height < p[item]``: with
    probability `1 / N`, whatever the law, and then its item is a sample of `p`. Item and height are the whole and the
    fractional part of `N u`, `u` of 64 bits: neither notices steps of `N / 2^64`, and a curve of 1e-12 is hit at its
    right rate.

    Args:
        key: one typed threefry key: a stream's, not the position's, where others draw from the same position.
        start: number of the first dart, at least 0; may be traced. ``start + count`` is at most 2^31.
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
    words = jax.random.key_data(key)
    numbers = jnp.asarray(start).astype(jnp.uint32) + jnp.arange(count, dtype=jnp.uint32)
    item, more, least = _scale(*_threefry2x32((words[0], words[1]), numbers), num_items)
    return item.astype(jnp.int32), _uniform(more, least)


def weights(log_weights: Float[Array, "*k N"]) -> Float[Array, "*k N"]:
    """`exp`, with 0 below :data:`LIGHTEST`: what a race, and every exact formula, takes an item's weight to be."""
    return jnp.where(log_weights < LIGHTEST, 0, jnp.exp(log_weights))  # NaN stays NaN


def arrivals(clocks: Float[Array, "*k N"], log_weights: Float[Array, "*#k N"]) -> Float[Array, "*k N"]:
    """Arrival times ``S[k, i] / w_i``: the smallest wins, and an item of weight 0 never arrives (`inf`)."""
    return clocks * _inverse(log_weights)  # clocks are never 0, so 0 * inf cannot happen


def winner(arrivals: Float[Array, "*k N"]) -> Int[Array, "*k"]:
    """First index of the minimum along the last axis: `argmin`, several times faster when fused on XLA:CPU."""
    size = arrivals.shape[-1]
    first = jnp.min(arrivals, axis=-1, keepdims=True)
    return jnp.min(jnp.where(arrivals == first, jnp.arange(size, dtype=jnp.int32), size - 1), axis=-1)


def leaders(
    key: PRNGKeyArray, num_streams: int, *log_weights: Float[Array, "*k N"]
) -> tuple[tuple[Float[Array, " K"], Int[Array, " K"]], ...]:
    """Winners of every stream's race under several laws, in one pass over the items and `O(K)` memory.

    The same clocks as :func:`exponentials`; what a Monte Carlo trial needs instead of the `[K, N]` array.

    Args:
        key: one typed threefry key.
        num_streams: `K`.
        *log_weights: laws, each `[N]` (every stream runs under it) or `[K, N]` (one law a stream).

    Returns:
        For each law `(arrival f32[K], item i32[K])`: when the first item arrives, and which.

    >>> import jax, jax.numpy as jnp
    >>> from gls_jax import races
    >>> key, log_p = jax.random.key(1), jnp.log(jnp.array([0.2, 0.3, 0.5]))
    >>> ((_, items),) = races.leaders(key, 4, log_p)
    >>> bool((items == races.winner(races.arrivals(races.exponentials(key, 4, 3), log_p))).all())
    True
    """
    checks.key(key)
    if not log_weights:
        raise ValueError("log_weights: expected at least one law, got none")
    streams = _stream_words(key, checks.count(num_streams, "num_streams"))
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
    return jax.lax.scan(step, (start,) * len(log_weights), (items, columns), unroll=unroll)[0]


def _inverse(log_weights: Float[Array, "*k N"]) -> Float[Array, "*k N"]:
    return jnp.where(log_weights >= LIGHTEST, jnp.exp(-log_weights), jnp.inf).astype(jnp.float32)


def _stream_words(key: PRNGKeyArray, num_streams: int) -> Words:
    """`fold_in(key, k)` for every stream, as two words each."""
    words = jax.random.key_data(key)
    streams = _threefry2x32((words[..., 0], words[..., 1]), jnp.arange(num_streams, dtype=jnp.uint32))
    # Two ciphers fused into one chain take XLA:CPU of jaxlib 0.12 minutes to compile, or for ever.
    return jax.lax.optimization_barrier(streams)


def _clock(stream: Words, item: UInt32[Array, ...]) -> Float[Array, ...]:
    high, low = _threefry2x32(stream, item)
    return clocks_from_bits(high ^ low, low)


def _uniform(bits: UInt32[Array, ...], more: UInt32[Array, ...]) -> Float[Array, ...]:
    fraction = (more.astype(jnp.float32) + 0.5) * jnp.float32(2.0**-32)
    # One part in 2^24 less than 2^-32: float32 rounds the last `bits` up to 2^32, and u must stay below 1.
    return (bits.astype(jnp.float32) + fraction) * jnp.float32(2.0**-32 * (1 - 2.0**-24))


def _scale(high: UInt32[Array, ...], low: UInt32[Array, ...], size: int) -> tuple[UInt32[Array, ...], ...]:
    """``(high * 2^32 + low) * size`` as three words: the first is an index without the bias of ``high % size``."""
    factor = jnp.uint32(size)
    below = high * factor
    middle = below + _high_product(low, factor)
    carry = (middle < below).astype(jnp.uint32)
    return _high_product(high, factor) + carry, middle, low * factor


def _high_product(a: UInt32[Array, ...], b: UInt32[Array, ""]) -> UInt32[Array, ...]:
    """Upper word of the 64-bit product, from halves of 16 bits."""
    half, mask = jnp.uint32(16), jnp.uint32(0xFFFF)
    low, high = (a & mask) * (b & mask), (a >> half) * (b >> half)
    left = (a >> half) * (b & mask) + (low >> half)
    right = (a & mask) * (b >> half) + (left & mask)
    return high + (left >> half) + (right >> half)


def _threefry2x32(key: Words, counter: UInt32[Array, ...]) -> Words:
    """Threefry-2x32 (Salmon et al. 2011) of the 64-bit counter `(0, counter)`, elementwise.

    Bit for bit what `jax.random.fold_in` and `jax.random.bits` compute (tested); written out because on a CPU JAX
    runs the rounds as a loop over whole arrays, three to four times slower than one fused pass, and because a pass over
    items needs the clock of ONE item.
    """
    words = (*key, key[0] ^ key[1] ^ jnp.uint32(0x1BD11BDA))
    x = words[0] + jnp.zeros_like(counter)
    y = words[1] + counter
    for group in range(5):
        for rotation in ((13, 15, 26, 6), (17, 29, 16, 24))[group % 2]:
            x = x + y
            y = ((y << jnp.uint32(rotation)) | (y >> jnp.uint32(32 - rotation))) ^ x
        x = x + words[(group + 1) % 3]
        y = y + words[(group + 2) % 3] + jnp.uint32(group + 1)
    return x, y

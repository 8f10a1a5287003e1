"""Exponential noise `S[k, i] ~ Exp(1)` of stream `k` and category `i`, and the winners of races."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt32

from gls_jax import checks, work_shape
from gls_jax.loops import varying_like
from gls_jax.races import threefry
from gls_jax.races.keys import stream_words

__all__ = [
    "LIGHTEST",
    "arrivals",
    "exponentials",
    "exponentials_at",
    "exponentials_from_bits",
    "first_arrivals",
    "uniforms",
    "weights",
    "winner",
]

LIGHTEST = -80.0
"""Log-probabilities below this (2e-35) count as zero: their arrival times would leave float32."""


def exponentials(
    key: PRNGKeyArray,
    num_streams: int,
    num_items: int,
) -> Float[Array, "K N"]:
    """Exponential noise of `num_streams` races over `num_items` categories.

    The draw at `[k, i]` does not depend on `num_streams` or `num_items`. The 32 bits of
    ``jax.random.bits(jax.random.fold_in(key, k), (num_items,))`` are the leading bits of a uniform
    `u`, the other word of their block gives 32 more, and ``S = -log1p(-u)``. It is never 0; the
    smallest value is ``2**-65``.

    Two easier ways would be wrong. ``jax.random.exponential`` is exactly 0 with probability
    ``2**-23`` in float32, and noise of 0 beats every weight. With 32 bits alone, a category of
    probability ``1e-8`` would hardly ever be the first of a thousand streams.

    Args:
        key: one typed threefry key.
        num_streams: number of races `K`, static.
        num_items: number of categories `N`, static.

    Returns:
        `f32[K, N]`, independent Exp(1).

    Raises:
        ValueError: `key` is not one typed threefry key, or a size is below 1.

    >>> import jax
    >>> from gls_jax import races
    >>> key = jax.random.key(0)
    >>> noise = races.exponentials(key, 3, 5)
    >>> bool((noise[:2, :4] == races.exponentials(key, 2, 4)).all())
    True
    """
    checks.key(key)
    streams = jnp.arange(checks.count(num_streams, "num_streams"))
    categories = jnp.arange(checks.count(num_items, "num_items"), dtype=jnp.uint32)
    return _noise_of(stream_words(key, streams[:, None]), categories)


def exponentials_at(
    key: PRNGKeyArray, num_streams: int, items: Int[Array, " R"]
) -> Float[Array, "K R"]:
    """The columns `items` of :func:`exponentials`, without the others.

    Args:
        key: one typed threefry key.
        num_streams: `K`, static.
        items: numbers of categories.

    Returns:
        `f32[K, R]`.

    >>> import jax, jax.numpy as jnp
    >>> from gls_jax import races
    >>> key, items = jax.random.key(0), jnp.array([1, 4])
    >>> noise = races.exponentials(key, 3, 5)
    >>> bool((races.exponentials_at(key, 3, items) == noise[:, items]).all())
    True
    """
    checks.key(key)
    streams = jnp.arange(checks.count(num_streams, "num_streams"))
    return _noise_of(stream_words(key, streams[:, None]), items.astype(jnp.uint32))


def exponentials_from_bits(
    high: UInt32[Array, "*shape"],
    low: UInt32[Array, "*shape"],
) -> Float[Array, "*shape"]:
    """Exponential noise from 64 random bits: ``-log1p(-u)``, from 2^-65 to 16.7.

    Here ``u = (high + (low + 1/2) / 2^32) / 2^32``.
    """
    return -jnp.log1p(-threefry.uniform(high, low))


def uniforms(key: PRNGKeyArray, count: int) -> Float[Array, " count"]:
    """Uniforms within (0, 1): ``u = 1 - exp(-S)`` with the noise `S` of stream 0.

    `jax.random.uniform` gives multiples of 2^-23, and often exactly 0, so ``u < p`` would be wrong
    for small `p`. These have 64 bits.

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
    """`exp` of log-weights, with 0 below :data:`LIGHTEST`.

    Races and exact formulas take the weights of categories from here, so that they agree.
    """
    return jnp.where(log_weights < LIGHTEST, 0, jnp.exp(log_weights))  # NaN stays NaN


def arrivals(
    noise: Float[Array, "*k N"],
    log_weights: Float[Array, "*#k N"],
) -> Float[Array, "*k N"]:
    """Arrival times ``S[k, i] / w_i``; the smallest wins the race.

    A category of weight 0 never arrives (`inf`).
    """
    return noise * _inverse(log_weights)  # noise is never 0, so 0 * inf cannot happen


def winner(arrivals: Float[Array, "*k N"]) -> Int[Array, "*k"]:
    """First index of the minimum along the last axis.

    The result of `argmin`, several times faster where XLA:CPU fuses it with other operations.
    """
    size = arrivals.shape[-1]
    first = jnp.min(arrivals, axis=-1, keepdims=True)
    indices = jnp.where(arrivals == first, jnp.arange(size, dtype=jnp.int32), size - 1)
    return jnp.min(indices, axis=-1)


def first_arrivals(
    key: PRNGKeyArray,
    num_streams: int,
    *log_weights: Float[Array, "*k N"],
) -> tuple[tuple[Float[Array, " K"], Int[Array, " K"]], ...]:
    """Winners of every stream's race under several distributions.

    The noise is that of :func:`exponentials`. On a CPU this is one pass over the categories in
    `O(K)` memory. On an accelerator it is a few reductions over `[K, N]`, into which XLA can fuse
    the noise. A Monte Carlo trial needs no more than this.

    Args:
        key: one typed threefry key.
        num_streams: `K`.
        *log_weights: distributions, each `[N]` (the same in every stream) or `[K, N]` (one for each
            stream).

    Returns:
        For each distribution `(arrival f32[K], category i32[K])`: when the first category arrives,
        and which one it is.

    Raises:
        ValueError: `key` is not one typed threefry key, no distribution, or `num_streams` below 1.

    >>> import jax, jax.numpy as jnp
    >>> from gls_jax import races
    >>> key, log_p = jax.random.key(1), jnp.log(jnp.array([0.2, 0.3, 0.5]))
    >>> ((_, winners),) = races.first_arrivals(key, 4, log_p)
    >>> bool((winners == races.winner(races.arrivals(races.exponentials(key, 4, 3), log_p))).all())
    True
    """
    checks.key(key)
    if not log_weights:
        raise ValueError("log_weights: expected at least one distribution, got none")
    streams = stream_words(key, jnp.arange(checks.count(num_streams, "num_streams")))
    inverse_weights = tuple(_inverse(log_w) for log_w in log_weights)
    return work_shape.by_platform(_leaders_in_steps, _leaders_at_once, streams, inverse_weights)


def _leaders_in_steps(streams: threefry.Words, inverse_weights: tuple[jax.Array, ...]):
    """The winners by a loop over the categories, which keeps the leaders so far."""
    num_streams = streams[0].shape[0]
    # The loop runs over the categories, so they are the leading axis.
    inverse_weights = tuple(jnp.moveaxis(inverses, -1, 0) for inverses in inverse_weights)
    num_categories = inverse_weights[0].shape[0]

    def step(leaders, column):
        category, inverses = column
        noise = _noise_of(streams, category.astype(jnp.uint32))
        new_leaders = []
        for (first_arrival, leader), inverse in zip(leaders, inverses, strict=True):
            arrival = noise * inverse
            is_ahead = arrival < first_arrival
            first_arrival = jnp.where(is_ahead, arrival, first_arrival)
            new_leaders.append((first_arrival, jnp.where(is_ahead, category, leader)))
        return tuple(new_leaders), None

    no_arrival = (jnp.full(num_streams, jnp.inf, jnp.float32), jnp.zeros(num_streams, jnp.int32))
    start = varying_like((no_arrival,) * len(inverse_weights), streams, inverse_weights)
    columns = (jnp.arange(num_categories, dtype=jnp.int32), inverse_weights)
    unroll = min(work_shape.current().categories_per_step, num_categories)
    leaders, _ = jax.lax.scan(step, start, columns, unroll=unroll)
    return leaders


def _leaders_at_once(streams: threefry.Words, inverse_weights: tuple[jax.Array, ...]):
    """The winners by reductions over all categories; the same as `_leaders_in_steps`."""
    num_categories = inverse_weights[0].shape[-1]
    categories = jnp.arange(num_categories, dtype=jnp.uint32)
    noise = _noise_of(jax.tree.map(lambda word: word[:, None], streams), categories)
    leaders = []
    for inverses in inverse_weights:
        # NaN is never ahead. `argmin` takes the first of equal times, as the loop does, also where
        # all are `inf`.
        times = noise * inverses
        times = jnp.where(jnp.isnan(times), jnp.inf, times)
        leader = jnp.argmin(times, axis=-1).astype(jnp.int32)
        leaders.append((jnp.min(times, axis=-1), leader))
    return tuple(leaders)


def _inverse(log_weights: Float[Array, "*k N"]) -> Float[Array, "*k N"]:
    """`1 / w` in float32; `inf` for a weight of 0."""
    return jnp.where(log_weights >= LIGHTEST, jnp.exp(-log_weights), jnp.inf).astype(jnp.float32)


def _noise_of(stream: threefry.Words, category: UInt32[Array, ...]) -> Float[Array, ...]:
    high, low = threefry.threefry2x32(stream, category)
    # `jax.random.bits` is the exclusive or of the two words: these leading bits are its bits.
    return exponentials_from_bits(high ^ low, low)

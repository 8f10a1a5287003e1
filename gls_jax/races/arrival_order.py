"""The categories of one stream in order of arrival, drawn lazily.

The work for the first arrivals does not grow with `N`. The `n`-th smallest of `N` exponentials is a
sum of spacings ``E_1 / N + E_2 / (N - 1) + ...``. A random permutation gives the category that it
belongs to. Both are functions of `(stream key, n)`, so a search can stop at any time. The
construction is ours; A* sampling (Maddison, Tarlow, Minka 2014) orders arrivals in this way for
continuous spaces.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32

from gls_jax import checks
from gls_jax.races import threefry
from gls_jax.races.noise import exponentials_from_bits
from gls_jax.typing import Index

__all__ = ["Walk", "num_visits", "permuted", "start", "visit"]

# Branches of the stream's threefry.
_SPACINGS = 1
_ROUNDS = 2


class Walk(NamedTuple):
    """The state of a search in one stream.

    Attributes:
        time: `f32[]`, exponential noise of the last arrival.
        seen: `i32[]`, number of categories that have arrived.
    """

    time: Float[Array, ...]
    seen: Int[Array, ...]


def start() -> Walk:
    """Before the first arrival."""
    return Walk(time=jnp.zeros((), jnp.float32), seen=jnp.zeros((), jnp.int32))


def num_visits(num_categories: int) -> int:
    """Length of a whole walk: the next power of two, because the permutation has that size."""
    return 1 << (num_categories - 1).bit_length()


def visit(
    stream: threefry.Words,
    walk: Walk,
    first: Index,
    count: int,
    num_categories: int,
) -> tuple[Walk, Int[Array, " count"], Float[Array, " count"]]:
    """The next visits of a stream.

    Args:
        stream: the stream's words (:func:`gls_jax.races.keys.stream_words`), `u32[]` each.
        walk: the search before visit `first`.
        first: index of the first visit, may be traced.
        count: number of visits, static.
        num_categories: `N`, static.

    Returns:
        `(walk after them, categories i32[count], noise f32[count])`. The number of visits is a
        power of two, so some have no category; their noise is `inf`. So is that of visits beyond
        :func:`num_visits`.

    >>> import jax, jax.numpy as jnp
    >>> from gls_jax import races
    >>> stream = races.keys.stream_words(jax.random.key(0), 2)
    >>> _, categories, noise = races.arrival_order.visit(
    ...     stream, races.arrival_order.start(), 0, 8, 5
    ... )
    >>> sorted(categories[jnp.isfinite(noise)].tolist())
    [0, 1, 2, 3, 4]
    """
    offsets = jnp.arange(checks.count(count, "count"), dtype=jnp.uint32)
    visits = jnp.asarray(first).astype(jnp.uint32) + offsets
    walk_length = num_visits(checks.count(num_categories, "num_categories"))
    categories = permuted(stream, visits, num_categories).astype(jnp.int32)
    if num_categories == walk_length:
        arrives = visits < walk_length
        seen = visits.astype(jnp.int32) + 1
    else:
        arrives = (categories < num_categories) & (visits < walk_length)
        seen = walk.seen + _running_sum(arrives.astype(jnp.float32)).astype(jnp.int32)
    # While n categories are still to come, the next arrival is an Exp(1) / n away.
    high, low = threefry.threefry2x32(stream, visits, _SPACINGS)
    num_waiting = jnp.maximum(num_categories - seen + 1, 1).astype(jnp.float32)
    spacings = jnp.where(arrives, exponentials_from_bits(high ^ low, low) / num_waiting, 0)
    times = walk.time + _running_sum(spacings)
    end = Walk(time=times[-1], seen=seen[-1])
    return end, categories, jnp.where(arrives, times, jnp.inf)


def _running_sum(x: Float[Array, " count"]) -> Float[Array, " count"]:
    """`cumsum` as two matrix products.

    XLA:CPU fuses the operand of `cumsum` into every step of a scan and computes it many times.
    """
    width = min(64, 1 << (x.shape[0] - 1).bit_length())
    rows = jnp.pad(x, (0, -x.shape[0] % width)).reshape(-1, width)
    product = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    within_rows = product(rows, jnp.tri(width, dtype=x.dtype).T)
    earlier_rows = jnp.tri(len(rows), k=-1, dtype=x.dtype).T
    before_rows = product(within_rows[:, -1], earlier_rows)
    return (within_rows + before_rows[:, None]).reshape(-1)[: x.shape[0]]


def permuted(
    stream: threefry.Words,
    indices: UInt32[Array, ...],
    num_categories: int,
) -> UInt32[Array, ...]:
    """A keyed permutation of ``0 .. num_visits(num_categories) - 1``.

    It is a Feistel network on the two halves of a number's bits. From size 16 on it is an even
    permutation: the last two values follow from the others.
    """
    num_bits = num_visits(num_categories).bit_length() - 1
    num_low_bits = num_bits // 2
    num_high_bits = num_bits - num_low_bits
    # Few bits mix slowly, and the tests look at all orders of a few categories.
    num_rounds = max(8, 2 * -(-64 // max(num_bits, 1)))
    rounds = jnp.arange(num_rounds, dtype=jnp.uint32)
    constants = threefry.threefry2x32(stream, rounds, _ROUNDS)
    # Without the barrier XLA fuses the constants and computes them anew for every index.
    adders, factors = jax.lax.optimization_barrier(constants)
    low = indices & ((1 << num_low_bits) - 1)
    high = indices >> num_low_bits
    for i in range(0, num_rounds, 2):
        high = high ^ _mixed(low, adders[i], factors[i], num_high_bits)
        low = low ^ _mixed(high, adders[i + 1], factors[i + 1], num_low_bits)
    # Without the barrier XLA:CPU fuses the permutation with the logarithm of a candidate after it,
    # which jaxlib 0.12 never finishes compiling.
    return jax.lax.optimization_barrier((high << num_low_bits) | low)


def _mixed(
    x: UInt32[Array, ...],
    adder,
    factor,
    num_bits: int,
) -> UInt32[Array, ...]:
    """The upper `num_bits` bits of a hash of `x`.

    Multiplications by odd numbers, a shortened finaliser of MurmurHash3.
    """
    if num_bits == 0:
        return jnp.zeros_like(x)
    x = (x + adder) * (factor | 1)
    x = (x ^ (x >> 15)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x >> (32 - num_bits)

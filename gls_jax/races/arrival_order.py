"""A stream's clocks in the order in which they go off: the first arrivals cost nothing that grows
with N.

The `n`-th smallest of `N` clocks is a sum of spacings ``E_1 / N + E_2 / (N - 1) + ...``, and which
item it is, a random permutation of the items tells. Both are functions of `(stream key, n)`, so a
search can stop at any time (ours; A* sampling of Maddison, Tarlow, Minka 2014 orders arrivals in
this way for continuous spaces).
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

_SPACINGS, _ROUNDS = 1, 2  # branches of the stream's cipher


class Walk(NamedTuple):
    """Where a search stands in a stream.

    Attributes:
        time: `f32[]`, clock of the last arrival.
        seen: `i32[]`, items that have arrived.
    """

    time: Float[Array, ...]
    seen: Int[Array, ...]


def start() -> Walk:
    """Before the first arrival."""
    return Walk(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32))


def num_visits(num_items: int) -> int:
    """Places of a whole walk: the next power of two, for the permutation is one of so many numbers."""
    return 1 << (num_items - 1).bit_length()


def visit(
    stream: threefry.Words, walk: Walk, first: Index, count: int, num_items: int
) -> tuple[Walk, Int[Array, " count"], Float[Array, " count"]]:
    """The next places of a stream.

    Args:
        stream: the stream's words (:func:`gls_jax.races.keys.stream_words`), `u32[]` each.
        walk: the search before place `first`.
        first: number of the first place, may be traced.
        count: how many places, static.
        num_items: `N`, static.

    Returns:
        `(walk after them, items i32[count], clocks f32[count])`; a place without an item has clock
        `inf` (places are a power of two), and so have those behind :func:`num_visits`.

    >>> import jax, jax.numpy as jnp
    >>> from gls_jax import races
    >>> stream = races.keys.stream_words(jax.random.key(0), 2)
    >>> _, items, clocks = races.arrival_order.visit(stream, races.arrival_order.start(), 0, 8, 5)
    >>> sorted(items[jnp.isfinite(clocks)].tolist())
    [0, 1, 2, 3, 4]
    """
    places = jnp.asarray(first).astype(jnp.uint32) + jnp.arange(
        checks.count(count, "count"), dtype=jnp.uint32
    )
    everywhere = num_visits(checks.count(num_items, "num_items"))
    items = permuted(stream, places, num_items).astype(jnp.int32)
    if num_items == everywhere:
        arrives, seen = places < everywhere, places.astype(jnp.int32) + 1
    else:
        arrives = (items < num_items) & (places < everywhere)
        seen = walk.seen + _running_sum(arrives.astype(jnp.float32)).astype(jnp.int32)
    high, low = threefry.threefry2x32(stream, places, _SPACINGS)
    waiting = jnp.maximum(num_items - seen + 1, 1).astype(jnp.float32)
    spacings = jnp.where(arrives, exponentials_from_bits(high ^ low, low) / waiting, 0)
    times = walk.time + _running_sum(spacings)
    return Walk(times[-1], seen[-1]), items, jnp.where(arrives, times, jnp.inf)


def _running_sum(x: Float[Array, " count"]) -> Float[Array, " count"]:
    """`cumsum` as two products: XLA:CPU fuses what it sums into every step of a scan, and computes
    it many times.
    """
    width = min(64, 1 << (x.shape[0] - 1).bit_length())
    rows = jnp.pad(x, (0, -x.shape[0] % width)).reshape(-1, width)
    product = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    within = product(rows, jnp.triu(jnp.ones((width, width), x.dtype)))
    before = product(within[:, -1], jnp.triu(jnp.ones((len(rows), len(rows)), x.dtype), 1))
    return (within + before[:, None]).reshape(-1)[: x.shape[0]]


def permuted(
    stream: threefry.Words, places: UInt32[Array, ...], num_items: int
) -> UInt32[Array, ...]:
    """A keyed permutation of ``0 .. num_visits(num_items) - 1``: a Feistel network on the halves of
    a number.

    From 16 places on it is an even permutation: the last two places follow from the others.
    """
    bits = num_visits(num_items).bit_length() - 1
    low_bits, high_bits = bits // 2, bits - bits // 2
    num_rounds = max(
        8, 2 * -(-64 // max(bits, 1))
    )  # few bits mix slowly: all orders of a few items are tested
    constants = threefry.threefry2x32(stream, jnp.arange(num_rounds, dtype=jnp.uint32), _ROUNDS)
    adders, factors = jax.lax.optimization_barrier(
        constants
    )  # or XLA fuses, and computes them anew for every place
    low, high = places & jnp.uint32((1 << low_bits) - 1), places >> jnp.uint32(low_bits)
    for round_ in range(0, num_rounds, 2):
        high = high ^ _mixed(low, adders[round_], factors[round_], high_bits)
        low = low ^ _mixed(high, adders[round_ + 1], factors[round_ + 1], low_bits)
    # Or XLA:CPU fuses the cipher and the logarithm of a candidate behind it: jaxlib 0.12 never ends
    # compiling that.
    return jax.lax.optimization_barrier((high << jnp.uint32(low_bits)) | low)


def _mixed(x: UInt32[Array, ...], adder, factor, num_bits: int) -> UInt32[Array, ...]:
    """The upper `num_bits` bits of a hash: multiplications by odd numbers, the finaliser of
    MurmurHash3 shortened.
    """
    if num_bits == 0:
        return jnp.zeros_like(x)
    x = (x + adder) * (factor | jnp.uint32(1))
    x = (x ^ (x >> jnp.uint32(15))) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> jnp.uint32(13))) * jnp.uint32(0xC2B2AE35)
    return x >> jnp.uint32(32 - num_bits)

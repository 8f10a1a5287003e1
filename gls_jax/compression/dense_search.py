"""Dense search: every candidate is looked at, block by block, with the leader of each lane carried
along.

The encoder needs one clock a candidate, for it looks at the first of `K` only
(:func:`gls_jax.races.first_clocks`). A decoder notes the members of its bin as bits, then draws
clocks and weights for those alone, a page at a time: memory is one block, one page and ``N / 32``
words, whatever `N`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray, UInt32

from gls_jax import races
from gls_jax.compression.code import Density, ListCode, leader
from gls_jax.typing import Index

__all__ = ["Members", "choose", "members", "pick"]

BLOCK = 4096  # candidates at a time: a few such arrays fit a core's cache
_WORD = 32


class Members(NamedTuple):
    """The candidates of one bin, as bits.

    Bit `b` of word `w` within block `j` is candidate ``j * size + b * (size / 32) + w``.

    Attributes:
        words: `u32[ceil(N / 32)]`.
        before: `i32[ceil(N / 32)]`, members in the words before.
        total: `i32[]`, members of the bin.
    """

    words: UInt32[Array, " W"]
    before: Int[Array, " W"]
    total: Int[Array, ""]


def choose(
    code: ListCode, key: PRNGKeyArray, density: Density, shared: Any, row: Any
) -> Int[Array, ""]:
    """The encoder's index, ``argmin_i min_k S[k, i] / w_i``."""
    size = _block(code)

    def block(leaders, number):
        items = number * size + jnp.arange(size, dtype=jnp.int32)
        log_weights = density.log_weight(shared, row, races.candidates(key, items, code.dimension))
        scores = jnp.log(races.first_clocks(key, items)) - log_weights
        ahead = (scores < leaders[0]) & (items < code.num_candidates)
        return (jnp.where(ahead, scores, leaders[0]), jnp.where(ahead, number, leaders[1])), None

    start = (jnp.full(size, jnp.inf, jnp.float32), jnp.zeros(size, jnp.int32))
    numbers = jnp.arange(-(-code.num_candidates // size), dtype=jnp.int32)
    (scores, numbers), _ = jax.lax.scan(block, start, numbers)
    return leader(scores, numbers * size + jnp.arange(size, dtype=jnp.int32))[1]


def pick(
    code: ListCode,
    key: PRNGKeyArray,
    message: Index,
    stream: Index,
    density: Density,
    shared: Any,
    row: Any,
) -> Int[Array, ""]:
    """A decoder's index, ``argmin S[k, i] / v_i`` over its bin; -1 where no candidate has that bin."""

    bin_, size = members(code, key, message), _page(code)

    def page(number, best):
        slots = number * size + jnp.arange(size, dtype=jnp.int32)
        items = _items(code, bin_, slots)
        # In pages of one shape, so that a network gives a candidate the same weight for every
        # caller.
        log_weights = density.log_weight(shared, row, races.candidates(key, items, code.dimension))
        scores = jnp.log(races.list_clocks(key, items, code.num_streams, stream)) - log_weights
        score, item = leader(jnp.where(slots < bin_.total, scores, jnp.inf), items)
        ahead = score < best[0]
        return jnp.where(ahead, score, best[0]), jnp.where(ahead, item, best[1])

    nobody = (jnp.full((), jnp.inf, jnp.float32), jnp.full((), -1, jnp.int32))
    return jax.lax.fori_loop(0, (bin_.total + size - 1) // size, page, nobody)[1]


def members(code: ListCode, key: PRNGKeyArray, message: Index) -> Members:
    """Which candidates have the bin `message`."""
    size = _block(code)
    bits = jnp.arange(_WORD, dtype=jnp.uint32)[:, None]

    def block(_, number):
        items = number * size + jnp.arange(size, dtype=jnp.int32).reshape(_WORD, -1)
        inside = (races.bins(key, items, code.num_bins) == message) & (items < code.num_candidates)
        return None, jnp.sum(inside.astype(jnp.uint32) << bits, axis=0, dtype=jnp.uint32)

    numbers = jnp.arange(-(-code.num_candidates // size), dtype=jnp.int32)
    words = jax.lax.scan(block, None, numbers)[1].reshape(-1)
    upto = jnp.cumsum(jax.lax.population_count(words).astype(jnp.int32))
    return Members(words, jnp.concatenate([jnp.zeros(1, jnp.int32), upto[:-1]]), upto[-1])


def _items(code: ListCode, bin_: Members, slots: Int[Array, " P"]) -> Int[Array, " P"]:
    """The candidates behind members number `slots`: a search for the word, then for the bit."""
    word = jnp.searchsorted(bin_.before, slots, side="right", method="scan_unrolled") - 1
    bits, rank, place = bin_.words[word], slots - bin_.before[word], jnp.zeros_like(slots)
    for half in (16, 8, 4, 2, 1):  # is it among the lower bits?
        lower = jax.lax.population_count(bits & jnp.uint32((1 << half) - 1)).astype(jnp.int32)
        above = rank >= lower
        place, rank = jnp.where(above, place + half, place), jnp.where(above, rank - lower, rank)
        bits = jnp.where(above, bits >> jnp.uint32(half), bits)
    per_block = _block(code) // _WORD
    return word // per_block * _block(code) + place * per_block + word % per_block


def _block(code: ListCode) -> int:
    return min(BLOCK, -(-code.num_candidates // _WORD) * _WORD)


def _page(code: ListCode) -> int:
    """About a third of a bin: its last page is then half empty, a sixth of the work."""
    return max(_WORD, min(1024, 1 << (code.num_candidates // (3 * code.num_bins)).bit_length()))

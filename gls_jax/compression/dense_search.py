"""Dense search: visit every candidate, in blocks, and keep the best one so far.

The encoder needs only the first arrival over the `K` streams, which is one exponential per
candidate (:func:`gls_jax.races.smallest_exponentials`). A decoder first marks the members of its
bin as bits. Then it draws noise and weights for these members alone, one page at a time. Memory is
one block, one page and ``N / 32`` words.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray, UInt32

from gls_jax import races
from gls_jax.compression.densities import Density
from gls_jax.compression.list_code import ListCode, smallest_score
from gls_jax.typing import Index

__all__ = ["BinMembers", "bin_members", "decode_index", "encode_index"]

# Candidates at a time for one symbol: a few such arrays fit the cache of a core. The same on every
# platform; an accelerator searches more symbols at the same time.
_MAX_BLOCK = 4096
_WORD_BITS = 32


class BinMembers(NamedTuple):
    """The candidates of one bin, as bits.

    Bit `b` of word `w` within block `j` is candidate ``j * size + b * (size / 32) + w``.

    Attributes:
        words: `u32[ceil(N / 32)]`.
        num_before: `i32[ceil(N / 32)]`, number of members in all previous words.
        total: `i32[]`, members of the bin.
    """

    words: UInt32[Array, " W"]
    num_before: Int[Array, " W"]
    total: Int[Array, ""]


def encode_index(
    code: ListCode, key: PRNGKeyArray, density: Density, shared: Any, row: Any
) -> Int[Array, ""]:
    """The encoder's index, ``argmin_i min_k S[k, i] / w_i``."""
    block_size = _block_size(code)

    # For each offset within a block, the best score over all blocks is kept. That is one comparison
    # per candidate; the minimum over the offsets is taken once, at the end.
    def visit_block(best, block):
        best_scores, best_blocks = best
        indices = block * block_size + jnp.arange(block_size, dtype=jnp.int32)
        candidates = races.candidates(key, indices, code.dimension)
        log_weights = density.log_weight(shared, row, candidates)
        scores = jnp.log(races.smallest_exponentials(key, indices)) - log_weights
        is_better = (scores < best_scores) & (indices < code.num_candidates)
        best_scores = jnp.where(is_better, scores, best_scores)
        return (best_scores, jnp.where(is_better, block, best_blocks)), None

    no_scores = jnp.full(block_size, jnp.inf, jnp.float32)
    start = (no_scores, jnp.zeros(block_size, jnp.int32))
    (scores, best_blocks), _ = jax.lax.scan(visit_block, start, _block_numbers(code))
    indices = best_blocks * block_size + jnp.arange(block_size, dtype=jnp.int32)
    return smallest_score(scores, indices)[1]


def decode_index(
    code: ListCode,
    key: PRNGKeyArray,
    message: Index,
    stream: Index,
    density: Density,
    shared: Any,
    row: Any,
) -> Int[Array, ""]:
    """A decoder's index, ``argmin S[k, i] / v_i`` over its bin; -1 if the bin is empty."""
    members = bin_members(code, key, message)
    page_size = _page_size(code)

    # All pages have the same shape, so that a network gives a candidate the same weight for every
    # caller.
    def visit_page(page, best):
        best_score, best_index = best
        member_numbers = page * page_size + jnp.arange(page_size, dtype=jnp.int32)
        indices = _member_indices(code, members, member_numbers)
        candidates = races.candidates(key, indices, code.dimension)
        log_weights = density.log_weight(shared, row, candidates)
        noise = races.stream_exponentials(key, indices, code.num_streams, stream)
        scores = jnp.log(noise) - log_weights
        # The last page continues after the last member.
        is_member = member_numbers < members.total
        scores = jnp.where(is_member, scores, jnp.inf)
        page_score, page_index = smallest_score(scores, indices)
        is_better = page_score < best_score
        best_score = jnp.where(is_better, page_score, best_score)
        return best_score, jnp.where(is_better, page_index, best_index)

    no_score = jnp.full((), jnp.inf, jnp.float32)
    start = (no_score, jnp.full((), -1, jnp.int32))
    num_pages = (members.total + page_size - 1) // page_size
    _, index = jax.lax.fori_loop(0, num_pages, visit_page, start)
    return index


def bin_members(code: ListCode, key: PRNGKeyArray, message: Index) -> BinMembers:
    """The candidates whose bin is `message`."""
    block_size = _block_size(code)
    bit_numbers = jnp.arange(_WORD_BITS, dtype=jnp.uint32)[:, None]

    # One bit per candidate: the members of all blocks fit memory at any N.
    def mark_block(_, block):
        first = block * block_size
        indices = first + jnp.arange(block_size, dtype=jnp.int32).reshape(_WORD_BITS, -1)
        is_in_bin = races.bins(key, indices, code.num_bins) == message
        is_member = is_in_bin & (indices < code.num_candidates)
        bits = is_member.astype(jnp.uint32) << bit_numbers
        return None, jnp.sum(bits, axis=0, dtype=jnp.uint32)

    _, words = jax.lax.scan(mark_block, None, _block_numbers(code))
    words = words.reshape(-1)
    num_until = jnp.cumsum(jax.lax.population_count(words).astype(jnp.int32))
    num_before = jnp.concatenate([jnp.zeros(1, jnp.int32), num_until[:-1]])
    return BinMembers(words=words, num_before=num_before, total=num_until[-1])


def _member_indices(code: ListCode, members: BinMembers, member_numbers):
    """Candidates by their number among the members: a search for the word, then for the bit."""
    next_word = jnp.searchsorted(
        members.num_before, member_numbers, side="right", method="scan_unrolled"
    )
    word_number = next_word - 1
    bits_left = members.words[word_number]
    rank = member_numbers - members.num_before[word_number]

    # Binary search for the set bit of this rank: is it in the lower half of the bits left?
    bit_number = jnp.zeros_like(member_numbers)
    for half in (16, 8, 4, 2, 1):
        lower_bits = bits_left & jnp.uint32((1 << half) - 1)
        num_lower = jax.lax.population_count(lower_bits).astype(jnp.int32)
        is_above = rank >= num_lower
        bit_number = jnp.where(is_above, bit_number + half, bit_number)
        rank = jnp.where(is_above, rank - num_lower, rank)
        bits_left = jnp.where(is_above, bits_left >> jnp.uint32(half), bits_left)

    block_size = _block_size(code)
    words_per_block = block_size // _WORD_BITS
    # Neighbouring candidates are in neighbouring words, see `BinMembers`.
    block_start = word_number // words_per_block * block_size
    return block_start + bit_number * words_per_block + word_number % words_per_block


def _block_size(code: ListCode) -> int:
    """`N` rounded up to whole words, at most :data:`_MAX_BLOCK`."""
    return min(_MAX_BLOCK, -(-code.num_candidates // _WORD_BITS) * _WORD_BITS)


def _block_numbers(code: ListCode):
    return jnp.arange(-(-code.num_candidates // _block_size(code)), dtype=jnp.int32)


def _page_size(code: ListCode) -> int:
    """About a third of a bin, within 32..1024.

    The last page is half empty on average, a sixth of the work.
    """
    third_of_bin = code.num_candidates // (3 * code.num_bins)
    return max(_WORD_BITS, min(1024, 1 << third_of_bin.bit_length()))

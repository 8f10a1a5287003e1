"""Changes of a cache: discard the newest slots, and move accepted drafts after the text."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

__all__ = ["keep", "with_length"]

AnyCache = TypeVar("AnyCache")


def with_length(cache: AnyCache, length: Int[Array, " B"] | None) -> AnyCache:
    """The cache with `length` filled slots in each row; a smaller `length` discards the newest."""
    record: Any = cache
    if hasattr(record, "_replace"):
        return record._replace(length=length)
    return dataclasses.replace(record, length=length)


def keep(
    cache: AnyCache,
    cache_slots: Int[Array, "B D"],
    start: Int[Array, " B"],
    count: Int[Array, " B"],
) -> AnyCache:
    """Move the entries at `cache_slots` to slots ``start, start + 1, ...`` and discard the others.

    Args:
        cache: NamedTuple or dataclass with `length`; all other leaves `[layers, B, S, ...]`.
        cache_slots: where the accepted drafts are, in the order of the text, none of them before
            its new slot. Entries from `count` on are ignored, and may be -1.
        start: new slot of the first accepted draft.
        count: how many drafts are accepted.

    Returns:
        The cache with ``start + count`` filled slots.

    >>> import jax.numpy as jnp
    >>> from typing import NamedTuple
    >>> from gls_jax.decoding import cache
    >>> class Tokens(NamedTuple):
    ...     tokens: object  # [1, B, S]
    ...     length: object
    >>> full = Tokens(jnp.arange(8)[None, None], jnp.array([8]))
    >>> kept = cache.keep(full, jnp.array([[5, 7, -1]]), jnp.array([3]), jnp.array([2]))
    >>> kept.tokens[0, 0, :5].tolist(), kept.length.tolist()
    ([0, 1, 2, 5, 7], [5])
    """
    rows = jnp.arange(cache_slots.shape[0])[:, None]
    offsets = jnp.arange(cache_slots.shape[1])

    def move(leaf):
        moved = leaf[:, rows, jnp.maximum(cache_slots, 0)]
        # Entries that are not kept are written past the end of the cache, where they are dropped.
        is_kept = offsets < count[:, None]
        new_slots = jnp.where(is_kept, start[:, None] + offsets, leaf.shape[2])
        return leaf.at[:, rows, new_slots].set(moved, mode="drop")

    record: Any = cache
    # Without the barrier XLA would fuse the write of a single newest draft into the reads above,
    # and copy the whole cache to have it before and after the write. (It happened with one
    # request, one chain and two drafts; jaxlib 0.10 copies in that case even with the barrier.)
    written = jax.lax.optimization_barrier(with_length(record, None))
    moved = jax.tree.map(move, written)
    return with_length(moved, start + count)

"""What the engine does with a cache: forget its newest slots, and move accepted drafts into place."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

__all__ = ["keep", "with_length"]

AnyCache = TypeVar("AnyCache")


def with_length(cache: AnyCache, length: Int[Array, " B"] | None) -> AnyCache:
    """The cache with `length` slots filled in each row; lowering it forgets the newest."""
    whole: Any = cache
    if hasattr(whole, "_replace"):
        return whole._replace(length=length)
    return dataclasses.replace(whole, length=length)


def keep(
    cache: AnyCache, slots: Int[Array, "B D"], start: Int[Array, " B"], count: Int[Array, " B"]
) -> AnyCache:
    """Move what lies in `slots` to ``start, start + 1, ...`` and forget the rest.

    Args:
        cache: NamedTuple or dataclass with `length`; all other leaves `[layers, B, S, ...]`.
        slots: where the accepted drafts lie, in the order of the text, each at or behind its place;
            -1 behind `count`.
        start: slot of the first one's place.
        count: how many are accepted.

    Returns:
        The cache, ``start + count`` slots filled.

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
    rows, place = jnp.arange(slots.shape[0])[:, None], jnp.arange(slots.shape[1])

    def move(leaf):
        moved = leaf[:, rows, jnp.maximum(slots, 0)]
        there = jnp.where(
            place < count[:, None], start[:, None] + place, leaf.shape[2]
        )  # the rest falls off the end
        return leaf.at[:, rows, there].set(moved, mode="drop")

    whole: Any = cache
    length = start + count
    # XLA would fuse the write of a single newest draft into the reads below, and copy the cache
    # whole to have it before and after the write (a request, a chain, two drafts; jaxlib 0.10 does
    # so all the same).
    written = jax.lax.optimization_barrier(with_length(whole, None))
    moved = jax.tree.map(move, written)
    return with_length(moved, length)

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
    return _replace(cache, length=length)


def keep(
    cache: AnyCache,
    cache_slots: Int[Array, "B D"],
    start: Int[Array, " B"],
    count: Int[Array, " B"],
) -> AnyCache:
    """Move the entries at `cache_slots` to slots ``start, start + 1, ...`` and discard the others.

    Args:
        cache: NamedTuple or dataclass with `length`; all other fields `[layers, B, S, ...]`, or
            with the slots on the axis that its property `slot_axes` gives.
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

    def move(field, slot_axis: int):
        def at(slots):
            index: list[Any] = [slice(None)] * (slot_axis + 1)
            index[1], index[slot_axis] = rows, slots
            return tuple(index)

        def move_leaf(leaf):
            moved = leaf[at(jnp.maximum(cache_slots, 0))]
            # What is not kept is written past the end of the cache, where it is dropped.
            is_kept = offsets < count[:, None]
            new_slots = jnp.where(is_kept, start[:, None] + offsets, leaf.shape[slot_axis])
            return leaf.at[at(new_slots)].set(moved, mode="drop")

        return jax.tree.map(move_leaf, field)

    record: Any = cache
    # Without the barrier XLA would fuse the write of a single newest draft into the reads above,
    # and copy the whole cache to have it before and after the write. (It happened with one
    # request, one chain and two drafts; jaxlib 0.10 copies in that case even with the barrier.)
    written = jax.lax.optimization_barrier(with_length(record, None))
    slot_axes: dict[str, int] = getattr(record, "slot_axes", {})
    moved = {
        name: move(getattr(written, name), slot_axes.get(name, 2))
        for name in _field_names(record)
        if name != "length"
    }
    return _replace(record, length=start + count, **moved)


def _field_names(record: Any) -> tuple[str, ...]:
    if hasattr(record, "_fields"):
        return record._fields
    return tuple(field.name for field in dataclasses.fields(record))


def _replace(record: Any, **fields: Any) -> Any:
    if hasattr(record, "_replace"):
        return record._replace(**fields)
    return dataclasses.replace(record, **fields)

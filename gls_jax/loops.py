"""Loops: carries under `jax.shard_map`, and maps in batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

__all__ = ["map_in_batches", "varying_like"]

Carry = TypeVar("Carry")


def map_in_batches(function: Callable[[Any], Any], rows: Any, most_at_once: int) -> Any:
    """`jax.lax.map` over the first axis, with up to `most_at_once` rows in one step.

    Args:
        function: of one row.
        rows: pytree of arrays with one leading axis, of length at least 1.
        most_at_once: the most rows of a step. With 1 there is no `vmap`: over one row it would be
            slower than none.

    Returns:
        What `function` returns, with a leading axis of the rows.
    """
    size = jax.tree.leaves(rows)[0].shape[0]
    if most_at_once <= 1:
        return jax.lax.map(function, rows)
    if size <= most_at_once:
        return jax.vmap(function)(rows)
    # Steps of one size, so that one program is compiled. Copies of the last row fill up the last.
    num_steps = -(-size // most_at_once)
    batch_size = -(-size // num_steps)
    if size % batch_size:
        indices = jnp.minimum(jnp.arange(num_steps * batch_size), size - 1)
        rows = jax.tree.map(lambda row: row[indices], rows)
    values = jax.lax.map(function, rows, batch_size=batch_size)
    return jax.tree.map(lambda value: value[:size], values)


def varying_like(carry: Carry, *operands: object) -> Carry:
    """A loop's first carry, marked as varying over every mesh axis that the operands vary over.

    Inside `jax.shard_map`, JAX tracks which values vary between devices, and the carry of a loop
    must keep that type. A constant first carry does not vary, but values computed from the operands
    do. Outside `jax.shard_map` this function changes nothing.

    Args:
        carry: the first carry, a pytree of arrays.
        operands: all inputs of the loop's body, pytrees of arrays.
    """
    axes: set[str] = set()
    for operand in jax.tree.leaves(operands):
        axes |= _varying_axes(operand)

    def mark(leaf):
        missing = tuple(axes - _varying_axes(leaf))
        return jax.lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(mark, carry)


def _varying_axes(leaf: object) -> frozenset[str]:
    # Not every version of JAX has this attribute on every type.
    axis_type = getattr(jax.typeof(leaf), "manual_axis_type", None)
    return axis_type.varying if axis_type is not None else frozenset()

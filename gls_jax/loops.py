"""Carries of loops under `jax.shard_map`."""

from __future__ import annotations

from typing import TypeVar

import jax

__all__ = ["varying_like"]

Carry = TypeVar("Carry")


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

"""Carries of loops under `jax.shard_map`."""

from __future__ import annotations

from typing import TypeVar

import jax

__all__ = ["varying_like"]

Carry = TypeVar("Carry")


def varying_like(carry: Carry, *operands: object) -> Carry:
    """A loop's first carry, marked as varying over every mesh axis that the operands vary over.

    Inside `jax.shard_map`, JAX tracks whether a value varies from device to device, and the carry
    of a loop must not change in that. A constant first carry does not vary, but what the loop makes
    of its operands does. Outside of `jax.shard_map` this changes nothing.

    Args:
        carry: the first carry, a pytree of arrays.
        operands: what the loop's body reads, pytrees of arrays.
    """
    axes = frozenset().union(*(_axes(leaf) for leaf in jax.tree.leaves(operands)))

    def mark(leaf):
        missing = tuple(axes - _axes(leaf))
        return jax.lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(mark, carry)


def _axes(leaf: object) -> frozenset[str]:
    kind = getattr(jax.typeof(leaf), "manual_axis_type", None)
    return kind.varying if kind is not None else frozenset()

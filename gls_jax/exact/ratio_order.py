"""Items in order of their likelihood ratio ``r_i = q_i / p_i``: the one sort that every exact
formula shares.

With ``h(u) = sum_i max(u p_i, q_i)``, piecewise linear between sorted ratios, ``M_j = h(r_j) =
sum_i max(q_i, q_j p_i / p_j)`` is the rate at which clocks compete with a match on item ``j``. What
matters is the excess ``M_j - 1 >= 0``; here it is a sum of non-negative terms, so small excesses
keep their digits in float32.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gls_jax.loops import varying_like
from gls_jax.races import LIGHTEST, weights

__all__ = ["RatioOrder", "ascending", "cumulative", "excess", "ratio_order", "total"]

_GROUP = 32  # numbers that one row of a product adds up; measured on XLA:CPU


class RatioOrder(NamedTuple):
    """Two laws sorted by `q_i / p_i`, items with `p_i = 0` last. Every field is `[N]` in sorted
    order.

    Attributes:
        order: item at each place.
        p: draft probabilities.
        q: target probabilities.
        ratio: `r_t = q_t / p_t`; where `p_t = 0` a number above all others.
        mass: `P_t`, cumulative sum of `p`.
        rise: `h(r_{t+1}) - h(r_t) = P_t (r_{t+1} - r_t)`; `inf` at the last place, where `u` runs
            on for ever.
        excess: `M - 1 = h(r_t) - 1`.
    """

    order: Int[Array, " N"]
    p: Float[Array, " N"]
    q: Float[Array, " N"]
    ratio: Float[Array, " N"]
    mass: Float[Array, " N"]
    rise: Float[Array, " N"]
    excess: Float[Array, " N"]


def ratio_order(log_p: Float[Array, " N"], log_q: Float[Array, " N"]) -> RatioOrder:
    """Sort the items by likelihood ratio. `O(N log N)`, differentiable away from ties."""
    cap = (
        1 - LIGHTEST
    )  # above every ratio of an item that can be drafted, and far below the largest float32
    p, q = weights(log_p), jnp.exp(log_q)
    live = p > 0
    # Two `where`s: a gradient through `log_q - (-inf)` would be NaN even where the result is not
    # used.
    log_ratio = jnp.where(live, jnp.minimum(log_q - jnp.where(live, log_p, 0), cap), cap)
    log_ratio = jnp.where(live, log_ratio, jnp.inf)
    order = ascending(jax.lax.stop_gradient(log_ratio))
    p, q = p[order], q[order]
    ratio = jnp.exp(jnp.minimum(log_ratio[order], cap))
    mass = cumulative(p)
    rise = mass[:-1] * jnp.diff(ratio)
    excess = jnp.concatenate([jnp.zeros(1, rise.dtype), cumulative(rise)])
    # An excess of 0 is the least there is: 0 is its derivative too, and not that of one order of
    # the tied items.
    excess = jnp.where(excess > 0, excess, 0)
    return RatioOrder(order, p, q, ratio, mass, jnp.append(rise, jnp.inf), excess)


def ascending(values: Float[Array, " N"]) -> Int[Array, " N"]:
    """`jnp.argsort` (stable, NaN last), up to three times faster on XLA:CPU, which sorts plain
    integers fastest.

    The digits of a float's bits, least significant first: each pass sorts one integer an item, a
    digit above the item's place.
    """
    if values.dtype != jnp.float32:
        # Inside `jax.shard_map` JAX takes argsort's result to be the same on all devices, and
        # gradients go wrong.
        return varying_like(jnp.argsort(values).astype(jnp.int32), values)
    bits = jax.lax.bitcast_convert_type(values + 0, jnp.uint32)  # -0 becomes 0
    sign = jnp.uint32(2**31)
    bits = jnp.where(bits < sign, bits | sign, ~bits)  # in the order of the floats
    size = values.shape[0]
    place_bits = max(1, (size - 1).bit_length())
    place, lowest = jnp.arange(size, dtype=jnp.uint32), jnp.uint32(2**place_bits - 1)
    order = place
    for shift in range(0, 32, 32 - place_bits):
        digit = (bits[order] >> jnp.uint32(shift)) << jnp.uint32(place_bits)
        order = order[jnp.sort(digit | place) & lowest]
    return order.astype(jnp.int32)


def cumulative(values: Float[Array, " N"], *, reverse: bool = False) -> Float[Array, " N"]:
    """`jnp.cumsum` of finite numbers, from the end if `reverse`; several times faster on XLA:CPU.

    Each group of 32 is multiplied by a triangle of ones, and then the groups' totals are added up
    in the same way.
    """
    size, triangle = values.shape[0], np.tri(_GROUP)
    groups = jnp.pad(values, (0, -size % _GROUP if size else _GROUP)).reshape(-1, _GROUP)
    inside = jnp.matmul(
        groups, jnp.asarray(triangle if reverse else triangle.T, values.dtype), precision="highest"
    )
    if len(groups) <= 1:
        return inside.reshape(-1)[:size]
    totals, zero = (
        cumulative(inside[:, 0 if reverse else -1], reverse=reverse),
        jnp.zeros(1, values.dtype),
    )
    others = jnp.concatenate([totals[1:], zero] if reverse else [zero, totals[:-1]])
    return (inside + others[:, None]).reshape(-1)[:size]


def total(values: Float[Array, " N"]) -> Float[Array, ""]:
    """`jnp.sum`, in two steps: XLA:CPU adds up each row of a `vmap` in turn, which cost 1e-6 at `N
    = 49,152`.
    """
    columns = math.isqrt(values.shape[0] - 1) + 1
    return jnp.sum(
        jnp.sum(jnp.pad(values, (0, -values.shape[0] % columns)).reshape(-1, columns), axis=0)
    )


def excess(log_p: Float[Array, "*k N"], log_q: Float[Array, " N"]) -> Float[Array, "*k N"]:
    """`M_j - 1` of every item in the items' own order; `inf` where `p_j = 0`. `log_p` may be `[K,
    N]`.
    """
    if log_p.ndim == 2:
        return jax.vmap(excess, in_axes=(0, None))(log_p, log_q)
    ranked = ratio_order(log_p, log_q)
    return (
        jnp.zeros_like(ranked.p)
        .at[ranked.order]
        .set(jnp.where(ranked.p > 0, ranked.excess, jnp.inf))
    )

"""Categories sorted by likelihood ratio ``r_i = q_i / p_i``, which every exact formula needs.

With ``h(u) = sum_i max(u p_i, q_i)``, piecewise linear between the sorted ratios, ``M_j = h(r_j) =
sum_i max(q_i, q_j p_i / p_j)`` is the rate of the noise that competes with a match on category
``j``. The formulas use the excess ``M_j - 1 >= 0``. It is computed here as a sum of non-negative
terms, so that small excesses keep their digits in float32.

The *index in ratio order* of a category is its index among the categories sorted by `r`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num

from gls_jax import work_shape
from gls_jax.loops import varying_like
from gls_jax.races import LIGHTEST, weights

__all__ = [
    "RatioOrder",
    "ascending",
    "cumulative",
    "excess",
    "in_rows",
    "index_in",
    "nondecreasing_sum",
    "ratio_order",
    "search",
    "total",
]


class RatioOrder(NamedTuple):
    """Two distributions sorted by `q_i / p_i`, with the categories of `p_i = 0` at the end.

    Every field is `[N]`, in sorted order.

    Attributes:
        order: category at each index in ratio order.
        p: draft probabilities.
        q: target probabilities.
        ratio: `r_t = q_t / p_t`; where `p_t = 0` a number above all others.
        mass: `P_t`, cumulative sum of `p`.
        rise: `h(r_{t+1}) - h(r_t) = P_t (r_{t+1} - r_t)`; `inf` at the last index, where `u` has no
            upper end.
        excess: `M - 1 = h(r_t) - 1`.
    """

    order: Int[Array, " N"]
    p: Float[Array, " N"]
    q: Float[Array, " N"]
    ratio: Float[Array, " N"]
    mass: Float[Array, " N"]
    rise: Float[Array, " N"]
    excess: Float[Array, " N"]


def ratio_order(
    log_p: Float[Array, " N"],
    log_q: Float[Array, " N"],
) -> RatioOrder:
    """Sort the categories by likelihood ratio. `O(N log N)`, differentiable away from ties."""
    # Above every log-ratio of a category that can be drafted, and e^cap fits into float32.
    cap = 1 - LIGHTEST
    p = weights(log_p)
    q = jnp.exp(log_q)
    possible = p > 0
    # Two `where`s: a gradient through `log_q - (-inf)` would be NaN even where the result is not
    # used.
    log_ratio = jnp.minimum(log_q - jnp.where(possible, log_p, 0), cap)
    log_ratio = jnp.where(possible, log_ratio, jnp.inf)
    order = ascending(jax.lax.stop_gradient(log_ratio))
    p = p[order]
    q = q[order]
    ratio = jnp.exp(jnp.minimum(log_ratio[order], cap))
    mass = cumulative(p)
    rise = mass[:-1] * jnp.diff(ratio)
    excess = jnp.concatenate([jnp.zeros(1, rise.dtype), cumulative(rise)])
    # An excess of 0 is a minimum, so its derivative is 0. Without this it would be that of
    # one order of the tied categories.
    excess = jnp.where(excess > 0, excess, 0)
    return RatioOrder(
        order=order,
        p=p,
        q=q,
        ratio=ratio,
        mass=mass,
        rise=jnp.append(rise, jnp.inf),
        excess=excess,
    )


def ascending(values: Float[Array, " N"]) -> Int[Array, " N"]:
    """The indices of `jnp.argsort` (stable, NaN last), up to three times faster on XLA:CPU."""
    values = values + 0  # -0 becomes 0
    if values.dtype != jnp.float32:
        return _argsort(values)
    return work_shape.by_platform(_radix_argsort, _argsort, values)


def index_in(order: Int[Array, " N"]) -> Int[Array, " N"]:
    """The index of every category in an order of all of them, the inverse permutation."""
    return jnp.zeros_like(order).at[order].set(jnp.arange(order.shape[0], dtype=order.dtype))


def _argsort(values: Float[Array, " N"]) -> Int[Array, " N"]:
    # Inside `jax.shard_map` JAX takes argsort's result to be the same on all devices, and
    # gradients go wrong.
    return varying_like(jnp.argsort(values).astype(jnp.int32), values)


def _radix_argsort(values: Float[Array, " N"]) -> Int[Array, " N"]:
    """A radix sort of the floats' bits, least significant digit first.

    XLA:CPU sorts plain integers fastest. Each pass sorts one integer per value: the digit in its
    high bits, the index of the value in its low bits.
    """
    bits = jax.lax.bitcast_convert_type(values, jnp.uint32)
    # Integers in the order of the floats: negative floats have all bits flipped, others the sign.
    sign = jnp.uint32(2**31)
    bits = jnp.where(bits < sign, bits | sign, ~bits)
    size = values.shape[0]
    index_bits = max(1, (size - 1).bit_length())
    index_mask = 2**index_bits - 1
    index = jnp.arange(size, dtype=jnp.uint32)
    # A digit and an index share an integer of 32 bits.
    order = index
    for shift in range(0, 32, 32 - index_bits):
        digit = (bits[order] >> shift) << index_bits
        order = order[jnp.sort(digit | index) & index_mask]
    return order.astype(jnp.int32)


def cumulative(
    values: Float[Array, " N"],
    *,
    reverse: bool = False,
) -> Float[Array, " N"]:
    """`jnp.cumsum` of finite numbers, from the end if `reverse`; several times faster on XLA:CPU.

    For the exact formulas. Draws by inversion need :func:`nondecreasing_sum`.

    Each group of 32 (on accelerators 128) is multiplied by a triangle of ones. The groups' totals
    are then summed in the same way.
    """
    size = values.shape[0]
    group_size = work_shape.current().row_sum
    triangle = np.tri(group_size)
    if not reverse:
        triangle = triangle.T
    groups = in_rows(values, group_size)
    within = jnp.matmul(groups, jnp.asarray(triangle, values.dtype), precision="highest")
    # The sums within a group are known; those of the groups before it are added.
    if len(groups) <= 1:
        return within.reshape(-1)[:size]
    zero = jnp.zeros(1, values.dtype)
    if reverse:
        totals = cumulative(within[:, 0], reverse=True)
        other_groups = jnp.concatenate([totals[1:], zero])
    else:
        totals = cumulative(within[:, -1])
        other_groups = jnp.concatenate([zero, totals[:-1]])
    return (within + other_groups[:, None]).reshape(-1)[:size]


def nondecreasing_sum(values: Float[Array, "N ..."]) -> Float[Array, "N ..."]:
    """Cumulative sum along the first axis of numbers that are at least 0, for drawing by inversion.

    It never decreases, and a number of 0 leaves it as it is: no draw falls into an interval of
    weight 0. `jnp.cumsum` promises neither. It is a tree of additions (Sklansky 1960) in an order
    that no platform changes, of depth ``log2 N``. Each level joins two neighbouring blocks: the
    last sum of the first one is added to every sum of the second.
    """
    size = values.shape[0]
    if size == 0:
        return values
    num_levels = (size - 1).bit_length()
    padding = [(0, 2**num_levels - size), *[(0, 0)] * (values.ndim - 1)]
    sums = jnp.pad(values, padding)
    for level in range(num_levels):
        halves = sums.reshape(-1, 2, 2**level, *values.shape[1:])
        first, second = halves[:, 0], halves[:, 1]
        # The barrier keeps XLA from computing all levels anew for every number, and from making one
        # operation of a product and this sum, which would be rounded once.
        first, second = jax.lax.optimization_barrier((first, second))
        sums = jnp.stack([first, second + first[:, -1:]], axis=1).reshape(sums.shape)
    return sums[:size]


def search(
    sorted_values: Num[Array, " N"], values: Num[Array, ...], *, side: str = "left"
) -> Int[Array, ...]:
    """`jnp.searchsorted`, as a loop on a CPU and written out on an accelerator."""
    method = "scan_unrolled" if work_shape.current().is_wide else "scan"
    return jnp.searchsorted(sorted_values, values, side=side, method=method)


def total(values: Float[Array, " N"]) -> Float[Array, ""]:
    """`jnp.sum` in two steps.

    XLA:CPU adds up the rows of a `vmap` one number at a time, which cost 1e-6 at `N = 49,152`.
    """
    num_columns = math.isqrt(values.shape[0] - 1) + 1
    return jnp.sum(jnp.sum(in_rows(values, num_columns), axis=0))


def in_rows(values: Float[Array, " N"], num_columns: int) -> Float[Array, "R C"]:
    """The values in rows of that length, at least one, filled up with zeros."""
    size = values.shape[0]
    missing = -size % num_columns if size else num_columns
    return jnp.pad(values, (0, missing)).reshape(-1, num_columns)


def excess(
    log_p: Float[Array, "*k N"],
    log_q: Float[Array, " N"],
) -> Float[Array, "*k N"]:
    """`M_j - 1` of every category `j`, by category; `inf` where `p_j = 0`.

    `log_p` may be `[K, N]`: one distribution per row.
    """
    if log_p.ndim == 2:
        return jax.vmap(excess, in_axes=(0, None))(log_p, log_q)
    ranked = ratio_order(log_p, log_q)
    # Back from the sorted order to that of the categories.
    sorted_excess = jnp.where(ranked.p > 0, ranked.excess, jnp.inf)
    return jnp.zeros_like(ranked.p).at[ranked.order].set(sorted_excess)

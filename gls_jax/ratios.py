"""Items in order of their likelihood ratio ``r_i = q_i / p_i``: the one sort that every exact formula shares.

With ``h(u) = sum_i max(u p_i, q_i)``, piecewise linear between sorted ratios, ``M_j = h(r_j) =
sum_i max(q_i, q_j p_i / p_j)`` is the rate at which clocks compete with a match on item ``j``. What matters is the
excess ``M_j - 1 >= 0``; here it is a sum of non-negative terms, so small excesses keep their digits in float32.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gls_jax.races import weights

__all__ = ["RatioOrder", "excess", "ratio_order"]


class RatioOrder(NamedTuple):
    """Two laws sorted by `q_i / p_i`, items with `p_i = 0` last. Every field is `[N]` in sorted order.

    Attributes:
        order: item at each place.
        p: draft probabilities.
        q: target probabilities.
        ratio: `r_t = q_t / p_t`, capped where it is as good as infinite.
        mass: `P_t`, cumulative sum of `p`.
        rise: `h(r_{t+1}) - h(r_t) = P_t (r_{t+1} - r_t)`; `inf` at the last place, where `u` runs on for ever.
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
    cap = 0.78 * math.log(float(jnp.finfo(log_q.dtype).max))  # a ratio of e^cap or more is as good as infinite
    p, q = weights(log_p), jnp.exp(log_q)
    live = p > 0
    # Two `where`s: a gradient through `log_q - (-inf)` would be NaN even where the result is not used.
    log_ratio = jnp.where(live, jnp.minimum(log_q - jnp.where(live, log_p, 0), cap), cap)
    log_ratio = jnp.where(live, log_ratio, jnp.inf)
    order = jnp.argsort(log_ratio)
    p, q = p[order], q[order]
    ratio = jnp.exp(jnp.minimum(log_ratio[order], cap))
    mass = jnp.cumsum(p)
    rise = mass[:-1] * jnp.diff(ratio)
    excess = jnp.concatenate([jnp.zeros(1, rise.dtype), jnp.cumsum(rise)])
    return RatioOrder(order, p, q, ratio, mass, jnp.append(rise, jnp.inf), excess)


def excess(log_p: Float[Array, "*k N"], log_q: Float[Array, " N"]) -> Float[Array, "*k N"]:
    """`M_j - 1` of every item in the items' own order; `inf` where `p_j = 0`. `log_p` may be `[K, N]`."""
    if log_p.ndim == 2:
        return jax.vmap(excess, in_axes=(0, None))(log_p, log_q)
    ranked = ratio_order(log_p, log_q)
    return jnp.zeros_like(ranked.p).at[ranked.order].set(jnp.where(ranked.p > 0, ranked.excess, jnp.inf))

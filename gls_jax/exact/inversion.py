"""Trials without clocks: who wins a race, and who stands in the list, drawn by inversion in `O(log
N)`.

A Monte Carlo trial needs first arrivals, not `K N` clocks. What the target takes is known
beforehand: item `j` with probability `q_j`, at a time ``theta ~ Exp(1)`` that does not depend on
`j`. Every other clock of that stream is then known to be later than ``theta q_i`` and, being
memoryless, starts afresh there. Under `p`, item `i` arrives from ``theta r_i`` on at rate `p_i`
(``r = q / p``), and `j` at ``theta r_j`` sharp: until time `t`

    sum_i p_i (t - theta r_i)+ = theta excess(t / theta),   excess(u) = h(u) - 1,

arrivals are expected (:mod:`gls_jax.exact.ratio_order`). So with ``E ~ Exp(1)`` the first of them comes where
the excess reaches ``E / theta``, and is an item of the prefix ``r_i < t / theta`` with probability
proportional to `p_i`; it is `j` itself where ``E / theta`` exceeds the excess of `j`. One sort and
one cumulative sum a pair, then a few binary searches a stream. The joint law of drafts and target
is exactly that of the race; the random numbers are not.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gls_jax import checks
from gls_jax.exact.ratio_order import ratio_order
from gls_jax.loops import varying_like
from gls_jax.typing import Index, LogProbs

__all__ = ["Table", "Tables", "draw", "stream", "table", "tables", "target"]


class Table(NamedTuple):
    """Weights to draw from, in rows: float32 sums over a whole vocabulary would lose its light
    items.

    Attributes:
        within: cumulative sums within each row, `[R, S]`.
        before: sum of all rows before each one, `[R]`.
    """

    within: Float[Array, "R S"]
    before: Float[Array, " R"]


class Tables(NamedTuple):
    """A pair of laws in order of the ratio, ready for trials.

    Attributes:
        order: item at each place, `[N]`.
        excess: `M - 1` at each place; `inf` where `p = 0`.
        p, q: to draw places from.
    """

    order: Int[Array, " N"]
    excess: Float[Array, " N"]
    p: Table
    q: Table


def table(weights: Float[Array, " N"]) -> Table:
    """Prepare weights for :func:`draw`."""
    size = math.isqrt(weights.shape[0] - 1) + 1
    rows = jnp.pad(weights, (0, -weights.shape[0] % size)).reshape(-1, size)
    within = _running(rows.T).T
    return Table(within, jnp.concatenate([jnp.zeros(1, within.dtype), _running(within[:-1, -1])]))


def draw(table: Table, count: Index, u: Float[Array, ""], v: Float[Array, ""]) -> Int[Array, ""]:
    """A place among the first `count`, with probability proportional to its weight.

    Args:
        table: of the weights.
        count: places that take part; at least one of them has a weight above 0.
        u, v: two uniforms: one finds the row, the other the place in it.
    """
    size = table.within.shape[1]
    last, column = jnp.divmod(count - 1, size)
    part = table.within[last, column]
    row = jnp.searchsorted(table.before, _share(u, table.before[last] + part), side="right") - 1
    row = jnp.minimum(row, last)
    wanted = _share(v, jnp.where(row == last, part, table.within[row, -1]))
    place = jnp.zeros_like(row)
    for step in (2**n for n in reversed(range(size.bit_length()))):  # a binary search in one row
        beyond = place + step
        ahead = (beyond <= size) & (table.within[row, jnp.minimum(beyond, size) - 1] <= wanted)
        place = jnp.where(ahead, beyond, place)
    return row * size + place


def tables(log_p: LogProbs, log_q: LogProbs) -> Tables:
    """Sort a pair of laws and sum it up: what all its trials share."""
    log_p, log_q = checks.same_categories(
        checks.distribution(log_p, "log_p"), checks.distribution(log_q, "log_q")
    )
    ranked = ratio_order(log_p, log_q)
    excess = jnp.where(ranked.p > 0, ranked.excess, jnp.inf)
    return Tables(ranked.order, excess, table(ranked.p), table(ranked.q))


def target(pair: Tables, u: Float[Array, ""], v: Float[Array, ""]) -> Int[Array, ""]:
    """Place of the target's item."""
    return draw(pair.q, pair.excess.shape[0], u, v)


def stream(
    pair: Tables, noise: Float[Array, " 6"]
) -> tuple[Float[Array, ""], Int[Array, ""], Int[Array, ""]]:
    """One race: when the target's item arrives, which it is, and the item that is drafted.

    Args:
        pair: from :func:`tables`.
        noise: six exponentials.

    Returns:
        `(theta f[], target i32[], draft i32[])`, jointly as ``races.first_arrivals`` has them.

    >>> import jax, jax.numpy as jnp
    >>> from gls_jax import races
    >>> from gls_jax.exact import inversion
    >>> pair = inversion.tables(*jnp.log(jnp.array([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]])))
    >>> noise = races.exponentials(jax.random.key(0), 1000, 6)
    >>> _, target, draft = jax.vmap(lambda noise: inversion.stream(pair, noise))(noise)
    >>> bool(abs((target == draft).mean() - (0.6 / 2.2 + 0.3 / 1.3 + 0.1)) < 0.1)
    True
    """
    theta, level = noise[0], noise[1] / noise[0]
    u = -jnp.expm1(-noise[2:])
    own = target(pair, u[0], u[1])
    begun = jnp.searchsorted(pair.excess, level)  # places whose items may have arrived by then
    other = draw(pair.p, begun, u[2], u[3])
    draft = jnp.where(level > pair.excess[own], own, other)
    return theta, pair.order[own], pair.order[draft]


def _running(rows: Float[Array, "T ..."]) -> Float[Array, "T ..."]:
    """Cumulative sum along the first axis, one by one: `jnp.cumsum` may give a weight of 0 an
    interval to hit.
    """

    def add(total, row):
        return total + row, total + row

    return (
        jax.lax.scan(add, varying_like(jnp.zeros_like(rows[0]), rows), rows)[1]
        if rows.shape[0]
        else rows
    )


def _share(u, total):
    """`u total`, below `total` also where the product is rounded up."""
    return jnp.minimum(u * total, jnp.nextafter(total, jnp.zeros_like(total)))

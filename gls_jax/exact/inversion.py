"""Trials by inversion: the winner of a race and the list, drawn in `O(log N)` per stream.

A Monte Carlo trial needs first arrivals, not all `K N` exponentials. The target's category is
drawn directly: it is `j` with probability `q_j`, and arrives at a time ``theta ~ Exp(1)`` that does
not depend on `j`. The noise of every other category `i` of that stream is then known to exceed
``theta q_i``, and because it is memoryless it starts afresh there. Under `p`, category `i` arrives
at rate `p_i` after the time ``theta r_i`` (``r = q / p``), and `j` at exactly ``theta r_j``. Up to
time `t` the expected number of arrivals is

    sum_i p_i (t - theta r_i)+ = theta excess(t / theta),   excess(u) = h(u) - 1,

with `h` of :mod:`gls_jax.exact.ratio_order`. So with ``E ~ Exp(1)`` the first other arrival comes
where the excess reaches ``E / theta``. It is a category with ``r_i < t / theta``, a prefix of the
ratio order, with probability proportional to `p_i`. The draft is `j` itself if ``E / theta``
exceeds the excess of `j`.

This takes one sort and one cumulative sum per pair, then a few binary searches per stream.
Drafts and target have the same joint distribution as in the race, but are functions of other random
numbers.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gls_jax import checks
from gls_jax.exact.ratio_order import in_rows, nondecreasing_sum, ratio_order, search
from gls_jax.typing import Index, LogProbs

__all__ = [
    "PairTables",
    "WeightTable",
    "draw_index",
    "draw_target",
    "one_stream",
    "pair_tables",
    "searchable_excess",
    "weight_table",
]


class WeightTable(NamedTuple):
    """Cumulative sums of weights in rows.

    Float32 sums over a whole vocabulary would lose the light categories.

    Attributes:
        within: cumulative sums within each row, `[R, S]`.
        before: sum of all earlier rows, `[R]`.
    """

    within: Float[Array, "R S"]
    before: Float[Array, " R"]


class PairTables(NamedTuple):
    """A pair of distributions in the order of `q / p`, prepared for trials.

    Attributes:
        order: category at each index in ratio order, `[N]`.
        excess: `M - 1` at each index, `[N]`; `inf` where `p = 0`.
        p, q: tables of the probabilities, to draw indices from.
    """

    order: Int[Array, " N"]
    excess: Float[Array, " N"]
    p: WeightTable
    q: WeightTable


def weight_table(weights: Float[Array, " N"]) -> WeightTable:
    """Prepare weights for :func:`draw_index`."""
    # About as many rows as columns: the sums of both stay short.
    row_size = math.isqrt(weights.shape[0] - 1) + 1
    within = nondecreasing_sum(in_rows(weights, row_size).T).T
    before = jnp.concatenate([jnp.zeros(1, within.dtype), nondecreasing_sum(within[:-1, -1])])
    return WeightTable(within=within, before=before)


def searchable_excess(table: WeightTable, ratio: Float[Array, " N"]) -> Float[Array, " N"]:
    """The excess of :class:`gls_jax.exact.ratio_order.RatioOrder`, in sums that never decrease.

    So it can be searched, and it has the same bits wherever it is computed.

    Args:
        table: of the probabilities in ratio order. Where some of them are 0 in the table, the
            excess is that of the others.
        ratio: `f[N]`, in ascending order.

    Returns:
        `f[N]`.
    """
    # h rises by P_t (r_{t+1} - r_t) from each index to the next.
    mass = _running_sums(table)[: len(ratio) - 1]
    rises = mass * jnp.maximum(jnp.diff(ratio), 0)
    # The excess at the first index is 0. A product must not be rounded together with a sum.
    none = jnp.zeros(1, rises.dtype)
    rises = jax.lax.optimization_barrier(jnp.concatenate([none, rises]))
    return _running_sums(weight_table(rises))[: len(ratio)]


def _running_sums(table: WeightTable) -> Float[Array, " RS"]:
    """The cumulative sums of a table in one array; they never decrease."""
    before = table.before[:, None]
    after = jnp.append(table.before[1:], table.before[-1] + table.within[-1, -1])
    # Rounded sums of a row may pass the first one of the next row.
    return jnp.clip(before + table.within, before, after[:, None]).reshape(-1)


def draw_index(
    table: WeightTable,
    count: Index,
    u: Float[Array, ""],
    v: Float[Array, ""],
) -> Int[Array, ""]:
    """An index below `count`, with probability proportional to its weight.

    Args:
        table: from :func:`weight_table`.
        count: number of weights that take part; at least one of them is above 0.
        u, v: two uniforms: one finds the row, the other the column.
    """
    row_size = table.within.shape[1]
    last_row, last_column = jnp.divmod(count - 1, row_size)
    # The last row takes part with its first weights only.
    last_row_sum = table.within[last_row, last_column]
    goal = _fraction(u, table.before[last_row] + last_row_sum)
    row = search(table.before, goal, side="right") - 1
    row = jnp.minimum(row, last_row)
    row_sum = jnp.where(row == last_row, last_row_sum, table.within[row, -1])
    goal = _fraction(v, row_sum)
    # A binary search within the row, written out so that only the row's entries are read.
    column = jnp.zeros_like(row)
    for power in reversed(range(row_size.bit_length())):
        candidate = column + 2**power
        sum_before = table.within[row, jnp.minimum(candidate, row_size) - 1]
        column = jnp.where((candidate <= row_size) & (sum_before <= goal), candidate, column)
    return row * row_size + column


def pair_tables(log_p: LogProbs, log_q: LogProbs) -> PairTables:
    """Tables of two distributions `[N]`, computed once for all trials of the pair."""
    log_p = checks.distribution(log_p, "log_p")
    log_q = checks.distribution(log_q, "log_q")
    ranked = ratio_order(*checks.same_categories(log_p, log_q))
    p_table = weight_table(ranked.p)
    return PairTables(
        order=ranked.order,
        # A category that cannot be drafted never arrives.
        excess=jnp.where(ranked.p > 0, searchable_excess(p_table, ranked.ratio), jnp.inf),
        p=p_table,
        q=weight_table(ranked.q),
    )


def draw_target(
    pair: PairTables,
    u: Float[Array, ""],
    v: Float[Array, ""],
) -> Int[Array, ""]:
    """Index in ratio order of the target's category, drawn with two uniforms."""
    return draw_index(pair.q, pair.excess.shape[0], u, v)


def one_stream(
    pair: PairTables,
    noise: Float[Array, " 6"],
) -> tuple[Float[Array, ""], Int[Array, ""], Int[Array, ""]]:
    """One race: when the target's category arrives, which one it is, and which one is drafted.

    Args:
        pair: from :func:`pair_tables`.
        noise: six exponentials.

    Returns:
        `(theta f[], target i32[], draft i32[])`, with the joint distribution of the first arrivals
        in :func:`gls_jax.races.first_arrivals`.

    >>> import jax, jax.numpy as jnp
    >>> from gls_jax import races
    >>> from gls_jax.exact import inversion
    >>> pair = inversion.pair_tables(*jnp.log(jnp.array([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]])))
    >>> noise = races.exponentials(jax.random.key(0), 1000, 6)
    >>> _, target, draft = jax.vmap(lambda noise: inversion.one_stream(pair, noise))(noise)
    >>> bool(abs((target == draft).mean() - (0.6 / 2.2 + 0.3 / 1.3 + 0.1)) < 0.1)
    True
    """
    # Six exponentials: the target's time, the other arrival, and four that become uniforms.
    theta = noise[0]
    level = noise[1] / noise[0]  # the excess at the first arrival of another category
    u = -jnp.expm1(-noise[2:])
    target_index = draw_target(pair, u[0], u[1])
    num_started = search(pair.excess, level)  # categories that can have arrived by then
    other_index = draw_index(pair.p, num_started, u[2], u[3])
    # The target's own category arrives under `p` where the excess reaches its value.
    draft_index = jnp.where(level > pair.excess[target_index], target_index, other_index)
    return theta, pair.order[target_index], pair.order[draft_index]


def _fraction(u, total):
    """`u * total`, kept below `total` also where the product is rounded up."""
    return jnp.minimum(u * total, jnp.nextafter(total, jnp.zeros_like(total)))

"""The couplings without communication, each with its exact match probability."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from gls_jax import checks, races, work_shape
from gls_jax.exact.ratio_order import excess
from gls_jax.loops import varying_like
from gls_jax.rejection import maximal_coupling
from gls_jax.typing import LogProbs

__all__ = [
    "Coupled",
    "first_dart",
    "gumbel",
    "gumbel_match",
    "maximal",
    "maximal_match",
    "minhash_match",
    "weighted_minhash",
]

# The stream of darts that both parties look at first.
SHARED_STREAM = 0
# Darts of a step, at least: one in N is under a curve.
_FEWEST_PER_STEP = 16
# Numbers of darts are 32-bit integers, also that of the last dart of a step.
MOST_DARTS = 2**31 - 1 - 2**16
# A curve of mass 1 has no dart among 64 N with probability e^-64. The search ends there, also for
# NaN, which never has one.
_DARTS_PER_CATEGORY = 64


class Coupled(NamedTuple):
    """One draw of a coupling.

    Attributes:
        x: `i32[]`, Alice's sample of `p`.
        y: `i32[]`, Bob's sample of `q`.
    """

    x: Int[Array, ""]
    y: Int[Array, ""]


def gumbel(key: PRNGKeyArray, log_p: LogProbs, log_q: LogProbs) -> Coupled:
    """Gumbel coupling: both parties run the same race, one under `p` and one under `q`.

    Each sample is a function of the key and of one distribution. Daliri et al. 2024 (arXiv
    2408.07978); list sampling with `K = 1`.

    Args:
        key: one typed key, the same for both parties.
        log_p, log_q: Alice's and Bob's log-probabilities, `[N]` each.

    Returns:
        :class:`Coupled`; the samples agree with probability :func:`gumbel_match`.

    Raises:
        ValueError: a key that is not one typed threefry key, shapes that do not fit, or what
            :func:`gls_jax.check_log_probs` raises.

    >>> import jax, jax.numpy as jnp
    >>> from gls_jax import couplings
    >>> log_p, log_q = jnp.log(jnp.array([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]]))
    >>> keys = jax.random.split(jax.random.key(0), 10_000)
    >>> x, y = jax.vmap(lambda key: couplings.gumbel(key, log_p, log_q))(keys)
    >>> bool(abs((x == y).mean() - couplings.gumbel_match(log_p, log_q)) < 0.03)
    True
    """
    log_p, log_q = checks.problem(log_p, log_q)
    return same_race(key, log_p, log_q)


def weighted_minhash(key: PRNGKeyArray, log_p: LogProbs, log_q: LogProbs) -> Coupled:
    """Weighted MinHash coupling: each party takes the first shared dart under its curve.

    Each sample is a function of the key and of one distribution, :func:`first_dart`. Daliri et
    al. 2024 (arXiv 2408.07978); the correlated sampling of Holenstein 2007.

    Args:
        key: one typed key, the same for both parties.
        log_p, log_q: Alice's and Bob's log-probabilities, `[N]` each.

    Returns:
        :class:`Coupled`; the samples agree with probability :func:`minhash_match`.

    Raises:
        ValueError: a key that is not one typed threefry key, shapes that do not fit, or what
            :func:`gls_jax.check_log_probs` raises.

    >>> import jax, jax.numpy as jnp
    >>> from gls_jax import couplings
    >>> log_p, log_q = jnp.log(jnp.array([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]]))
    >>> key = jax.random.key(0)
    >>> x, y = couplings.weighted_minhash(key, log_p, log_q)
    >>> bool(x == couplings.first_dart(key, log_p)) and bool(y == couplings.first_dart(key, log_q))
    True
    """
    checks.key(key)
    log_p, log_q = checks.problem(log_p, log_q)
    x = work_shape.compiled(_first_dart, (key, log_p))
    y = work_shape.compiled(_first_dart, (key, log_q))
    return Coupled(x=x, y=y)


def first_dart(key: PRNGKeyArray, log_weights: LogProbs) -> Int[Array, ""]:
    """Category of the first shared dart under one curve: one party's part of `weighted_minhash`.

    It takes `N` darts on average. They are thrown a block at a time, so memory does not grow with
    their number.

    Args:
        key: one typed key; the darts are those of its stream 0.
        log_weights: log-probabilities `[N]`.

    Returns:
        `i32[]`, a sample of the distribution.

    Raises:
        ValueError: a key that is not one typed threefry key, an array that is not `[N]`, or what
            :func:`gls_jax.check_log_probs` raises.

    >>> import jax, jax.numpy as jnp
    >>> from gls_jax import couplings
    >>> int(couplings.first_dart(jax.random.key(0), jnp.log(jnp.array([0.0, 1.0, 0.0]))))
    1
    """
    checks.key(key)
    log_probs = checks.distribution(log_weights, "log_weights")
    checks.values(log_weights, "log_weights")
    return work_shape.compiled(_first_dart, (key, log_probs))


def maximal(key: PRNGKeyArray, log_p: LogProbs, log_q: LogProbs) -> Coupled:
    """Maximal coupling: Bob keeps Alice's sample if he can, else he samples ``(q - p)+``.

    He keeps it with probability ``min(1, q_x / p_x)``. The samples agree as often as in any
    coupling, but Bob must know `x` and all of `p`. Speculative sampling with one draft (Leviathan
    et al. 2023, arXiv 2211.17192) is this coupling.

    Args:
        key: one typed key; `x` wins the race of stream 0, Bob's test and residual use private
            noise.
        log_p, log_q: Alice's and Bob's log-probabilities, `[N]` each.

    Returns:
        :class:`Coupled`; the samples agree with probability :func:`maximal_match`.

    Raises:
        ValueError: a key that is not one typed threefry key, shapes that do not fit, or what
            :func:`gls_jax.check_log_probs` raises.

    >>> import jax, jax.numpy as jnp
    >>> from gls_jax import couplings
    >>> log_p, log_q = jnp.log(jnp.array([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]]))
    >>> keys = jax.random.split(jax.random.key(0), 10_000)
    >>> x, y = jax.vmap(lambda key: couplings.maximal(key, log_p, log_q))(keys)
    >>> bool(abs((x == y).mean() - 0.6) < 0.03)
    True
    """
    log_p, log_q = checks.problem(log_p, log_q)
    x, _ = same_race(key, log_p, log_q)
    y = maximal_coupling(key, x, races.weights(log_p), log_q)
    return Coupled(x=x, y=y)


def gumbel_match(log_p: LogProbs, log_q: LogProbs) -> Float[Array, ""]:
    """Exact match probability of :func:`gumbel`: ``sum_j q_j / M_j`` where `p_j > 0`.

    The equality case `K = 1` of the list matching lemma (Rowan, Phan, Khisti 2025, arXiv
    2506.05632). `O(N log N)`, differentiable away from ties.

    Args:
        log_p, log_q: Alice's and Bob's log-probabilities, `[N]` each.

    Returns:
        `f[]`, a probability.

    >>> import jax.numpy as jnp
    >>> from gls_jax import couplings
    >>> log_p, log_q = jnp.log(jnp.array([[0.2, 0.3, 0.4, 0.1], [0.4, 0.1, 0.2, 0.3]]))
    >>> round(float(couplings.gumbel_match(log_p, log_q)), 4)
    0.581
    >>> round(float(couplings.minhash_match(log_p, log_q)), 4)
    0.5143
    """
    log_p, log_q = checks.problem(log_p, log_q)
    # M_j is infinite where p_j = 0, and such a category adds nothing.
    matches = races.weights(log_q) / (1 + excess(log_p, log_q))
    # Rounding can raise the sum above 1, here and below.
    return jnp.minimum(jnp.sum(matches), 1)


def minhash_match(log_p: LogProbs, log_q: LogProbs) -> Float[Array, ""]:
    """Exact match probability of :func:`weighted_minhash`.

    It is ``sum_j m_j (1 + |p_j - q_j|) / sum_j max(p_j, q_j)``, ``m_j = min(p_j, q_j)``. The first
    dart under either curve lies under both with probability ``(1 - TV) / (1 + TV)``, the bound of
    the literature (:func:`gls_jax.bounds.communication_free`). If it lies under one curve only, in
    category `j`, the other party's later dart is in category `j` too with probability `m_j`. So the
    CATEGORIES agree more often than the darts.

    Args:
        log_p, log_q: Alice's and Bob's log-probabilities, `[N]` each.

    Returns:
        `f[]`, a probability.

    >>> import jax.numpy as jnp
    >>> from gls_jax import couplings
    >>> log_p, log_q = jnp.log(jnp.array([[1.0, 0.0], [1e-9, 1.0]]))
    >>> f"{couplings.minhash_match(log_p, log_q):.3g}"
    '1e-09'
    """
    p, q = _weights(log_p, log_q)
    # The two cases above: the first dart is under both curves, or under one of them.
    low = jnp.minimum(p, q)
    high = jnp.maximum(p, q)
    match = jnp.sum(low * (1 + high - low)) / jnp.sum(high)
    return jnp.minimum(match, 1)


def maximal_match(log_p: LogProbs, log_q: LogProbs) -> Float[Array, ""]:
    """Exact match probability of :func:`maximal`: ``sum min(p, q) = 1 - TV``.

    Args:
        log_p, log_q: Alice's and Bob's log-probabilities, `[N]` each.

    Returns:
        `f[]`, a probability.

    >>> import jax.numpy as jnp
    >>> from gls_jax import couplings
    >>> log_p, log_q = jnp.log(jnp.array([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]]))
    >>> round(float(couplings.maximal_match(log_p, log_q)), 4)
    0.6
    """
    p, q = _weights(log_p, log_q)
    return jnp.minimum(jnp.sum(jnp.minimum(p, q)), 1)


def _weights(log_p: LogProbs, log_q: LogProbs) -> tuple[Array, Array]:
    log_p, log_q = checks.problem(log_p, log_q)
    return races.weights(log_p), races.weights(log_q)


def same_race(
    key: PRNGKeyArray,
    log_p: Float[Array, " N"],
    log_q: Float[Array, " N"],
) -> Coupled:
    """The winners of the race of stream 0 under `p` and under `q`."""
    noise = races.exponentials(key, 1, log_p.shape[0])[0]
    x = races.winner(races.arrivals(noise, log_p))
    y = races.winner(races.arrivals(noise, log_q))
    return Coupled(x=x, y=y)


def _first_dart(key, log_weights) -> Int[Array, ""]:
    curve = races.weights(log_weights)
    limit = min(_DARTS_PER_CATEGORY * log_weights.shape[0], MOST_DARTS)
    _, category, _ = first_under(races.stream_key(key, SHARED_STREAM), curve, limit)
    return category


def first_under(
    key: PRNGKeyArray,
    curve: Float[Array, " N"],
    limit: int,
) -> tuple[Int[Array, ""], Int[Array, ""], Float[Array, ""]]:
    """Number, category and height of the first dart under the curve.

    If none of the darts before number `limit` is under it, those of dart number `limit`.
    """
    num_categories = curve.shape[0]
    offsets = dart_offsets(num_categories)

    def is_searching(state):
        start, first = state
        return (start < limit) & (first == limit)

    def throw(state):
        # A block of darts at once; the search needs the first one under the curve.
        start, _ = state
        categories, heights = races.darts(key, start, offsets.size, num_categories)
        is_under = heights < gather_in_bounds(curve, categories)
        first = jnp.min(jnp.where(is_under, start + offsets, limit))
        return start + offsets.size, jnp.minimum(first, limit)

    state = varying_like((jnp.int32(0), jnp.int32(limit)), key, curve)
    _, number = jax.lax.while_loop(is_searching, throw, state)
    # The loop keeps the number alone; a dart is a function of its number.
    categories, heights = races.darts(key, number, 1, num_categories)
    return number, categories[0], heights[0]


def dart_offsets(num_categories: int) -> Int[Array, " B"]:
    """Numbers of the darts that one step throws, counted from its first."""
    block_size = min(max(num_categories, _FEWEST_PER_STEP), work_shape.current().most_darts)
    return jnp.arange(block_size, dtype=jnp.int32)


def gather_in_bounds(
    curve: Float[Array, " N"],
    categories: Int[Array, " B"],
) -> Float[Array, " B"]:
    """`curve[categories]`, without JAX's handling of indices out of bounds."""
    return curve.at[categories].get(mode="promise_in_bounds")

"""The couplings without a conversation, each with its exact match probability."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from gls_jax import checks, races
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

SHARED = 0  # the stream of darts that everybody sees
_BLOCKS = 16, 4096  # fewest and most darts a step throws, N of them between; measured on XLA:CPU
MOST_DARTS = 2**31 - 1 - _BLOCKS[1]  # their numbers are 32-bit integers
_PATIENCE = 64  # a law goes without a dart among 64 N with probability e^-64; NaN, which never has one, ends there


class Coupled(NamedTuple):
    """One draw of a coupling.

    Attributes:
        x: `i32[]`, Alice's sample, of law `p`.
        y: `i32[]`, Bob's sample, of law `q`.
    """

    x: Int[Array, ""]
    y: Int[Array, ""]


def gumbel(key: PRNGKeyArray, log_p: LogProbs, log_q: LogProbs) -> Coupled:
    """Gumbel coupling: both parties run the same race, each under its own law.

    Each sample is a function of the key and of its own law. Daliri et al. 2024 (arXiv 2408.07978);
    list sampling with `K = 1`.

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
    return same_race(key, *both_laws(log_p, log_q))


def weighted_minhash(key: PRNGKeyArray, log_p: LogProbs, log_q: LogProbs) -> Coupled:
    """Weighted MinHash coupling: each party takes the first shared dart under its own curve.

    Each sample is a function of the key and of its own law, :func:`first_dart`. Daliri et al. 2024
    (arXiv 2408.07978); the correlated sampling of Holenstein 2007.

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
    return Coupled(*(_first_dart(key, law) for law in both_laws(log_p, log_q)))


def first_dart(key: PRNGKeyArray, log_weights: LogProbs) -> Int[Array, ""]:
    """Item of the first shared dart under one curve: a party's own side of
    :func:`weighted_minhash`.

    Throws `N` darts on average, a block at a time: memory does not grow with their number.

    Args:
        key: one typed key; the darts are those of its stream 0.
        log_weights: log-probabilities `[N]`.

    Returns:
        `i32[]`, a sample of the law.

    Raises:
        ValueError: a key that is not one typed threefry key, a law that is not `[N]`, or what
            :func:`gls_jax.check_log_probs` raises.

    >>> import jax, jax.numpy as jnp
    >>> from gls_jax import couplings
    >>> int(couplings.first_dart(jax.random.key(0), jnp.log(jnp.array([0.0, 1.0, 0.0]))))
    1
    """
    checks.key(key)
    law = checks.distribution(log_weights, "log_weights")
    checks.values(log_weights, "log_weights")
    return _first_dart(key, law)


def maximal(key: PRNGKeyArray, log_p: LogProbs, log_q: LogProbs) -> Coupled:
    """Maximal coupling: Bob keeps Alice's sample with probability ``min(1, q_x / p_x)``, else
    samples ``(q - p)+``.

    Agrees as often as any coupling can, at the price that Bob knows `x` and all of `p`. Speculative
    sampling with one draft (Leviathan et al. 2023, arXiv 2211.17192) is this coupling.

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
    log_p, log_q = both_laws(log_p, log_q)
    x, _ = same_race(key, log_p, log_q)
    return Coupled(x, maximal_coupling(key, x, races.weights(log_p), log_q))


def gumbel_match(log_p: LogProbs, log_q: LogProbs) -> Float[Array, ""]:
    """Exact match probability of :func:`gumbel`: ``sum_j q_j / M_j`` over the items with `p_j > 0`.

    Equality case `K = 1` of the list matching lemma (Rowan, Phan, Khisti 2025, arXiv 2506.05632).
    `O(N log N)`, differentiable away from ties.

    Args:
        log_p, log_q: Alice's and Bob's log-probabilities, `[N]` each.

    Returns:
        `f[]`, a probability.

    >>> import jax.numpy as jnp
    >>> from gls_jax import couplings
    >>> log_p, log_q = jnp.log(jnp.array([[0.2, 0.3, 0.4, 0.1], [0.4, 0.1, 0.2, 0.3]]))
    >>> [
    ...     round(float(f(log_p, log_q)), 4)
    ...     for f in (couplings.gumbel_match, couplings.minhash_match)
    ... ]
    [0.581, 0.5143]
    """
    log_p, log_q = both_laws(log_p, log_q)
    return jnp.minimum(jnp.sum(races.weights(log_q) / (1 + excess(log_p, log_q))), 1)


def minhash_match(log_p: LogProbs, log_q: LogProbs) -> Float[Array, ""]:
    """Exact match probability of :func:`weighted_minhash`: ``sum_j m_j (1 + |p_j - q_j|) / sum_j
    max(p_j, q_j)``.

    The first dart under either curve lies under both with probability ``(1 - TV) / (1 + TV)``, the
    bound of the literature (:func:`gls_jax.bounds.communication_free`). But where it lies under one
    curve only, on item `j`, the other party's later dart hits `j` too with probability ``m_j =
    min(p_j, q_j)``: ITEMS agree more often than darts.

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
    p, q = (races.weights(law) for law in both_laws(log_p, log_q))
    low, high = jnp.minimum(p, q), jnp.maximum(p, q)
    return jnp.minimum(jnp.sum(low * (1 + high - low)) / jnp.sum(high), 1)


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
    p, q = (races.weights(law) for law in both_laws(log_p, log_q))
    return jnp.minimum(jnp.sum(jnp.minimum(p, q)), 1)


def both_laws(log_p: LogProbs, log_q: LogProbs) -> tuple[Array, Array]:
    return checks.problem(log_p, log_q)


def same_race(key: PRNGKeyArray, log_p: Float[Array, " N"], log_q: Float[Array, " N"]) -> Coupled:
    clocks = races.exponentials(key, 1, log_p.shape[0])[0]
    return Coupled(*(races.winner(races.arrivals(clocks, law)) for law in (log_p, log_q)))


@jax.jit
def _first_dart(key: PRNGKeyArray, log_weights) -> Int[Array, ""]:
    num_items = log_weights.shape[0]
    curve, most = races.weights(log_weights), min(_PATIENCE * num_items, MOST_DARTS)
    return first_under(races.stream_key(key, SHARED), curve, most)[1]


def first_under(
    key: PRNGKeyArray, curve: Float[Array, " N"], most: int
) -> tuple[Int[Array, ""], Int[Array, ""], Float[Array, ""]]:
    """Number, item and height of the first dart under the curve, or of dart number `most` where
    none before it is.
    """
    num_items = curve.shape[0]
    numbers = block(num_items)

    def throw(state):
        start, _ = state
        items, heights = races.darts(key, start, numbers.size, num_items)
        found = jnp.min(jnp.where(heights < of(curve, items), start + numbers, most))
        return start + numbers.size, jnp.minimum(found, most)

    state = varying_like((jnp.int32(0), jnp.int32(most)), key, curve)
    _, number = jax.lax.while_loop(
        lambda state: (state[0] < most) & (state[1] == most), throw, state
    )
    items, heights = races.darts(key, number, 1, num_items)
    return number, items[0], heights[0]


def block(num_items: int) -> Int[Array, " B"]:
    return jnp.arange(min(max(num_items, _BLOCKS[0]), _BLOCKS[1]), dtype=jnp.int32)


def of(curve: Float[Array, " N"], items: Int[Array, " B"]) -> Float[Array, " B"]:
    return curve.at[items].get(mode="promise_in_bounds")

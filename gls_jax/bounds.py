"""What a list can be promised before it is simulated: lower bounds on a match, and the optimum over all schemes.

`p` = draft law, `q` = target law, `K` drafts, ``M_j = sum_i max(q_i, q_j p_i / p_j)``. All functions take
log-probabilities `[N]`, cost `O(N log N)`, run under `jit` and `vmap`, and are differentiable away from ties. Where
the drafts have laws of their own, `log_p` is `[K, N]` and each stream contributes its own term.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gls_jax import checks, races
from gls_jax.ratios import excess, ratio_order

__all__ = [
    "communication_free",
    "list_matching",
    "list_matching_given_target",
    "list_matching_relaxed",
    "list_matching_strong",
    "optimum_iid",
    "total_variation",
]


def list_matching(log_p, log_q, num_drafts: int) -> Float[Array, ""]:
    """List matching lemma: ``P(target in list) >= sum_j q_j K / (K - 1 + M_j)``.

    Theorem 1 of Rowan, Phan, Khisti 2025 (arXiv 2506.05632). Equality for `K = 1`, `p = q` and `p` a point mass.

    Args:
        log_p: `[N]`, or `[K, N]` for one law a draft.
        log_q: `[N]`.
        num_drafts: `K`, static.

    Returns:
        `f[]`, a probability.

    Raises:
        ValueError: shapes that do not match or `num_drafts < 1`.

    >>> import jax.numpy as jnp
    >>> from gls_jax import bounds
    >>> p, q = jnp.array([0.5, 0.5]), jnp.array([0.9, 0.1])
    >>> [round(float(bounds.list_matching(jnp.log(p), jnp.log(q), k)), 4) for k in (1, 2, 8)]
    [0.6, 0.7429, 0.9182]
    """
    q, given = _given_target(log_p, log_q, num_drafts, num_drafts)
    return jnp.sum(q * given)


def list_matching_given_target(log_p, log_q, num_drafts: int) -> Float[Array, " N"]:
    """List matching lemma given the target: ``P(j in list | target = j) >= K / (K - 1 + M_j)``, `f[N]`."""
    return _given_target(log_p, log_q, num_drafts, num_drafts)[1]


def list_matching_relaxed(log_p, log_q, num_drafts: int) -> Float[Array, " N"]:
    """Relaxed conditional bound ``(1 + q_j / (K p_j))^-1``, `f[N]`: needs the two probabilities of `j` only.

    Never above :func:`list_matching_given_target`; the form that the compression bounds use. `log_p` is `[N]`.

    >>> import jax.numpy as jnp
    >>> from gls_jax import bounds
    >>> log_p, log_q = jnp.log(jnp.array([[0.5, 0.5], [0.9, 0.1]]))
    >>> [round(float(x), 4) for x in bounds.list_matching_relaxed(log_p, log_q, 2)]
    [0.5263, 0.9091]
    """
    num_drafts = checks.count(num_drafts, "num_drafts")
    log_p, log_q = checks.law(log_p, "log_p"), checks.law(log_q, "log_q")
    log_p, log_q = checks.same_items(log_p, log_q)
    live = log_p >= races.LIGHTEST
    odds = jnp.log(num_drafts) + jnp.where(live, log_p, 0) - jnp.maximum(log_q, 2 * races.LIGHTEST)
    return jnp.where(live, jax.nn.sigmoid(odds), 0)


def list_matching_strong(log_p, log_q, num_active: int, num_drafts: int) -> Float[Array, ""]:
    """Bound of the strongly invariant variant: ``sum_j q_j J / (K - 1 + M_j)``.

    The target's minimum runs over all `K` streams although only `J = num_active` drafts can still match.

    Args:
        log_p: `[N]`, or `[J, N]`: the laws of the active drafts.
        log_q: `[N]`.
        num_active: `J`, from 1 to `num_drafts`.
        num_drafts: `K`.
    """
    q, given = _given_target(log_p, log_q, num_active, num_drafts)
    return jnp.sum(q * given)


def communication_free(log_p, log_q) -> Float[Array, ""]:
    """``(1 - TV) / (1 + TV)``: what the best scheme without communication reaches on its worst pair (K = 1).

    Daliri, Musco, Suresh 2024 (arXiv 2408.07978). Neither Gumbel nor Weighted MinHash is ever below it. It is exactly
    the chance that both MinHash parties keep the same dart; their items agree more often
    (:func:`gls_jax.couplings.minhash_match`).
    """
    distance = total_variation(log_p, log_q)
    return (1 - distance) / (1 + distance)


def total_variation(log_p, log_q) -> Float[Array, ""]:
    """``TV(p, q) = sum_i |p_i - q_i| / 2``.

    >>> import jax.numpy as jnp
    >>> from gls_jax import bounds
    >>> float(bounds.total_variation(jnp.log(jnp.array([1.0, 0.0])), jnp.log(jnp.array([0.0, 1.0]))))
    1.0
    """
    log_p, log_q = checks.law(log_p, "log_p"), checks.law(log_q, "log_q")
    log_p, log_q = checks.same_items(log_p, log_q)
    return jnp.sum(jnp.abs(jnp.exp(log_p) - jnp.exp(log_q))) / 2


def optimum_iid(log_p, log_q, num_drafts: int) -> Float[Array, ""]:
    """Highest acceptance any verification can reach with `K` i.i.d. drafts: ``min(1, 1 + min_H q(H) - p(H)^K)``.

    The optimal-transport value of SpecTr (Sun et al. 2023) and Khisti et al. 2025 (arXiv 2410.18234); the minimising
    set `H` is a prefix of the items in order of `q / p`.

    >>> import jax.numpy as jnp
    >>> from gls_jax import bounds
    >>> log_p, log_q = jnp.log(jnp.array([[0.5, 0.5], [0.9, 0.1]]))
    >>> [round(float(bounds.optimum_iid(log_p, log_q, k)), 4) for k in (1, 2, 4)]
    [0.6, 0.85, 1.0]
    """
    num_drafts = checks.count(num_drafts, "num_drafts")
    log_p, log_q = checks.law(log_p, "log_p"), checks.law(log_q, "log_q")
    log_p, log_q = checks.same_items(log_p, log_q)
    ranked = ratio_order(log_p, log_q)
    shortfall = jnp.where(ranked.p > 0, jnp.cumsum(ranked.q) - jnp.minimum(ranked.mass, 1) ** num_drafts, 0)
    return 1 + jnp.minimum(jnp.min(shortfall), 0)


def _given_target(log_p, log_q, num_active: int, num_drafts: int):
    """`q` and ``sum over active streams of 1 / (K - 1 + M_j)``."""
    num_active, num_drafts = checks.active_of(num_active, num_drafts)
    log_p, log_q = checks.draft_laws(log_p, num_active), checks.law(log_q, "log_q")
    log_p, log_q = checks.same_items(log_p, log_q)
    terms = 1 / (num_drafts + excess(log_p, log_q))
    return jnp.exp(log_q), (num_active * terms if log_p.ndim == 1 else jnp.sum(terms, axis=0))

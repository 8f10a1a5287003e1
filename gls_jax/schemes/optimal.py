"""The optimal coupling of a list of independent drafts with the target, by linear programming.

Sources: Sun et al. 2023, arXiv 2310.15141; Khisti et al. 2025, arXiv 2410.18234.

The acceptance is ``1 + min_H [q(H) - P(all drafts in H)]`` over the sets `H` of tokens. For i.i.d.
drafts the worst `H` is a prefix of the tokens in order of `q / p`, and the acceptance is
:func:`gls_jax.bounds.optimum_iid` at any size, `O(N log N)`. If the drafts have different
distributions, all `2^N` sets are examined.

The scheme that attains it chooses one draft by the plan of
:func:`gls_jax.decomposition.best_selection`, which the host solves, and samples speculatively
against the distribution of the chosen draft: for small `N` only. The drafter must supply its
distribution.
"""

from __future__ import annotations

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from gls_jax import bounds, decomposition, races
from gls_jax.decomposition import MOST_CATEGORIES
from gls_jax.rejection import maximal_coupling
from gls_jax.schemes.array_types import Acceptances, Active, DraftLogProbs, Drafts, Token, Vector
from gls_jax.schemes.function_types import ExactAcceptance, TokenVerification
from gls_jax.schemes.gls import propose  # K independent races
from gls_jax.schemes.scheme import Scheme

__all__ = ["SCHEME", "acceptance", "propose", "verify"]


def verify(
    key: PRNGKeyArray,
    drafts: Drafts,
    log_p: DraftLogProbs,
    log_q: Vector,
    active: Active,
) -> Token:
    num_categories = log_q.shape[0]
    p = jnp.broadcast_to(races.weights(log_p), (drafts.shape[0], num_categories))

    # The host solves the linear program: how to choose a draft from each set of tokens. In float32
    # whatever the inputs: callbacks do not see `with jax.enable_x64(True)`.
    plan_shapes = (
        jax.ShapeDtypeStruct((2**num_categories, num_categories), jnp.float32),
        jax.ShapeDtypeStruct((num_categories,), jnp.float32),
    )
    choose, chosen_p = jax.pure_callback(
        _plan_on_host, plan_shapes, p, races.weights(log_q), active, vmap_method="sequential"
    )

    # Choose one of the drafted tokens by the row of their set, which has one bit for each token.
    choice_key, test_key = races.split_key(races.private_key(key))
    tokens = jnp.arange(num_categories)
    is_drafted = jnp.any(active[:, None] & (drafts[:, None] == tokens), axis=0)
    drafted_set = jnp.sum(jnp.where(is_drafted, 2**tokens, 0))
    noise = races.exponentials(choice_key, 1, num_categories)[0]
    chosen = races.winner(races.arrivals(noise, jnp.log(choose[drafted_set])))

    return maximal_coupling(test_key, chosen, chosen_p, log_q, jnp.any(active))


def acceptance(
    log_p: DraftLogProbs,
    log_q: Vector,
    num_drafts: tuple[int, ...],
) -> Acceptances:
    if log_p.ndim == 1:
        return jnp.stack([bounds.optimum_iid(log_p, log_q, k) for k in num_drafts])
    num_categories = log_q.shape[0]
    if num_categories > MOST_CATEGORIES:
        raise ValueError(
            "log_p: the optimum for drafts with different distributions examines 2^N sets, "
            f"expected at most {MOST_CATEGORIES} categories, got {num_categories}; "
            "for drafts with one distribution it is known at any size"
        )
    # q(H) - P(all drafts in H) for every set H, whose bits say which tokens it has.
    sets = jnp.arange(2**num_categories)[:, None]
    is_member = (sets >> jnp.arange(num_categories) & 1).astype(log_q.dtype)
    p_of_set = is_member @ races.weights(log_p).T  # [set, draft]
    all_inside = jnp.cumprod(jnp.minimum(p_of_set, 1), axis=1)
    q_of_set = is_member @ races.weights(log_q)
    excess = q_of_set[:, None] - all_inside
    return 1 + jnp.min(excess, axis=0)[jnp.asarray(num_drafts) - 1]


def verify_limit(num_categories: int, num_drafts: int) -> str | None:
    if num_categories <= MOST_CATEGORIES:
        return None
    return (
        "log_q: scheme 'optimal' solves a linear program over the 2^N sets of drafts, "
        f"expected at most {MOST_CATEGORIES} categories, got {num_categories}; "
        "schemes 'weighted_importance' and 'spectr' come near it at any size"
    )


def _plan_on_host(p, q, active) -> tuple[np.ndarray, np.ndarray]:
    """How to choose from every set of active drafts `[2^N, N]`, and the chosen distribution."""
    active_p = np.asarray(p, np.float32)[np.asarray(active)]
    q = np.asarray(q, np.float32)
    return _solved(active_p.tobytes(), q.tobytes(), q.size)


@lru_cache(maxsize=256)  # a simulation needs the same plan in every chunk of trials
def _solved(p_bytes: bytes, q_bytes: bytes, num_categories: int) -> tuple[np.ndarray, np.ndarray]:
    p = np.frombuffer(p_bytes, np.float32).reshape(-1, num_categories).astype(np.float64)
    q = np.frombuffer(q_bytes, np.float32).astype(np.float64)
    plan = decomposition.solve_selection(p, q)
    return plan.choose.astype(np.float32), plan.distribution.astype(np.float32)


SCHEME = Scheme(
    name="optimal",
    invariance="none",
    max_drafts=None,
    needs_draft_probs=True,
    diverse=True,
    ranked=False,
    propose_fn=propose,
    verification=TokenVerification(verify, limit=verify_limit),
    exact=ExactAcceptance(acceptance),
)

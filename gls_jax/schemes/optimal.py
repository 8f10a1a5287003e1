"""The optimal coupling of a list of independent drafts with the target, by linear programming.

The value is ``1 + min_H [q(H) - P(all drafts in H)]`` (Sun et al. 2023; Khisti et al. 2025, arXiv
2410.18234). For i.i.d. drafts the worst `H` is a prefix of the items in order of `q / p`, and the
acceptance is :func:`gls_jax.bounds.optimum_iid` at any size, `O(N log N)`; for drafts with laws of
their own all `2^N` sets are looked at. The scheme that attains it chooses one draft by the plan of
:func:`gls_jax.decomposition.best_selection`, solved on the host, and samples speculatively against
the law of the chosen one: for small `N` only. The drafter must supply its law.
"""

from __future__ import annotations

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from gls_jax import bounds, decomposition, races
from gls_jax.decomposition import MOST_CATEGORIES
from gls_jax.rejection import maximal_coupling
from gls_jax.schemes.gls import propose  # K independent races
from gls_jax.schemes.scheme import ExactAcceptance, Scheme, TokenVerification

__all__ = ["SCHEME", "acceptance", "propose", "verify"]


def verify(
    key: PRNGKeyArray,
    drafts: Int[Array, " K"],
    log_p: Float[Array, "*k N"],
    log_q: Float[Array, " N"],
    active: Bool[Array, " K"],
) -> Int[Array, ""]:
    size = log_q.shape[0]
    laws = jnp.broadcast_to(races.weights(log_p), (drafts.shape[0], size))
    # In float32 whatever the laws: callbacks do not see `with jax.enable_x64(True)`.
    shapes = (
        jax.ShapeDtypeStruct((2**size, size), jnp.float32),
        jax.ShapeDtypeStruct((size,), jnp.float32),
    )
    choose, law = jax.pure_callback(
        _plan, shapes, laws, races.weights(log_q), active, vmap_method="sequential"
    )
    choice_key, key = races.split_key(races.private_key(key))
    listed = jnp.any(active[:, None] & (drafts[:, None] == jnp.arange(size)), axis=0)
    mask = jnp.sum(jnp.where(listed, 2 ** jnp.arange(size), 0))
    clocks = races.exponentials(choice_key, 1, size)[0]
    chosen = races.winner(races.arrivals(clocks, jnp.log(choose[mask])))
    return maximal_coupling(key, chosen, law, log_q, jnp.any(active))


def acceptance(
    log_p: Float[Array, "*k N"], log_q: Float[Array, " N"], num_drafts: tuple[int, ...]
) -> Float[Array, " C"]:
    if log_p.ndim == 1:
        return jnp.stack([bounds.optimum_iid(log_p, log_q, k) for k in num_drafts])
    size = log_q.shape[0]
    if size > MOST_CATEGORIES:
        raise ValueError(
            f"log_p: the optimum for drafts with laws of their own looks at 2^N sets, expected at most {MOST_CATEGORIES} "
            f"items, got {size}; with one law it is known at any size"
        )
    member = (jnp.arange(2**size)[:, None] >> jnp.arange(size) & 1).astype(log_q.dtype)
    inside = jnp.cumprod(jnp.minimum(member @ races.weights(log_p).T, 1), axis=1)  # [set, draft]
    short = (member @ races.weights(log_q))[:, None] - inside
    return 1 + jnp.min(short, axis=0)[jnp.asarray(num_drafts) - 1]


def verify_limit(num_items: int, num_drafts: int) -> str | None:
    """Why there is no plan for so many items."""
    if num_items <= MOST_CATEGORIES:
        return None
    return (
        f"log_q: scheme 'optimal' solves a linear program over the 2^N sets of drafts, expected at most {MOST_CATEGORIES} "
        f"items, got {num_items}; schemes 'weighted_importance' and 'spectr' come near it at any size"
    )


def _plan(laws, q, active):
    laws, q = (np.asarray(x, np.float32) for x in (laws, q))
    return _solved(laws[np.asarray(active)].tobytes(), q.tobytes(), q.size)


@lru_cache(maxsize=256)  # a simulation asks for the same plan in every chunk of trials
def _solved(laws: bytes, q: bytes, size: int):
    rows = np.frombuffer(laws, np.float32).reshape(-1, size).astype(np.float64)
    plan = decomposition.solve_selection(rows, np.frombuffer(q, np.float32).astype(np.float64))
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

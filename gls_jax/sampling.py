"""Gumbel-max list sampling (GLS): a list of K drafts and one target from the same clocks.

Algorithm 1 of Rowan, Phan, Khisti 2025 (arXiv 2506.05632). Stream `k` gives item `i` the clock
`S[k, i] ~ Exp(1)`;

* draft `k` is ``X_k = argmin_i S[k, i] / p_i``: the drafts are independent samples of `p` (or of
  `p^(k)`, one law a stream), and the first K of them do not change when more are drawn;
* the target is ``Y = argmin_i min_k S[k, i] / q_i``: exactly a sample of `q`.

Neither side looks at the other's law. `Y` depends on the clocks and on `q` alone: it is the same
whatever the drafter.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from gls_jax import checks, races
from gls_jax.typing import LogProbs

__all__ = ["ListSample", "draft_list", "list_sample", "target_of_list"]


class ListSample(NamedTuple):
    """One draw of Algorithm 1.

    Attributes:
        drafts: `i32[K]`, independent samples of the draft law(s).
        target: `i32[]`, a sample of the target law.
        accepted: `bool[]`, whether the target is among the drafts.
    """

    drafts: Int[Array, " K"]
    target: Int[Array, ""]
    accepted: Bool[Array, ""]


def list_sample(key: PRNGKeyArray, log_p: LogProbs, log_q: LogProbs, num_drafts: int) -> ListSample:
    """Couple a list of `K` samples of `p` with one sample of `q` through shared clocks.

    Args:
        key: one typed key; both sides of the coupling use the same.
        log_p: draft log-probabilities `[N]`, or `[K, N]` for one law a draft.
        log_q: target log-probabilities `[N]`.
        num_drafts: `K`, static.

    Returns:
        :class:`ListSample`.

    Raises:
        ValueError: shapes that do not match, `num_drafts < 1`, a key that is not one typed threefry
            key, or what :func:`gls_jax.check_log_probs` raises.

    >>> import jax, jax.numpy as jnp, gls_jax
    >>> log_p, log_q = jnp.log(jnp.array([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]]))
    >>> keys = jax.random.split(jax.random.key(0), 1000)
    >>> draws = jax.vmap(lambda key: gls_jax.list_sample(key, log_p, log_q, 4))(keys)
    >>> (
    ...     draws.drafts.shape,
    ...     bool((draws.accepted == (draws.drafts == draws.target[:, None]).any(1)).all()),
    ... )
    ((1000, 4), True)
    """
    num_drafts = checks.count(num_drafts, "num_drafts")
    log_p, log_q = checks.list_problem(log_p, log_q, num_drafts)
    clocks = races.exponentials(key, num_drafts, log_q.shape[0])
    drafts, target = draft_list(clocks, log_p), target_of_list(clocks, log_q)
    return ListSample(drafts, target, jnp.any(drafts == target))


def draft_list(clocks: Float[Array, "K N"], log_p: Float[Array, "*k N"]) -> Int[Array, " K"]:
    """Every stream's own winner, ``argmin_i S[k, i] / p_i``."""
    return races.winner(races.arrivals(clocks, log_p))


def target_of_list(
    clocks: Float[Array, "K N"], log_q: Float[Array, " N"], active: Bool[Array, " K"] | None = None
) -> Int[Array, ""]:
    """``argmin_i min_k S[k, i] / q_i`` over the active streams `bool[K]` (all, where none is
    active).
    """
    if active is not None:
        silent = ~active & jnp.any(active)
        clocks = jnp.where(silent[:, None], jnp.inf, clocks)
    return races.winner(races.arrivals(jnp.min(clocks, axis=0), log_q))

"""Gumbel-max list sampling (GLS): a list of K drafts and one target from the same noise.

Algorithm 1 of Rowan, Phan, Khisti 2025 (arXiv 2506.05632). Stream `k` gives category `i` the
exponential noise `S[k, i]`, see :mod:`gls_jax.races`.

* Draft `k` is ``X_k = argmin_i S[k, i] / p_i``. The drafts are independent samples of `p` (or of
  `p^(k)`, one distribution for each stream), and the first K of them do not change when more are
  drawn.
* The target is ``Y = argmin_i min_k S[k, i] / q_i``, an exact sample of `q`.

Neither side needs the other's distribution. `Y` depends on the noise and on `q` alone, so it is the
same for every drafter.
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
        drafts: `i32[K]`, independent samples of the draft distribution(s).
        target: `i32[]`, a sample of the target distribution.
        accepted: `bool[]`, whether the target is among the drafts.
    """

    drafts: Int[Array, " K"]
    target: Int[Array, ""]
    accepted: Bool[Array, ""]


def list_sample(
    key: PRNGKeyArray,
    log_p: LogProbs,
    log_q: LogProbs,
    num_drafts: int,
) -> ListSample:
    """Couple a list of `K` samples of `p` with one sample of `q` through shared noise.

    Args:
        key: one typed key; both sides of the coupling use the same.
        log_p: draft log-probabilities `[N]`, or `[K, N]` for one distribution per draft.
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
    >>> draws.drafts.shape
    (1000, 4)
    >>> is_listed = (draws.drafts == draws.target[:, None]).any(axis=1)
    >>> bool((draws.accepted == is_listed).all())
    True
    """
    num_drafts = checks.count(num_drafts, "num_drafts")
    log_p, log_q = checks.list_problem(log_p, log_q, num_drafts)
    # The noise is all that the two sides share.
    noise = races.exponentials(key, num_drafts, log_q.shape[0])
    drafts = draft_list(noise, log_p)
    target = target_of_list(noise, log_q)
    return ListSample(drafts=drafts, target=target, accepted=jnp.any(drafts == target))


def draft_list(
    noise: Float[Array, "K N"],
    log_p: Float[Array, "*k N"],
) -> Int[Array, " K"]:
    """The winner of every stream, ``argmin_i S[k, i] / p_i``."""
    return races.winner(races.arrivals(noise, log_p))


def target_of_list(
    noise: Float[Array, "K N"],
    log_q: Float[Array, " N"],
    active: Bool[Array, " K"] | None = None,
) -> Int[Array, ""]:
    """The target ``argmin_i min_k S[k, i] / q_i`` over the active streams `bool[K]`.

    If none is active, it is over all streams.
    """
    if active is not None:
        # Infinite noise takes a stream out of the minimum.
        is_left_out = ~active & jnp.any(active)
        noise = jnp.where(is_left_out[:, None], jnp.inf, noise)
    return races.winner(races.arrivals(jnp.min(noise, axis=0), log_q))

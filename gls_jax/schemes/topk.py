"""Drafts without noise: the K likeliest tokens; the target samples alone.

Engines in use draft like this: chains of the likeliest token, top-K lists, trees of the paths with
the largest products of draft probabilities (EAGLE-2, arXiv 2406.16858; DDTree). The list is a
function of `p`, so any sample of the target may be compared with it, and

    P(target in list) = the sum of q over the list.

The target's token is the first arrival of the race of `poisson` and `gumbel_topk`: strongly
invariant, and with one key the text is that of those two. Neither drafts nor target read what the
other has drawn, and the noise tells the drafter nothing. `topk` is the baseline of what shared
randomness gains.

No order holds between it and the other schemes, nor with the optima of :mod:`gls_jax.bounds`: those
are for drafts that are samples of `p`. Where ``p = q`` is flat, `topk` accepts K tokens of N and
`gumbel_topk` always. Where `q` is a point mass on the likeliest token of `p`, `topk` always
accepts, and i.i.d. samples of `p` miss it with probability ``(1 - max p)^K``.

**Kernel** for the planner. The token `y` is in the list if fewer than J tokens are likelier. Which
of two equally likely tokens comes first depends on their indices, which a dump does not keep: the
order of ties counts as random.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from gls_jax import races
from gls_jax.exact import inversion
from gls_jax.schemes.array_types import (
    Acceptances,
    AcceptedByLength,
    DraftLogProbs,
    Drafts,
    Kernel,
    Vector,
)
from gls_jax.schemes.function_types import ExactAcceptance, TokenVerification, Trial, Trials
from gls_jax.schemes.gumbel_topk import in_order
from gls_jax.schemes.poisson import verify  # the same first arrival of one race
from gls_jax.schemes.scheme import Scheme

__all__ = ["SCHEME", "acceptance", "accepted", "inversion_trial", "propose", "verify"]


def _likeliest(log_p: Vector, num_drafts: int) -> Drafts:
    """The `num_drafts` likeliest tokens, ties by index.

    Impossible tokens are never in the list: if too few are possible, it repeats the first.
    """
    return in_order(jnp.where(log_p < races.LIGHTEST, -jnp.inf, log_p), num_drafts)


def propose(key: PRNGKeyArray, log_p: DraftLogProbs, num_drafts: int) -> Drafts:
    del key
    return _likeliest(log_p, num_drafts)


def accepted(
    key: PRNGKeyArray, log_p: DraftLogProbs, log_q: Vector, num_drafts: int
) -> AcceptedByLength:
    ((_, token),) = races.first_arrivals(key, 1, log_q)
    return jnp.cumsum(_likeliest(log_p, num_drafts) == token) > 0


def inversion_trial(log_p: DraftLogProbs, log_q: Vector, num_drafts: int) -> Trial:
    """The same trial by inversion: only the target draws."""
    drafts = _likeliest(log_p, num_drafts)
    q_table = inversion.weight_table(races.weights(log_q))

    def trial(key):
        u, v = races.uniforms(key, 2)
        token = inversion.draw_index(q_table, log_q.shape[0], u, v)
        return jnp.cumsum(drafts == token) > 0

    return trial


def acceptance(
    log_p: DraftLogProbs,
    log_q: Vector,
    num_drafts: tuple[int, ...],
) -> Acceptances:
    drafts = _likeliest(log_p, max(num_drafts))
    # A token that fills up the list counts once.
    is_repeated = (drafts == drafts[0]) & (jnp.arange(max(num_drafts)) > 0)
    gains = jnp.where(is_repeated, 0, races.weights(log_q)[drafts])
    return jnp.cumsum(gains)[jnp.asarray(num_drafts) - 1]


def kernel(log_p: Vector, log_q: Vector, num_drafts: int) -> Kernel:
    p = races.weights(log_p)
    num_active = jnp.arange(1, num_drafts + 1)
    # The token y is category 0: those that come before it, and those that tie with it, with itself.
    num_before = jnp.sum(p > p[0])
    num_tied = jnp.sum(p == p[0])
    in_list = jnp.clip((num_active - num_before) / num_tied, 0, 1)
    in_list = jnp.where(p[0] > 0, in_list, 0)
    # P(y is the first of the list), which then is repeated as often as tokens are missing.
    is_first = in_list[0]
    repeats = jnp.maximum(num_active - jnp.sum(p > 0), 0)
    kernel = jnp.zeros((num_drafts + 1, num_drafts + 1), p.dtype).at[0, 0].set(1)
    kernel = kernel.at[num_active, 0].set(1 - in_list)
    kernel = kernel.at[num_active, 1].add(in_list - is_first)
    return kernel.at[num_active, 1 + repeats].add(is_first)


SCHEME = Scheme(
    name="topk",
    invariance="strong",
    max_drafts=None,
    needs_draft_probs=False,
    diverse=False,
    ranked=True,
    samples_drafts=False,
    propose_fn=propose,
    verification=TokenVerification(verify),
    exact=ExactAcceptance(acceptance, kernel=kernel),
    trials=Trials(accepted, inversion=inversion_trial, streaming=True),
)

"""Recursive rejection without replacement: Sequoia (arXiv 2402.12374), recursive speculative
decoding (2402.14160).

The list is K *distinct* items, the ranks of one Gumbel race; a refused item leaves the draft law,
which is renormalised for the next test (:mod:`gls_jax.rejection`). The spent mass is ``u p`` on
every item that is still served,

    u_0 = 0,   u_{k+1} = u_k + Z(u_k) / (1 - c_k),   Z(u) = sum_i (q_i - u p_i)+,

`c_k` the mass of the first k refused items. So ``P(target in list) = 1 - E[Z(u_K)]`` over the chain
of refusals, in which `x` is the next one with probability proportional to ``(p_x / (1 - c) - (q_x -
u p_x)+ / Z(u))+``.

:func:`acceptance` enumerates the chains, whose number grows as `N!/(N-K+1)!`, the last refusal
summed in closed form: K = 1 and 2 for any N, N = 10 for any K. :func:`acceptance_estimate` walks
random chains at any size. Verification is `O(K N)`; the drafter must supply its law.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from gls_jax import checks, races
from gls_jax.estimate import Estimate
from gls_jax.exact.ratio_order import ascending
from gls_jax.loops import varying_like
from gls_jax.rejection import recursive_rejection
from gls_jax.schemes.gumbel_topk import propose  # the ranks of one race
from gls_jax.schemes.scheme import ExactAcceptance, Scheme, TokenVerification, Trials
from gls_jax.typing import LogProbs

__all__ = ["SCHEME", "acceptance", "acceptance_estimate", "accepted", "propose", "verify"]

_LARGEST = 2 * 10**7  # chains x items enumerated: some seconds
_CHUNK = 2**16  # numbers in one chunk of chains


def verify(
    key: PRNGKeyArray,
    drafts: Int[Array, " K"],
    log_p: Float[Array, "*k N"],
    log_q: Float[Array, " N"],
    active: Bool[Array, " K"],
) -> Int[Array, ""]:
    return recursive_rejection(key, drafts, log_p, log_q, active, without_replacement=True)[0]


def accepted(
    key: PRNGKeyArray, log_p: Float[Array, "*k N"], log_q: Float[Array, " N"], num_drafts: int
) -> Bool[Array, " K"]:
    """One trial for every K."""
    drafts = propose(key, log_p, num_drafts)
    return recursive_rejection(
        key, drafts, log_p, log_q, jnp.ones(num_drafts, bool), without_replacement=True
    )[1]


def acceptance(
    log_p: Float[Array, "*k N"], log_q: Float[Array, " N"], num_drafts: tuple[int, ...]
) -> Float[Array, " C"]:
    laws = _sorted(log_p, log_q)
    size = log_q.shape[0]
    missed = {
        k: _missed(laws, k) for k in {min(k, size) for k in num_drafts}
    }  # a longer list is the whole law
    return 1 - jnp.stack([missed[min(k, size)] for k in num_drafts])


def acceptance_estimate(
    key: PRNGKeyArray, log_p: LogProbs, log_q: LogProbs, num_drafts: int, num_chains: int
) -> Estimate:
    """Unbiased estimate of the acceptance at any size: ``1 - Z(u_K)`` averaged over random chains
    of refusals.

    Only the order of the refusals is random, so its standard error is far below that of as many
    simulated trials.

    Args:
        key: one typed key.
        log_p, log_q: `[N]`.
        num_drafts: `K`.
        num_chains: at least 2.

    Returns:
        :class:`gls_jax.trials.Estimate` of scalars; the standard error is the empirical one.

    Raises:
        ValueError: shapes that do not fit, numbers out of range, or what
            :func:`gls_jax.check_log_probs` raises.

    >>> import jax, jax.numpy as jnp
    >>> from gls_jax.schemes import specinfer_wor
    >>> log_p, log_q = jnp.log(jnp.array([[0.1, 0.2, 0.3, 0.4], [0.5, 0.3, 0.1, 0.1]]))
    >>> got = specinfer_wor.acceptance_estimate(jax.random.key(0), log_p, log_q, 3, 1000)
    >>> bool(
    ...     abs(got.mean - specinfer_wor.SCHEME.acceptance(log_p, log_q, 3))
    ...     <= 5 * got.standard_error + 1e-6
    ... )
    True
    """
    checks.key(key)
    num_drafts, num_chains = (
        checks.count(num_drafts, "num_drafts"),
        checks.count(num_chains, "num_chains"),
    )
    if num_chains < 2:
        raise ValueError(f"num_chains: expected at least 2, got {num_chains}")
    log_p, log_q = checks.problem(log_p, log_q)
    mean, error = _estimate(key, log_p, log_q, num_drafts, num_chains)
    return Estimate(mean, error, jnp.asarray(num_chains, jnp.int32))


def acceptance_limit(num_items: int, num_drafts: int) -> str | None:
    """Why the chains are too many to enumerate."""
    chains = math.perm(num_items, max(min(num_drafts, num_items) - 2, 0))
    if chains * num_items <= _LARGEST:
        return None
    return (
        f"num_drafts: scheme 'specinfer_wor' would enumerate 10^{math.log10(chains):.0f} chains of refusals for "
        f"{num_items} items and K={num_drafts}, expected at most {_LARGEST // num_items}; "
        f"specinfer_wor.acceptance_estimate is unbiased at any size"
    )


class _Laws(NamedTuple):
    """Both laws in order of `q / p`, `inf` where `p = 0`: `u` reaches the ratio of the lightest
    item.
    """

    p: Float[Array, " N"]
    q: Float[Array, " N"]
    ratio: Float[Array, " N"]


def _sorted(log_p, log_q) -> _Laws:
    p, q = races.weights(log_p), races.weights(log_q)
    live = p > 0
    ratio = jnp.where(live, q / jnp.where(live, p, 1), jnp.inf)
    order = ascending(jax.lax.stop_gradient(ratio))
    return _Laws(p[order], q[order], ratio[order])


def _unserved(laws: _Laws):
    """`Z(u)`, linear between the ratios: suffix sums and a binary search."""
    tail_q, tail_p = (jnp.append(jnp.cumsum(x[::-1])[::-1], 0) for x in (laws.q, laws.p))

    def unserved(u):
        first = jnp.searchsorted(laws.ratio, u, side="right")
        return jnp.maximum(tail_q[first] - u * tail_p[first], 0)

    return unserved


def _test(laws: _Laws, unserved, u, pool):
    """One test with the items in the pool: chance of each to be the refused one, given that one is;
    next `u`; mass.

    An empty pool, in a list longer than the law has items, tests nothing: `u` stays and no item is
        refused.
    """
    mass, left = jnp.sum(pool), unserved(u)
    served = _quotient(jnp.maximum(laws.q - u * laws.p, 0), left)
    refused = jnp.where(pool > 0, jnp.maximum(_quotient(pool, mass) - served, 0), 0)
    return (
        _quotient(refused, jnp.sum(refused)),
        u + jnp.where(mass > 0, _quotient(left, mass), 0),
        mass,
    )


@jax.custom_jvp
def _quotient(a: Float[Array, "*#n"], b: Float[Array, "*#n"]) -> Float[Array, "*n"]:
    """`a / b`, and `a` where `b = 0`. JAX's derivative has `b^-2`, which leaves float32 for a pool
    of mass 1e-20.
    """
    return a / jnp.where(b > 0, b, 1)


@_quotient.defjvp
def _quotient_slope(values, tangents):
    ratio, (slope_a, slope_b) = _quotient(*values), tangents
    return ratio, _quotient(slope_a - jnp.where(values[1] > 0, ratio * slope_b, 0), values[1])


def _missed(laws: _Laws, num_drafts: int) -> Float[Array, ""]:
    """``E[Z(u_K)]``: a sum over all chains of `K - 2` refusals, with the last one summed inside."""
    size = laws.p.shape[0]
    num_drafts = min(num_drafts, size)
    unserved = _unserved(laws)
    if num_drafts == 1:
        return unserved(jnp.ones((), laws.q.dtype))
    length = num_drafts - 2

    def chain(index: Int[Array, ""]) -> Float[Array, ""]:
        u, weight = jnp.zeros((), laws.q.dtype), jnp.ones((), laws.q.dtype)
        pool, free = laws.p, jnp.ones(size, bool)
        for place in range(length):  # `index` in the factorial number system names the items
            digit, index = index % (size - place), index // (size - place)
            refused, u, mass = _test(laws, unserved, u, pool)
            item = jnp.argmax(free & (jnp.cumsum(free) == digit + 1))
            weight = weight * jnp.where(
                mass > 0, refused[item], digit == 0
            )  # nothing to refuse: one chain goes on
            free, pool = free.at[item].set(False), pool.at[item].set(0)
        refused, u, mass = _test(laws, unserved, u, pool)
        zero = jnp.zeros(1, pool.dtype)
        others = jnp.concatenate([zero, jnp.cumsum(pool)[:-1]]) + jnp.append(
            jnp.cumsum(pool[::-1])[::-1][1:], zero
        )
        left = unserved(u)
        last = unserved(u + _quotient(left, others))
        last = jnp.sum(refused * jnp.where(others > 0, last, left))
        return weight * jnp.where(mass > 0, last, left)

    chains = math.perm(size, length)
    if chains == 1:
        return chain(jnp.zeros((), jnp.int32))
    return jnp.sum(
        jax.lax.map(chain, jnp.arange(chains), batch_size=max(1, min(chains, _CHUNK // size)))
    )


@partial(jax.jit, static_argnames=("num_drafts", "num_chains"))
def _estimate(key, log_p, log_q, num_drafts: int, num_chains: int):
    laws = _sorted(log_p, log_q)
    size = laws.p.shape[0]
    unserved = _unserved(laws)

    def chain(index):
        def test(carry, stream):
            u, pool = carry
            refused, u, _ = _test(laws, unserved, u, pool)
            clocks = races.exponentials(races.stream_key(chain_key, stream), 1, size)[0]
            item = races.winner(races.arrivals(clocks, jnp.log(refused)))
            return (u, pool.at[item].set(0)), None

        chain_key = jax.random.fold_in(key, index)
        start = varying_like((jnp.zeros((), log_q.dtype), laws.p), chain_key, laws)
        (u, _), _ = jax.lax.scan(test, start, jnp.arange(min(num_drafts, size)))
        return unserved(u)

    missed = jax.lax.map(
        chain, jnp.arange(num_chains), batch_size=max(1, min(num_chains, _CHUNK // size))
    )
    return 1 - jnp.mean(missed), jnp.std(missed, ddof=1) / math.sqrt(num_chains)


SCHEME = Scheme(
    name="specinfer_wor",
    invariance="none",
    max_drafts=None,
    needs_draft_probs=True,
    diverse=False,
    ranked=True,
    propose_fn=propose,
    verification=TokenVerification(verify),
    exact=ExactAcceptance(acceptance, limit=acceptance_limit),
    trials=Trials(accepted),
)

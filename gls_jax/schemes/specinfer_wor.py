"""Recursive rejection without replacement.

Sources: Sequoia, arXiv 2402.12374; recursive speculative decoding, arXiv 2402.14160.

The list is K *distinct* tokens, the ranks of one Gumbel race. A rejected token leaves the pool, and
the draft distribution of the next test is `p` on the pool, renormalised (:mod:`gls_jax.rejection`).
The used mass is ``u p`` on every token that can still be emitted,

    u_0 = 0,   u_{k+1} = u_k + Z(u_k) / (1 - c_k),   Z(u) = sum_i (q_i - u p_i)+,

where `c_k` is the draft mass of the first k rejected tokens. So
``P(target in list) = 1 - E[Z(u_K)]`` over the chain of rejections, in which the next rejected token
is `x` with probability proportional to ``(p_x / (1 - c) - (q_x - u p_x)+ / Z(u))+``.

:func:`acceptance` enumerates the chains, whose number grows as `N!/(N-K+1)!`, and sums the last
rejection in closed form: K = 1 and 2 for any N, N = 10 for any K. :func:`acceptance_estimate`
averages over random chains at any size. Verification is `O(K N)`; the drafter must supply its
distribution.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from gls_jax import checks, races, work_shape
from gls_jax.estimate import Estimate
from gls_jax.exact.ratio_order import ascending, search
from gls_jax.loops import map_in_batches, varying_like
from gls_jax.rejection import recursive_rejection
from gls_jax.schemes.array_types import (
    Acceptances,
    AcceptedByLength,
    Active,
    DraftLogProbs,
    Drafts,
    IntScalar,
    Scalar,
    Token,
    Vector,
)
from gls_jax.schemes.division import quotient
from gls_jax.schemes.function_types import ExactAcceptance, TokenVerification, Trials
from gls_jax.schemes.gumbel_topk import propose  # the ranks of one race
from gls_jax.schemes.scheme import Scheme
from gls_jax.typing import LogProbs
from gls_jax.work_shape import WorkShape

__all__ = ["SCHEME", "acceptance", "acceptance_estimate", "accepted", "propose", "verify"]

_MAX_ENUMERATED = 2 * 10**7  # chains x categories: takes some seconds


def verify(
    key: PRNGKeyArray,
    drafts: Drafts,
    log_p: DraftLogProbs,
    log_q: Vector,
    active: Active,
) -> Token:
    token, _ = recursive_rejection(key, drafts, log_p, log_q, active, without_replacement=True)
    return token


def accepted(
    key: PRNGKeyArray,
    log_p: DraftLogProbs,
    log_q: Vector,
    num_drafts: int,
) -> AcceptedByLength:
    drafts = propose(key, log_p, num_drafts)
    all_active = jnp.ones(num_drafts, bool)
    _, is_accepted = recursive_rejection(
        key, drafts, log_p, log_q, all_active, without_replacement=True
    )
    return is_accepted


def acceptance(
    log_p: DraftLogProbs,
    log_q: Vector,
    num_drafts: tuple[int, ...],
) -> Acceptances:
    pair = _sorted_pair(log_p, log_q)
    # A list of N drafts has all tokens, and a longer one no more.
    lengths = [min(k, log_q.shape[0]) for k in num_drafts]
    missed = {k: _missed(pair, k) for k in set(lengths)}
    return 1 - jnp.stack([missed[k] for k in lengths])


def acceptance_estimate(
    key: PRNGKeyArray, log_p: LogProbs, log_q: LogProbs, num_drafts: int, num_chains: int
) -> Estimate:
    """Unbiased estimate of the acceptance at any size: ``1 - Z(u_K)`` averaged over random chains.

    Only the order of the rejections is random, so the standard error is far below that of as many
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
    >>> from gls_jax import schemes
    >>> log_p, log_q = jnp.log(jnp.array([[0.1, 0.2, 0.3, 0.4], [0.5, 0.3, 0.1, 0.1]]))
    >>> key = jax.random.key(0)
    >>> got = schemes.specinfer_wor.acceptance_estimate(key, log_p, log_q, 3, num_chains=1000)
    >>> exact = schemes.get("specinfer_wor").acceptance(log_p, log_q, 3)
    >>> bool(abs(got.mean - exact) <= 5 * got.standard_error + 1e-6)
    True
    """
    checks.key(key)
    num_drafts = checks.count(num_drafts, "num_drafts")
    num_chains = checks.count(num_chains, "num_chains")
    if num_chains < 2:
        raise ValueError(f"num_chains: expected at least 2, got {num_chains}")
    log_p, log_q = checks.problem(log_p, log_q)
    shape = work_shape.current()
    mean, error = _estimate(key, log_p, log_q, num_drafts, num_chains, shape)
    return Estimate(mean, error, jnp.asarray(num_chains, jnp.int32))


def acceptance_limit(num_categories: int, num_drafts: int) -> str | None:
    num_enumerated = max(min(num_drafts, num_categories) - 2, 0)
    num_chains = math.perm(num_categories, num_enumerated)
    if num_chains * num_categories <= _MAX_ENUMERATED:
        return None
    return (
        "num_drafts: scheme 'specinfer_wor' would enumerate "
        f"10^{math.log10(num_chains):.0f} chains of rejections "
        f"for {num_categories} categories and K={num_drafts}, "
        f"expected at most {_MAX_ENUMERATED // num_categories}; "
        "specinfer_wor.acceptance_estimate is unbiased at any size"
    )


class _Pair(NamedTuple):
    """Probabilities in order of the ratio `q / p`, which is infinite where `p = 0`.

    Unlike in :mod:`gls_jax.exact.ratio_order` no ratio is capped: `u` grows up to the ratio of the
    lightest token.
    """

    p: Vector
    q: Vector
    ratio: Vector


class _SuffixSums(NamedTuple):
    """Sums of `p` and of `q` from every index in ratio order to the end; 0 after the last."""

    ratio: Vector
    p: Float[Array, " N+1"]
    q: Float[Array, " N+1"]


def _sorted_pair(log_p, log_q) -> _Pair:
    p = races.weights(log_p)
    q = races.weights(log_q)
    is_possible = p > 0
    ratio = jnp.where(is_possible, quotient(q, p), jnp.inf)
    order = ascending(jax.lax.stop_gradient(ratio))
    return _Pair(p=p[order], q=q[order], ratio=ratio[order])


def _suffix_sums_of(pair: _Pair) -> _SuffixSums:
    return _SuffixSums(ratio=pair.ratio, q=_suffix_sums(pair.q), p=_suffix_sums(pair.p))


def _suffix_sums(values: Vector) -> Float[Array, " N+1"]:
    return jnp.append(jnp.cumsum(values[::-1])[::-1], 0)


def _residual_mass(sums: _SuffixSums, u: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """`Z(u)`: only tokens with a ratio above u contribute, and they come last."""
    first = search(sums.ratio, u, side="right")
    return jnp.maximum(sums.q[first] - u * sums.p[first], 0)


class _Rejection(NamedTuple):
    """The result of one test, given that it rejects.

    Attributes:
        probs: probability that each token is the rejected one.
        u: the multiple of `p` that is used afterwards.
        pool_mass: draft mass of the pool that was tested.
    """

    probs: Vector
    u: Scalar
    pool_mass: Scalar


def _reject(pair: _Pair, sums: _SuffixSums, u, pool: Vector) -> _Rejection:
    """One test with the tokens in the pool, whose weights are `p` there and 0 elsewhere.

    If the list is longer than the number of possible tokens, the pool becomes empty. Then nothing
    is tested: `u` does not change, and no token is rejected.
    """
    pool_mass = jnp.sum(pool)
    mass = _residual_mass(sums, u)
    # A token is rejected as far as its probability in the pool exceeds the residual.
    residual = _quotient(jnp.maximum(pair.q - u * pair.p, 0), mass)
    excess = jnp.maximum(_quotient(pool, pool_mass) - residual, 0)
    rejected = jnp.where(pool > 0, excess, 0)
    return _Rejection(
        probs=_quotient(rejected, jnp.sum(rejected)),
        u=u + jnp.where(pool_mass > 0, _quotient(mass, pool_mass), 0),
        pool_mass=pool_mass,
    )


@jax.custom_jvp
def _quotient(a: Float[Array, "*#n"], b: Float[Array, "*#n"]) -> Float[Array, "*n"]:
    """:func:`quotient` with another derivative.

    JAX's own has `b^-2`, which leaves float32 for a pool of mass 1e-20.
    """
    return quotient(a, b)


@_quotient.defjvp
def _quotient_jvp(primals, tangents):
    ratio = _quotient(*primals)
    _, b = primals
    tangent_a, tangent_b = tangents
    from_b = jnp.where(b > 0, ratio * tangent_b, 0)
    return ratio, _quotient(tangent_a - from_b, b)


def _missed(pair: _Pair, num_drafts: int) -> Scalar:
    """``E[Z(u_K)]``, K at most N: a sum over all chains of ``K - 2`` rejections."""
    num_categories = pair.p.shape[0]
    sums = _suffix_sums_of(pair)
    if num_drafts == 1:
        return _residual_mass(sums, jnp.ones((), pair.q.dtype))
    length = num_drafts - 2
    num_chains = math.perm(num_categories, length)
    missed_by_chain = partial(_missed_by_chain, pair, sums, length)
    if num_chains == 1:
        return missed_by_chain(jnp.zeros((), jnp.int32))
    chains_at_once = work_shape.current().rows_at_once(num_categories)
    chains = jnp.arange(num_chains)
    return jnp.sum(map_in_batches(missed_by_chain, chains, chains_at_once))


def _missed_by_chain(pair: _Pair, sums: _SuffixSums, length: int, index: IntScalar) -> Scalar:
    """Probability of one chain of rejections, times ``E[Z(u_K)]`` over the last two tests.

    Args:
        length: rejections in the chain.
        index: number of the chain. In the factorial number system its digits name the rejected
            tokens: digit d is the d-th token that is still unused.
    """
    num_categories = pair.p.shape[0]
    u = jnp.zeros((), pair.q.dtype)
    chain_prob = jnp.ones((), pair.q.dtype)
    pool = pair.p
    is_unused = jnp.ones(num_categories, bool)
    for i in range(length):
        base = num_categories - i
        digit, index = index % base, index // base
        rejection = _reject(pair, sums, u, pool)
        token = jnp.argmax(is_unused & (jnp.cumsum(is_unused) == digit + 1))
        # With an empty pool there is nothing to reject: only one of the chains continues.
        step_prob = jnp.where(rejection.pool_mass > 0, rejection.probs[token], digit == 0)
        chain_prob = chain_prob * step_prob
        u = rejection.u
        is_unused = is_unused.at[token].set(False)
        pool = pool.at[token].set(0)

    # Rejection K - 1, summed over all tokens. Test K depends on the rejected token only through the
    # draft mass of the pool without it: the masses before and after it. They are
    # added, because a difference would lose digits.
    rejection = _reject(pair, sums, u, pool)
    mass_before = jnp.concatenate([jnp.zeros(1, pool.dtype), jnp.cumsum(pool)[:-1]])
    pool_mass_without = mass_before + _suffix_sums(pool)[1:]
    mass = _residual_mass(sums, rejection.u)
    last_mass = _residual_mass(sums, rejection.u + _quotient(mass, pool_mass_without))
    last_mass = jnp.where(pool_mass_without > 0, last_mass, mass)
    expected = jnp.sum(rejection.probs * last_mass)
    return chain_prob * jnp.where(rejection.pool_mass > 0, expected, mass)


@partial(jax.jit, static_argnames=("num_drafts", "num_chains", "shape"))
def _estimate(key, log_p, log_q, num_drafts: int, num_chains: int, shape: WorkShape):
    """Mean and standard error of ``1 - Z(u_K)`` over random chains."""
    pair = _sorted_pair(log_p, log_q)
    num_categories = pair.p.shape[0]
    sums = _suffix_sums_of(pair)

    def missed_by_random_chain(index):
        chain_key = jax.random.fold_in(key, index)

        def test(carry, stream):
            u, pool = carry
            rejection = _reject(pair, sums, u, pool)
            noise = races.exponentials(races.stream_key(chain_key, stream), 1, num_categories)[0]
            token = races.winner(races.arrivals(noise, jnp.log(rejection.probs)))
            return (rejection.u, pool.at[token].set(0)), None

        start = (jnp.zeros((), log_q.dtype), pair.p)
        start = varying_like(start, chain_key, pair)
        num_tests = min(num_drafts, num_categories)
        (u, _), _ = jax.lax.scan(test, start, jnp.arange(num_tests))
        return _residual_mass(sums, u)

    chains_at_once = shape.rows_at_once(num_categories)
    missed = map_in_batches(missed_by_random_chain, jnp.arange(num_chains), chains_at_once)
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

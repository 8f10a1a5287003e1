"""How many of J drafts are accepted at a position, given the token that the target emits there:
exactly, per scheme.

Block efficiency is that of the target's own text, and the tokens of a text tell about the
acceptances: a token that is accepted is an easy one. So an acceptance along a text is that *given*
its tokens. For K chains it is a Markov chain in the number J of chains still in play, because
clocks and tests are fresh at every position; its kernel is ``T[J, J'] = P(J' of J drafts equal the
emitted token | it is y)``, a row for every J of K.

Shared clocks. Given that `y` comes first at time ``theta``, every other clock starts anew behind
``theta q_i``: the race has no memory. So drafts in different streams are independent given
``theta``, which is integrated over:

* GLS: the stream that has won drafts `y` with probability ``e^{-theta (M_y - 1)}``, every other
  with ``1 - G_y(theta)`` (:mod:`gls_jax.schemes.gls`);
* Poisson: the arrivals of others before time `s` under `p` are a Poisson count of mean ``sum_i (p_i
  s - theta q_i)+``;
* top-K: `i` stands before `y` with probability ``1 - e^{-theta (p_i r_y - q_i)+}``.

Ratio tests. A kernel is a polynomial in `z`, whose power counts drafts that equal `y`: a draft that
was not looked at multiplies by ``1 - p_y + p_y z``, the accepted one by `z`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.special import roots_genlaguerre

from gls_jax import races
from gls_jax.quadrature import clock_nodes
from gls_jax.ratios import ratio_order
from gls_jax.rejection import remaining
from gls_jax.schemes import spectr
from gls_jax.typing import LogProbs

__all__ = ["NAMES", "kernels", "likelihood_ratio"]

_STEP = 0.5  # in log theta; agrees with finer steps to 1e-6
_GAMMA_NODES = 16
_POSITIONS = 64  # in one step of the map
# A token can be in the text and impossible under the law read again: at the edge of top-k, in
# greedy decoding, the law that it was sampled from differed in the last bit. Such a position is
# taken in the limit of a vanishing `q_y`.
_LEAST = np.float32(np.log(1e-30))

Kernel = Float[Array, "J J"]


def kernels(log_p: LogProbs, log_q: LogProbs, *, scheme: str, num_drafts: int) -> np.ndarray:
    """``T[position, J, J']`` for J, J' = 0..K, given that the token of column 0 is emitted.

    Args:
        log_p, log_q: `[P, N]`, laws of draft and target.
        scheme: one of :data:`NAMES`.
        num_drafts: `K`, chains of the round: the streams that `gls_strong` looks at.

    Returns:
        `f32[P, K + 1, K + 1]`; rows sum to 1.

    Raises:
        ValueError: a scheme whose kernel is not known.

    >>> import jax.numpy as jnp
    >>> from gls_jax.planner import conditional
    >>> log_p, log_q = jnp.log(jnp.array([[[0.5, 0.5]], [[0.9, 0.1]]]))
    >>> conditional.kernels(log_p, log_q, scheme="naive", num_drafts=2)[0].tolist()
    [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.25, 0.5, 0.25]]
    """
    if scheme not in _KERNELS:
        raise ValueError(f"scheme: expected one of {', '.join(NAMES)}, got {scheme!r}")
    log_q = jnp.asarray(log_q).at[:, 0].max(_LEAST)
    return np.asarray(_kernels(jnp.asarray(log_p), log_q, scheme=scheme, num_drafts=num_drafts))


@partial(jax.jit, static_argnames=("scheme", "num_drafts"))
def _kernels(log_p, log_q, *, scheme: str, num_drafts: int):
    def one(laws):
        return _KERNELS[scheme](*laws, num_drafts)

    return jnp.clip(jax.lax.map(one, (log_p, log_q), batch_size=_POSITIONS), 0, 1)


def likelihood_ratio(log_p: LogProbs, log_q: LogProbs) -> np.ndarray:
    """``p_y / q_y`` of the emitted tokens, `[P]`, what block verification needs to know."""
    return np.exp(np.asarray(log_p, np.float64)[:, 0] - np.maximum(np.asarray(log_q)[:, 0], _LEAST))


def _gls(log_p, log_q, num_drafts: int, *, strong: bool) -> Kernel:
    ranked = ratio_order(log_p, log_q)
    counts = tuple(range(1, num_drafts + 1))
    theta, weights = clock_nodes(counts, log_q.dtype, step=_STEP)
    excess = ranked.excess[:, None]
    gaps = jnp.exp(-theta * excess) * -jnp.expm1(-theta * ranked.rise[:, None])
    here = jnp.argmin(ranked.order)  # place of column 0
    behind = jnp.arange(len(ranked.order))[:, None] >= here
    beyond = jnp.sum(jnp.where(behind, gaps / jnp.maximum(ranked.mass[:, None], 1e-18), 0), axis=0)
    possible = ranked.p[here] > 0
    won = jnp.where(possible, jnp.exp(-theta * excess[here]), 0)  # the first stream drafts y
    lost = jnp.where(possible, ranked.p[here] * beyond, 0)  # another one does
    several = _binomials(num_drafts, lost)  # [J, J', n]

    def row(j: int):
        streams = num_drafts if strong else j
        with_first = several[j - 1] * (1 - won) + _shift(several[j - 1]) * won
        law = j / streams * with_first + (1 - j / streams) * several[j]
        return law @ (streams * weights[streams - 1])

    return _rows(row(j) for j in counts)


def _poisson(log_p, log_q, num_drafts: int) -> Kernel:
    p, q = races.weights(log_p), races.weights(log_q)
    theta, (weights,) = clock_nodes((1,), log_q.dtype, step=_STEP)
    others_p, others_q = p.at[0].set(0), q.at[0].set(0)
    p_y = jnp.maximum(p[0], 1e-30)

    def before(time):
        """Mean number of others' arrivals before the draft's times `[G, n]`."""
        return jnp.sum(
            jnp.maximum(others_p[:, None, None] * time - others_q[:, None, None] * theta, 0), axis=0
        )

    def at_least(m: int):
        """P(the m-th arrival of y is among the first J), for every J."""
        waits, shares = (
            roots_genlaguerre(_GAMMA_NODES, m - 2) if m > 1 else (np.zeros(1), np.ones(1))
        )
        mean = jnp.minimum(before((theta * q[0] + waits.astype(np.float32)[:, None]) / p_y), 1e6)
        share = (shares / shares.sum()).astype(np.float32)
        below = jnp.einsum(
            "kgn,g,n->k", _poisson_below(mean, num_drafts), share, weights
        )  # at most 0, 1, ... others
        return jnp.zeros(num_drafts + 1, p.dtype).at[m:].set(below[: num_drafts + 1 - m])

    always, never = jnp.ones(num_drafts + 1, p.dtype), jnp.zeros(num_drafts + 1, p.dtype)
    tails = [
        always,
        *(jnp.where(p[0] > 0, at_least(m), 0) for m in range(1, num_drafts + 1)),
        never,
    ]
    return jnp.stack(tails[:-1], axis=1) - jnp.stack(tails[1:], axis=1)


def _gumbel_topk(log_p, log_q, num_drafts: int) -> Kernel:
    p, q = races.weights(log_p), races.weights(log_q)
    theta, (weights,) = clock_nodes((1,), log_q.dtype, step=_STEP)
    ratio = q[0] / jnp.maximum(p[0], 1e-30)
    enters = -jnp.expm1(-theta * jnp.maximum(p[1:] * ratio - q[1:], 0)[:, None])  # [others, n]

    def add(law, chance):
        return law * (1 - chance) + _shift(law) * chance, None

    nobody = jnp.zeros((num_drafts, len(theta)), p.dtype).at[0].set(1)
    law, _ = jax.lax.scan(add, nobody, enters)
    listed = jnp.where(p[0] > 0, jnp.cumsum(law @ weights), 0)  # among the first 1, 2, ... K
    # Fewer possible items than drafts: the rest of the list repeats the first.
    counts = jnp.arange(1, num_drafts + 1)
    repeats = jnp.maximum(counts - jnp.sum(p > 0), 0)
    kernel = jnp.zeros((num_drafts + 1, num_drafts + 1), p.dtype).at[0, 0].set(1)
    kernel = kernel.at[counts, 0].set(1 - listed)
    return kernel.at[counts, 1].add(listed - listed[0]).at[counts, 1 + repeats].add(listed[0])


def _minhash(log_p, log_q, num_drafts: int) -> Kernel:
    p, q = races.weights(log_p), races.weights(log_q)
    distance = jnp.sum(jnp.abs(p - q)) / 2
    return _one_draft(jnp.minimum(1, p[0] / q[0]) * (1 + jnp.abs(p[0] - q[0])) / (1 + distance))


def _naive(log_p, log_q, num_drafts: int) -> Kernel:
    return _binomials(num_drafts, races.weights(log_p)[0])


def _single(log_p, log_q, num_drafts: int) -> Kernel:
    return _one_draft(jnp.minimum(1, jnp.exp(log_p[0] - log_q[0])))


def _specinfer(log_p, log_q, num_drafts: int) -> Kernel:
    p, q = races.weights(log_p), races.weights(log_q)
    one = jnp.zeros(num_drafts + 1, p.dtype).at[1].set(1)
    spent, hit, rows = jnp.zeros((), p.dtype), 0 * one, []
    for _ in range(num_drafts):
        rest, left = remaining(q, spent * p)
        hit = hit * (1 - p[0]) + _shift(hit) * p[0] + jnp.minimum(left * p[0], rest[0]) / q[0] * one
        rows.append(hit.at[0].add(1 - jnp.sum(hit)))
        spent = spent + left
    return _rows(rows)


def _spectr(log_p, log_q, num_drafts: int) -> Kernel:
    p, q = races.weights(log_p), races.weights(log_q)
    counts = jnp.arange(1, num_drafts + 1, dtype=p.dtype)
    discounts = jax.vmap(partial(spectr.discount, p, q))(counts)

    def row(j: int):
        rho = discounts[j - 1]
        kept = jnp.minimum(p, q / rho)
        refused = jnp.maximum(1 - jnp.sum(kept), 0)
        missed = p[0] - kept[0]  # y itself is drafted and refused
        none = jnp.zeros(num_drafts + 1, p.dtype).at[0].set(1)  # all refused so far
        hit = 0 * none
        for _ in range(j):
            hit = hit * (1 - p[0]) + _shift(hit) * p[0] + _shift(none) * kept[0] / q[0]
            none = none * (refused - missed) + _shift(none) * missed
        return hit.at[0].add(1 - jnp.sum(hit))

    return _rows(row(j) for j in range(1, num_drafts + 1))


def _binomials(count: int, chance) -> Float[Array, "J J *n"]:
    """Laws of the number of successes in 0, 1, ... `count` trials."""
    law = jnp.zeros((count + 1, *jnp.shape(chance)), chance.dtype).at[0].set(1)
    laws = [law]
    for _ in range(count):
        laws.append(laws[-1] * (1 - chance) + _shift(laws[-1]) * chance)
    return jnp.stack(laws)


def _shift(law):
    """One success more, along the first axis."""
    return jnp.concatenate([jnp.zeros_like(law[:1]), law[:-1]])


def _poisson_below(mean, most: int):
    """`P(count <= 0), ..., P(count <= most)` along a new first axis."""
    counts = jnp.arange(most + 1, dtype=mean.dtype).reshape(-1, *[1] * mean.ndim)
    log_mean = jnp.log(jnp.maximum(mean, 1e-30))
    return jnp.cumsum(jnp.exp(counts * log_mean - mean - jax.lax.lgamma(counts + 1)), axis=0)


def _one_draft(chance) -> Kernel:
    return jnp.stack([jnp.array([1.0, 0.0], chance.dtype), jnp.stack([1 - chance, chance])])


def _rows(rows) -> Kernel:
    """Rows J = 1..K below the one of a round that has ended."""
    rows = list(rows)
    return jnp.stack([jnp.zeros_like(rows[0]).at[0].set(1), *rows])


_KERNELS: dict[str, Callable] = {
    "gls": partial(_gls, strong=False),
    "gls_strong": partial(_gls, strong=True),
    "poisson": _poisson,
    "gumbel_topk": _gumbel_topk,
    "minhash": _minhash,
    "naive": _naive,
    "single": _single,
    "specinfer": _specinfer,
    "spectr": _spectr,
}
NAMES: tuple[str, ...] = tuple(_KERNELS)
"""Schemes whose kernel is known; `block`, a scheme of whole paths, has :func:`likelihood_ratio`."""

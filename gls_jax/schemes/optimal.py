"""The optimal verification of a list of i.i.d. drafts, for any vocabulary and any K.

The value is known: ``1 - max_H [p(H)^K - q(H)]`` over the sets `H` of tokens (Sun et al. 2023,
arXiv 2310.15141; Khisti et al. 2025, arXiv 2410.18234), where the worst `H` is a prefix of the
tokens in ratio order, the order of `q / p` (:func:`gls_jax.bounds.optimum_iid`). The published ways
to attain it are linear programs and iterative solvers. The closed form below is this library's; no
earlier statement was found. It takes a sort and some cumulative sums, `O(N log N)`.

**What is selected.** One draft of the list is selected, and then `q` is sampled by the maximal
coupling with `r`, the distribution of the selected draft (:mod:`gls_jax.decomposition`). With
``f = 1 - optimum``, the best `r` is the target distribution, clipped:

    r_i = min(max(q_i, sigma p_i), tau p_i),
    sum_i (sigma p_i - q_i)+ = f = sum_i (q_i - tau p_i)+.

So `r` sums to 1, and ``sum_i min(q_i, r_i) = 1 - f``.

**How it is selected.** Lay the tokens out on [0, 1] in ratio order, token `i` on an interval of
length `p_i`, and give every draft a uniform *place* `u` in the interval of its token. The places of
the list are K independent uniforms. To select the largest would select a place `u` with density
``m(u) = K u^{K-1}``. Wanted is the density ``rho(u) = r_i / p_i``, which never decreases in `u`. It
is at first too large and later too small, in this sense:

    int_0^u rho >= int_0^u m = u^K   for every u, with equality at 1.

(Where ``rho = q / p``, between the clipped ends, the difference is ``q(A) - p(A)^K + f`` for a
prefix `A`, and the optimum is defined so that this is not negative. On the clipped ends `rho` is
constant, so the difference is concave there, and it is 0 at 0 and at 1.) So places with ``rho > m``
can be paired with places ``v > u`` where ``rho < m``, in order, by equal areas:

    int_0^u (rho - m)+ = int_0^v (m - rho)+.

A draft at `u` takes `v` as its *priority* with probability ``(rho(u) - m(u)) / (m(v) - m(u))`` and
else keeps `u`; a draft at `v` takes `u` with probability ``(m(v) - rho(v)) / (m(v) - m(u))``. These
are probabilities, because ``m(u) <= rho(u) <= rho(v) <= m(v)``. As many drafts go one way as the
other, so the priorities are again K independent uniforms; and with the largest priority a place `u`
is selected with density ``(1 - theta) m(u) + theta m(v) = rho(u)``. That is `r`.

A rejected draft is never replaced by another one of the list: the place where the worst `H` ends
has equal areas below, so no priority crosses it, a token with ``r > q`` is below it, and a token
with ``r < q`` is above. The acceptance is the optimum exactly.

**Kernel** for the planner. An emitted token `y` is either the selected draft or not in the list. If
it was selected with priority `v`, the other drafts have smaller priorities, and they are `y` or
another token independently. The integral over the priorities of `y` is a sum over places in its
interval.

**How exact.** `r` is known before it is drawn from, so errors of the priorities are the only bias:
rounding in float32. Measured on 500 problems of 6 to 300 tokens at K = 2, 4, 8 (Dirichlet of 0.1 and
1, softmax of normal logits near and far, next-token distributions after a top-k of 50), the
acceptance was off the optimum by 1.1e-7 in the median, 2.2e-6 at the 99th percentile and 1.2e-5 at
most, and the selected draft off `r` by 2.6e-7 in total variation in the median and 3.8e-5 at most.
These figures include the error of the numerical integration that measured them
(``python -m experiments bench schemes``).

**How far.** All drafts must have one distribution, which the drafter must supply. If distributions
differ, the sets `H` have no order, and the optimum is a linear program over all of them:
:func:`gls_jax.decomposition.best_selection`, up to 12 tokens, which is also the oracle of the tests
here. `weighted_importance` and `specinfer` take such drafts at any size.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from gls_jax import bounds, races
from gls_jax.exact.counting import with_empty_row
from gls_jax.exact.ratio_order import index_in, ratio_order
from gls_jax.rejection import maximal_coupling
from gls_jax.schemes.array_types import (
    Acceptances,
    Active,
    DraftLogProbs,
    Drafts,
    Kernel,
    Token,
    Vector,
)
from gls_jax.schemes.division import quotient
from gls_jax.schemes.function_types import ExactAcceptance, TokenVerification
from gls_jax.schemes.gls import propose  # K independent races
from gls_jax.schemes.priorities import clip_ratios, draw_priorities, exchanges, lay_out
from gls_jax.schemes.scheme import Scheme

__all__ = ["SCHEME", "acceptance", "propose", "verify"]

# In the interval of an emitted token, for a kernel. Eight times as many changed 40 kernels by 1e-8
# in the median, and by 2e-5 at most.
_KERNEL_PLACES = 64
_LEAST = 1e-30  # a probability that stands for 0 in a denominator


def verify(
    key: PRNGKeyArray,
    drafts: Drafts,
    log_p: DraftLogProbs,
    log_q: Vector,
    active: Active,
) -> Token:
    selection_key, test_key = races.split_key(races.private_key(key))
    # Which drafts are active says nothing about their tokens: they are J independent ones.
    num_active = jnp.maximum(jnp.sum(active), 1).astype(log_q.dtype)
    ranked = ratio_order(log_p, log_q)
    ratios = clip_ratios(ranked, num_active)

    # Select the active draft with the largest priority.
    layout = lay_out(ranked, ratios, num_active)
    indices = index_in(ranked.order)[drafts]
    noise = races.exponentials(selection_key, 2, drafts.shape[0]).astype(log_q.dtype)
    priorities = draw_priorities(layout, indices, -jnp.expm1(-noise))
    selected = drafts[jnp.argmax(jnp.where(active, priorities, -1))]

    # Its distribution is q, clipped.
    p = races.weights(log_p)
    selected_p = jnp.clip(races.weights(log_q), ratios.lowest * p, ratios.highest * p)
    return maximal_coupling(test_key, selected, selected_p, log_q, jnp.any(active))


def acceptance(
    log_p: DraftLogProbs,
    log_q: Vector,
    num_drafts: tuple[int, ...],
) -> Acceptances:
    return jnp.stack([bounds.optimum_iid(log_p, log_q, k) for k in num_drafts])


def kernel(log_p: Vector, log_q: Vector, num_drafts: int) -> Kernel:
    p = races.weights(log_p)
    q = races.weights(log_q)
    ranked = ratio_order(log_p, log_q)
    # The emitted token y is category 0: places in the middles of equal parts of its interval.
    indices = jnp.broadcast_to(jnp.argmin(ranked.order), (_KERNEL_PLACES,))
    middles = (jnp.arange(_KERNEL_PLACES, dtype=q.dtype) + 0.5) / _KERNEL_PLACES

    def row(num_active: int):
        count = jnp.asarray(num_active, q.dtype)
        ratios = clip_ratios(ranked, count)
        drawn = exchanges(lay_out(ranked, ratios, count), indices, middles)
        exchanged = jnp.clip(quotient(drawn.needed, drawn.possible), 0, 1)
        # The priorities of y in increasing order, and the probability that a draft is y with a
        # smaller one.
        priorities = jnp.concatenate([drawn.place, drawn.partner])
        probs = jnp.concatenate([1 - exchanged, exchanged]) * p[0] / _KERNEL_PLACES
        order = jnp.argsort(priorities)
        priorities, probs = priorities[order], probs[order]
        is_y_below = jnp.cumsum(probs) - probs / 2
        is_other_below = jnp.maximum(priorities - is_y_below, 0)
        # y is selected: one draft has this priority, all others are below, n - 1 of them y.
        copies = [
            math.comb(num_active - 1, n - 1)
            * jnp.sum(probs * is_y_below ** (n - 1) * is_other_below ** (num_active - n))
            for n in range(1, num_active + 1)
        ]
        shares = jnp.stack(copies) / jnp.maximum(sum(copies), _LEAST)
        # The emitted y was the selected draft with this probability, or else is not in the list.
        is_selected = jnp.minimum(1, ratios.highest * quotient(p[0], q[0]))
        counts = jnp.append(1 - is_selected, is_selected * shares)
        return jnp.pad(counts, (0, num_drafts - num_active))

    return with_empty_row(row(j) for j in range(1, num_drafts + 1))


SCHEME = Scheme(
    name="optimal",
    invariance="none",
    max_drafts=None,
    needs_draft_probs=True,
    diverse=False,
    ranked=False,
    propose_fn=propose,
    verification=TokenVerification(verify),
    exact=ExactAcceptance(acceptance, kernel=kernel, tails_are_bounds=True),
)

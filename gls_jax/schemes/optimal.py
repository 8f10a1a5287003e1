"""The optimal verification of a list of i.i.d. drafts, for any vocabulary and any K.

The value is known: ``1 - f`` with ``f = max_H [p(H)^K - q(H)]`` over all sets `H` of tokens, the
empty one included (Sun et al. 2023, arXiv 2310.15141; Khisti et al. 2025, arXiv 2410.18234). The
worst `H` is a prefix of the tokens in ratio order, the order of `q / p`
(:func:`gls_jax.bounds.optimum_iid`). Thomas and Pal (2025, arXiv 2511.15898) attain it by convex
minimisation. We found no closed form of the selection; the one below is ours. It takes a sort and
some cumulative sums, `O(N log N)`.

**What is selected.** One draft of the list is selected, and then `q` is sampled by the maximal
coupling with `r`, the distribution of the selected draft (:mod:`gls_jax.decomposition`). Here `r`
is the target distribution, clipped to multiples of `p`:

    r_i = min(max(q_i, sigma p_i), tau p_i),
    sum_i (sigma p_i - q_i)+ = f = sum_i (q_i - tau p_i)+.

So `r` sums to 1, and ``sum_i min(q_i, r_i) = 1 - f``. Other `r` reach ``1 - f`` too; with this one
``r / p`` never decreases in ratio order, which the selection below needs. Sigma and tau exist, with
``sigma <= 1 <= tau``: at 1 both sums are ``TV(p, q) >= f``, and as tau grows the right one falls to
`q` of the tokens that cannot be drafted, which is at most `f`. Those have ``r_i = 0``.

**How it is selected.** Lay the tokens out on [0, 1] in ratio order, token `i` on an interval of
length `p_i`, and give every draft a uniform *place* `u` in the interval of its token. The places of
the list are K independent uniforms. The largest of them has density ``m(u) = K u^{K-1}``. The
selected place should have density ``rho(u) = r_i / p_i``, which never decreases in `u`. Its
integral is never below that of `m`:

    D(u) = int_0^u rho - u^K >= 0,   D(0) = D(1) = 0.

Proof. `rho` is constant on each interval and ``u^K`` is convex, so `D` is concave on each interval,
and also on a block of intervals with the same `rho`. It is enough to look at the ends of these.
(1) If a prefix `A` has all tokens with ``r > q`` and none with ``r < q``, then ``r(A) = q(A) + f``,
so that ``D = q(A) + f - p(A)^K >= 0`` by the definition of `f`. (2) The tokens with ``r > q`` are a
block at the left, on which ``rho = sigma``. At its left end `D` is 0, at its right end (1) holds.
(3) The tokens with ``r < q`` are a block at the right, on which ``rho = tau``. At its left end (1)
holds, at its right end `D` is 0.

So places with ``rho > m`` can be paired with places ``v > u`` where ``rho < m``, in order, by equal
areas:

    int_0^u (rho - m)+ = int_0^v (m - rho)+.

A draft at `u` takes `v` as its *priority* with probability ``theta = (rho(u) - m(u)) / (m(v) -
m(u))``, and else keeps `u`. A draft at `v` takes `u` with probability ``theta' = (m(v) - rho(v)) /
(m(v) - m(u))``, and else keeps `v`. These are probabilities, because ``m(u) <= rho(u) <= rho(v) <=
m(v)``. As many drafts go one way as the other, so the priorities are again K independent uniforms.
If the draft with the largest priority is selected, a place `u` has density ``(1 - theta) m(u) +
theta m(v) = rho(u)``, and `v` has ``(1 - theta') m(v) + theta' m(u) = rho(v)``. That is `r`.

With K = 1, ``m = 1``, `f` is the total variation and ``r = p``: no place is exchanged. Tokens with
equal ratios have equal `rho`, so their order does not matter.

**Acceptance.** The selected draft is emitted with probability ``1 - f``, and no verification emits
one of the drafts more often. So the acceptance is ``1 - f``, and a rejected draft is never replaced
by another draft of the list.

**Kernel** for the planner. An emitted token `y` is therefore the selected draft, or not in the list
at all. If it was selected with priority `v`, the other priorities are independent and uniform on
[0, v]; each is that of another `y` or of another token. The integral over the priorities of `y` is
a sum over places in its interval.

**How exact.** In float32 the selected draft has a distribution that differs slightly from the `r`
of the acceptance test. The bias of the emitted token is at most the total variation between these
two. Measured on 500 problems of 6 to 300 tokens at K = 2, 4, 8 (Dirichlet of 0.1 and 1, softmax of
normal logits near and far, next-token distributions after a top-k of 50), it was 2.6e-7 in the
median and 3.8e-5 at most, and the acceptance was off the optimum by 1.1e-7 in the median, 2.2e-6 at
the 99th percentile and 1.2e-5 at most. These figures include the error of the numerical integration
that measured them (``python -m experiments bench schemes``). Errors grow in proportion to K,
because ``u^K`` multiplies those of `u` by K; a test bounds the bias at K = 1,000 by 1e-4.

**How far.** All drafts must have one distribution, which the drafter must supply. If distributions
differ, the sets `H` have no order, and the optimum is a linear program over all of them:
:func:`gls_jax.decomposition.best_selection`, up to 12 tokens, which is also the oracle of the tests
here. `weighted_importance` and `specinfer` take such drafts at any size.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax.scipy.special import xlogy
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
    # Which drafts are active says nothing about their tokens: the J active ones are still i.i.d.
    num_active = jnp.maximum(jnp.sum(active), 1).astype(log_q.dtype)
    ranked = ratio_order(log_p, log_q)
    ratios = clip_ratios(ranked, num_active)

    # Select the active draft with the largest priority.
    layout = lay_out(ranked, ratios, num_active)
    indices = index_in(ranked.order)[drafts]
    uniforms = races.uniforms(selection_key, 2 * drafts.shape[0]).astype(log_q.dtype)
    priorities = draw_priorities(layout, indices, uniforms.reshape(2, -1))
    selected = drafts[jnp.argmax(jnp.where(active, priorities, -1))]

    # Its distribution r is q, clipped.
    p = races.weights(log_p)
    selected_p = jnp.clip(races.weights(log_q), ratios.sigma * p, ratios.tau * p)
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
    # Category 0 is the emitted token y. The midpoint rule over its interval:
    indices = jnp.broadcast_to(index_in(ranked.order)[0], (_KERNEL_PLACES,))
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
        prob_y_below = jnp.cumsum(probs) - probs / 2
        prob_other_below = jnp.maximum(priorities - prob_y_below, 0)
        # One draft is y with this priority, and all others are below: n of them y, a binomial
        # probability. A factor J, which draft it is, cancels below.
        num_others = num_active - 1
        log_ways = [math.log(math.comb(num_others, n)) for n in range(num_active)]
        num_y = jnp.arange(num_active, dtype=q.dtype)[:, None]
        log_weights = jnp.asarray(log_ways, q.dtype)[:, None]
        log_weights += xlogy(num_y, prob_y_below) + xlogy(num_others - num_y, prob_other_below)
        weights = jnp.sum(probs * jnp.exp(log_weights), axis=1)
        shares = weights / jnp.maximum(jnp.sum(weights), _LEAST)
        # The emitted y was the selected draft with this probability, or else is not in the list.
        prob_selected = jnp.minimum(1, ratios.tau * quotient(p[0], q[0]))
        counts = jnp.append(1 - prob_selected, prob_selected * shares)
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

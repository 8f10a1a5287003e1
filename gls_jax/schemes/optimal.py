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

**How exact.** `r` is known before it is drawn from, so errors of the priorities are the only bias:
rounding in float32.

**How far.** All drafts must have one distribution, which the drafter must supply. If distributions
differ, the sets `H` have no order, and the optimum is a linear program over all of them:
:func:`gls_jax.decomposition.best_selection`, up to 12 tokens, which is also the oracle of the tests
here. `weighted_importance` and `specinfer` take such drafts at any size.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from gls_jax import bounds, races
from gls_jax.exact.ratio_order import ratio_order
from gls_jax.rejection import maximal_coupling
from gls_jax.schemes.array_types import Acceptances, Active, DraftLogProbs, Drafts, Token, Vector
from gls_jax.schemes.function_types import ExactAcceptance, TokenVerification
from gls_jax.schemes.gls import propose  # K independent races
from gls_jax.schemes.priorities import clip_ratios, draw_priorities, lay_out
from gls_jax.schemes.scheme import Scheme

__all__ = ["SCHEME", "acceptance", "propose", "verify"]


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
    indices = jnp.argmax(ranked.order == drafts[:, None], axis=1)
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


SCHEME = Scheme(
    name="optimal",
    invariance="none",
    max_drafts=None,
    needs_draft_probs=True,
    diverse=False,
    ranked=False,
    propose_fn=propose,
    verification=TokenVerification(verify),
    exact=ExactAcceptance(acceptance),
)

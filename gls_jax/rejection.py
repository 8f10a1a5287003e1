"""Recursive rejection sampling, the base of every scheme with a ratio test.

Drafts ``x_1, x_2, ...`` are tested one after another, `x_k` drawn from `p_k`. After any number of
rejections the emitted token must have the distribution ``(q - s)+ / Z(s)``, ``Z(s) = sum_i (q_i -
s_i)+``, where `s` is the *used mass*, in code `used`:

    accept x with probability min(1, (q - s)_x+ / (Z(s) p_k(x))),
    on rejection              s <- s + Z(s) p_k.

A test rejects with probability ``Z(s') / Z(s)``, so all reject with probability `Z(s)` at the end.
A rejected draft has ``(q - s')_x = 0`` afterwards. So the residual never emits it, and the
acceptance is exactly ``sum_i min(q_i, s_i)``.

The noise comes from :func:`gls_jax.races.private_key`. Tests that shared noise with the proposal
would bias the output.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from gls_jax import races
from gls_jax.loops import varying_like

__all__ = ["maximal_coupling", "recursive_rejection", "residual", "residual_token"]


def residual(
    q: Float[Array, " N"],
    used: Float[Array, "#N"],
) -> tuple[Float[Array, " N"], Float[Array, ""]]:
    """The residual ``(q - s)+`` and its sum `Z(s)`."""
    weights = jnp.maximum(q - used, 0)
    return weights, jnp.sum(weights)


def residual_token(
    key: PRNGKeyArray,
    weights: Float[Array, " N"],
    log_q: Float[Array, " N"],
) -> Int[Array, ""]:
    """A sample of the residual; of `q` where the residual is 0, which only rounding can cause."""
    noise = races.exponentials(key, 1, log_q.shape[0])[0]
    log_weights = jnp.where(jnp.max(weights) > 0, jnp.log(weights), log_q)
    return races.winner(races.arrivals(noise, log_weights))


def recursive_rejection(
    key: PRNGKeyArray,
    drafts: Int[Array, " K"],
    log_p: Float[Array, "*k N"],
    log_q: Float[Array, " N"],
    active: Bool[Array, " K"],
    *,
    without_replacement: bool = False,
) -> tuple[Int[Array, ""], Bool[Array, " K"]]:
    """Test the drafts in order; emit the first accepted one, or else a sample of the residual.

    Without replacement, `p_k` is `p` on the tokens that no earlier draft was, active or not. A
    draft that is impossible under `p_k` is not tested: it fills up a list that is longer than the
    distribution has tokens.

    Returns:
        The token `i32[]`, and `bool[K]`: whether one of the first 1, 2, ... K drafts was accepted.
        Neither tests nor noise depend on later drafts, so this is one trial for every list length.
    """
    p = races.weights(log_p)
    q = races.weights(log_q)
    # Independent of the proposal, and of each other.
    test_key, residual_key = races.split_key(races.private_key(key))
    uniforms = races.uniforms(test_key, drafts.shape[0])

    def test(state, draft):
        used, remaining_p, token = state
        k, x, uniform, is_active = draft
        # The distribution that this draft was drawn from.
        if without_replacement:
            p_k = remaining_p / jnp.sum(remaining_p)
            remaining_p = remaining_p.at[x].set(0)
        else:
            p_k = p if p.ndim == 1 else p[k]
        is_tested = is_active & (token < 0) & (p_k[x] > 0)
        # The test of the module's docstring, multiplied by Z(s) p_k(x).
        weights, total = residual(q, used)
        is_accepted = is_tested & (uniform * total * p_k[x] < weights[x])
        token = jnp.where(is_accepted, x, token)
        # An accepted draft changes it as well, but then nothing reads it any more.
        used = jnp.where(is_tested, used + total * p_k, used)
        return (used, remaining_p, token), token >= 0

    # Token -1 means that no draft is accepted yet.
    remaining_p = p if without_replacement else jnp.zeros(())
    start = (jnp.zeros_like(q), remaining_p, jnp.int32(-1))
    start = varying_like(start, key, drafts, p, q, active)
    tests = (jnp.arange(drafts.shape[0]), drafts, uniforms, active)
    (used, _, token), accepted = jax.lax.scan(test, start, tests)
    # The residual is emitted only if all drafts are rejected.
    weights, _ = residual(q, used)
    fresh_token = residual_token(residual_key, weights, log_q)
    return jnp.where(token >= 0, token, fresh_token).astype(jnp.int32), accepted


def maximal_coupling(
    key: PRNGKeyArray,
    draft: Int[Array, ""],
    p: Float[Array, " N"],
    log_q: Float[Array, " N"],
    active: bool | Bool[Array, ""] = True,
) -> Int[Array, ""]:
    """The maximal coupling: speculative sampling of `q` against one draft from `p`.

    If the draft is not `active`, the result is a fresh sample of `q`.
    """
    q = races.weights(log_q)
    test_key, residual_key = races.split_key(races.private_key(key))
    # Accept with probability min(1, q / p), written without a division.
    uniform = races.uniforms(test_key, 1)[0]
    is_accepted = active & (p[draft] > 0) & (uniform * p[draft] < q[draft])
    # Without an active draft nothing is used, and the residual is all of q.
    weights, _ = residual(q, jnp.where(active, p, 0))
    fresh_token = residual_token(residual_key, weights, log_q)
    return jnp.where(is_accepted, draft, fresh_token).astype(jnp.int32)

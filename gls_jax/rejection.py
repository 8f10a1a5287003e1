"""What a refusal leaves: the one recursion behind every scheme with a ratio test.

Drafts ``x_1, x_2, ...`` are tested one after another, `x_k` drawn from `p_k`. Whatever was refused
before, the law that the emitted token must still have is ``(q - s)+ / Z(s)``, ``Z(s) = sum_i (q_i -
s_i)+``, where `s` is what has been *spent*:

    accept x with probability min(1, (q - s)_x+ / (Z(s) p_k(x))),   when refused   s <- s + Z(s) p_k.

A test refuses with probability ``Z(s') / Z(s)``, so all refuse with probability `Z(s)` at the end.
A refused draft has ``(q - s')_x = 0`` from then on: the residual can never emit one, and acceptance
is exactly ``sum_i min(q_i, s_i)``.

The noise comes from :func:`gls_jax.races.private_key`: tests that share noise with the proposal
bias the output.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from gls_jax import races
from gls_jax.loops import varying_like

__all__ = ["maximal_coupling", "recursive_rejection", "residual", "residual_token"]


def residual(
    q: Float[Array, " N"], spent: Float[Array, "#N"]
) -> tuple[Float[Array, " N"], Float[Array, ""]]:
    """``(q - s)+`` and its sum `Z(s)`."""
    rest = jnp.maximum(q - spent, 0)
    return rest, jnp.sum(rest)


def residual_token(
    key: PRNGKeyArray, rest: Float[Array, " N"], log_q: Float[Array, " N"]
) -> Int[Array, ""]:
    """A sample of ``rest``; of `q` where nothing rests, which only rounding can bring about."""
    clocks = races.exponentials(key, 1, log_q.shape[0])[0]
    log_rest = jnp.where(jnp.max(rest) > 0, jnp.log(rest), log_q)
    return races.winner(races.arrivals(clocks, log_rest))


def recursive_rejection(
    key: PRNGKeyArray,
    drafts: Int[Array, " K"],
    log_p: Float[Array, "*k N"],
    log_q: Float[Array, " N"],
    active: Bool[Array, " K"],
    *,
    without_replacement: bool = False,
) -> tuple[Int[Array, ""], Bool[Array, " K"]]:
    """Test the drafts in turn: the first accepted one, or a sample of what is left; and by which
    draft it was found.

    Without replacement `p_k` is `p` on the items that no earlier draft was, also where that draft
    is out of play. A draft that is impossible under `p_k` is passed over: it fills up a list longer
    than its law has items.

    Returns:
        The token, and for every `k` whether one of the first `k` drafts was accepted. Neither tests
        nor noise know of later drafts, so that is one trial for every list length.
    """
    p, q = races.weights(log_p), races.weights(log_q)
    test_key, residual_key = races.split_key(races.private_key(key))
    uniforms = races.uniforms(test_key, drafts.shape[0])

    def test(carry, draft):
        spent, pool, token = carry
        k, x, uniform, live = draft
        law = pool / jnp.sum(pool) if without_replacement else p if p.ndim == 1 else p[k]
        live = live & (token < 0) & (law[x] > 0)
        rest, total = residual(q, spent)
        token = jnp.where(live & (uniform * total * law[x] < rest[x]), x, token)
        spent = jnp.where(live, spent + total * law, spent)
        return (spent, pool.at[x].set(0) if without_replacement else pool, token), token >= 0

    start = (
        jnp.zeros_like(q),
        p if without_replacement else jnp.zeros(()),
        jnp.array(-1, jnp.int32),
    )
    start = varying_like(start, key, drafts, p, q, active)
    each = (jnp.arange(drafts.shape[0]), drafts, uniforms, active)
    (spent, _, token), found = jax.lax.scan(test, start, each)
    fresh = residual_token(residual_key, residual(q, spent)[0], log_q)
    return jnp.where(token >= 0, token, fresh).astype(jnp.int32), found


def maximal_coupling(
    key: PRNGKeyArray,
    draft: Int[Array, ""],
    law: Float[Array, " N"],
    log_q: Float[Array, " N"],
    live: bool | Bool[Array, ""] = True,
) -> Int[Array, ""]:
    """The maximal coupling: speculative sampling of `q` against one draft from `law` (if not
    `live`: none).
    """
    q = races.weights(log_q)
    test_key, residual_key = races.split_key(races.private_key(key))
    accept = live & (law[draft] > 0) & (races.uniforms(test_key, 1)[0] * law[draft] < q[draft])
    fresh = residual_token(residual_key, residual(q, jnp.where(live, law, 0))[0], log_q)
    return jnp.where(accept, draft, fresh).astype(jnp.int32)

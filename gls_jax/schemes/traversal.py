"""Traversal verification of a tree, deepest leaves first (Weng et al. 2025, arXiv 2505.12398).

Each context carries a weight `w`, the probability that something at or below it is to be accepted;
the root has 1. The tree is served depth first. At a context with draft law `p`, target `q` and
siblings already refused of mass ``1 - m``, the law still to be served is ``(q - u p)+ / Z(u)``
(:mod:`gls_jax.rejection`), and the next child `x` gets

    w_x = min(1, w m (q_x - u p_x)+ / (Z(u) p_x)).

When all below it is refused, the context is left with

    u' = u + Z(u) / (w m),   S = w Z(u') / Z(u),   w' = S / (S + 1 - w),

and once it has no child left it is accepted with probability `w`, the next token drawn from what it
has to serve. On one chain that is block verification, at depth one SpecInfer without replacement.
Siblings are the ranks of one race, as in ``specinfer_wor``; the drafter must supply its law. At
most ``2 n + 1`` steps, of which `n` touch a whole law.

Which node is accepted tells about the drafts below and beside it. So branches must not share
clocks, and none may serve again in the next round: :meth:`gls_jax.schemes.Scheme.draft_key` knows.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from gls_jax import races
from gls_jax.loops import varying_like
from gls_jax.rejection import residual, residual_token
from gls_jax.schemes.draft_tree import Path, Tree, path_to
from gls_jax.schemes.gumbel_topk import propose  # the ranks of one race
from gls_jax.schemes.scheme import PathVerification, Scheme
from gls_jax.typing import Index

__all__ = ["SCHEME", "propose", "verify_tree"]


class _State(NamedTuple):
    here: Int[Array, ""]  # the context being served
    accepted: Bool[Array, ""]
    waiting: Bool[Array, " n"]  # nodes not served yet
    weight: Float[Array, " c"]  # and below, of every context: w, u, Z(u), m
    spent: Float[Array, " c"]
    left: Float[Array, " c"]
    mass: Float[Array, " c"]


def verify_tree(
    key: PRNGKeyArray,
    position: Index,
    tree: Tree,
    log_p: Float[Array, "n N"],
    log_q: Float[Array, "c N"],
) -> Path:
    test_key, residual_key = races.split_key(races.private_key(races.position_key(key, position)))
    size = tree.tokens.shape[0]
    uniforms = races.uniforms(test_key, size + 1)

    def step(state: _State) -> _State:
        child = state.waiting & (tree.parents == state.here)
        leaf = ~jnp.any(child) | (state.weight[state.here] <= 0)
        accept = leaf & ((state.here == 0) | (uniforms[state.here] < state.weight[state.here]))
        branch = jnp.where(accept, 0, jnp.where(leaf, 1, 2))
        return jax.lax.switch(branch, (_accept, _retreat, _descend), state, child)

    def _accept(state, child):
        return state._replace(
            accepted=~state.accepted
        )  # the loop goes on only while nothing is accepted

    def _descend(state, child):
        node = jnp.argmin(jnp.where(child, tree.draft_index, tree.list_size)).astype(jnp.int32)
        x, here = tree.tokens[node], state.here
        p, q = races.weights(log_p[node, x]), races.weights(log_q[here, x])
        # A list longer than its law is filled up with repetitions: they were drawn from nothing,
        # and are passed over.
        earlier = tree.alive & ~state.waiting & (tree.parents == here)
        again = jnp.any(earlier & (tree.tokens == x))
        # The law of a rank is known only if all ranks before it are.
        ranked = tree.draft_index[node] == jnp.sum(earlier)
        possible = (p > 0) & ~again & ranked & (state.mass[here] > 0)
        rest = state.weight[here] * state.mass[here] * jnp.maximum(q - state.spent[here] * p, 0)
        share = state.left[here] * p
        chance = jnp.where(rest < share, rest / jnp.where(share > 0, share, 1), 1)
        return state._replace(
            here=jnp.where(possible, node + 1, here),
            waiting=state.waiting.at[node].set(False),
            weight=state.weight.at[node + 1].set(jnp.where(possible, chance, 0)),
        )

    def _retreat(state, child):
        node = state.here - 1
        parent = tree.parents[node]
        p, q = races.weights(log_p[node]), races.weights(log_q[parent])
        weight, left = state.weight[parent], state.left[parent]
        spent = state.spent[parent] + left / (weight * state.mass[parent])
        after = residual(q, spent * p)[1]
        served = weight * after / jnp.where(left > 0, left, 1)
        total = served + 1 - weight
        refused = tree.alive & ~state.waiting & (tree.parents == parent)
        pool = p.at[jnp.where(refused, tree.tokens, p.shape[0])].set(0, mode="drop")
        return state._replace(
            here=parent,
            weight=state.weight.at[parent].set(
                jnp.where(total > 0, served / jnp.where(total > 0, total, 1), 1)
            ),
            spent=state.spent.at[parent].set(spent),
            left=state.left.at[parent].set(after),
            mass=state.mass.at[parent].set(jnp.sum(pool)),
        )

    one = jnp.ones(size + 1, log_q.dtype)
    start = _State(jnp.array(0, jnp.int32), jnp.array(False), tree.alive, one, one * 0, one, one)
    start = varying_like(start, key, position, tree, log_p, log_q)
    end = jax.lax.while_loop(lambda state: ~state.accepted, step, start)
    # Without children nothing is spent, and it does not matter which law multiplies the zero.
    p = races.weights(log_p[jnp.argmax(tree.alive & (tree.parents == end.here))])
    rest, _ = residual(races.weights(log_q[end.here]), end.spent[end.here] * p)
    return path_to(tree, end.here - 1, residual_token(residual_key, rest, log_q[end.here]))


SCHEME = Scheme(
    name="traversal",
    invariance="none",
    max_drafts=None,
    needs_draft_probs=True,
    diverse=False,
    ranked=True,
    propose_fn=propose,
    verification=PathVerification(verify_tree),
)

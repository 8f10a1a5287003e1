"""Traversal verification of a tree, deepest leaves first.

Source: Weng et al. 2025, arXiv 2505.12398.

The root and every node carry a weight `w`, the probability that something at or below it is to be
accepted; the root has 1. The tree is traversed depth first. At a node with draft distribution `p`,
target distribution `q` and rejected children of draft mass ``1 - m``, the residual distribution
is ``(q - u p)+ / Z(u)`` (:mod:`gls_jax.rejection`), and the next child `x` gets

    w_x = min(1, w m (q_x - u p_x)+ / (Z(u) p_x)).

When everything below that child is rejected, the node is left with

    u' = u + Z(u) / (w m),   S = w Z(u') / Z(u),   w' = S / (S + 1 - w),

and once it has no child left it is accepted with probability `w`; the next token is a sample of
its residual. On one chain this is block verification, at depth one SpecInfer without
replacement. Siblings are the ranks of one race, as in ``specinfer_wor``; the drafter must supply
its distribution. The traversal takes at most ``2 n + 1`` steps, of which `n` read whole
distributions.

Which node is accepted tells something about the drafts below it and its siblings. So branches must
not share noise, and no noise may be used again in the next round: see
:meth:`gls_jax.schemes.Scheme.draft_key`.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from gls_jax import races
from gls_jax.loops import varying_like
from gls_jax.rejection import residual, residual_token
from gls_jax.schemes.array_types import (
    BoolScalar,
    IntScalar,
    NodeFlags,
    NodeLogProbs,
    RowLogProbs,
    RowValues,
)
from gls_jax.schemes.division import quotient
from gls_jax.schemes.draft_tree import ROOT, Path, Tree, node_of_row, row_of_node
from gls_jax.schemes.function_types import PathVerification
from gls_jax.schemes.gumbel_topk import propose  # the ranks of one race
from gls_jax.schemes.scheme import Scheme
from gls_jax.schemes.tree_walk import path_to
from gls_jax.typing import Index

__all__ = ["SCHEME", "propose", "verify_tree"]


class _Round(NamedTuple):
    """The data that do not change during the traversal."""

    tree: Tree
    log_p: NodeLogProbs
    log_q: RowLogProbs
    uniforms: RowValues  # one test for the root and every node


class _State(NamedTuple):
    """The current row of the traversal, and the data of every row (the root and the nodes)."""

    row: IntScalar  # the row that is visited
    is_accepted: BoolScalar  # whether that row is the end of the accepted path
    is_waiting: NodeFlags  # nodes that were not visited yet
    weight: RowValues  # w
    used: RowValues  # u
    left: RowValues  # Z(u)
    pool: RowValues  # m


def verify_tree(
    key: PRNGKeyArray,
    position: Index,
    tree: Tree,
    log_p: NodeLogProbs,
    log_q: RowLogProbs,
) -> Path:
    private_key = races.private_key(races.position_key(key, position))
    test_key, residual_key = races.split_key(private_key)
    num_rows = log_q.shape[0]
    this_round = _Round(tree, log_p, log_q, uniforms=races.uniforms(test_key, num_rows))

    ones = jnp.ones(num_rows, log_q.dtype)
    start = _State(
        row=jnp.array(ROOT, jnp.int32),
        is_accepted=jnp.array(False),
        is_waiting=tree.alive,
        weight=ones,
        used=ones * 0,
        left=ones,
        pool=ones,
    )
    start = varying_like(start, key, position, tree, log_p, log_q)
    end = jax.lax.while_loop(lambda state: ~state.is_accepted, partial(_step, this_round), start)

    # Siblings share their draft distribution: it is that of any child. Without children nothing is
    # used, and it does not matter which distribution the zero multiplies.
    any_child = jnp.argmax(tree.alive & (tree.parents == end.row))
    p = races.weights(log_p[any_child])
    q = races.weights(log_q[end.row])
    left, _ = residual(q, end.used[end.row] * p)
    token = residual_token(residual_key, left, log_q[end.row])
    return path_to(tree, node_of_row(end.row), token)


def _step(this_round: _Round, state: _State) -> _State:
    """Visit the next child; without one accept the row, or reject it and go back to its parent."""
    is_child = state.is_waiting & (this_round.tree.parents == state.row)
    weight = state.weight[state.row]
    is_leaf = ~jnp.any(is_child) | (weight <= 0)
    passes = (state.row == ROOT) | (this_round.uniforms[state.row] < weight)
    branch = jnp.where(is_leaf & passes, 0, jnp.where(is_leaf, 1, 2))
    branches = [partial(action, this_round) for action in (_accept, _reject, _descend)]
    return jax.lax.switch(branch, branches, state, is_child)


def _accept(this_round: _Round, state: _State, is_child: NodeFlags) -> _State:
    # False so far. Unlike a constant, its negation varies over the same devices (`shard_map`).
    return state._replace(is_accepted=~state.is_accepted)


def _descend(this_round: _Round, state: _State, is_child: NodeFlags) -> _State:
    """Go to the child of the lowest rank and give it a weight, or pass it over."""
    tree, row = this_round.tree, state.row
    rank = jnp.where(is_child, tree.draft_index, tree.list_size)
    child = jnp.argmin(rank).astype(jnp.int32)
    token = tree.tokens[child]
    p_x = races.weights(this_round.log_p[child, token])
    q_x = races.weights(this_round.log_q[row, token])

    # A list that is longer than the number of possible tokens ends with repetitions. They were
    # drawn from nothing, and are passed over.
    is_earlier = tree.alive & ~state.is_waiting & (tree.parents == row)
    is_repetition = jnp.any(is_earlier & (tree.tokens == token))
    # The distribution of a rank is known only if the tree has all ranks before it.
    has_all_before = tree.draft_index[child] == jnp.sum(is_earlier)
    is_possible = (p_x > 0) & ~is_repetition & has_all_before & (state.pool[row] > 0)

    # w_x = min(1, w m (q_x - u p_x)+ / (Z(u) p_x)).
    left_x = jnp.maximum(q_x - state.used[row] * p_x, 0)
    target_mass = state.weight[row] * state.pool[row] * left_x
    draft_mass = state.left[row] * p_x
    weight = jnp.where(target_mass < draft_mass, quotient(target_mass, draft_mass), 1)
    child_row = row_of_node(child)
    return state._replace(
        row=jnp.where(is_possible, child_row, row),
        is_waiting=state.is_waiting.at[child].set(False),
        weight=state.weight.at[child_row].set(jnp.where(is_possible, weight, 0)),
    )


def _reject(this_round: _Round, state: _State, is_child: NodeFlags) -> _State:
    """Go back to the parent, and update its residual."""
    tree = this_round.tree
    node = node_of_row(state.row)
    parent = tree.parents[node]
    p = races.weights(this_round.log_p[node])
    q = races.weights(this_round.log_q[parent])

    # u', S and w' of the parent.
    weight = state.weight[parent]
    left = state.left[parent]
    used = state.used[parent] + left / (weight * state.pool[parent])
    _, left_after = residual(q, used * p)
    s = quotient(weight * left_after, left)
    total = s + 1 - weight
    weight_after = jnp.where(total > 0, quotient(s, total), 1)

    # The pool without the rejected children.
    is_rejected = tree.alive & ~state.is_waiting & (tree.parents == parent)
    rejected = jnp.where(is_rejected, tree.tokens, p.shape[0])
    pool = p.at[rejected].set(0, mode="drop")
    return state._replace(
        row=parent,
        weight=state.weight.at[parent].set(weight_after),
        used=state.used.at[parent].set(used),
        left=state.left.at[parent].set(left_after),
        pool=state.pool.at[parent].set(jnp.sum(pool)),
    )


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

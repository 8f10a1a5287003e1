"""From one position to trees: the walk that verifies token by token, and accepted paths."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PRNGKeyArray

from gls_jax import races, work_shape
from gls_jax.loops import varying_like
from gls_jax.schemes.array_types import (
    BoolScalar,
    IntScalar,
    NodeLogProbs,
    RowLogProbs,
    Token,
    Vector,
)
from gls_jax.schemes.draft_tree import ROOT, Path, Tree, node_of_row
from gls_jax.schemes.function_types import PathVerification, Verify
from gls_jax.typing import Index

if TYPE_CHECKING:
    from gls_jax.schemes.scheme import Scheme

__all__ = ["path_to", "token_without_drafts", "walk"]


class _WalkState(NamedTuple):
    """The state of the walk: the accepted nodes at one depth, which all have the same token."""

    accepted_rows: Bool[Array, " n+1"]  # at first the root's row alone
    last_node: IntScalar  # the first of them as a node; -1 for the root
    depth: IntScalar
    token: Token  # the last token of `verify`
    is_accepted: BoolScalar  # whether that was the token of a child


def walk(
    key: PRNGKeyArray,
    position: Index,
    tree: Tree,
    log_p: NodeLogProbs,
    log_q: RowLogProbs,
    verify: Verify,
    diverse: bool,
) -> Path:
    """Verify a tree token by token, from the root down.

    The children of the node that was accepted last are the list, each at its draft index. Nodes
    that repeat one another are accepted together, and the children of all of them make up one list.
    At a leaf no draft is active, and the scheme emits its token as it does without drafts.

    Args:
        key: of the request; position `t` uses ``position_key(key, t)``.
        position: absolute position of the first token that the tree proposes.
        tree: the drafts.
        log_p: `[n, N]`, the distribution each node was drafted from.
        log_q: `[n + 1, N]`, the target's log-probabilities after each row's text.
        verify: verification of one position.
        diverse: whether `verify` takes `log_p` of shape `[K, N]` instead of `[N]`.
    """
    num_nodes = tree.tokens.shape[0]

    def step(state: _WalkState) -> _WalkState:
        # The children make up the list; all other nodes get an index that is dropped.
        is_child = tree.alive & state.accepted_rows[tree.parents]
        index = jnp.where(is_child, tree.draft_index, tree.list_size)
        # Node of each draft. A draft index without a node is not active; any child fills it.
        listed = jnp.full(tree.list_size, jnp.argmax(is_child))
        listed = listed.at[index].set(jnp.arange(num_nodes), mode="drop")
        active = jnp.zeros(tree.list_size, bool).at[index].set(True, mode="drop")

        token = verify(
            races.position_key(key, position + state.depth),
            tree.tokens[listed],
            log_p[listed] if diverse else log_p[listed][0],
            log_q[jnp.argmax(state.accepted_rows)],
            active,
        )
        is_match = is_child & (tree.tokens == token)
        is_accepted = jnp.any(is_match)
        first_match = jnp.argmax(is_match).astype(jnp.int32)
        return _WalkState(
            accepted_rows=jnp.append(False, is_match),
            last_node=jnp.where(is_accepted, first_match, state.last_node),
            depth=state.depth + is_accepted.astype(jnp.int32),
            token=token,
            is_accepted=is_accepted,
        )

    start = _WalkState(
        accepted_rows=jnp.arange(num_nodes + 1) == ROOT,
        last_node=jnp.array(-1, jnp.int32),
        depth=jnp.array(0, jnp.int32),
        token=jnp.array(0, jnp.int32),
        is_accepted=jnp.array(True),
    )
    start = varying_like(start, key, position, tree, log_p, log_q)

    def while_accepted(start: _WalkState) -> _WalkState:
        return jax.lax.while_loop(lambda state: state.is_accepted, step, start)

    end = work_shape.by_platform(while_accepted, partial(_at_every_depth, step, tree.depth), start)
    return path_to(tree, end.last_node, end.token)


def _at_every_depth(
    step: Callable[[_WalkState], _WalkState], depth: int, start: _WalkState
) -> _WalkState:
    """The walk in a fixed number of steps: a condition would be read by the host in each.

    Steps after the last acceptance change nothing.
    """

    def step_if_accepted(state: _WalkState, _):
        def if_accepted(new, old):
            return jnp.where(state.is_accepted, new, old)

        return jax.tree.map(if_accepted, step(state), state), None

    return jax.lax.scan(step_if_accepted, start, None, length=depth + 1)[0]


def path_to(tree: Tree, last_node: IntScalar, token: Token) -> Path:
    """The path from the root to `last_node` (-1: the empty path), followed by `token`."""

    def to_parent(node, _):
        parent = jnp.where(node >= 0, node_of_row(tree.parents[node]), -1)
        return parent, node

    start = varying_like(last_node.astype(jnp.int32), tree)
    unroll = max(tree.depth, 1)
    _, upward = jax.lax.scan(to_parent, start, None, length=tree.depth, unroll=unroll)
    length = jnp.sum(upward >= 0, dtype=jnp.int32)
    # Upward the path ends with -1s above the root; reversed, they come last.
    depth = jnp.arange(tree.depth, dtype=jnp.int32)
    downward = upward[jnp.maximum(length - 1 - depth, 0)]
    nodes = jnp.where(depth < length, downward, -1)
    return Path(
        nodes=nodes.astype(jnp.int32),
        length=length.astype(jnp.int32),
        token=token.astype(jnp.int32),
    )


def token_without_drafts(
    key: PRNGKeyArray, position: Index, log_q: Vector, scheme: Scheme, list_size: int
) -> Token:
    """Plain generation: the token that follows a text after which nothing was drafted."""
    if isinstance(scheme.verification, PathVerification):
        # There is nothing to verify, so a draft from the target's own distribution will do.
        root_key = scheme.draft_key(key, position, position, ROOT)
        return scheme.propose_fn(root_key, log_q, 1)[0]
    drafts = jnp.zeros(list_size, jnp.int32)
    none_active = drafts > 0
    log_p = jnp.tile(log_q, (list_size, 1)) if scheme.diverse else log_q
    position_key = races.position_key(key, position)
    return scheme.verification.verify(position_key, drafts, log_p, log_q, none_active)

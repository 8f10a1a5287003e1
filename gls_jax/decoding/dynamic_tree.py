"""Drafting a dynamic tree: the drafter reads, and the target verifies, the most probable nodes.

:class:`gls_jax.decoding.tree_shape.DynamicTree` explains the method. At every node that the drafter
reads, the root first, it makes a *list* of M candidates. A rule says which tokens they are and how
probably the target emits each. The next call reads the F most probable candidates that no call has
read, wherever they are. When no unread candidate could have a child among the most probable ones,
or at the limit of the depth, reading ends, and the most probable candidates of all lists become the
tree. So a path that grows improbable leaves its nodes to the others, and the number of calls
depends on the round.

Lists are stored in the order in which they were made, in arrays of fixed size. A candidate's number
is its index among the candidates of all lists.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gls_jax.decoding.drafting import DrafterState, read_level, read_root
from gls_jax.decoding.state import Caches, Drafts, EngineConfig, Requests, Text
from gls_jax.decoding.tree_shape import DynamicTree
from gls_jax.loops import varying_like
from gls_jax.schemes import Tree

__all__ = ["CandidateRule", "Candidates", "Lists", "draft_dynamic_tree"]

# Tree nodes that stand for the root, and for a candidate that is not in the tree.
_ROOT = -1
_NOT_IN_TREE = -2


class Candidates(NamedTuple):
    """The candidates at some nodes, what a rule gives.

    Attributes:
        tokens: `i32[B, F, M]`.
        log_prob: `f32[B, F, M]`, estimated log-probability that the target emits each after its
            node, decreasing; `-inf` where there is none.
        evidence: what the estimate rests on, leaves `[B, F, ...]`; None if nothing is learned.
    """

    tokens: Array
    log_prob: Array
    evidence: Any


CandidateRule: TypeAlias = Callable[[Float[Array, "B F V"], Any, Int[Array, "B F"]], Candidates]
"""From logits after F nodes, the tokens seen there, and the nodes' depths (0 for the root)."""


class Lists(NamedTuple):
    """The lists of a round, E at most.

    Attributes:
        candidates: leaves `[B, E, ...]`. The log-probabilities are those of whole paths.
        depths: `i32[B, E]`, depth of the node of each list; 0 for the root.
        parents: `i32[B, E]`, number of the candidate that is the node.
        is_ancestor: `bool[B, E, E]`, whether the node of the second list is on the path to the
            first's, itself included.
        is_read: `bool[B, E, M]`, which candidates are nodes of lists.
    """

    candidates: Candidates
    depths: Array
    parents: Array
    is_ancestor: Array
    is_read: Array


class _Search(NamedTuple):
    """A search for the most probable nodes.

    Attributes:
        lists: so far.
        num_calls: `i32[]`, calls that made them.
        calls_with_nodes: `i32[B]`, in how many of them a request had nodes to read.
        cache: the drafter's.
    """

    lists: Lists
    num_calls: Array
    calls_with_nodes: Array
    cache: Any


def draft_dynamic_tree(
    config: EngineConfig,
    requests: Requests,
    text: Text,
    drafter_caches: Caches,
    is_active: Bool[Array, " B"],
    rule: CandidateRule,
) -> tuple[Drafts, Caches]:
    """A tree of the nodes that the target will most probably emit, made by a single drafter.

    Args:
        config: its shape is a dynamic tree.
        requests: the models and their parameters.
        text: the texts so far.
        drafter_caches: that of the drafter.
        is_active: requests that have not ended; for the others no nodes are read.
        rule: makes the candidates at nodes.

    Returns:
        The drafts, and the drafter's cache after the round.
    """
    (drafter,) = requests.drafters
    (drafter_cache,) = drafter_caches
    shape = config.shape.dynamic
    assert shape is not None  # this function is for dynamic trees only

    # The first call reads the text.
    logits, state = read_root(config, drafter, drafter_cache, text)
    depths = jnp.zeros_like(text.length)[:, None]
    root = rule(logits, text.seen, depths)
    search = _Search(
        lists=_lists_of_root(shape, root),
        num_calls=jnp.int32(1),
        calls_with_nodes=jnp.ones_like(text.length),
        cache=state.cache,
    )
    search = varying_like(search, text, root, drafter_cache, requests.keys)

    # Each of the others reads the most probable candidates.
    def is_unfinished(search: _Search):
        is_waiting = jnp.isfinite(_worth_reading(shape, search.lists, is_active))
        return (search.num_calls < shape.depth) & jnp.any(is_waiting)

    def next_call(search: _Search):
        return _read_more(config, requests, text, is_active, rule, search)

    search = jax.lax.while_loop(is_unfinished, next_call, search)
    drafts = _keep_best(shape, text, search)
    return drafts, (search.cache,)


def _lists_of_root(shape: DynamicTree, root: Candidates) -> Lists:
    """Lists with that of the root, the others empty."""
    batch_size, _, num_children = root.tokens.shape
    num_lists = 1 + shape.num_read

    def with_room(leaf, empty):
        room = ((0, 0), (0, num_lists - 1)) + ((0, 0),) * (leaf.ndim - 2)
        return jnp.pad(leaf, room, constant_values=empty)

    candidates = Candidates(
        tokens=with_room(root.tokens, 0),
        log_prob=with_room(root.log_prob, -jnp.inf),
        evidence=jax.tree.map(lambda leaf: with_room(leaf, 0), root.evidence),
    )
    root_parent, no_parent = _root_and_no_parent(num_lists, num_children)
    parents = jnp.full((batch_size, num_lists), no_parent, jnp.int32).at[:, 0].set(root_parent)
    return Lists(
        candidates=candidates,
        depths=jnp.zeros((batch_size, num_lists), jnp.int32),
        parents=parents,
        is_ancestor=jnp.zeros((batch_size, num_lists, num_lists), bool),
        is_read=jnp.zeros((batch_size, num_lists, num_children), bool),
    )


def _root_and_no_parent(num_lists: int, num_children: int) -> tuple[int, int]:
    """Numbers after those of the candidates: the root as a node, and no node."""
    num_candidates = num_lists * num_children
    return num_candidates, num_candidates + 1


def _worth_reading(shape: DynamicTree, lists: Lists, is_active: Bool[Array, " B"]):
    """Log-probabilities of the candidates that are worth a read; `-inf` for the others.

    What is read for a request does not depend on the others of its batch.
    """
    log_prob = lists.candidates.log_prob
    # Children of a candidate are one deeper, and must be within the depth.
    may_be_read = ~lists.is_read & (lists.depths[..., None] + 1 < shape.depth)
    # A child is at most as probable as its parent, so it is not in the tree if the parent is behind
    # the last of the tree.
    last_kept = _largest(log_prob, shape.budget)[0][:, -1, None, None]
    may_be_read &= (log_prob > last_kept) & is_active[:, None, None]
    return jnp.where(may_be_read, log_prob, -jnp.inf)


def _read_more(
    config: EngineConfig,
    requests: Requests,
    text: Text,
    is_active: Bool[Array, " B"],
    rule: CandidateRule,
    search: _Search,
) -> _Search:
    """The F most probable candidates read, and their lists added."""
    (drafter,) = requests.drafters
    shape = config.shape.dynamic
    assert shape is not None
    lists = search.lists
    batch_size, num_lists, num_children = lists.candidates.tokens.shape
    rows = jnp.arange(batch_size)[:, None]

    # The nodes: their numbers, the lists that they are in, and how probable they are.
    log_prob, numbers = _largest(_worth_reading(shape, lists, is_active), shape.frontier)
    list_of_node = numbers // num_children
    tokens = _take(lists.candidates.tokens.reshape(batch_size, -1), numbers)
    depths = _take(lists.depths, list_of_node) + 1

    # List e > 0 is of the node in slot e - 1 after the text: nodes are written as they are read.
    first_list = 1 + (search.num_calls - 1) * shape.frontier
    new_lists_at = first_list + jnp.arange(shape.frontier)
    on_path = _take(lists.is_ancestor, list_of_node)
    is_new_list = jnp.arange(num_lists) == new_lists_at[:, None]

    # Read: each node sees the text and its ancestors.
    visible = _visible_slots(config.num_cache_slots, text, on_path)
    state = DrafterState(cache=search.cache, visible=visible)
    # To `read_level` the children of the root have depth 0.
    logits, state = read_level(drafter, state, text, depths - 1, tokens)

    on_path |= is_new_list
    # The new lists. Where fewer than F candidates are worth it, a list has no node and is empty.
    new_candidates = rule(logits, _seen_at(text, lists, new_lists_at, tokens, on_path), depths)
    path_log_prob = new_candidates.log_prob + log_prob[..., None]
    new_candidates = new_candidates._replace(log_prob=path_log_prob)
    is_node = jnp.isfinite(log_prob)
    _, no_parent = _root_and_no_parent(num_lists, num_children)

    def add(all_values, new_values):
        return jax.lax.dynamic_update_slice_in_dim(all_values, new_values, first_list, axis=1)

    is_read = lists.is_read.reshape(batch_size, -1).at[rows, numbers].max(is_node)
    new_lists = Lists(
        candidates=jax.tree.map(add, lists.candidates, new_candidates),
        depths=add(lists.depths, depths),
        parents=add(lists.parents, jnp.where(is_node, numbers, no_parent).astype(jnp.int32)),
        is_ancestor=add(lists.is_ancestor, on_path),
        is_read=is_read.reshape(lists.is_read.shape),
    )
    return _Search(
        lists=new_lists,
        num_calls=search.num_calls + 1,
        calls_with_nodes=search.calls_with_nodes + jnp.any(is_node, axis=-1).astype(jnp.int32),
        cache=state.cache,
    )


def _visible_slots(num_cache_slots: int, text: Text, on_path: Bool[Array, "B F E"]):
    """The cache slots that each new node sees, without its own, `bool[B, F, S]`."""
    num_lists = on_path.shape[-1]
    # Slot 0 after the text is that of the node of list 1.
    list_of_slot = jnp.arange(num_cache_slots) - text.length[:, None, None] + 1
    clipped = jnp.broadcast_to(
        jnp.clip(list_of_slot, 0, num_lists - 1), (*on_path.shape[:2], num_cache_slots)
    )
    is_ancestor = jnp.take_along_axis(on_path, clipped, axis=2) & (list_of_slot < num_lists)
    return (list_of_slot < 1) | is_ancestor


def _seen_at(text: Text, lists: Lists, new_lists_at, tokens, on_path):
    """Which tokens occur in the text or on the path to each of F new nodes, `bool[B, F, N]`.

    Args:
        text: its `seen` is None without a repetition penalty, and then so is the result.
        lists: of the nodes that have been read.
        new_lists_at: `i32[F]`, the lists of the new nodes.
        tokens: `i32[B, F]`, the new nodes.
        on_path: `bool[B, F, E]`, lists whose nodes are on the path to each new node, itself too.
    """
    if text.seen is None:
        return None
    batch_size, num_lists, num_children = lists.candidates.tokens.shape
    last_candidate = num_lists * num_children - 1
    candidate_tokens = lists.candidates.tokens.reshape(batch_size, -1)
    # The token of the node of each list; that of the root is arbitrary, and never on a path.
    node_tokens = _take(candidate_tokens, jnp.minimum(lists.parents, last_candidate))
    node_tokens = node_tokens.at[:, new_lists_at].set(tokens)
    rows = jnp.arange(batch_size)[:, None, None]
    nodes = jnp.arange(len(new_lists_at))[:, None]
    seen = jnp.broadcast_to(text.seen, (batch_size, len(new_lists_at), text.seen.shape[-1]))
    return seen.at[rows, nodes, node_tokens[:, None]].max(on_path)


def _keep_best(shape: DynamicTree, text: Text, search: _Search) -> Drafts:
    """The most probable candidates as a tree.

    A candidate is at most as probable as its parent and as those before it in its list, and comes
    after them. So the parents of kept candidates are kept too, and the kept ones of a list are its
    first.
    """
    lists = search.lists
    batch_size, num_lists, num_children = lists.candidates.tokens.shape
    num_candidates = num_lists * num_children
    rows = jnp.arange(batch_size)[:, None]
    # In the order of their numbers parents come first.
    log_prob, kept = _largest(lists.candidates.log_prob, shape.budget)
    order = jnp.argsort(kept, axis=-1)
    kept, log_prob = _take(kept, order), _take(log_prob, order)

    # The tree node of each candidate, and of the two numbers that are no candidates.
    root, _ = _root_and_no_parent(num_lists, num_children)
    node_of = jnp.full((batch_size, num_candidates + 2), _NOT_IN_TREE, jnp.int32)
    node_of = node_of.at[:, root].set(_ROOT)
    node_of = node_of.at[rows, kept].set(jnp.arange(shape.budget, dtype=jnp.int32))
    list_nodes = _take(node_of, lists.parents)

    # The slots of the nodes that the drafter has read.
    read_slots = text.length[:, None] + jnp.arange(num_lists - 1, dtype=jnp.int32)
    cache_slots = jnp.full((batch_size, num_candidates), -1, jnp.int32)
    cache_slots = cache_slots.at[rows, lists.parents[:, 1:]].set(read_slots, mode="drop")

    kept_lists = kept // num_children
    tree = Tree(
        tokens=_take(lists.candidates.tokens.reshape(batch_size, -1), kept),
        parents=_take(list_nodes, kept_lists) + 1,
        draft_index=kept % num_children,
        depths=_take(lists.depths, kept_lists),
        # With fewer possible candidates than the budget, nodes are left over.
        alive=jnp.isfinite(log_prob),
        depth=shape.depth,
        list_size=num_children,
    )
    return Drafts(
        tree=tree,
        log_p=None,
        cache_slots=_take(cache_slots, kept),
        # No dynamic tree is verified with the draft distributions.
        is_invalid=jnp.zeros((batch_size, shape.depth), bool),
        num_calls=search.calls_with_nodes,
        list_nodes=list_nodes,
        candidates=lists.candidates,
    )


def _largest(log_prob: Float[Array, "B E M"], count: int):
    """The `count` largest log-probabilities of each row, decreasing, and their numbers."""
    return jax.lax.top_k(log_prob.reshape(len(log_prob), -1), count)


def _take(values, indices):
    """``values[b, indices[b, c]]`` for all rows b and columns c."""
    indices = jnp.expand_dims(indices, tuple(range(2, values.ndim)))
    return jnp.take_along_axis(values, indices, axis=1)

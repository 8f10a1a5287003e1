"""Dynamic trees: the drafter chooses the nodes that the target will most probably emit.

:class:`DynamicTree` explains the method. In a round the drafter makes *candidates*, the first M
tokens of the scheme's list at every node that it reads, and the most probable of them become the
tree. A candidate's number is its index in the list of all candidates of the round, level by level.

Kinds of trees differ in one thing, how probable a candidate is at its node: see `_candidates_at`.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from gls_jax import races
from gls_jax.decoding.batch_sampling import add_tokens
from gls_jax.decoding.drafting import DrafterState, join_levels, read_level, read_root
from gls_jax.decoding.state import Caches, Drafts, EngineConfig, Requests, Text
from gls_jax.decoding.tree_shape import DynamicTree, MarginTree
from gls_jax.schemes import Path, Scheme, Tree

__all__ = ["Candidates", "draft_dynamic_tree", "initial_spread_fit", "update_spread_fit"]

TAUS = np.geomspace(0.05, 5, 24).astype(np.float32)
"""The spreads `tau` of ``log q - log p`` among which the most likely one is chosen."""
# The prior of tau is centred here, and weighs as much as a few emitted tokens.
_TYPICAL_TAU = 0.6

# Numbers that stand for no candidate or node.
_ROOT = -1
_NOT_IN_TREE = -2
_NOT_EMITTED = -3


class Candidates(NamedTuple):
    """All candidates of a round, in lists of siblings; parents come before their children.

    Attributes:
        tokens: `i32[B, E, M]`, the first M of the list at each of E nodes.
        scores: `f32[B, E, M]`, ``log p - log E`` of each in a margin tree, `log p` in a best-first
            tree; decreasing, and `-inf` where there is none.
        nodes: `i32[B, E]`, the tree node at which each list was made: -1 for the root, -2 for a
            candidate that is not in the tree.
    """

    tokens: Array
    scores: Array
    nodes: Array


class _Level(NamedTuple):
    """The candidates at the F nodes that the drafter has read in one call; F is 1 for the root.

    Attributes:
        tokens, scores: `[B, F, M]`, as in `Candidates`.
        log_prob: `f32[B, F, M]`, estimated log-probability that the target emits the path to each
            candidate; `-inf` where there is none.
        parents: `i32[B, F]`, the numbers of the candidates that were read; -1 for the root.
        is_invalid: `bool[B, 1]`, whether logits were invalid.
    """

    tokens: Array
    scores: Array
    log_prob: Array
    parents: Array
    is_invalid: Array


class _Frontier(NamedTuple):
    """The F candidates that the drafter reads next.

    Attributes:
        numbers, tokens: `i32[B, F]`.
        log_prob: `f32[B, F]`, as in `_Level`.
        seen: `bool[B, F, N]`, the tokens of the text up to each; None without a penalty.
        drafter: its state, with the slots that the F candidates see.
    """

    numbers: Array
    tokens: Array
    log_prob: Array
    seen: Array | None
    drafter: DrafterState


def initial_spread_fit(tree: DynamicTree | None, batch_size: int) -> Float[Array, "B G"] | None:
    """Log-prior of each `tau`, from which the first round starts; None if it is no margin tree."""
    if not isinstance(tree, MarginTree):
        return None
    log_prior = -4 * jnp.log(jnp.asarray(TAUS) / _TYPICAL_TAU) ** 2
    return jnp.broadcast_to(log_prior, (batch_size, len(TAUS)))


def draft_dynamic_tree(
    config: EngineConfig,
    requests: Requests,
    text: Text,
    drafter_caches: Caches,
    spread_fit: Float[Array, "B G"] | None,
) -> tuple[Drafts, Caches]:
    """A tree of the nodes that the target will most probably emit, made by a single drafter.

    Args:
        config: its shape is a dynamic tree.
        requests: the models and their parameters.
        text: the texts so far.
        drafter_caches: that of the drafter.
        spread_fit: log-likelihood of each `tau` so far; None if it is no margin tree.

    Returns:
        The drafts, and the drafter's cache after the round.
    """
    (drafter,) = requests.drafters
    (drafter_cache,) = drafter_caches
    shape = config.shape.dynamic
    assert shape is not None  # this function is for dynamic trees only
    batch_size = len(text.length)
    # The most likely spread of each request so far.
    tau = None
    if spread_fit is not None:
        tau = jnp.asarray(TAUS)[jnp.argmax(spread_fit, axis=-1)][:, None, None]

    # The candidates of the root.
    logits, state = read_root(drafter, drafter_cache, text, 2, config.num_cache_slots)
    root = _candidates_at(
        config,
        requests,
        positions=text.length,
        logits=logits,
        seen=text.seen,
        parents=jnp.full((batch_size, 1), _ROOT, jnp.int32),
        parent_log_prob=jnp.zeros((batch_size, 1), jnp.float32),
        tau=tau,
    )
    frontier = _most_probable_of(root, 0, text.seen, state, shape.frontier)

    # Below, the most probable candidates of each level are read, and their children are candidates.
    def next_level(frontier: _Frontier, depth):
        seen = frontier.seen
        logits, state = read_level(drafter, frontier.drafter, text, depth - 1, frontier.tokens)
        level = _candidates_at(
            config,
            requests,
            positions=text.length + depth,
            logits=logits,
            seen=seen,
            parents=frontier.numbers,
            parent_log_prob=frontier.log_prob,
            tau=tau,
        )
        first_number = shape.children * (1 + (depth - 1) * shape.frontier)
        frontier = _most_probable_of(level, first_number, seen, state, shape.frontier)
        return frontier, level

    depths = jnp.arange(1, shape.depth, dtype=jnp.int32)
    frontier, others = jax.lax.scan(next_level, frontier, depths)
    drafts = _keep_best(shape, text, join_levels(root, others))
    return drafts, (frontier.drafter.cache,)


def update_spread_fit(
    spread_fit: Float[Array, "B G"],
    candidates: Candidates,
    path: Path,
    tokens: Int[Array, "B L"],
    is_active: Bool[Array, " B"],
) -> Float[Array, "B G"]:
    """Log-likelihood of each `tau`, with the ranks of the tokens that this round emitted.

    Args:
        spread_fit: so far.
        candidates: of the round.
        path: the accepted nodes, leaves `[B, ...]`.
        tokens: `i32[B, depth + 1]`, the emitted tokens.
        is_active: requests whose round counts.
    """
    # The tree node at which each token was emitted, the root first; a number that no list has where
    # nothing was emitted.
    steps = jnp.arange(tokens.shape[1])
    nodes = jnp.pad(path.nodes, ((0, 0), (1, 0)), constant_values=_ROOT)
    was_emitted = (steps <= path.length[:, None]) & is_active[:, None]
    nodes = jnp.where(was_emitted, nodes, _NOT_EMITTED)

    # The token emitted at the node of each list, -1 if there is none.
    is_at_list = candidates.nodes[:, :, None] == nodes[:, None]  # [B, E, L]
    emitted = jnp.sum(jnp.where(is_at_list, tokens[:, None], 0), -1, dtype=jnp.int32)
    emitted = jnp.where(jnp.any(is_at_list, -1), emitted, -1)

    # If the target emitted one of the candidates, its probability is the likelihood of tau.
    is_emitted = (candidates.tokens == emitted[..., None]) & jnp.isfinite(candidates.scores)
    log_prob = jax.nn.log_softmax(candidates.scores[..., None] / TAUS, axis=2)
    return spread_fit + jnp.sum(jnp.where(is_emitted[..., None], log_prob, 0), axis=(1, 2))


def _candidates_at(
    config: EngineConfig,
    requests: Requests,
    *,
    positions,
    logits,
    seen,
    parents,
    parent_log_prob,
    tau,
) -> _Level:
    """The first M of the scheme's list at each node, and how probable they are.

    Args:
        config, requests: of the round.
        positions: `i32[B]`, of the candidates in the text.
        logits: `[B, F, V]`, after each node.
        seen: `bool[B, F, N]`, the tokens of the text at each node; None without a penalty.
        parents: the number of each node.
        parent_log_prob: `f32[B, F]`, estimated log-probability of the path to each node.
        tau: `f32[B, 1, 1]` in a margin tree; None in a best-first tree, where the probability of
            a candidate is its draft probability.
    """
    sampling = requests.sampling
    log_p = sampling.log_probs(logits, sampling.draft_temperature, seen)
    candidates = partial(_first_of_list, config.scheme, config.shape.list_size)
    tokens, scores = jax.vmap(candidates)(requests.keys, positions, log_p)
    log_prob = scores if tau is None else jax.nn.log_softmax(scores / tau, axis=-1)
    log_prob = parent_log_prob[..., None] + log_prob
    return _Level(
        tokens=tokens,
        scores=scores,
        log_prob=jnp.where(jnp.isfinite(scores), log_prob, -jnp.inf),
        parents=parents,
        is_invalid=jnp.isnan(log_p[..., 0]).any(-1, keepdims=True),
    )


def _first_of_list(scheme: Scheme, num_children: int, key, position, log_p):
    """Tokens and scores `[F, M]` of the first M of the list at the nodes of one request."""
    key = races.position_key(key, position)
    tokens = jax.vmap(lambda log_p: scheme.propose(key, log_p, num_children))(log_p)
    scores = jnp.take_along_axis(log_p, tokens, axis=-1)
    if scheme.samples_drafts:
        # The same race again: `propose` does not return its noise.
        scores -= jnp.log(races.exponentials(key, 1, log_p.shape[-1])[0][tokens])
    # A list with fewer than M possible tokens repeats the first.
    is_repeated = (tokens == tokens[:, :1]) & (jnp.arange(num_children) > 0)
    return tokens, jnp.where(is_repeated, -jnp.inf, scores)


def _most_probable_of(
    level: _Level,
    first_number,
    seen,
    state: DrafterState,
    num_read: int,
) -> _Frontier:
    """The most probable candidates of a level; `first_number` is that of its first candidate."""
    indices, log_prob = _most_probable(level.log_prob, num_read)
    list_indices = indices // level.tokens.shape[-1]
    tokens = _take(level.tokens.reshape(len(indices), -1), indices)
    return _Frontier(
        numbers=first_number + indices,
        tokens=tokens,
        log_prob=log_prob,
        # A candidate has the text of its list's node, followed by itself.
        seen=None if seen is None else add_tokens(_take(seen, list_indices), tokens),
        drafter=state._replace(visible=_take(state.visible, list_indices)),
    )


def _most_probable(log_prob, count: int):
    """Indices of the `count` most probable in each row, increasing, and their log-probabilities."""
    log_prob = log_prob.reshape(len(log_prob), -1)
    _, indices = jax.lax.top_k(log_prob, count)
    indices = jnp.sort(indices, axis=-1)
    return indices, _take(log_prob, indices)


def _keep_best(shape: DynamicTree, text: Text, levels: _Level) -> Drafts:
    """The most probable candidates as a tree; `levels` are joined.

    A candidate is at most as probable as its parent and as the ranks before it. So the parents of
    kept candidates are kept too, and the ranks at a node have no gaps.
    """
    tokens, scores, log_prob, parents, is_invalid = levels
    batch_size, num_lists, num_children = tokens.shape
    num_candidates = num_lists * num_children
    # Numbers increase from level to level, so parents come first.
    kept, kept_log_prob = _most_probable(log_prob, shape.budget)

    # The tree node of each candidate; the entry after the last candidate is the root's.
    rows = jnp.arange(batch_size)[:, None]
    node_of = jnp.full((batch_size, num_candidates + 1), _NOT_IN_TREE, jnp.int32)
    node_of = node_of.at[:, num_candidates].set(_ROOT)
    node_of = node_of.at[rows, kept].set(jnp.arange(shape.budget, dtype=jnp.int32))
    list_nodes = _take(node_of, parents % (num_candidates + 1))

    # The drafter wrote the nodes that it read to the slots after the text, in their order.
    read_slots = text.length[:, None] + jnp.arange(num_lists - 1, dtype=jnp.int32)
    cache_slots = jnp.full((batch_size, num_candidates), -1, jnp.int32)
    cache_slots = cache_slots.at[rows, parents[:, 1:]].set(read_slots)

    # The first level has one list, the others `frontier` each.
    kept_lists = kept // num_children
    tree = Tree(
        tokens=_take(tokens.reshape(batch_size, -1), kept),
        parents=_take(list_nodes, kept_lists) + 1,
        draft_index=kept % num_children,
        depths=(kept_lists + shape.frontier - 1) // shape.frontier,
        # With fewer possible candidates than the budget, nodes are left over.
        alive=jnp.isfinite(kept_log_prob),
        depth=shape.depth,
        list_size=num_children,
    )
    return Drafts(
        tree=tree,
        log_p=None,
        cache_slots=_take(cache_slots, kept),
        is_invalid=is_invalid,
        candidates=Candidates(tokens=tokens, scores=scores, nodes=list_nodes),
    )


def _take(values, indices):
    """``values[b, indices[b, c]]`` for all rows b and columns c."""
    indices = jnp.expand_dims(indices, tuple(range(2, values.ndim)))
    return jnp.take_along_axis(values, indices, axis=1)

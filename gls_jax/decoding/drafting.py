"""Drafting K chains or a static tree: one call of each drafter per level."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gls_jax.decoding.batch_sampling import add_tokens, resize_vocabulary, scatter_logits
from gls_jax.decoding.cache import with_length
from gls_jax.decoding.model import LanguageModel
from gls_jax.decoding.reading import read
from gls_jax.decoding.reduced_vocabulary import propose_reduced
from gls_jax.decoding.state import Caches, Drafts, EngineConfig, Requests, Text
from gls_jax.typing import Index

__all__ = [
    "DrafterState",
    "draft_chains",
    "draft_static_tree",
    "join_levels",
    "read_level",
    "read_root",
]


class DrafterState(NamedTuple):
    """A drafter within a round.

    Attributes:
        cache: filled with the text and the nodes read so far.
        visible: `bool[B, C, S]`, the cache slots that the next C nodes see, without the new slots.
    """

    cache: Any
    visible: Array


class _Level(NamedTuple):
    """The drafts of one level, `n` nodes.

    Attributes:
        tokens: `i32[B, n]`.
        draft_index: `i32[B, n]`, index in the list proposed at the parent.
        log_p: `f32[B, n, N]`; None where the scheme does not read it.
        is_invalid: `bool[B, 1]`, whether logits of a drafter were invalid.
    """

    tokens: Array
    draft_index: Array
    log_p: Array | None
    is_invalid: Array


class _Chains(NamedTuple):
    """K chains between two levels.

    Attributes:
        tokens: `i32[B, K]`, the newest draft of each chain.
        seen: `bool[B, K, N]`, the tokens of each chain's text; None without a repetition penalty.
        are_equal: `bool[B, K, K]`, which chains had the same tokens before the newest.
        drafters: the state of each.
    """

    tokens: Array
    seen: Array | None
    are_equal: Array
    drafters: tuple[DrafterState, ...]


def draft_chains(
    config: EngineConfig,
    requests: Requests,
    text: Text,
    drafter_caches: Caches,
) -> tuple[Drafts, Caches]:
    """K chains, all of a single drafter, or divided among several drafters.

    Returns:
        The drafts, and the drafters' caches after the round.
    """
    num_chains = config.shape.list_size

    # At the root chain k begins with draft k of one list.
    logits, drafters = _read_root_of_chains(config, requests, text, drafter_caches)
    first, seen = _propose_level(
        config,
        requests,
        text,
        depth=0,
        first_parent=0,
        draft_index=np.arange(num_chains, dtype=np.int32),
        logits=logits,
        seen=text.seen,
    )
    are_equal = jnp.ones((len(first.tokens), num_chains, num_chains), bool)
    chains = _Chains(
        tokens=first.tokens,
        seen=seen,
        are_equal=are_equal,
        drafters=drafters,
    )

    # The other levels have one shape, so their body is compiled once.
    def next_level(chains: _Chains, depth):
        # Each drafter reads the newest draft of each of its chains.
        tokens = chains.tokens
        logits, drafters = _read_chains(config, requests, text, depth - 1, tokens, chains.drafters)
        are_equal = chains.are_equal & (tokens[:, :, None] == tokens[:, None, :])
        draft_index = first.draft_index
        if config.scheme.ranked:
            # Chains with the same tokens share a list: the r-th of them takes rank r.
            draft_index = jnp.sum(jnp.tril(are_equal, -1), axis=-1, dtype=jnp.int32)
        level, seen = _propose_level(
            config,
            requests,
            text,
            depth=depth,
            first_parent=1 + (depth - 1) * num_chains,
            draft_index=draft_index,
            logits=logits,
            seen=chains.seen,
        )
        chains = _Chains(
            tokens=level.tokens,
            seen=seen,
            are_equal=are_equal,
            drafters=drafters,
        )
        return chains, level

    depths = jnp.arange(1, config.shape.depth, dtype=jnp.int32)
    chains, others = jax.lax.scan(next_level, chains, depths)
    drafts = _as_drafts(config, text, join_levels(first, others))
    return drafts, tuple(state.cache for state in chains.drafters)


def draft_static_tree(
    config: EngineConfig,
    requests: Requests,
    text: Text,
    drafter_caches: Caches,
) -> tuple[Drafts, Caches]:
    """A static tree, made by a single drafter; see :func:`draft_chains`."""
    (drafter,) = requests.drafters
    (drafter_cache,) = drafter_caches
    logits, state = read_root(config, drafter, drafter_cache, text)
    seen = text.seen
    levels: list[_Level] = []
    first_parent = 0
    # Levels have different sizes, so each is compiled separately.
    for depth, width in enumerate(config.shape.widths):
        if levels:
            logits, state = read_level(drafter, state, text, depth - 1, levels[-1].tokens)
        num_parents = logits.shape[1]
        draft_index = np.arange(num_parents * width, dtype=np.int32) % width
        level, seen = _propose_level(
            config,
            requests,
            text,
            depth=depth,
            first_parent=first_parent,
            draft_index=draft_index,
            logits=logits,
            seen=seen,
        )
        levels.append(level)
        state = state._replace(visible=_repeat(state.visible, draft_index.size))
        first_parent += num_parents
    nodes = jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=1), *levels)
    return _as_drafts(config, text, nodes), (state.cache,)


def read_root(
    config: EngineConfig, drafter: LanguageModel, cache: Any, text: Text
) -> tuple[Float[Array, "B 1 V"], DrafterState]:
    """Logits after the text, and the state of a drafter that has read the whole text.

    The last tokens are read, whether they are in the cache or not: some were emitted in the last
    round. A shorter text is read from its beginning.
    """
    # A single drafter has read all but two tokens, the last accepted draft and the one emitted
    # after it. Several have not read one another's drafts, and one that observes the target has
    # read its drafts without the target's features: these read the whole last round again. Where
    # drafts come from several sources, the drafter has not read those of the others.
    is_single = len(config.drafter_chains) == 1
    longest = max((mode.shape.depth for mode in config.modes if mode.source == "model"), default=0)
    reads_drafts_again = not is_single or drafter.observe is not None or config.modes
    num_tokens = max(config.shape.depth, longest) + 1 if reads_drafts_again else 2
    start = jnp.maximum(text.length - num_tokens, 0)
    positions = start[:, None] + jnp.arange(num_tokens, dtype=jnp.int32)
    tokens = jnp.take_along_axis(text.tokens, positions, axis=1)
    last_column = (text.length - 1 - start)[:, None]
    logits, cache = _read(
        drafter, tokens, positions, None, with_length(cache, start), columns=last_column
    )
    visible = jnp.arange(config.num_cache_slots) < text.length[:, None, None]
    # With a text of fewer tokens than were read, slots after the text are filled.
    return logits, DrafterState(cache=with_length(cache, text.length), visible=visible)


def read_level(
    drafter: LanguageModel,
    state: DrafterState,
    text: Text,
    depth: Index | Int[Array, "B C"],
    tokens: Int[Array, "B C"],
) -> tuple[Float[Array, "B C V"], DrafterState]:
    """Logits after the nodes `tokens` at `depth`, and the state whose slots their children see.

    Children of the root have depth 0. All nodes have one depth, or each has its own.
    """
    cache, visible = state
    own_slots = cache.length[:, None] + jnp.arange(tokens.shape[1])
    visible |= jnp.arange(visible.shape[-1]) == own_slots[..., None]
    positions = jnp.broadcast_to(text.length[:, None] + depth, tokens.shape)
    logits, cache = _read(drafter, tokens, positions, visible, cache)
    return logits, DrafterState(cache=cache, visible=visible)


def join_levels(first: Any, others: Any) -> Any:
    """The first level and the others, which `scan` has stacked, side by side on axis 1."""
    return jax.tree.map(lambda one, more: jnp.concatenate([one, *more], axis=1), first, others)


def _read(drafter: LanguageModel, tokens, positions, mask, cache, columns=None):
    # A token that only the target's padded vocabulary has is read as the drafter's last one.
    tokens = jnp.minimum(tokens, drafter.vocab_size - 1)
    reading = read(drafter, tokens, positions, mask, cache, columns=columns)
    return reading.logits, reading.cache


def _read_root_of_chains(config: EngineConfig, requests: Requests, text: Text, drafter_caches):
    """Logits `[B, 1 or K, V]` after the text, and the state of each drafter."""
    is_single = len(requests.drafters) == 1
    all_logits = []
    states = []
    for drafter, cache, chains in zip(
        requests.drafters, drafter_caches, config.drafter_chains, strict=True
    ):
        logits, state = read_root(config, drafter, cache, text)
        all_logits.append(logits if is_single else _repeat(logits, len(chains)))
        states.append(state._replace(visible=_repeat(state.visible, len(chains))))
    return _in_chain_order(config, requests, all_logits), tuple(states)


def _read_chains(config: EngineConfig, requests: Requests, text: Text, depth, tokens, states):
    """Logits `[B, K, V]` after the newest draft of each chain, and the state of each drafter."""
    all_logits = []
    new_states = []
    for drafter, state, chains in zip(
        requests.drafters, states, config.drafter_chains, strict=True
    ):
        own_tokens = tokens if len(config.drafter_chains) == 1 else tokens[:, np.asarray(chains)]
        logits, state = read_level(drafter, state, text, depth, own_tokens)
        all_logits.append(logits)
        new_states.append(state)
    return _in_chain_order(config, requests, all_logits), tuple(new_states)


def _in_chain_order(config: EngineConfig, requests: Requests, all_logits):
    """Logits of all drafters in the order of the chains, those of several over one vocabulary."""
    if len(all_logits) == 1:
        return all_logits[0]
    vocab_size = requests.sampling.vocab_size
    resized = []
    for drafter, logits in zip(requests.drafters, all_logits, strict=True):
        if drafter.tokens is not None:
            logits = scatter_logits(logits, drafter.tokens, vocab_size)
        resized.append(resize_vocabulary(logits, vocab_size))
    return jnp.concatenate(resized, axis=1)[:, np.argsort(np.concatenate(config.drafter_chains))]


def _propose_level(
    config: EngineConfig,
    requests: Requests,
    text: Text,
    *,
    depth,
    first_parent,
    draft_index,
    logits,
    seen,
):
    """The drafts of one level, and the tokens of the text at each of them.

    Args:
        config, requests, text: of the round.
        depth: of the drafts.
        first_parent: number of the first parent in the tree, 0 for the root.
        draft_index: `i32[n]` or `i32[B, n]`, index of each draft in the list at its parent.
        logits: `[B, C, V]`, after each parent.
        seen: `bool[B, C, N]`, the tokens of the text at each parent; None without a penalty.
    """
    sampling = requests.sampling
    log_p = sampling.log_probs(logits, sampling.draft_temperature, seen, requests.draft_tokens)
    num_drafts = draft_index.shape[-1]
    draft_index = jnp.broadcast_to(draft_index, (len(log_p), num_drafts))
    propose = partial(_propose, config, requests, depth, first_parent)
    tokens = jax.vmap(propose)(requests.keys, text.length, log_p, draft_index)
    level = _Level(
        tokens=tokens,
        draft_index=draft_index,
        log_p=_repeat(log_p, num_drafts) if config.scheme.needs_draft_probs else None,
        is_invalid=jnp.isnan(log_p[..., 0]).any(-1, keepdims=True),
    )
    return level, None if seen is None else add_tokens(_repeat(seen, num_drafts), tokens)


def _propose(
    config: EngineConfig, requests: Requests, depth, first_parent, key, start, log_p, draft_index
):
    """Draft tokens `[n]` at `depth` for one request, whose round begins at position `start`."""
    scheme = config.scheme
    list_size = config.shape.list_size
    draft_tokens = requests.draft_tokens

    def propose(key, log_p):
        if draft_tokens is None:
            return scheme.propose_fn(key, log_p, list_size)
        vocab_size = requests.sampling.vocab_size
        return propose_reduced(scheme, key, log_p, list_size, draft_tokens, vocab_size)

    if config.shape.is_chains and not scheme.ranked:
        # Each chain has a separate stream of the noise, and may have a separate distribution. One
        # list holds the next draft of every chain, for any parents.
        key = scheme.draft_key(key, start, start + depth, first_parent)
        return propose(key, log_p[0] if len(log_p) == 1 else log_p)

    def list_at(parent, log_p):
        parent_key = scheme.draft_key(key, start, start + depth, parent)
        return propose(parent_key, log_p)

    # In all other cases each parent has a list, and its children take the entries at their indices.
    num_parents = len(log_p)
    lists = jax.vmap(list_at)(first_parent + jnp.arange(num_parents), log_p)
    return jnp.take_along_axis(lists, draft_index.reshape(num_parents, -1), axis=1).ravel()


def _as_drafts(config: EngineConfig, text: Text, nodes: _Level) -> Drafts:
    """All levels as one tree, whose nodes are in the order in which they were drafted."""
    shape = nodes.tokens.shape
    tree = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, shape), config.shape.tree())
    tree = dataclasses.replace(tree, tokens=nodes.tokens, draft_index=nodes.draft_index)
    # A single drafter wrote the nodes after the text, in their order, without the last level.
    cache_slots = text.length[:, None] + np.arange(config.shape.num_nodes, dtype=np.int32)
    return Drafts(
        tree=tree,
        log_p=nodes.log_p,
        cache_slots=jnp.where(tree.depths < tree.depth - 1, cache_slots, -1),
        is_invalid=nodes.is_invalid,
        num_calls=config.shape.depth * len(config.drafter_chains),
    )


def _repeat(values, num_children: int):
    """`[B, C, ...]` of C parents as `[B, num_children, ...]`, the siblings side by side."""
    return jnp.repeat(values, num_children // values.shape[1], axis=1)

"""The parts of a round: draft, let the target read, select and keep.

Before a round the target's cache holds the text without its last token. The target reads this
token, the root of the tree, together with the `n` nodes of the tree, which fill ``1 + n`` slots.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from gls_jax.decoding.cache import with_length
from gls_jax.decoding.candidate_rules import candidate_rule
from gls_jax.decoding.drafting import draft_chains, draft_static_tree
from gls_jax.decoding.dynamic_tree import draft_dynamic_tree
from gls_jax.decoding.lookup import draft_by_lookup
from gls_jax.decoding.margin import learn
from gls_jax.decoding.reading import Reading, read
from gls_jax.decoding.reduced_vocabulary import verify_reduced
from gls_jax.decoding.state import Caches, Drafts, EngineConfig, Requests, State, Text
from gls_jax.decoding.tree_shape import ancestors
from gls_jax.schemes import Path, Scheme, Tree

__all__ = ["PARTS", "observe", "seen_at_nodes"]


def _draft(config: EngineConfig, requests: Requests, state: State, drafter_caches):
    """The drafts of this round, in the shape that is configured, and the drafters' caches."""
    if config.source == "lookup":
        return draft_by_lookup(config, requests, state.text, state.match), ()
    if config.shape.dynamic:
        rule = candidate_rule(config, requests, state.text, state.learned)
        return draft_dynamic_tree(
            config, requests, state.text, drafter_caches, state.is_active, rule
        )
    if config.shape.is_chains:
        return draft_chains(config, requests, state.text, drafter_caches)
    if config.shape.widths:
        return draft_static_tree(config, requests, state.text, drafter_caches)
    # Plain generation: a tree without nodes.
    no_nodes = jnp.zeros((len(state.is_active), 0), jnp.int32)
    no_flags = jnp.zeros(no_nodes.shape, bool)
    tree = Tree(
        tokens=no_nodes,
        parents=no_nodes,
        draft_index=no_nodes,
        depths=no_nodes,
        alive=no_flags,
        depth=0,
        list_size=config.shape.list_size,
    )
    drafts = Drafts(tree, log_p=None, cache_slots=no_nodes, is_invalid=no_flags, num_calls=0)
    return drafts, ()


def _read_tree(config: EngineConfig, requests: Requests, state: State, tree: Tree, target_cache):
    """The target's logits and features at the root and after each node, in one call."""
    text = state.text
    target = requests.target
    num_nodes = tree.tokens.shape[1] + 1
    last = jnp.take_along_axis(text.tokens, text.length[:, None] - 1, axis=1)
    tokens = jnp.concatenate([last, tree.tokens], axis=1)
    depths = jnp.pad(tree.depths, ((0, 0), (1, 0)), constant_values=-1)

    # Each node sees the text and its ancestors. `offsets` counts the cache slots from the slot of
    # the root, the last token: negative offsets hold the earlier text, the others hold the nodes.
    offsets = jnp.arange(config.num_cache_slots) - (text.length[:, None, None] - 1)
    is_ancestor = ancestors(tree.parents, tree.depth)
    node = jnp.clip(offsets, 0, num_nodes - 1)
    node = jnp.broadcast_to(node, (*is_ancestor.shape[:2], config.num_cache_slots))
    in_path = (offsets < num_nodes) & jnp.take_along_axis(is_ancestor, node, axis=2)
    mask = (offsets < 0) | in_path

    # The last token is the root. After the prefill the cache has it too; it is overwritten then.
    cache = with_length(target_cache, text.length - 1)
    positions = text.length[:, None] + depths
    reading = read(target, tokens, positions, mask, cache, layers=requests.observed_layers)
    # Apart from the rest, so that its buffers can be donated.
    return reading._replace(cache=None), reading.cache


def _select_and_keep(
    config: EngineConfig,
    requests: Requests,
    state: State,
    drafts: Drafts,
    reading: Reading,
    caches: tuple[Caches, Caches],
    target_cache,
) -> State:
    """Verify the drafts and emit tokens; the state after the round."""
    text = state.text
    tree = drafts.tree
    is_active = state.is_active
    sampling = requests.sampling
    steps = jnp.arange(tree.depth + 1, dtype=jnp.int32)

    # Verify: the accepted path, and the token after it.
    seen = seen_at_nodes(text, tree)
    log_q = sampling.log_probs(reading.logits, sampling.temperature[:, None], seen)
    verify = config.scheme.verify_tree
    if drafts.log_p is not None and requests.draft_tokens is not None:
        verify = partial(verify_reduced, config.scheme, requests.draft_tokens)
    path = jax.vmap(verify)(requests.keys, text.length, tree, drafts.log_p, log_q)
    tokens = _path_tokens(tree, path)

    # Emit the path up to the first stop token, included, and up to the maximal length.
    is_stop, until_stop = _stops(requests, tokens, path)
    num_left = requests.max_lengths - text.length
    count = jnp.minimum(until_stop, num_left)

    # Invalid logits end a request, but only if one of the emitted tokens needs them.
    num_valid = _num_valid(config.scheme, drafts, log_q, path, num_left)
    has_invalid_logits = is_active & (num_valid < count)
    count = jnp.where(is_active, jnp.minimum(count, num_valid), 0)
    is_emitted = steps < count[:, None]
    has_stopped = jnp.any(is_stop & is_emitted, axis=1)

    # Keep: emitted tokens join the text, and entries of accepted nodes stay in the caches.
    new_text = _append(text, tokens, is_emitted)
    drafter_caches, watching_caches = caches
    drafter_caches, target_cache = _keep_accepted(
        requests, text.length, drafts, path, drafter_caches, target_cache
    )
    if reading.features is not None:
        # The last token and the accepted nodes. The newest token has no features yet.
        rows_on_path = jnp.pad(path.nodes + 1, ((0, 0), (1, 0)))
        features = jnp.take_along_axis(reading.features, rows_on_path[..., None], axis=1)
        start, end = text.length - 1, new_text.length - 1
        observed = observe(requests, (*drafter_caches, *watching_caches), features, start, end)
        drafter_caches = observed[: len(drafter_caches)]
        watching_caches = observed[len(drafter_caches) :]
    # Only active requests with valid logits count in what a margin tree learns, and in the
    # histogram (rounds by their number of accepted drafts).
    rows = jnp.arange(len(is_active))
    is_valid = is_active & ~has_invalid_logits
    num_drafted = jnp.sum(tree.alive, axis=1, dtype=jnp.int32)
    learned = state.learned
    if learned is not None and drafts.candidates is not None:
        learned = learn(learned, drafts, log_q, path, tokens, is_valid)
    return State(
        text=new_text,
        is_active=is_valid & ~has_stopped & (new_text.length < requests.max_lengths),
        has_invalid_logits=state.has_invalid_logits | has_invalid_logits,
        target_cache=target_cache,
        drafter_caches=drafter_caches,
        learned=learned,
        histogram=state.histogram.at[rows, path.length].add(is_valid.astype(jnp.int32)),
        draft_calls=state.draft_calls + jnp.where(is_valid, drafts.num_calls, 0),
        num_drafted=state.num_drafted + jnp.where(is_valid, num_drafted, 0),
        tried=_with_round(state.tried, tree, path, is_valid),
        choice=state.choice,
        watching_caches=watching_caches,
    )


def _with_round(tried, tree: Tree, path: Path, is_valid):
    """The counts of depths at which a draft could be accepted, with this round."""
    depths = jnp.arange(tried.shape[1], dtype=jnp.int32)
    depth_of_tree = jnp.max(jnp.where(tree.alive, tree.depths + 1, 0), axis=1, initial=0)
    reached = (depths <= path.length[:, None]) & (depths < depth_of_tree[:, None])
    return tried + (reached & is_valid[:, None]).astype(jnp.int32)


PARTS: tuple[Callable[..., Any], ...] = (_draft, _read_tree, _select_and_keep)
"""The parts of a round: draft, read, select and keep."""


def seen_at_nodes(text: Text, tree: Tree) -> Bool[Array, "B c N"] | None:
    """Which tokens occur in the text or on the path to each node; `c = n + 1` with the root."""
    if text.seen is None:
        return None
    batch_size, size = tree.tokens.shape
    in_path = ancestors(tree.parents, tree.depth)[..., 1:]  # [B, c, n]
    seen = jnp.broadcast_to(text.seen, (batch_size, size + 1, text.seen.shape[-1]))
    rows = jnp.arange(batch_size)[:, None, None]
    nodes = jnp.arange(size + 1)[:, None]
    # `max` is "or": a token is seen if it was before, or is drafted on the path to the node.
    return seen.at[rows, nodes, tree.tokens[:, None]].max(in_path)


def observe(requests: Requests, drafter_caches: Caches, features, start, end) -> Caches:
    """The drafters' caches with the features that each of them observes."""
    num_layers = len(requests.observed_layers)
    by_layer = features.reshape(*features.shape[:-1], num_layers, -1)
    first_layer = 0
    new_caches = []
    drafters = (*requests.drafters, *requests.watching)
    for drafter, cache in zip(drafters, drafter_caches, strict=True):
        end_layer = first_layer + len(drafter.observed_layers)
        if drafter.observe is not None:
            own = by_layer[..., first_layer:end_layer, :].reshape(*features.shape[:-1], -1)
            cache = drafter.observe(drafter.params, cache, own, start, end)
        new_caches.append(cache)
        first_layer = end_layer
    return tuple(new_caches)


def _stops(requests: Requests, tokens, path: Path):
    """Which tokens of each path are stop tokens, and how many tokens there are up to the first."""
    steps = jnp.arange(tokens.shape[1], dtype=jnp.int32)
    is_stop = jnp.any(tokens[..., None] == requests.stop_tokens[:, None], axis=-1)
    is_stop &= steps <= path.length[:, None]
    first_stop = jnp.argmax(is_stop, axis=1).astype(jnp.int32)
    return is_stop, jnp.where(jnp.any(is_stop, axis=1), first_stop, path.length) + 1


def _path_tokens(tree: Tree, path: Path):
    """The accepted tokens and the one after them, `[B, depth + 1]`; the rest is arbitrary."""
    drafted = jnp.take_along_axis(tree.tokens, jnp.maximum(path.nodes, 0), axis=1)
    is_last = jnp.arange(tree.depth + 1) == path.length[:, None]
    return jnp.where(is_last, path.token[:, None], jnp.pad(drafted, ((0, 0), (0, 1))))


def _append(text: Text, tokens, is_emitted) -> Text:
    """Append the emitted tokens, those of `tokens` `[B, L]` where `is_emitted` is true."""
    rows = jnp.arange(len(tokens))[:, None]
    steps = jnp.arange(tokens.shape[1], dtype=jnp.int32)
    # Tokens that are not emitted are written out of range, and dropped.
    positions = jnp.where(is_emitted, text.length[:, None] + steps, text.tokens.shape[1])
    return Text(
        tokens=text.tokens.at[rows, positions].set(tokens, mode="drop"),
        length=text.length + jnp.sum(is_emitted, axis=1, dtype=jnp.int32),
        seen=None if text.seen is None else text.seen.at[rows, 0, tokens].max(is_emitted),
    )


def _keep_accepted(
    requests: Requests,
    length,
    drafts: Drafts,
    path: Path,
    drafter_caches,
    target_cache,
):
    """The caches with the accepted nodes moved to the slots after texts of `length`."""
    if drafts.tree.depth == 0:
        return drafter_caches, target_cache
    # Several drafters keep only the text, because none has read the drafts of the others. The cache
    # of a single drafter omits the last accepted node: in every round it reads at least the last
    # two tokens of the text, whether or not it has read them before.
    if len(drafter_caches) == 1:
        cache_slots = jnp.take_along_axis(drafts.cache_slots, jnp.maximum(path.nodes, 0), axis=1)
        num_kept = jnp.maximum(path.length - 1, 0)
        keep = requests.drafters[0].keep
        drafter_caches = (keep(drafter_caches[0], cache_slots, length, num_kept),)
    # The target wrote the nodes in their order.
    cache_slots = length[:, None] + path.nodes
    return drafter_caches, requests.target.keep(target_cache, cache_slots, length, path.length)


def _num_valid(scheme: Scheme, drafts: Drafts, log_q, path: Path, num_left):
    """How many tokens of the path could be emitted before one needed invalid logits.

    Logits of the target matter at the nodes of the path or, to a scheme that compares whole paths,
    at all nodes. Logits of the drafters matter to a scheme that reads the draft distributions.
    Nothing matters beyond the `num_left` tokens that may still be emitted.
    """
    depth = path.nodes.shape[1]
    is_invalid = jnp.isnan(log_q[..., 0])  # [B, c]
    if scheme.verifies_tokens:
        nodes = jnp.pad(path.nodes + 1, ((0, 0), (1, 0)))
        in_path = jnp.arange(depth + 1) <= path.length[:, None]
        is_failure = jnp.take_along_axis(is_invalid, nodes, axis=1) & in_path
        first_failure = jnp.argmax(is_failure, axis=1).astype(jnp.int32)
    else:
        # The path depends on all nodes that are alive, so not even its first token is valid.
        levels = jnp.pad(drafts.tree.depths + 1, ((0, 0), (1, 0)))
        is_alive = jnp.pad(drafts.tree.alive, ((0, 0), (1, 0)), constant_values=True)
        is_failure = is_invalid & is_alive & (levels < num_left[:, None])
        first_failure = jnp.int32(0)
    num_valid = jnp.where(jnp.any(is_failure, axis=1), first_failure, depth + 1)
    # Invalid drafts invalidate the whole round, because they take part in the verification.
    if scheme.needs_draft_probs:
        is_failure = drafts.is_invalid & (jnp.arange(depth) < num_left[:, None])
        num_valid = jnp.where(jnp.any(is_failure, axis=1), 0, num_valid)
    return num_valid

"""The decode loop: draft a tree, let the target read it in one call, verify, and emit.

All requests of a batch advance in one loop, and no request depends on the others: the noise of a
token belongs to its request's key and its absolute position. A request that has ended stays in the
batch without effect until the last one ends.

Between rounds a cache holds the text without its last token. The target reads that token together
with the next tree, in the ``1 + n`` cache slots behind the text. Then the entries of the accepted
nodes are moved into place, and the others are forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from gls_jax.decoding.cache import with_length
from gls_jax.decoding.drafting import draft_chains, draft_static_tree
from gls_jax.decoding.margin import draft_margin_tree, initial_spread_fit, update_spread_fit
from gls_jax.decoding.model import LanguageModel
from gls_jax.decoding.state import Drafts, Plan, Requests, State, Text
from gls_jax.decoding.tree_shape import ancestors
from gls_jax.schemes import Path, Scheme, Tree
from gls_jax.typing import Index

__all__ = ["PARTS", "one_round", "prefill", "run", "seen_at_nodes"]

# Prompt tokens that the models read in one call.
_PREFILL = 256


@partial(jax.jit, static_argnames="plan")
def prefill(plan: Plan, requests: Requests, text: Text) -> State:
    """The state before the first round: caches filled with the prompts."""
    batch_size, prompt_size = text.tokens.shape
    num_tokens = plan.num_cache_slots + plan.shape.depth + 1
    tokens = jnp.pad(text.tokens, ((0, 0), (0, num_tokens - prompt_size)))
    seen = None
    if requests.sampling.repetition_penalty is not None:
        is_prompt = jnp.arange(prompt_size) < text.length[:, None]
        rows = jnp.arange(batch_size)[:, None]
        seen = jnp.zeros((batch_size, 1, requests.sampling.vocab_size), bool)
        seen = seen.at[rows, 0, text.tokens].max(is_prompt)
    return State(
        text=Text(tokens=tokens, length=text.length, seen=seen),
        is_active=text.length < requests.max_lengths,
        has_invalid_logits=jnp.zeros(batch_size, bool),
        target_cache=_filled_cache(requests.target, text, plan.num_cache_slots),
        drafter_caches=tuple(
            _filled_cache(drafter, text, plan.num_cache_slots) for drafter in requests.drafters
        ),
        spread_fit=initial_spread_fit(batch_size) if plan.shape.margin else None,
        histogram=jnp.zeros((batch_size, plan.shape.depth + 1), jnp.int32),
    )


@partial(jax.jit, static_argnames="plan", donate_argnames="state")
def run(plan: Plan, requests: Requests, state: State, rounds: Index) -> State:
    """At most `rounds` rounds, fewer if all requests end before."""

    def is_unfinished(carry):
        num_done, state = carry
        return (num_done < rounds) & jnp.any(state.is_active)

    def next_round(carry):
        num_done, state = carry
        return num_done + 1, one_round(plan, PARTS, requests, state)

    return jax.lax.while_loop(is_unfinished, next_round, (0, state))[1]


def one_round(plan: Plan, parts: Sequence[Callable], requests: Requests, state: State) -> State:
    """One round in three parts.

    The caches are arguments of their own: when each part is compiled by itself, it can take over
    the memory of the caches that it changes.

    Args:
        plan: static.
        parts: `PARTS`, or compiled versions of them.
        requests: the models and what stays the same.
        state: before the round.
    """
    draft, read, select = parts
    rest = state._replace(drafter_caches=(), target_cache=None)
    drafts, drafter_caches = draft(plan, requests, rest, state.drafter_caches)
    logits, target_cache = read(plan, requests, rest, drafts.tree, state.target_cache)
    return select(plan, requests, rest, drafts, logits, drafter_caches, target_cache)


def _draft(plan: Plan, requests: Requests, state: State, drafter_caches):
    """The drafts of this round, in the shape of the plan, and the drafters' caches after it."""
    if plan.shape.margin and state.spread_fit is not None:
        return draft_margin_tree(plan, requests, state.text, drafter_caches, state.spread_fit)
    if plan.shape.chains:
        return draft_chains(plan, requests, state.text, drafter_caches)
    if plan.shape.widths:
        return draft_static_tree(plan, requests, state.text, drafter_caches)
    # Plain generation: a tree without nodes.
    none = jnp.zeros((len(state.is_active), 0), jnp.int32)
    tree = Tree(
        tokens=none,
        parents=none,
        draft_index=none,
        depths=none,
        alive=none > 0,
        depth=0,
        list_size=plan.shape.list_size,
    )
    return Drafts(tree=tree, log_p=None, cache_slots=none, is_invalid=none > 0), ()


def _read_target(plan: Plan, requests: Requests, state: State, tree: Tree, target_cache):
    """The target's logits at the root and after each node, in one call."""
    text = state.text
    target = requests.target
    num_nodes = tree.tokens.shape[1] + 1
    last = jnp.take_along_axis(text.tokens, text.length[:, None] - 1, axis=1)
    tokens = jnp.concatenate([last, tree.tokens], axis=1)
    depths = jnp.pad(tree.depths, ((0, 0), (1, 0)), constant_values=-1)

    # Each node sees the text and its ancestors. `offsets` counts the cache slots from the root's,
    # which is the last token's: below 0 they hold the text, from 0 on the nodes.
    offsets = jnp.arange(plan.num_cache_slots) - (text.length[:, None, None] - 1)
    is_ancestor = ancestors(tree.parents, tree.depth)
    node = jnp.clip(offsets, 0, num_nodes - 1)
    node = jnp.broadcast_to(node, (*is_ancestor.shape[:2], plan.num_cache_slots))
    in_path = (offsets < num_nodes) & jnp.take_along_axis(is_ancestor, node, axis=2)
    mask = (offsets < 0) | in_path

    # The last token was not read in the last round; it is the root now.
    cache = with_length(target_cache, text.length - 1)
    return target.apply(target.params, tokens, text.length[:, None] + depths, mask, cache)


def _select(
    plan: Plan,
    requests: Requests,
    state: State,
    drafts: Drafts,
    logits,
    drafter_caches,
    target_cache,
) -> State:
    """Which drafts are accepted, what is emitted, and the state after that."""
    text = state.text
    tree = drafts.tree
    is_active = state.is_active
    sampling = requests.sampling
    steps = jnp.arange(tree.depth + 1, dtype=jnp.int32)

    # Verify: the accepted path, and the token after it.
    log_q = sampling.log_probs(logits, sampling.temperature[:, None], seen_at_nodes(text, tree))
    path = jax.vmap(plan.scheme.verify_tree)(requests.keys, text.length, tree, drafts.log_p, log_q)
    tokens = _path_tokens(tree, path)

    # Emit the path up to the first stop token, within the maximal length. The stop token is
    # emitted.
    is_stop = jnp.any(tokens[..., None] == requests.stop_tokens[:, None], axis=-1)
    is_stop &= steps <= path.length[:, None]
    first_stop = jnp.argmax(is_stop, axis=1).astype(jnp.int32)
    until_stop = jnp.where(jnp.any(is_stop, axis=1), first_stop, path.length) + 1
    num_left = requests.max_lengths - text.length
    count = jnp.minimum(until_stop, num_left)

    # Invalid logits end a request, but only if one of the emitted tokens needs them.
    num_valid = _num_valid(plan.scheme, drafts, log_q, path, num_left)
    has_invalid_logits = is_active & (num_valid < count)
    count = jnp.where(is_active, jnp.minimum(count, num_valid), 0)
    is_emitted = steps < count[:, None]
    has_stopped = jnp.any(is_stop & is_emitted, axis=1)

    # Commit. What the round teaches and counts is that of active requests with valid logits.
    new_text = _append(text, tokens, is_emitted)
    drafter_caches, target_cache = _keep_accepted(
        requests,
        text.length,
        drafts,
        path,
        drafter_caches,
        target_cache,
    )
    rows = jnp.arange(len(is_active))
    is_valid = is_active & ~has_invalid_logits
    spread_fit = state.spread_fit
    if drafts.candidates is not None and spread_fit is not None:
        spread_fit = update_spread_fit(spread_fit, drafts.candidates, path, tokens, is_valid)
    return State(
        text=new_text,
        is_active=is_valid & ~has_stopped & (new_text.length < requests.max_lengths),
        has_invalid_logits=state.has_invalid_logits | has_invalid_logits,
        target_cache=target_cache,
        drafter_caches=drafter_caches,
        spread_fit=spread_fit,
        histogram=state.histogram.at[rows, path.length].add(is_valid.astype(jnp.int32)),
    )


PARTS: tuple[Callable, ...] = (_draft, _read_target, _select)
"""The parts of a round: draft, read the drafts with the target, select and commit."""


def seen_at_nodes(text: Text, tree: Tree) -> Bool[Array, "B c N"] | None:
    """The tokens of the text at each node of the tree, root included."""
    if text.seen is None:
        return None
    batch_size, size = tree.tokens.shape
    in_path = ancestors(tree.parents, tree.depth)[..., 1:]  # [B, c, n]
    seen = jnp.broadcast_to(text.seen, (batch_size, size + 1, text.seen.shape[-1]))
    rows = jnp.arange(batch_size)[:, None, None]
    nodes = jnp.arange(size + 1)[:, None]
    # `max` is "or": a token is seen if it was before, or is drafted on the path to the node.
    return seen.at[rows, nodes, tree.tokens[:, None]].max(in_path)


def _filled_cache(model: LanguageModel, text: Text, num_cache_slots: int):
    """A cache with the prompts. They are read in parts, which bounds the memory for activations."""
    batch_size, prompt_size = text.tokens.shape
    cache = model.init_cache(batch_size, num_cache_slots)
    for start in range(0, prompt_size, _PREFILL):
        tokens = text.tokens[:, start : start + _PREFILL]
        positions = start + jnp.arange(tokens.shape[1], dtype=jnp.int32)
        positions = jnp.broadcast_to(positions, tokens.shape)
        # The logits are not used, and XLA does not compute them.
        _, cache = model.apply(model.params, tokens, positions, None, cache)
    return with_length(cache, text.length)


def _path_tokens(tree: Tree, path: Path):
    """The accepted tokens and the one after them, `[B, depth + 1]`; arbitrary behind that."""
    drafted = jnp.take_along_axis(tree.tokens, jnp.maximum(path.nodes, 0), axis=1)
    is_last = jnp.arange(tree.depth + 1) == path.length[:, None]
    return jnp.where(is_last, path.token[:, None], jnp.pad(drafted, ((0, 0), (0, 1))))


def _append(text: Text, tokens, is_emitted) -> Text:
    """The texts with the emitted ones of `tokens` `[B, L]` behind them."""
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
    """The caches with the accepted nodes moved into place, behind texts of `length`."""
    if drafts.tree.depth == 0:
        return drafter_caches, target_cache
    # Several drafters keep only the text, since none has read the others' drafts. A single drafter
    # may not have read the last accepted node, and reads it again in the next round.
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
        # The path depends on all nodes, so not even its first token is valid.
        levels = jnp.pad(drafts.tree.depths + 1, ((0, 0), (1, 0)))
        is_failure = is_invalid & (levels < num_left[:, None])
        first_failure = jnp.int32(0)
    num_valid = jnp.where(jnp.any(is_failure, axis=1), first_failure, depth + 1)
    # Invalid drafts spoil the whole round: all of it was drawn and verified with them.
    if scheme.needs_draft_probs:
        is_failure = drafts.is_invalid & (jnp.arange(depth) < num_left[:, None])
        num_valid = jnp.where(jnp.any(is_failure, axis=1), 0, num_valid)
    return num_valid

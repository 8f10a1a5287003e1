"""The decode loop: draft a tree, let the target read it in one call, select and keep.

A model *reads* tokens: it evaluates them in a forward pass, which gives the logits after each and
writes their entries to the cache.

All requests of a batch advance in one loop, and no request depends on the others: the noise of a
token belongs to its request's key and its absolute position. A request that has ended stays in the
batch without effect until the last one ends.

The prefill fills a cache with the whole prompt. After a round the target's cache holds the text
without its last token. In both cases the next round begins at slot ``length - 1``: the target reads
the last token together with the tree of `n` nodes, which fill ``1 + n`` slots.
Then the entries of the accepted nodes are moved to the slots after the text, and those of the
others are discarded.

A drafter may observe features of the target: it takes up those of the prompt in the prefill, and
after a round those of the last token and of the accepted nodes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from gls_jax.decoding.cache import with_length
from gls_jax.decoding.candidate_rules import candidate_rule
from gls_jax.decoding.choice import choose_mode, learn_acceptance
from gls_jax.decoding.drafting import draft_chains, draft_static_tree
from gls_jax.decoding.dynamic_tree import draft_dynamic_tree
from gls_jax.decoding.lookup import draft_by_lookup, find_match
from gls_jax.decoding.margin import learn, nothing_learned
from gls_jax.decoding.reading import Reading, read
from gls_jax.decoding.reduced_vocabulary import verify_reduced
from gls_jax.decoding.state import Caches, Drafts, EngineConfig, Requests, State, Text
from gls_jax.decoding.tree_shape import ancestors
from gls_jax.schemes import Path, Scheme, Tree
from gls_jax.typing import Index

# Tokens that a drafter reads after rounds without it.
_CATCH_UP = 32

__all__ = ["PARTS", "one_round", "prefill", "run", "seen_at_nodes"]


@partial(jax.jit, static_argnames="config")
def prefill(config: EngineConfig, requests: Requests, text: Text) -> State:
    """The state before the first round: caches filled with the prompts."""
    batch_size, prompt_size = text.tokens.shape
    # The text has room for one more round than a cache, so that no token falls off its end.
    num_tokens = config.num_cache_slots + config.shape.depth + 1
    tokens = jnp.pad(text.tokens, ((0, 0), (0, num_tokens - prompt_size)))
    seen = None
    if requests.sampling.repetition_penalty is not None:
        is_prompt = jnp.arange(prompt_size) < text.length[:, None]
        rows = jnp.arange(batch_size)[:, None]
        seen = jnp.zeros((batch_size, 1, requests.sampling.vocab_size), bool)
        seen = seen.at[rows, 0, text.tokens].max(is_prompt)
    target_cache, drafter_caches = _filled_caches(config, requests, text)
    return State(
        text=Text(tokens=tokens, length=text.length, seen=seen),
        is_active=text.length < requests.max_lengths,
        has_invalid_logits=jnp.zeros(batch_size, bool),
        target_cache=target_cache,
        drafter_caches=drafter_caches,
        learned=nothing_learned(config.shape.dynamic, batch_size, requests.sampling.vocab_size),
        histogram=jnp.zeros((batch_size, config.shape.depth + 1), jnp.int32),
        draft_calls=jnp.zeros(batch_size, jnp.int32),
        num_drafted=jnp.zeros(batch_size, jnp.int32),
    )


@partial(jax.jit, static_argnames="config", donate_argnames="state")
def run(config: EngineConfig, requests: Requests, state: State, rounds: Index) -> State:
    """At most `rounds` rounds, fewer if all requests end before."""

    def is_unfinished(carry):
        num_done, state = carry
        return (num_done < rounds) & jnp.any(state.is_active)

    def next_round(carry):
        num_done, state = carry
        return num_done + 1, one_round(config, PARTS, requests, state)

    if config.modes:
        next_round = partial(_rounds_of_all_modes, config, requests, is_unfinished)
    return jax.lax.while_loop(is_unfinished, next_round, (0, state))[1]


def one_round(
    config: EngineConfig, parts: Sequence[Callable[..., Any]], requests: Requests, state: State
) -> State:
    """One round in three parts: draft, read, select and keep.

    The caches are separate arguments, so that their buffers can be donated when each part is
    compiled by itself.

    Args:
        config: static.
        parts: `PARTS`, or compiled versions of them.
        requests: the models and the parameters of the requests.
        state: before the round.
    """
    draft, read_tree, select_and_keep = parts
    state_without_caches = state._replace(drafter_caches=(), target_cache=None, watching_caches=())
    drafts, drafter_caches = draft(config, requests, state_without_caches, state.drafter_caches)
    reading, target_cache = read_tree(
        config, requests, state_without_caches, drafts.tree, state.target_cache
    )
    return select_and_keep(
        config,
        requests,
        state_without_caches,
        drafts,
        reading,
        (drafter_caches, state.watching_caches),
        target_cache,
    )


def _rounds_of_all_modes(
    config: EngineConfig, requests: Requests, is_unfinished: Callable[..., Any], carry
):
    """Rounds in one mode after the other, each for as long as it promises most, see `choice`.

    A loop for each mode, and no switch: in a switch jaxlib 0.10 copies the whole caches.
    """
    for number in range(len(config.modes)):

        def is_chosen(carry, number=number):
            _, state = carry
            return is_unfinished(carry) & (_choice_of(config, state) == number)

        def next_round(carry, number=number):
            num_done, state = carry
            return num_done + 1, _round_of_mode(config, number, requests, state)

        carry = jax.lax.while_loop(is_chosen, next_round, carry)
    return carry


def _choice_of(config: EngineConfig, state: State):
    """The mode of the next round."""
    match = find_match(state.text.tokens, state.text.length)
    return choose_mode(config.modes, state.choice, match, state.is_active)


def _round_of_mode(config: EngineConfig, number: int, requests: Requests, state: State) -> State:
    """One round in one mode. The other drafters observe, and read nothing."""
    mode = config.modes[number]
    is_model = mode.source == "model"
    chains = (tuple(range(mode.shape.list_size)),) if is_model else ()
    mode_config = dataclasses.replace(
        config, shape=mode.shape, source=mode.source, drafter_chains=chains
    )
    text, histogram = state.text, state.histogram
    match = find_match(text.tokens, text.length)
    if is_model:
        after = one_round(mode_config, PARTS, requests, _caught_up(config, requests, state))
    else:
        mode_requests = requests._replace(drafters=(), watching=requests.drafters)
        mode_state = state._replace(
            drafter_caches=(), watching_caches=state.drafter_caches, match=match
        )
        after = one_round(mode_config, PARTS, mode_requests, mode_state)
        after = after._replace(drafter_caches=after.watching_caches, watching_caches=(), match=None)
    num_emitted = jnp.max(after.text.length - text.length)
    unread = num_emitted if is_model else state.choice.unread + num_emitted
    counts = after.histogram - histogram
    choice = learn_acceptance(config.modes, state.choice, number, match, counts)
    return after._replace(choice=choice._replace(unread=unread))


def _caught_up(config: EngineConfig, requests: Requests, state: State) -> State:
    """The state in which the drafter has read the newest tokens, but those of the last round."""
    (drafter,) = requests.drafters
    longest = max(mode.shape.depth for mode in config.modes if mode.source == "model")
    text = state.text

    # The next call of the drafter reads one more token than it drafts, whatever it has read.
    def is_behind(carry):
        unread, _ = carry
        return unread > longest + 1

    def read_newest(carry):
        _, cache = carry
        start = jnp.maximum(text.length - _CATCH_UP, 0)
        positions = start[:, None] + jnp.arange(_CATCH_UP, dtype=jnp.int32)
        tokens = jnp.take_along_axis(text.tokens, positions, axis=1, mode="clip")
        tokens = jnp.minimum(tokens, drafter.vocab_size - 1)
        reading = read(drafter, tokens, positions, None, with_length(cache, start))
        return jnp.zeros_like(state.choice.unread), reading.cache

    # A loop of at most one step, for the reason of `_rounds_of_all_modes`.
    carry = (state.choice.unread, state.drafter_caches[0])
    _, cache = jax.lax.while_loop(is_behind, read_newest, carry)
    return state._replace(drafter_caches=(cache,))


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
    is_stop = jnp.any(tokens[..., None] == requests.stop_tokens[:, None], axis=-1)
    is_stop &= steps <= path.length[:, None]
    first_stop = jnp.argmax(is_stop, axis=1).astype(jnp.int32)
    until_stop = jnp.where(jnp.any(is_stop, axis=1), first_stop, path.length) + 1
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
        observed = _observe(
            requests,
            (*drafter_caches, *watching_caches),
            features,
            text.length - 1,
            new_text.length - 1,
        )
        drafter_caches = observed[: len(drafter_caches)]
        watching_caches = observed[len(drafter_caches) :]
    # Only active requests with valid logits count in what a margin tree learns, and in the
    # histogram (rounds by their number of accepted drafts).
    rows = jnp.arange(len(is_active))
    is_valid = is_active & ~has_invalid_logits
    learned = state.learned
    if learned is not None:
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
        num_drafted=state.num_drafted
        + jnp.where(is_valid, jnp.sum(tree.alive, axis=1, dtype=jnp.int32), 0),
        choice=state.choice,
        watching_caches=watching_caches,
    )


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


def _filled_caches(config: EngineConfig, requests: Requests, text: Text) -> tuple[Any, Caches]:
    """The caches of target and drafters with the prompts.

    Prompts are read in parts, which bounds the memory for activations.
    """
    batch_size, prompt_size = text.tokens.shape
    num_slots = config.num_cache_slots
    target_cache = requests.target.init_cache(batch_size, num_slots)
    drafter_caches = tuple(
        drafter.init_cache(batch_size, num_slots) for drafter in requests.drafters
    )
    num_read = config.work.prefill_tokens
    for start in range(0, prompt_size, num_read):
        tokens = text.tokens[:, start : start + num_read]
        positions = start + jnp.arange(tokens.shape[1], dtype=jnp.int32)
        positions = jnp.broadcast_to(positions, tokens.shape)
        # The logits are not used, and XLA does not compute them.
        layers = requests.observed_layers
        reading = read(requests.target, tokens, positions, None, target_cache, layers=layers)
        target_cache = reading.cache
        if reading.features is not None:
            # As after a round, the features of the last token are left for the next one.
            end = jnp.minimum(start + tokens.shape[1], text.length - 1)
            starts = jnp.full(batch_size, start, jnp.int32)
            drafter_caches = _observe(requests, drafter_caches, reading.features, starts, end)
        drafter_caches = tuple(
            read(drafter, jnp.minimum(tokens, drafter.vocab_size - 1), positions, None, cache).cache
            for drafter, cache in zip(requests.drafters, drafter_caches, strict=True)
        )
    drafter_caches = tuple(with_length(cache, text.length) for cache in drafter_caches)
    return with_length(target_cache, text.length), drafter_caches


def _observe(requests: Requests, drafter_caches: Caches, features, start, end) -> Caches:
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
    # of a single drafter omits the last accepted node: in every round a drafter reads the last two
    # tokens of the text, whether or not it has read them before.
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
    # Invalid drafts invalidate the whole round, because they take part in the verification.
    if scheme.needs_draft_probs:
        is_failure = drafts.is_invalid & (jnp.arange(depth) < num_left[:, None])
        num_valid = jnp.where(jnp.any(is_failure, axis=1), 0, num_valid)
    return num_valid

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

from gls_jax.decoding.cache import with_length
from gls_jax.decoding.choice import choose_mode, learn_acceptance
from gls_jax.decoding.lookup import find_match
from gls_jax.decoding.margin import nothing_learned
from gls_jax.decoding.reading import read
from gls_jax.decoding.round_parts import PARTS, observe
from gls_jax.decoding.state import Caches, EngineConfig, Requests, State, Text
from gls_jax.typing import Index

__all__ = ["PARTS", "one_round", "prefill", "run"]

# Tokens that a drafter reads at a time after rounds without it.
_CATCH_UP = 32


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
    shapes = [config.shape, *(mode.shape for mode in config.modes)]
    dynamic = next((shape.dynamic for shape in shapes if shape.dynamic), None)
    return State(
        text=Text(tokens=tokens, length=text.length, seen=seen),
        is_active=text.length < requests.max_lengths,
        has_invalid_logits=jnp.zeros(batch_size, bool),
        target_cache=target_cache,
        drafter_caches=drafter_caches,
        learned=nothing_learned(dynamic, batch_size, requests.sampling.vocab_size),
        histogram=jnp.zeros((batch_size, config.shape.depth + 1), jnp.int32),
        draft_calls=jnp.zeros(batch_size, jnp.int32),
        num_drafted=jnp.zeros(batch_size, jnp.int32),
        tried=jnp.zeros((batch_size, config.shape.depth), jnp.int32),
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
    """Rounds in one mode after the other, each for as long as it is the one chosen.

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
    """One round in one mode. Where the model does not draft, it only observes the target."""
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
    """The state in which the drafter has read all but the tokens that its next call reads."""
    (drafter,) = requests.drafters
    longest = max(mode.shape.depth for mode in config.modes if mode.source == "model")
    text = state.text

    # The next call of the drafter reads one more token than it drafts, whatever it has read.
    def is_behind(carry):
        unread, _ = carry
        return unread > longest + 1

    def read_block(carry):
        unread, cache = carry
        # The oldest of the unread tokens first; the last block ends with the text.
        start = jnp.maximum(text.length - jnp.maximum(unread, _CATCH_UP), 0)
        positions = start[:, None] + jnp.arange(_CATCH_UP, dtype=jnp.int32)
        tokens = jnp.take_along_axis(text.tokens, positions, axis=1, mode="clip")
        tokens = jnp.minimum(tokens, drafter.vocab_size - 1)
        reading = read(drafter, tokens, positions, None, with_length(cache, start))
        return jnp.maximum(unread - _CATCH_UP, 0), reading.cache

    carry = (state.choice.unread, state.drafter_caches[0])
    _, cache = jax.lax.while_loop(is_behind, read_block, carry)
    return state._replace(drafter_caches=(cache,))


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
            drafter_caches = observe(requests, drafter_caches, reading.features, starts, end)
        drafter_caches = tuple(
            read(drafter, jnp.minimum(tokens, drafter.vocab_size - 1), positions, None, cache).cache
            for drafter, cache in zip(requests.drafters, drafter_caches, strict=True)
        )
    drafter_caches = tuple(with_length(cache, text.length) for cache in drafter_caches)
    return with_length(target_cache, text.length), drafter_caches

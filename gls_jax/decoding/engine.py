"""The engine: draft a tree, let the target read it in one call, verify, emit; for a whole batch, in
one loop.

A round knows nothing of who shares the batch: the clocks of a token belong to its request's key and
its absolute position. Finished rows go on with their work undone until the last one is ready.

Between rounds a cache holds the text but for its last token, which the target reads together with
the next tree, in ``1 + n`` slots behind it. Then the accepted nodes' slots are moved into place and
the rest is forgotten.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from gls_jax.decoding.batch_sampling import Sampling
from gls_jax.decoding.cache import with_length
from gls_jax.decoding.drafting import Drafts, Text, draft
from gls_jax.decoding.margin import draft_margin, first_fit, refit
from gls_jax.decoding.model import LanguageModel
from gls_jax.decoding.tree_shape import Shape, ancestors
from gls_jax.schemes import Path, Scheme, Tree
from gls_jax.typing import Index

__all__ = ["PARTS", "Plan", "Requests", "State", "each_round", "prefill", "run"]

_PREFILL = 256  # tokens of the prompts in one call


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is fixed before tracing.

    Attributes:
        scheme: who verifies.
        shape: what is drafted.
        chains: the chains of each of several drafters.
        num_slots: `S`, slots of the caches.
    """

    scheme: Scheme
    shape: Shape
    chains: tuple[tuple[int, ...], ...]
    num_slots: int


class Requests(NamedTuple):
    """What does not change from round to round.

    Attributes:
        target, drafters: the models.
        keys: `[B]`, one a request.
        sampling: the parameters.
        limits: `i32[B]`, length at which a text ends.
        stops: `i32[B, M]`, tokens that end it; -1 fills up.
    """

    target: LanguageModel
    drafters: tuple[LanguageModel, ...]
    keys: Key[Array, " B"]
    sampling: Sampling
    limits: Int[Array, " B"]
    stops: Int[Array, "B M"]


class State(NamedTuple):
    """What does.

    Attributes:
        text: the texts so far.
        live: `bool[B]`, not ready yet.
        broken: `bool[B]`, stopped because a model's logits were no law.
        target_cache, caches: of the target and the drafters.
        fit: what a margin tree has learned; None for others.
        accepted: `i32[B, depth + 1]`, how many rounds accepted 0, 1, ... drafts.
    """

    text: Text
    live: Bool[Array, " B"]
    broken: Bool[Array, " B"]
    target_cache: Any
    caches: tuple[Any, ...]
    fit: Float[Array, "B G"] | None
    accepted: Int[Array, "B A"]


@partial(jax.jit, static_argnames="plan")
def prefill(plan: Plan, requests: Requests, text: Text) -> State:
    """Caches filled with the prompts."""
    batch = text.length.shape[0]

    def fill(model: LanguageModel):
        cache = model.init_cache(batch, plan.num_slots)
        for start in range(0, text.tokens.shape[1], _PREFILL):
            tokens = text.tokens[:, start : start + _PREFILL]
            where = jnp.broadcast_to(
                start + jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape
            )
            _, cache = model.apply(
                model.params, tokens, where, None, cache
            )  # logits that nobody reads cost nothing
        return with_length(cache, text.length)

    rest = plan.num_slots + plan.shape.depth + 1 - text.tokens.shape[1]
    tokens = jnp.pad(text.tokens, ((0, 0), (0, rest)))
    seen = None
    if requests.sampling.repetition_penalty is not None:
        own = jnp.arange(text.tokens.shape[1]) < text.length[:, None]
        seen = jnp.zeros((batch, requests.target.vocab_size), bool)
        seen = seen.at[jnp.arange(batch)[:, None], jnp.where(own, text.tokens, -1)].max(own)
    return State(
        Text(tokens, text.length, seen),
        text.length < requests.limits,
        jnp.zeros(batch, bool),
        fill(requests.target),
        tuple(map(fill, requests.drafters)),
        first_fit(batch) if plan.shape.margin else None,
        jnp.zeros((batch, plan.shape.depth + 1), jnp.int32),
    )


@partial(jax.jit, static_argnames="plan", donate_argnames="state")
def run(plan: Plan, requests: Requests, state: State, rounds: Index) -> State:
    """At most `rounds` rounds, fewer when all requests are ready."""

    def unfinished(carry):
        return (carry[0] < rounds) & jnp.any(carry[1].live)

    def one_round(carry):
        return carry[0] + 1, each_round(plan, PARTS, requests, carry[1])

    return jax.lax.while_loop(unfinished, one_round, (0, state))[1]


def each_round(
    plan: Plan, parts: Sequence[Callable[..., Any]], requests: Requests, state: State
) -> State:
    """One round: each of the three parts gives its caches away."""
    drafting, reading, selecting = parts
    caches, target_cache, rest = (
        state.caches,
        state.target_cache,
        state._replace(caches=(), target_cache=None),
    )
    drafts = drafting(plan, requests, rest, caches)
    logits, target_cache = reading(plan, requests, rest, drafts.tree, target_cache)
    return selecting(
        plan, requests, rest, drafts._replace(caches=()), logits, drafts.caches, target_cache
    )


def _draft(plan: Plan, requests: Requests, state: State, caches) -> Drafts:
    given = (requests.target.vocab_size, requests.sampling, requests.keys, state.text)
    if plan.shape.margin and state.fit is not None:
        drafter, cache = requests.drafters[0], caches[0]
        return draft_margin(
            plan.scheme, plan.shape.margin, drafter, *given, cache, plan.num_slots, state.fit
        )
    if plan.shape.widths:
        return draft(
            plan.scheme, plan.shape, requests.drafters, plan.chains, *given, caches, plan.num_slots
        )
    nothing = jnp.zeros((state.live.shape[0], 0), jnp.int32)
    tree = Tree(
        nothing, nothing, nothing, nothing, nothing > 0, depth=0, list_size=plan.shape.list_size
    )
    return Drafts(tree, None, (), nothing, nothing > 0)


def _read(plan: Plan, requests: Requests, state: State, tree: Tree, target_cache):
    """The target's logits at the root and after each node, in one call."""
    text = state.text
    size = tree.tokens.shape[1] + 1
    last = jnp.take_along_axis(text.tokens, text.length[:, None] - 1, axis=1)
    tokens = jnp.concatenate([last, tree.tokens], axis=1)
    positions = text.length[:, None] + jnp.pad(tree.depths, ((0, 0), (1, 0)), constant_values=-1)
    first = text.length[:, None, None] - 1  # slot of the root
    slots = jnp.arange(plan.num_slots) - first
    own = ancestors(tree.parents, tree.depth)
    inside = jnp.broadcast_to(jnp.clip(slots, 0, size - 1), (*own.shape[:2], plan.num_slots))
    mask = (slots < 0) | ((slots < size) & jnp.take_along_axis(own, inside, axis=2))
    cache = with_length(target_cache, text.length - 1)
    return requests.target.apply(requests.target.params, tokens, positions, mask, cache)


def _select(
    plan: Plan,
    requests: Requests,
    state: State,
    drafts: Drafts,
    logits,
    caches: tuple[Any, ...],
    target_cache,
) -> State:
    """Which drafts are accepted, what follows them, and where that leaves the requests."""
    text, tree, live = state.text, drafts.tree, state.live
    batch, depth = live.shape[0], tree.depth
    log_q = requests.sampling.laws(
        logits,
        requests.sampling.temperature[:, None],
        _seen(text, tree),
        requests.target.vocab_size,
    )
    path = _verify(plan.scheme, requests.keys, text.length, tree, drafts.log_p, log_q)
    rows, steps = jnp.arange(batch)[:, None], jnp.arange(depth + 1, dtype=jnp.int32)
    drafted = (
        jnp.take_along_axis(tree.tokens, jnp.maximum(path.nodes, 0), axis=1)
        if depth
        else tree.tokens
    )
    emitted = jnp.where(
        steps == path.length[:, None], path.token[:, None], jnp.pad(drafted, ((0, 0), (0, 1)))
    )
    stop = (steps <= path.length[:, None]) & jnp.any(
        emitted[..., None] == requests.stops[:, None], axis=-1
    )
    first_stop = jnp.argmax(stop, axis=1).astype(jnp.int32)
    until_stop = jnp.where(jnp.any(stop, axis=1), first_stop, path.length) + 1
    count = jnp.minimum(until_stop, requests.limits - text.length)
    lawful = _lawful(plan.scheme, drafts, log_q, path, requests.limits - text.length)
    broken = live & (lawful < count)
    count = jnp.where(live, jnp.minimum(count, lawful), 0)
    new = steps < count[:, None]
    where = jnp.where(new, text.length[:, None] + steps, text.tokens.shape[1])
    length = text.length + count
    seen = None if text.seen is None else text.seen.at[rows, jnp.where(new, emitted, -1)].max(new)
    # The last accepted node was not read by the drafter, or may not have been; it is read again
    # with the next token.
    if len(caches) == 1 and depth:
        places = jnp.take_along_axis(drafts.slots, jnp.maximum(path.nodes, 0), axis=1)
        keep = requests.drafters[0].keep
        caches = (keep(caches[0], places, text.length, jnp.maximum(path.length - 1, 0)),)
    if depth:
        places = text.length[:, None] + path.nodes
        target_cache = requests.target.keep(target_cache, places, text.length, path.length)
    return State(
        Text(text.tokens.at[rows, where].set(emitted, mode="drop"), length, seen),
        live & ~broken & ~jnp.any(stop & new, axis=1) & (length < requests.limits),
        state.broken | broken,
        target_cache,
        caches,
        None
        if drafts.lists is None or state.fit is None
        else refit(state.fit, drafts.lists, path, emitted, live & ~broken),
        state.accepted.at[rows[:, 0], path.length].add((live & ~broken).astype(jnp.int32)),
    )


def _lawful(
    scheme: Scheme, drafts: Drafts, log_q, path: Path, room: Int[Array, " B"]
) -> Int[Array, " B"]:
    """How many tokens were emitted before a law was needed that is none.

    Contexts that the text does not come to, or not within its limit, do not matter; nor do the
    drafter's laws to a scheme that does not look at them. A scheme of whole paths looks at the
    whole tree.
    """
    depth = path.nodes.shape[1]
    steps = jnp.arange(depth + 1)
    wrong = jnp.isnan(log_q[..., 0])  # [B, context]
    levels = jnp.pad(drafts.tree.depths, ((0, 0), (1, 0)), constant_values=-1) + 1
    if not scheme.verifies_tokens:
        at_all = jnp.any(wrong & (levels < room[:, None]), axis=1, keepdims=True)
        along = jnp.broadcast_to(at_all, (at_all.shape[0], depth + 1))
    else:
        contexts = jnp.pad(path.nodes + 1, ((0, 0), (1, 0)))
        along = jnp.take_along_axis(wrong, contexts, axis=1) & (steps <= path.length[:, None])
    if scheme.needs_draft_probs and depth:
        along |= jnp.any(drafts.broken & (steps[:-1] < room[:, None]), axis=1, keepdims=True)
    return jnp.where(jnp.any(along, axis=1), jnp.argmax(along, axis=1).astype(jnp.int32), depth + 1)


def _verify(scheme: Scheme, keys, position, tree: Tree, log_p, log_q) -> Path:
    def one(key, position, tree, log_p, log_q):
        return scheme.verify_tree(key, position, tree, log_p, log_q)

    return jax.vmap(one, in_axes=(0, 0, 0, None if log_p is None else 0, 0))(
        keys, position, tree, log_p, log_q
    )


def _seen(text: Text, tree: Tree) -> Bool[Array, "B c N"] | None:
    """The tokens of the text at each context of the tree."""
    if text.seen is None:
        return None
    batch, size = tree.tokens.shape
    above = ancestors(tree.parents, tree.depth)[..., 1:]  # [B, context, node]
    each = jnp.broadcast_to(text.seen[:, None], (batch, size + 1, text.seen.shape[-1]))
    rows, contexts = jnp.arange(batch)[:, None, None], jnp.arange(size + 1)[:, None]
    return each.at[rows, contexts, tree.tokens[:, None]].max(above)


PARTS: tuple[Callable[..., Any], ...] = (_draft, _read, _select)
"""Draft, read with the target, select and commit."""

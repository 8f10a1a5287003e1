"""Drafting one round: level by level, all contexts of a level in one call of their drafter."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from gls_jax.decoding.cache import with_length
from gls_jax.decoding.model import LanguageModel
from gls_jax.decoding.sampling import Sampling, also
from gls_jax.decoding.tree import Shape
from gls_jax.schemes import Scheme, Tree

__all__ = ["Drafts", "Text", "draft", "read_level", "read_root"]


class Text(NamedTuple):
    """The requests' texts so far.

    Attributes:
        tokens: `i32[B, T]`, prompt and what was emitted; anything behind `length`.
        length: `i32[B]`, also the position of the next token.
        seen: `bool[B, N]`, the tokens that occur; None without a repetition penalty.
    """

    tokens: Int[Array, "B T"]
    length: Int[Array, " B"]
    seen: Bool[Array, "B N"] | None


class Drafts(NamedTuple):
    """One round of drafts.

    Attributes:
        tree: :class:`gls_jax.schemes.Tree`, its leaves `[B, n]`.
        log_p: `f32[B, n, N]`, the law of each node; None where the scheme does not ask.
        caches: of the drafters.
        slots: `i32[B, n]`, where each node lies in the cache of a single drafter; -1 where it was not read.
        broken: `bool[B]`, whether logits of a drafter were no law.
        lists: what a margin tree learns from; None for others.
    """

    tree: Tree
    log_p: Float[Array, "B n N"] | None
    caches: tuple[Any, ...]
    slots: Int[Array, "B n"]
    broken: Bool[Array, " B"]
    lists: Any = None


def read_root(drafter: LanguageModel, cache, text: Text, count: int) -> tuple[Float[Array, "B 1 V"], Any]:
    """Logits after the text, and the cache with all of it.

    The last `count` tokens are read, whether they are in the cache or not: some of them were emitted in the last round.
    """
    start = jnp.maximum(text.length - count, 0)
    where = start[:, None] + jnp.arange(count)
    tokens = _known(drafter, jnp.take_along_axis(text.tokens, where, axis=1))
    logits, cache = drafter.apply(drafter.params, tokens, where, None, with_length(cache, start))
    last = (text.length - 1 - start)[:, None, None]
    return jnp.take_along_axis(logits, last, axis=1), with_length(cache, text.length)  # a short text has fewer


def read_level(
    drafter: LanguageModel, cache, text: Text, depth: int, tokens: Int[Array, "B C"], visible: Bool[Array, "B C S"]
) -> tuple[Float[Array, "B C V"], Any, Bool[Array, "B C S"]]:
    """Logits after nodes at `depth`, the cache with them, and what their children see.

    Args:
        drafter: the model.
        cache: filled with the text and the nodes read before.
        text: the texts so far.
        depth: of the nodes, 0 for children of the root.
        tokens: of the nodes.
        visible: slots that each node sees, but for its own.
    """
    slots = cache.length[:, None] + jnp.arange(tokens.shape[1])
    visible |= jnp.arange(visible.shape[-1]) == slots[..., None]
    positions = jnp.broadcast_to(text.length[:, None] + depth, tokens.shape)
    logits, cache = drafter.apply(drafter.params, _known(drafter, tokens), positions, visible, cache)
    return logits, cache, visible


def draft(
    scheme: Scheme,
    shape: Shape,
    drafters: Sequence[LanguageModel],
    chains: Sequence[Sequence[int]],
    num_items: int,
    sampling: Sampling,
    keys: PRNGKeyArray,
    text: Text,
    caches: Sequence[Any],
    num_slots: int,
) -> Drafts:
    """K chains or a static tree.

    Args:
        scheme: whose `propose` fills the tree.
        shape: which tree.
        drafters: the models.
        chains: which chains each of several drafters makes; a single one makes the whole tree.
        num_items: `N`, the target's vocabulary.
        sampling: the parameters.
        keys: `[B]`, of the requests.
        text: the texts so far.
        caches: one a drafter.
        num_slots: `S`, slots of each cache.
    """
    tree, batch, single = shape.tree(), text.tokens.shape[0], len(drafters) == 1
    levels = [np.flatnonzero(tree.depths == depth) for depth in range(shape.depth)]
    order = np.argsort(np.concatenate(chains))  # columns of the drafters, one after the other, to chains
    # Only one's own drafts can be moved into place: several drafters read again what the last round emitted.
    roots = [read_root(*both, text, 2 if single else shape.depth + 1) for both in zip(drafters, caches, strict=True)]
    caches = [cache for _, cache in roots]
    parts = [
        logits if single else jnp.repeat(logits, len(own), axis=1)
        for (logits, _), own in zip(roots, chains, strict=True)
    ]
    before = jnp.arange(num_slots) < text.length[:, None, None]
    visible = [before] * len(drafters)
    seen = None if text.seen is None else text.seen[:, None]
    together = jnp.ones((batch, shape.num_slots, shape.num_slots), bool)  # chains that stand at one context
    nodes: list[jax.Array] = []
    slots: list[jax.Array] = []
    laws: list[jax.Array] = []
    broken = jnp.zeros(batch, bool)
    for depth, level in enumerate(levels):
        if depth > 0:
            for which, own in enumerate(chains):
                columns = slice(None) if single else np.asarray(own)
                here = nodes[-1][:, columns]
                above = jnp.repeat(visible[which], here.shape[1] // visible[which].shape[1], axis=1)
                parts[which], caches[which], visible[which] = read_level(
                    drafters[which], caches[which], text, depth - 1, here, above
                )
        logits = parts[0] if single else jnp.concatenate(parts, axis=1)[:, order]
        law = sampling.laws(logits, sampling.draft_temperature, seen, num_items)
        broken |= jnp.any(jnp.isnan(law[..., 0]), axis=-1)
        slot = jnp.broadcast_to(jnp.asarray(tree.slots[level]), (batch, len(level)))
        if shape.chains and scheme.ranked:
            earlier = np.tril(np.ones((shape.num_slots, shape.num_slots), bool), -1)
            slot = jnp.sum(together & earlier, axis=-1, dtype=jnp.int32)
        contexts = np.unique(tree.parents[level])
        token = jax.vmap(partial(_propose, scheme, shape.num_slots, depth, contexts))(keys, text.length, law, slot)
        together &= token[:, :, None] == token[:, None, :] if shape.chains else True
        if seen is not None:
            seen = also(jnp.repeat(seen, len(level) // seen.shape[1], axis=1), token)
        nodes.append(token)
        slots.append(slot)
        if scheme.needs_draft_law:
            laws.append(jnp.repeat(law, len(level) // law.shape[1], axis=1))
    node = jnp.arange(len(tree.tokens))
    fixed = (tree.parents, tree.depths, tree.alive)
    parents, depths, alive = (jnp.broadcast_to(jnp.asarray(x), (batch, len(node))) for x in fixed)
    tree = dataclasses.replace(
        tree,
        tokens=jnp.concatenate(nodes, axis=1),
        slots=jnp.concatenate(slots, axis=1),
        parents=parents,
        depths=depths,
        alive=alive,
    )
    return Drafts(
        tree,
        jnp.concatenate(laws, axis=1) if scheme.needs_draft_law else None,
        tuple(caches),
        jnp.where(node < levels[-1][0], text.length[:, None] + node, -1),
        broken,
    )


def _known(drafter: LanguageModel, tokens):
    """A token behind the drafter's vocabulary, a padding of the target's, reads as its last one."""
    return jnp.minimum(tokens, drafter.vocab_size - 1)


def _propose(scheme: Scheme, num_slots: int, depth: int, contexts: np.ndarray, key, start, laws, slots):
    """Tokens `[n]` of one request's level: the drafts in `slots` `[n]` of the lists of `contexts`, under `laws`."""
    count, single = slots.shape[0], len(contexts) == 1

    def make(context, law):
        return scheme.propose(scheme.draft_key(key, start, start + depth, context), law, num_slots)

    if single:  # one law, or one a draft
        return make(contexts[0], laws[0] if laws.shape[0] == 1 else laws)[slots]
    if not scheme.ranked and count == len(contexts) == num_slots:  # chains: each the race of its own stream
        return scheme.propose_fn(scheme.draft_key(key, start, start + depth, 0), laws, num_slots)
    lists = jax.vmap(make)(jnp.asarray(contexts), laws)
    return jnp.take_along_axis(lists, slots.reshape(len(contexts), -1), axis=1).ravel()

"""Drafting one round: level by level, all contexts of a level in one call of their drafter."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from gls_jax.decoding.batch_sampling import Sampling, also, over_items
from gls_jax.decoding.cache import with_length
from gls_jax.decoding.model import LanguageModel
from gls_jax.decoding.tree_shape import Shape
from gls_jax.schemes import Scheme, Tree
from gls_jax.typing import Index

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
        slots: `i32[B, n]`, where each node lies in the cache of a single drafter; -1 where it was
            not read.
        broken: `bool[B, depth]`, whether logits of a drafter were no law, by level.
        lists: what a margin tree learns from; None for others.
    """

    tree: Tree
    log_p: Float[Array, "B n N"] | None
    caches: tuple[Any, ...]
    slots: Int[Array, "B n"]
    broken: Bool[Array, "B D"]
    lists: Any = None


def read_root(
    drafter: LanguageModel, cache: Any, text: Text, count: int
) -> tuple[Float[Array, "B 1 V"], Any]:
    """Logits after the text, and the cache with all of it.

    The last `count` tokens are read, whether they are in the cache or not: some of them were
        emitted in the last round.
    """
    start = jnp.maximum(text.length - count, 0)
    where = start[:, None] + jnp.arange(count, dtype=jnp.int32)
    tokens = _known(drafter, jnp.take_along_axis(text.tokens, where, axis=1))
    logits, cache = drafter.apply(drafter.params, tokens, where, None, with_length(cache, start))
    last = (text.length - 1 - start)[:, None, None]
    return jnp.take_along_axis(logits, last, axis=1), with_length(
        cache, text.length
    )  # a short text has fewer


def read_level(
    drafter: LanguageModel,
    cache: Any,
    text: Text,
    depth: Index,
    tokens: Int[Array, "B C"],
    visible: Bool[Array, "B C S"],
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
    logits, cache = drafter.apply(
        drafter.params, _known(drafter, tokens), positions, visible, cache
    )
    return logits, cache, visible


class _Level(NamedTuple):
    """The newest nodes, `n` of them, from which the next level is drafted.

    Attributes:
        tokens: `i32[B, n]`.
        visible: for each drafter `bool[B, n, S]`, the slots its nodes see, but for their own.
        seen: `bool[B, n, N]`, the tokens of each node's text.
        alike: `bool[B, K, K]`, which chains have drafted the same so far.
        caches: of the drafters.
    """

    tokens: Int[Array, "B n"]
    visible: tuple[Bool[Array, "B _ S"], ...]
    seen: Bool[Array, "B n N"] | None
    alike: Bool[Array, "B K K"]
    caches: tuple[Any, ...]


def draft(
    scheme: Scheme,
    shape: Shape,
    drafters: Sequence[LanguageModel],
    chains: Sequence[Sequence[int]],
    num_items: int,
    sampling: Sampling,
    keys: Key[Array, " B"],
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
    single, batch, width = len(drafters) == 1, text.length.shape[0], shape.widths[0]
    columns = [slice(None)] if single else [np.asarray(own) for own in chains]
    order = np.argsort(
        np.concatenate(chains)
    )  # the drafters' columns, one after the other, in the order of the chains

    def joined(logits: Sequence[jax.Array]) -> jax.Array:
        """Logits of all drafters, in the order of the chains."""
        return (
            logits[0]
            if single
            else jnp.concatenate([over_items(x, num_items) for x in logits], axis=1)[:, order]
        )

    def children(level: _Level, logits, depth, first, contexts: int, count: int):
        """`count` drafts below as many contexts, numbered from `first`; and what each drafter's
        nodes see.
        """
        law = sampling.laws(logits, sampling.draft_temperature, level.seen, num_items)
        if (
            shape.chains and scheme.ranked
        ):  # the r-th of those that stand at one context takes rank r
            slots = jnp.sum(jnp.tril(level.alike, -1), axis=-1, dtype=jnp.int32)
        else:
            own = np.arange(count) % (count if shape.chains else count // contexts)
            slots = jnp.broadcast_to(jnp.asarray(own, jnp.int32), (batch, count))
        propose = partial(_propose, scheme, shape.list_size, depth, first + jnp.arange(contexts))
        tokens = jax.vmap(propose)(keys, text.length, law, slots)
        seen = None if level.seen is None else also(_spread(level.seen, count), tokens)
        visible = tuple(
            _spread(each, tokens[:, own].shape[1])
            for each, own in zip(level.visible, columns, strict=True)
        )
        alike = (
            level.alike & (tokens[:, :, None] == tokens[:, None, :])
            if shape.chains
            else level.alike
        )
        made = (
            tokens,
            slots,
            _spread(law, count) if scheme.needs_draft_probs else None,
            jnp.isnan(law[..., 0]).any(-1),
        )
        return _Level(tokens, visible, seen, alike, level.caches), made

    def grow(level: _Level, depth, first, count: int):
        """Read the newest nodes, and draft the next."""
        read = [
            read_level(drafter, cache, text, depth - 1, level.tokens[:, own], visible)
            for drafter, cache, visible, own in zip(
                drafters, level.caches, level.visible, columns, strict=True
            )
        ]
        logits, caches, visible = zip(*read, strict=True)
        level = level._replace(caches=caches, visible=visible)
        return children(level, joined(logits), depth, first, level.tokens.shape[1], count)

    # Only one's own drafts can be moved into place: several drafters read again what the last round
    # emitted.
    again = 2 if single else shape.depth + 1
    logits, caches = zip(
        *(read_root(*both, text, again) for both in zip(drafters, caches, strict=True)), strict=True
    )
    before = jnp.arange(num_slots) < text.length[:, None, None]
    seen = None if text.seen is None else text.seen[:, None]
    root = _Level(
        text.tokens, (before,) * len(drafters), seen, jnp.ones((batch, width, width), bool), caches
    )
    if not single:
        logits = tuple(_spread(each, len(own)) for each, own in zip(logits, chains, strict=True))
    level, made = children(root, joined(logits), 0, 0, 1, width)
    levels = [made]
    if shape.chains:  # the levels are alike: one body, compiled once
        depths = jnp.arange(1, shape.depth, dtype=jnp.int32)
        level, rest = jax.lax.scan(
            lambda level, depth: grow(level, depth, 1 + (depth - 1) * width, width), level, depths
        )
        levels += [jax.tree.map(lambda x, d=d: x[d], rest) for d in range(shape.depth - 1)]
    else:
        first = 1
        for depth in range(1, shape.depth):
            contexts = level.tokens.shape[1]
            level, made = grow(level, depth, first, contexts * shape.widths[depth])
            first, levels = first + contexts, [*levels, made]
    tokens, slots, laws, broken = zip(*levels, strict=True)
    tree, node = shape.tree(), np.arange(shape.num_nodes, dtype=np.int32)
    parents, depths, alive = (
        jnp.broadcast_to(jnp.asarray(x), (batch, len(node)))
        for x in (tree.parents, tree.depths, tree.alive)
    )
    drafted = (
        jnp.concatenate(tokens, axis=1),
        parents,
        jnp.concatenate(slots, axis=1),
        depths,
        alive,
    )
    tree = Tree(*drafted, depth=shape.depth, list_size=shape.list_size)
    return Drafts(
        tree,
        jnp.concatenate(laws, axis=1) if scheme.needs_draft_probs else None,
        level.caches,
        jnp.where(tree.depths < shape.depth - 1, text.length[:, None] + node, -1),
        jnp.stack(broken, axis=1),
    )


def _spread(x, count: int):
    """`[B, C, ...]` with each row repeated for its share of `count` children."""
    return jnp.repeat(x, count // x.shape[1], axis=1)


def _known(drafter: LanguageModel, tokens):
    """A token behind the drafter's vocabulary, a padding of the target's, reads as its last one."""
    return jnp.minimum(tokens, drafter.vocab_size - 1)


def _propose(
    scheme: Scheme, list_size: int, depth, contexts: Int[Array, " C"], key, start, laws, slots
):
    """Tokens `[n]` of one request's level: the drafts in `slots` `[n]` of the lists of `contexts`,
    under `laws`.
    """
    count, single = slots.shape[0], len(contexts) == 1

    def make(context, law):
        return scheme.propose(scheme.draft_key(key, start, start + depth, context), law, list_size)

    if single:  # one law, or one a draft
        return make(contexts[0], laws[0] if laws.shape[0] == 1 else laws)[slots]
    if (
        not scheme.ranked and count == len(contexts) == list_size
    ):  # chains: each the race of its own stream
        return scheme.propose_fn(scheme.draft_key(key, start, start + depth, 0), laws, list_size)
    lists = jax.vmap(make)(contexts, laws)
    return jnp.take_along_axis(lists, slots.reshape(len(contexts), -1), axis=1).ravel()

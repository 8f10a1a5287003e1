"""Margin trees: the shared clocks tell the drafter where the target will probably go
(:class:`MarginTree`).
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from gls_jax import races
from gls_jax.decoding.batch_sampling import Sampling, also
from gls_jax.decoding.drafting import Drafts, Text, read_level, read_root
from gls_jax.decoding.model import LanguageModel
from gls_jax.decoding.tree_shape import MarginTree
from gls_jax.schemes import Path, Scheme, Tree

__all__ = ["Candidates", "draft_margin", "first_fit", "refit"]

TAUS = np.geomspace(0.05, 5, 24).astype(np.float32)
"""Spreads of ``log q - log p`` to choose from."""
_TYPICAL = 0.6  # where the choice starts, as if a few emitted tokens had said so


class Candidates(NamedTuple):
    """All nodes that were thought of, in groups of siblings; parents stand before children.

    Attributes:
        tokens: `i32[B, E, M]`, the first M of the race at each of E contexts.
        scores: `f32[B, E, M]`, ``log p - log E`` of each, decreasing; `-inf` where there is none.
        nodes: `i32[B, E]`, the node that the context follows: -1 the root, -2 none that was chosen.
    """

    tokens: Int[Array, "B E M"]
    scores: Float[Array, "B E M"]
    nodes: Int[Array, "B E"]


def first_fit(batch: int) -> Float[Array, "B G"]:
    """Log-likelihood of each spread before any round."""
    return jnp.broadcast_to(-4 * jnp.log(jnp.asarray(TAUS) / _TYPICAL) ** 2, (batch, len(TAUS)))


def draft_margin(
    scheme: Scheme,
    shape: MarginTree,
    drafter: LanguageModel,
    num_items: int,
    sampling: Sampling,
    keys: Key[Array, " B"],
    text: Text,
    cache: Any,
    num_slots: int,
    fit: Float[Array, "B G"],
) -> Drafts:
    """A tree of the nodes that the target will most probably reach.

    Args:
        scheme: `gumbel_topk`.
        shape: budget and depth.
        drafter: the one model.
        num_items: `N`, the target's vocabulary.
        sampling: the parameters.
        keys: `[B]`, of the requests.
        text: the texts so far.
        cache: of the drafter.
        num_slots: `S`, its slots.
        fit: log-likelihood of the spreads so far.
    """
    batch, width, front = text.tokens.shape[0], shape.children, shape.frontier
    tau = jnp.asarray(TAUS)[jnp.argmax(fit, axis=-1)][:, None, None]

    def think(logits, seen, depth, chance):
        """The first of the race at each context, and the chance that the target comes to each of
        them.
        """
        law = sampling.laws(logits, sampling.draft_temperature, seen, num_items)
        tokens, scores = jax.vmap(partial(_ranks, scheme, width))(keys, text.length + depth, law)
        child = chance[..., None] + jax.nn.log_softmax(scores / tau, axis=-1)
        return (
            tokens,
            scores,
            jnp.where(jnp.isfinite(scores), child, -jnp.inf),
            jnp.isnan(law[..., 0]).any(-1),
        )

    def deeper(carry, depth):
        cache, visible, seen, tokens, child = carry
        chance, best = jax.lax.top_k(child.reshape(batch, -1), front)
        best = jnp.sort(best, axis=-1)
        chance = jnp.take_along_axis(child.reshape(batch, -1), best, axis=-1)
        parent, token = best // width, jnp.take_along_axis(tokens.reshape(batch, -1), best, axis=-1)
        if seen is not None:
            seen = also(jnp.take_along_axis(seen, parent[..., None], axis=1), token)
        visible = jnp.take_along_axis(visible, parent[..., None], axis=1)
        logits, cache, visible = read_level(drafter, cache, text, depth - 1, token, visible)
        tokens, scores, child, broken = think(logits, seen, depth, chance)
        contexts = (depth - 1) * front * width + best  # the candidate that each follows
        return (cache, visible, seen, tokens, child), (tokens, scores, child, contexts, broken)

    logits, cache = read_root(drafter, cache, text, 2)
    seen = None if text.seen is None else text.seen[:, None]
    tokens, scores, child, broken = think(logits, seen, 0, jnp.zeros((batch, 1), jnp.float32))
    spare = (
        (0, 0),
        (0, front - 1),
        (0, 0),
    )  # the root is alone: levels alike are one body, compiled once
    tokens, scores, child = (
        jnp.pad(tokens, spare),
        *(jnp.pad(x, spare, constant_values=-jnp.inf) for x in (scores, child)),
    )
    visible = jnp.broadcast_to(
        jnp.arange(num_slots) < text.length[:, None, None], (batch, front, num_slots)
    )
    seen = None if seen is None else jnp.repeat(seen, front, axis=1)
    level = (tokens, scores, child, jnp.full((batch, front), -1, jnp.int32), broken)
    depths = jnp.arange(1, shape.depth, dtype=jnp.int32)
    carry, rest = jax.lax.scan(deeper, (cache, visible, seen, tokens, child), depths)
    *found, broken = (
        jnp.concatenate([one[None], more]) for one, more in zip(level, rest, strict=True)
    )
    tokens, scores, child, contexts = (
        jnp.moveaxis(x, 0, 1).reshape(batch, -1, *x.shape[3:]) for x in found
    )
    return _prune(shape, text, carry[0], broken.T, Candidates(tokens, scores, contexts), child)


def _ranks(scheme: Scheme, width: int, key, position, laws):
    """The first M of the race at each context, and their scores."""
    key = races.position_key(key, position)
    tokens = jax.vmap(lambda law: scheme.propose(key, law, width))(laws)
    arrivals = races.arrivals(races.exponentials(key, 1, laws.shape[-1])[0], laws)
    scores = -jnp.log(jnp.take_along_axis(arrivals, tokens, axis=-1))
    again = (tokens == tokens[:, :1]) & (
        jnp.arange(width) > 0
    )  # fewer items than M: the list repeats the first
    return tokens, jnp.where(again, -jnp.inf, scores)


def _prune(
    shape: MarginTree, text: Text, cache, broken, thought: Candidates, chance: Float[Array, "B E M"]
) -> Drafts:
    """The best nodes of the budget. Nobody is likelier than its parent or an earlier rank, so no
    gaps arise.
    """
    batch, groups, width = chance.shape
    rows, size, flat = jnp.arange(batch)[:, None], groups * width, chance.reshape(batch, -1)
    _, best = jax.lax.top_k(flat, shape.budget)
    best = jnp.sort(best, axis=-1)  # parents first
    node_of = (
        jnp.full((batch, size + 1), -2, jnp.int32).at[:, size].set(-1)
    )  # of each candidate; the last entry is the root's
    node_of = node_of.at[rows, best].set(jnp.arange(shape.budget, dtype=jnp.int32))
    after = jnp.take_along_axis(
        node_of, thought.nodes % (size + 1), axis=1
    )  # the node that each group follows
    # Read were all contexts below the root, in their order; the root has the groups of the first
    # level to itself.
    below = thought.nodes[:, shape.frontier :]
    slots = text.length[:, None] + jnp.arange(below.shape[1], dtype=jnp.int32)
    read = jnp.full((batch, size), -1, jnp.int32).at[rows, below].set(slots)
    take = partial(jnp.take_along_axis, indices=best, axis=1)
    tree = Tree(
        tokens=take(thought.tokens.reshape(batch, -1)),
        parents=jnp.take_along_axis(after, best // width, axis=1) + 1,
        draft_index=(best % width).astype(jnp.int32),
        depths=(best // (shape.frontier * width)).astype(jnp.int32),
        alive=jnp.isfinite(take(flat)),
        depth=shape.depth,
        list_size=width,
    )
    return Drafts(tree, None, (cache,), take(read), broken, thought._replace(nodes=after))


def refit(
    fit: Float[Array, "B G"],
    lists: Candidates,
    path: Path,
    tokens: Int[Array, "B L"],
    live: Bool[Array, " B"],
) -> Float[Array, "B G"]:
    """Log-likelihood of the spreads with one round more: which rank did the target take at each
    context it came to?

    Args:
        fit: so far.
        lists: what was thought of.
        path: what the target accepted, leaves `[B, ...]`.
        tokens: `i32[B, depth + 1]`, what it emitted.
        live: requests that were still running.
    """
    steps = jnp.arange(tokens.shape[1])
    came = jnp.pad(
        path.nodes, ((0, 0), (1, 0)), constant_values=-1
    )  # context of each emitted token
    came = jnp.where((steps <= path.length[:, None]) & live[:, None], came, -3)
    at = lists.nodes[:, :, None] == came[:, None]  # [B, E, L]
    emitted = jnp.where(
        jnp.any(at, -1), jnp.sum(jnp.where(at, tokens[:, None], 0), -1, dtype=jnp.int32), -1
    )
    hit = (lists.tokens == emitted[..., None]) & jnp.isfinite(lists.scores)
    log_chance = jax.nn.log_softmax(lists.scores[..., None] / jnp.asarray(TAUS), axis=2)
    return fit + jnp.sum(jnp.where(hit[..., None], log_chance, 0), axis=(1, 2))

"""Margin trees: the shared clocks tell the drafter where the target will probably go (:class:`MarginTree`)."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from gls_jax import races
from gls_jax.decoding.drafting import Drafts, Text, read_level, read_root
from gls_jax.decoding.model import LanguageModel
from gls_jax.decoding.sampling import Sampling, also
from gls_jax.decoding.tree import MarginTree
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
        nodes: `i32[B, E]`, the node of the chosen tree that the context follows; -1 the root, -2 none.
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
    keys: PRNGKeyArray,
    text: Text,
    cache,
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
    batch, width = text.tokens.shape[0], shape.children
    tau = jnp.asarray(TAUS)[jnp.argmax(fit, axis=-1)][:, None, None]
    logits, cache = read_root(drafter, cache, text, 2)
    visible = jnp.arange(num_slots) < text.length[:, None, None]
    seen = None if text.seen is None else text.seen[:, None]
    chance = jnp.zeros((batch, 1))  # log-probability that the target comes to each context of the level
    contexts = jnp.full((batch, 1), -1)  # and the candidate it follows
    found: list[tuple] = []
    broken, thought_of = jnp.zeros(batch, bool), 0
    for depth in range(shape.depth):
        law = sampling.laws(logits, sampling.draft_temperature, seen, num_items)
        broken |= jnp.any(jnp.isnan(law[..., 0]), axis=-1)
        tokens, scores = jax.vmap(partial(_ranks, scheme, width))(keys, text.length + depth, law)
        child = chance[..., None] + jax.nn.log_softmax(scores / tau, axis=-1)
        child = jnp.where(jnp.isfinite(scores), child, -jnp.inf)
        found.append((tokens, scores, child, contexts, jnp.full((batch, tokens.shape[1] * width), depth)))
        if depth == shape.depth - 1:
            break
        chance, best = jax.lax.top_k(child.reshape(batch, -1), min(shape.frontier, tokens.shape[1] * width))
        best = jnp.sort(best, axis=-1)
        chance = jnp.take_along_axis(child.reshape(batch, -1), best, axis=-1)
        parent, token = best // width, jnp.take_along_axis(tokens.reshape(batch, -1), best, axis=-1)
        contexts, thought_of = thought_of + best, thought_of + tokens.shape[1] * width
        if seen is not None:
            seen = also(jnp.take_along_axis(seen, parent[..., None], axis=1), token)
        visible = jnp.take_along_axis(visible, parent[..., None], axis=1)
        logits, cache, visible = read_level(drafter, cache, text, depth, token, visible)
    return _prune(shape, text, cache, broken, found)


def _ranks(scheme: Scheme, width: int, key, position, laws):
    """The first M of the race at each context, and their scores."""
    key = races.position_key(key, position)
    tokens = jax.vmap(lambda law: scheme.propose(key, law, width))(laws)
    arrivals = races.arrivals(races.exponentials(key, 1, laws.shape[-1])[0], laws)
    scores = -jnp.log(jnp.take_along_axis(arrivals, tokens, axis=-1))
    again = (tokens == tokens[:, :1]) & (jnp.arange(width) > 0)  # fewer items than M: the list repeats the first
    return tokens, jnp.where(again, -jnp.inf, scores)


def _prune(shape: MarginTree, text: Text, cache, broken, found) -> Drafts:
    """The best nodes of the budget. Nobody is likelier than its parent or an earlier rank, so no gaps arise."""
    batch, width = text.tokens.shape[0], shape.children
    tokens, scores, chance = (jnp.concatenate([level[i] for level in found], axis=1) for i in range(3))
    contexts = jnp.concatenate([level[3] for level in found], axis=1)  # [B, E], the candidate each follows
    depths = jnp.concatenate([level[4] for level in found], axis=1)
    flat = chance.reshape(batch, -1)
    _, best = jax.lax.top_k(flat, shape.budget)
    best = jnp.sort(best, axis=-1)  # parents first
    rows, size = jnp.arange(batch)[:, None], flat.shape[1]
    node_of = jnp.full((batch, size + 2), -2).at[rows, best].set(jnp.arange(shape.budget))  # candidate to node
    node_of = node_of.at[:, size + 1].set(-1)  # index -1: the root
    group = best // width
    above = jnp.take_along_axis(contexts, group, axis=1)
    # The order of reading: all contexts but the root, one behind the other.
    read = (
        jnp.full((batch, size), -1)
        .at[rows, contexts[:, 1:]]
        .set(text.length[:, None] + jnp.arange(contexts.shape[1] - 1))
    )
    take = partial(jnp.take_along_axis, indices=best, axis=1)
    tree = Tree(
        tokens=take(tokens.reshape(batch, -1)),
        parents=jnp.take_along_axis(node_of, above % (size + 2), axis=1) + 1,
        slots=(best % width).astype(jnp.int32),
        depths=take(depths).astype(jnp.int32),
        alive=jnp.isfinite(take(flat)),
        depth=shape.depth,
        num_slots=width,
    )
    lists = Candidates(tokens, scores, jnp.take_along_axis(node_of, contexts % (size + 2), axis=1))
    return Drafts(tree, None, (cache,), take(read), broken, lists)


def refit(fit: Float[Array, "B G"], lists: Candidates, path: Path, tokens: Int[Array, "B L"], live: Bool[Array, " B"]):
    """Log-likelihood of the spreads with one round more: which rank did the target take at each context it came to?

    Args:
        fit: so far.
        lists: what was thought of.
        path: what the target accepted, leaves `[B, ...]`.
        tokens: `i32[B, depth + 1]`, what it emitted.
        live: requests that were still running.
    """
    steps = jnp.arange(tokens.shape[1])
    came = jnp.pad(path.nodes, ((0, 0), (1, 0)), constant_values=-1)  # context of each emitted token
    came = jnp.where((steps <= path.length[:, None]) & live[:, None], came, -3)
    at = lists.nodes[:, :, None] == came[:, None]  # [B, E, L]
    emitted = jnp.where(jnp.any(at, -1), jnp.sum(jnp.where(at, tokens[:, None], 0), -1), -1)
    hit = (lists.tokens == emitted[..., None]) & jnp.isfinite(lists.scores)
    log_chance = jax.nn.log_softmax(lists.scores[..., None] / jnp.asarray(TAUS), axis=2)
    return fit + jnp.sum(jnp.where(hit[..., None], log_chance, 0), axis=(1, 2))

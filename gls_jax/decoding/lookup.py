"""Drafts by look-up: what followed an earlier occurrence of the end of the text.

(Prompt lookup decoding, Saxena 2023.) The tokens before each earlier position are compared with the
end of the text, and the position with the longest match is taken, the latest of several. The draft
is what followed there; where that reaches the end of the text it is repeated, so a
text that repeats itself is continued for any length.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int

from gls_jax.decoding.state import Drafts, EngineConfig, Requests, Text
from gls_jax.schemes import Tree

__all__ = ["LONGEST_MATCH", "Match", "draft_by_lookup", "find_match"]

LONGEST_MATCH = 4
"""In automatic drafting longer matches count as this long."""


class Match(NamedTuple):
    """The earlier occurrence of the end of each text.

    Attributes:
        next_position: `i32[B]`, position after the occurrence.
        length: `i32[B]`, tokens that match; 0 for none.
    """

    next_position: Int[Array, " B"]
    length: Int[Array, " B"]


def find_match(
    tokens: Int[Array, "B T"], length: Int[Array, " B"], longest: int = LONGEST_MATCH
) -> Match:
    """The longest match of the end of each text.

    Args:
        tokens: the texts.
        length: of each text.
        longest: the most tokens that count.
    """
    size = tokens.shape[1]
    positions = jnp.arange(size, dtype=jnp.int32)
    last = length[:, None] - 1

    # How many tokens up to each position match the end of the text.
    still_matches = jnp.ones(tokens.shape, bool)
    num_matching = jnp.zeros(tokens.shape, jnp.int32)
    for back in range(longest):
        # `roll` brings the end of the text to its beginning, where nothing can match.
        here = jnp.where(positions >= back, jnp.roll(tokens, back, axis=1), -1)
        at_end = jnp.take_along_axis(tokens, jnp.maximum(last - back, 0), axis=1)
        still_matches &= (here == at_end) & (last >= back)
        num_matching += still_matches.astype(jnp.int32)

    # The longest match, and of several the latest position before the end.
    score = jnp.where(positions < last, num_matching * size + positions, -1)
    best = jnp.argmax(score, axis=1)[:, None]
    best_score = jnp.take_along_axis(score, best, axis=1)[:, 0]
    match_length = jnp.where(best_score >= size, best_score // size, 0)
    return Match(best[:, 0].astype(jnp.int32) + 1, match_length.astype(jnp.int32))


def draft_by_lookup(config: EngineConfig, requests: Requests, text: Text, match: Match) -> Drafts:
    """One chain of drafts for each request; no drafts where nothing matches."""
    num_drafts = config.shape.depth
    batch_size = len(text.length)
    steps = jnp.arange(num_drafts, dtype=jnp.int32)
    # From the occurrence to the end of the text, again and again.
    period = jnp.maximum(text.length - match.next_position, 1)[:, None]
    positions = match.next_position[:, None] + steps % period
    tokens = jnp.take_along_axis(text.tokens, positions, axis=1)
    is_match = (match.length > 0)[:, None]

    def rows(values):
        return jnp.broadcast_to(values, (batch_size, num_drafts))

    tree = Tree(
        tokens=jnp.where(is_match, tokens, 0),
        parents=rows(steps),  # 0 is the root, so the parent of node i is row i
        draft_index=rows(jnp.zeros_like(steps)),
        depths=rows(steps),
        alive=rows(is_match),
        depth=num_drafts,
        list_size=config.shape.list_size,
    )
    log_p = None
    if config.scheme.needs_draft_probs:
        # The drafts are certain.
        is_draft = jnp.arange(requests.sampling.vocab_size) == tree.tokens[..., None]
        log_p = jnp.where(is_draft, 0.0, -jnp.inf)
    return Drafts(
        tree=tree,
        log_p=log_p,
        cache_slots=jnp.full((batch_size, num_drafts), -1, jnp.int32),
        is_invalid=jnp.zeros((batch_size, num_drafts), bool),
        num_calls=0,
    )

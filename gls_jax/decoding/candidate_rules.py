"""The candidates of dynamic trees at a node, and how probable they are: a rule for each kind.

A best-first tree takes the likeliest tokens of the drafter, as probable as the drafter says. A
margin tree takes the first tokens of the race under its estimate of the target
(:mod:`gls_jax.decoding.margin`), or the likeliest tokens of the drafter where the target is greedy.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gls_jax import races
from gls_jax.decoding.dynamic_tree import CandidateRule, Candidates
from gls_jax.decoding.margin import (
    CORRECTION_PRIOR,
    Evidence,
    Learned,
    log_estimate,
    most_likely,
)
from gls_jax.decoding.state import EngineConfig, Requests, Text
from gls_jax.schemes.gumbel_topk import in_order

__all__ = ["candidate_rule"]

# Of the mass outside a list, which cannot be computed more exactly.
_LEAST_REST = 1e-4


def candidate_rule(
    config: EngineConfig, requests: Requests, text: Text, learned: Learned | None
) -> CandidateRule:
    """The rule of the tree that is configured; `learned` is None if it is no margin tree."""
    num_children = config.shape.list_size
    sampling = requests.sampling
    draft_tokens = requests.draft_tokens

    def to_tokens(columns):
        """The tokens of these columns of the draft distribution."""
        return columns if draft_tokens is None else draft_tokens[columns]

    def likeliest(logits, seen, depths) -> Candidates:
        """Of a best-first tree: the likeliest tokens, as probable as the drafter says."""
        del depths
        log_p = sampling.log_probs(logits, sampling.draft_temperature, seen, draft_tokens)
        columns, log_prob = _first_of(log_p, log_p, num_children)
        return Candidates(tokens=to_tokens(columns), log_prob=log_prob, evidence=None)

    if learned is None:
        return likeliest

    # All nodes at a depth share the noise of its position.
    num_depths = config.shape.depth
    all_tokens = jnp.arange(sampling.vocab_size) if draft_tokens is None else draft_tokens
    log_noise = jax.vmap(_log_noise, (0, 0, None, None))(
        requests.keys, text.length, num_depths, all_tokens
    )
    fit = most_likely(learned.fit)
    sharpness, spread = fit[:, 0, None, None], fit[:, 1, None, None]
    differences, weights = learned.differences[:, all_tokens], learned.weights[:, all_tokens]
    correction = differences / (weights + CORRECTION_PRIOR)
    advantages = correction[:, None] - log_noise  # [B, D, N]
    # A greedy target emits its likeliest token, whatever the noise is. So its candidates are the
    # drafter's likeliest tokens, and temperature 1 tells how likely they are.
    is_greedy = sampling.temperature == 0
    advantages = jnp.where(is_greedy[:, None, None], 0, advantages)
    is_point_mass = is_greedy[:, None] & (sampling.draft_temperature == 0)
    draft_temperature = jnp.where(is_point_mass, 1, sampling.draft_temperature)
    unfiltered = dataclasses.replace(sampling, top_k=None, top_p=None, min_p=None)

    def first_ranks(logits, seen, depths) -> Candidates:
        """Of a margin tree: the first ranks of the race under the estimate of `q`."""
        log_p = sampling.log_probs(logits, draft_temperature, seen, draft_tokens)
        advantage = jnp.take_along_axis(advantages, depths[..., None], axis=1)
        columns, log_p_of_list = _first_of(sharpness * log_p + advantage, log_p, num_children)
        # What is outside the list has been filtered, or is further behind.
        log_full = unfiltered.log_probs(logits, draft_temperature, seen, draft_tokens)
        full_of_list = jnp.take_along_axis(log_full, columns, axis=-1)
        listed = jnp.sum(jnp.where(jnp.isfinite(log_p_of_list), jnp.exp(full_of_list), 0), -1)
        # NaN where the drafter's logits are invalid: then the list says nothing.
        rest = jnp.where(jnp.isnan(listed), 1, jnp.maximum(1 - listed, _LEAST_REST))
        evidence = Evidence(
            log_p=log_p_of_list,
            advantage=jnp.take_along_axis(advantage, columns, axis=-1),
            log_rest=jnp.log(rest),
        )
        log_prob = log_estimate(evidence, sharpness, spread)[..., :-1]
        return Candidates(tokens=to_tokens(columns), log_prob=log_prob, evidence=evidence)

    return first_ranks


def _first_of(scores: Float[Array, "B F N"], log_p: Float[Array, "B F N"], count: int):
    """Columns `[B, F, M]` of the largest scores, their log-probabilities; `-inf` for none."""
    scores = jnp.where(log_p >= races.LIGHTEST, scores, -jnp.inf)
    columns = jax.vmap(jax.vmap(lambda row: in_order(row, count)))(scores)
    is_possible = jnp.isfinite(jnp.take_along_axis(scores, columns, axis=-1))
    # A list with fewer than M possible tokens repeats the first.
    is_repeated = (columns == columns[..., :1]) & (jnp.arange(count) > 0)
    log_p = jnp.take_along_axis(log_p, columns, axis=-1)
    return columns, jnp.where(is_possible & ~is_repeated, log_p, -jnp.inf)


def _log_noise(key, start, num_positions: int, tokens) -> Float[Array, "D N"]:
    """`log E` of these tokens at the positions from `start` on, for one request."""

    def at(position) -> Any:
        return races.exponentials_at(races.position_key(key, position), 1, tokens)[0]

    return jnp.log(jax.vmap(at)(start + jnp.arange(num_positions)))

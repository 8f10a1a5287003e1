"""How probably the target emits each candidate: the estimate of margin trees, which is learned.

The target emits ``argmax_i(log q_i - log E_i)``, and the drafter knows the noise `E` and its `p`.
:class:`gls_jax.decoding.MarginTree` estimates `log q` as ``a log p + c``, with a *sharpness* `a`
and a *correction* `c` of each token, and what that leaves unexplained as Gumbel noise of scale
`tau`, the *spread*. Then token `i` is emitted with a probability proportional to

    exp((a log p_i + c_i - log E_i) / tau).

A list holds the M tokens of largest score. One more outcome stands for all other tokens, which are
further behind, or impossible under the filters of `p`. Its score uses the draft mass outside the
list and ``E = 1``, an approximation. Without it deep nodes would be overrated.

All is learned from the rounds of a request. Sharpness and spread are those of maximum likelihood
for the emitted tokens, on a grid, with a prior. Drafters differ: one without some of the target's
layers is flatter than the target (`a` of 1.3), and a lower temperature widens the spread. The
target reads all nodes of a tree, so its `q` is known there. The correction of a token is a mean of
``log q - a log p`` over the nodes whose lists it was in. Each difference is taken from the mean of
its list, limited to 3 in size, and weighted by ``sqrt(p)``; the mean is shrunk towards 0.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from gls_jax import races
from gls_jax.decoding.state import Drafts
from gls_jax.decoding.tree_shape import DynamicTree, MarginTree
from gls_jax.schemes import Path

__all__ = [
    "CORRECTION_PRIOR",
    "Evidence",
    "Learned",
    "learn",
    "log_estimate",
    "most_likely",
    "nothing_learned",
]

# The grid of pairs (sharpness, spread), and the centre of its prior.
_SHARPNESSES = np.array([0.6, 0.7, 0.85, 1, 1.15, 1.3, 1.5, 1.75, 2.1])
_SPREADS = np.geomspace(0.2, 6, 14)
GRID = np.stack(np.meshgrid(_SHARPNESSES, _SPREADS, indexing="ij"), -1).reshape(-1, 2)
GRID = GRID.astype(np.float32)
"""`[G, 2]`: the pairs among which the most likely one is chosen."""
_PRIOR_CENTRE = np.array([1.15, 0.9], np.float32)
# How fast the log-prior falls with the squares of the logarithms: as much as some emitted tokens.
_PRIOR_SLOPES = np.array([20, 4], np.float32)

# A difference of log-probabilities counts as at most this.
_LARGEST_DIFFERENCE = 3.0
# A token that the filters of `q` remove counts as this difference.
_IF_IMPOSSIBLE = -2.0
CORRECTION_PRIOR = 1.0
"""The weight that pulls a correction to 0; a token of probability p in a list weighs sqrt(p)."""


class Learned(NamedTuple):
    """What a margin tree has learned about each request.

    Attributes:
        fit: `f32[B, G]`, log-likelihood of each pair of the grid.
        differences: `f32[B, N]`, weighted sum of ``log q - a log p`` of each token.
        weights: `f32[B, N]`, sum of the weights.
    """

    fit: Array
    differences: Array
    weights: Array


class Evidence(NamedTuple):
    """What the estimate of a margin tree rests on.

    Attributes:
        log_p: `f32[..., M]`, of each candidate; `-inf` where there is none.
        advantage: `f32[..., M]`, its correction less its `log E`.
        log_rest: `f32[...]`, log of the draft probability outside the list, before any filter.
    """

    log_p: Array
    advantage: Array
    log_rest: Array


def log_estimate(
    evidence: Evidence, sharpness: Array, spread: Array
) -> Float[Array, "... M_plus_1"]:
    """Log-probability that the target emits each candidate and, last, none of them.

    Args:
        evidence: leaves `[..., M]` and `[...]`.
        sharpness, spread: numbers that broadcast to `[..., 1]`.
    """
    scores = sharpness * evidence.log_p + evidence.advantage
    of_none = jnp.broadcast_to(sharpness * evidence.log_rest[..., None], (*scores.shape[:-1], 1))
    return jax.nn.log_softmax(jnp.concatenate([scores, of_none], axis=-1) / spread, axis=-1)


def nothing_learned(tree: DynamicTree | None, batch_size: int, vocab_size: int) -> Learned | None:
    """Where the first round starts: the log-prior of the grid; None if it is no margin tree."""
    if not isinstance(tree, MarginTree):
        return None
    log_prior = -jnp.sum(_PRIOR_SLOPES * jnp.log(GRID / _PRIOR_CENTRE) ** 2, axis=-1)
    return Learned(
        fit=jnp.broadcast_to(log_prior, (batch_size, len(GRID))),
        differences=jnp.zeros((batch_size, vocab_size), jnp.float32),
        weights=jnp.zeros((batch_size, vocab_size), jnp.float32),
    )


def most_likely(fit: Float[Array, "B G"]) -> Float[Array, "B 2"]:
    """Sharpness and spread of each request."""
    return jnp.asarray(GRID)[jnp.argmax(fit, axis=-1)]


def learn(
    learned: Learned,
    drafts: Drafts,
    log_q: Float[Array, "B c N"],
    path: Path,
    tokens: Int[Array, "B L"],
    is_active: Bool[Array, " B"],
) -> Learned:
    """What is learned after a round.

    Args:
        learned: so far.
        drafts: of the round.
        log_q: the target's distributions at the root and at all nodes.
        path: the accepted nodes, leaves `[B, ...]`.
        tokens: `i32[B, depth + 1]`, the emitted tokens.
        is_active: requests whose round counts.
    """
    gains = _log_likelihood(drafts, path, tokens, is_active)
    differences, weights = _differences(learned, drafts, log_q, is_active)
    rows = jnp.arange(len(is_active))[:, None, None]
    candidates = drafts.candidates.tokens
    return Learned(
        fit=learned.fit + gains,
        differences=learned.differences.at[rows, candidates].add(weights * differences),
        weights=learned.weights.at[rows, candidates].add(weights),
    )


def _differences(learned: Learned, drafts: Drafts, log_q, is_active):
    """``log q - a log p`` of each candidate whose node the target has read, and its weight."""
    assert drafts.list_nodes is not None  # they are the drafts of a margin tree
    # The target's row of each list: that of the root is 0. Lists outside the tree have none.
    list_rows = jnp.maximum(drafts.list_nodes + 1, 0)
    has_row = (drafts.list_nodes >= -1) & is_active[:, None]
    batch_rows = jnp.arange(len(log_q))[:, None, None]
    of_target = log_q[batch_rows, list_rows[..., None], drafts.candidates.tokens]

    log_p = drafts.candidates.evidence.log_p
    is_candidate = jnp.isfinite(log_p) & has_row[..., None] & ~jnp.isnan(of_target)
    in_both = is_candidate & (of_target >= races.LIGHTEST)
    sharpness = most_likely(learned.fit)[:, :1, None]
    difference = jnp.where(in_both, of_target - sharpness * log_p, 0)
    # Only differences between the tokens of a list matter: those to their mean.
    probability = jnp.where(in_both, jnp.exp(log_p), 0)
    total = jnp.maximum(jnp.sum(probability, -1, keepdims=True), 1e-9)
    mean = jnp.sum(probability * difference, -1, keepdims=True) / total
    difference = jnp.clip(difference - mean, -_LARGEST_DIFFERENCE, _LARGEST_DIFFERENCE)
    difference = jnp.where(in_both, difference, _IF_IMPOSSIBLE)
    return difference, jnp.where(is_candidate, jnp.exp(log_p / 2), 0)


def _log_likelihood(
    drafts: Drafts,
    path: Path,
    tokens: Int[Array, "B L"],
    is_active: Bool[Array, " B"],
) -> Float[Array, "B G"]:
    """Log-likelihood of the grid for the tokens that this round emitted."""
    assert drafts.list_nodes is not None  # they are the drafts of a margin tree
    # The list at the tree node where each token was emitted, the root first.
    steps = jnp.arange(tokens.shape[1])
    nodes = jnp.pad(path.nodes, ((0, 0), (1, 0)), constant_values=-1)
    is_at_node = drafts.list_nodes[:, None] == nodes[..., None]  # [B, L, E]
    has_list = jnp.any(is_at_node, -1) & (steps <= path.length[:, None]) & is_active[:, None]
    lists = jnp.argmax(is_at_node, axis=-1)

    def at_lists(leaf):
        return jnp.take_along_axis(leaf, jnp.expand_dims(lists, range(2, leaf.ndim)), axis=1)

    evidence = jax.tree.map(at_lists, drafts.candidates.evidence)
    is_emitted = at_lists(drafts.candidates.tokens) == tokens[..., None]
    is_emitted &= jnp.isfinite(evidence.log_p)
    is_none = ~jnp.any(is_emitted, axis=-1, keepdims=True)
    is_emitted = jnp.concatenate([is_emitted, is_none], axis=-1)  # [B, L, M + 1]

    # The probability of what was emitted is the likelihood of each pair of the grid.
    of_grid = jax.tree.map(lambda leaf: leaf[..., None, :], evidence._replace(log_rest=None))
    of_grid = of_grid._replace(log_rest=evidence.log_rest[..., None])
    sharpness, spread = jnp.asarray(GRID).T[..., None]
    log_prob = log_estimate(of_grid, sharpness, spread)  # [B, L, G, M + 1]
    gains = jnp.max(jnp.where(is_emitted[..., None, :], log_prob, -jnp.inf), axis=-1)
    return jnp.sum(jnp.where(has_list[..., None], gains, 0), axis=1)

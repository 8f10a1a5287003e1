"""Maximum flow of probability mass between pairs of tokens, inside `jit`.

Edmonds and Karp's shortest augmenting paths take a number of iterations that is bounded in
advance, and solve the problem exactly up to rounding. The result can be differentiated. A solver on
the host would make a decoding loop wait.
"""

from __future__ import annotations

from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gls_jax.loops import varying_like

__all__ = ["PairMass", "balance"]

PairMass: TypeAlias = Float[Array, "s s"]
"""A mass for each ordered pair of `s` tokens."""

_Mass: TypeAlias = Float[Array, " s"]


def balance(held: PairMass, excess: _Mass) -> PairMass:
    """Move as much mass as possible from tokens with an excess to tokens with a deficit.

    Every pair of tokens shares a mass. The part that one of them holds can move to the other.

    Args:
        held: ``held[i, j]``, the mass of the pair {i, j} that token `i` holds: the capacity of the
            edge from `i` to `j`.
        excess: the mass of each token beyond what it needs; negative for a deficit.

    Returns:
        `held` afterwards.
    """
    size = excess.shape[0]
    if size == 1:
        return held
    # Shortest augmenting paths empty each edge at most (vertices / 2) times. Vertices are the
    # tokens, a source and a sink; edges are the pairs in both directions, and those of source and
    # sink.
    num_edges = size * (size - 1) + 2 * size
    num_iterations = num_edges * (size + 2) // 2
    start = varying_like((held, excess), held, excess)
    (held, _), _ = jax.lax.scan(_augment, start, None, length=num_iterations)
    return held


def _augment(carry: tuple[PairMass, _Mass], _):
    """Move mass along one shortest path from an excess to a deficit."""
    held, excess = carry
    size = excess.shape[0]
    unreachable = size + 1
    steps = _steps_to_deficit(held, excess)

    # Begin at the nearest excess, and follow decreasing numbers of steps to the deficit.
    start = jnp.argmin(jnp.where(excess > 0, steps, unreachable + 1))
    has_path = (excess[start] > 0) & (steps[start] < unreachable)
    path = jnp.zeros_like(held)  # 1 for the edges of the path
    amount = excess[start]
    token = start
    for _ in range(size - 1):
        following = jnp.argmin(jnp.where(held[token] > 0, steps, unreachable))
        continues = has_path & (steps[token] > 0)
        path = path.at[token, following].add(jnp.where(continues, 1, 0))
        amount = jnp.where(continues, jnp.minimum(amount, held[token, following]), amount)
        token = jnp.where(continues, following, token)
    amount = jnp.where(has_path, jnp.minimum(amount, -excess[token]), 0)

    # Along the path each pair's mass moves to the other token.
    held = held + amount * (path.T - path)
    excess = excess.at[start].add(-amount).at[token].add(amount)
    return (held, excess), None


def _steps_to_deficit(held: PairMass, excess: _Mass):
    """Steps from each token to the nearest deficit; more than `s` if there is no path."""
    size = excess.shape[0]
    unreachable = size + 1
    steps = jnp.where(excess < 0, 0, unreachable)
    for _ in range(size - 1):
        steps_of_next = jnp.where(held > 0, steps[None, :], unreachable)
        steps = jnp.minimum(steps, 1 + jnp.min(steps_of_next, axis=1))
    return steps

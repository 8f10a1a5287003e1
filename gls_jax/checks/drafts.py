"""Draft tokens and draft trees: within the vocabulary, and possible under their draft distribution."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from gls_jax.checks import log_probabilities
from gls_jax.checks.arrays import known_values

__all__ = ["alive_rows", "alive_tokens", "possible_tokens", "siblings_share_distribution", "tokens"]


def tokens(value: jax.Array, num_items: int, name: str) -> None:
    """Tokens within the vocabulary; values can be looked at only where they are not traced."""
    if isinstance(value, jax.core.Tracer) or not value.size:
        return
    found = np.asarray(value)  # NumPy: inside `jit` even a constant's `jnp` operations are traced
    if found.min() < 0 or found.max() >= num_items:
        raise ValueError(
            f"{name}: expected tokens within 0..{num_items - 1}, got {found.min()} to {found.max()}"
        )


def possible_tokens(
    value: jax.Array, log_p: jax.Array, active: jax.Array, lightest: float, name: str
) -> None:
    """Tokens in play that their law can have produced; values can be looked at only where they are
    not traced.
    """
    if any(isinstance(x, jax.core.Tracer) for x in (value, log_p, active)):
        return
    found, laws = np.asarray(value), np.asarray(log_p)
    chances = laws[found] if laws.ndim == 1 else laws[np.arange(found.shape[0]), found]
    impossible = np.asarray(active) & ~(chances >= lightest)
    if impossible.any():
        token = found[impossible.argmax()]
        raise ValueError(
            f"{name}: expected tokens of positive probability under log_p (at least e^{lightest:g}), "
            f"got {token}, which has less"
        )


def alive_tokens(value: jax.Array, alive: jax.Array, num_items: int, name: str) -> None:
    """:func:`tokens` of the nodes that are alive."""
    if not any(isinstance(x, jax.core.Tracer) for x in (value, alive)):
        tokens(np.asarray(value)[np.asarray(alive)], num_items, name)


def siblings_share_distribution(
    log_p: jax.Array, parents: jax.Array, alive: jax.Array, owner: str
) -> None:
    """Siblings drawn from one law; values can be looked at only where they are not traced."""
    if any(isinstance(x, jax.core.Tracer) for x in (log_p, parents, alive)):
        return
    laws, context = np.exp(np.asarray(log_p)), np.asarray(parents).tolist()
    first: dict[int, int] = {}
    for node in np.flatnonzero(np.asarray(alive)).tolist():
        one = first.setdefault(context[node], node)
        if not np.allclose(laws[node], laws[one], rtol=0, atol=1e-4):
            raise ValueError(
                f"log_p: {owner} draws all siblings from one law, got different ones for nodes {one} and {node}"
            )


def alive_rows(log_probs: Any, alive: jax.Array, name: str, *, root: bool = False) -> None:
    """:func:`values` of the nodes that are alive; with `root`, row 0 belongs to the root and is
    checked as well.
    """
    known = known_values(log_probs)
    if known is not None and (used := known_values(alive)) is not None:
        log_probabilities.values(known[np.append(True, used) if root else used], name)

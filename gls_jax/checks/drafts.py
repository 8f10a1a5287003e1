"""Draft tokens and trees: within the vocabulary, and possible under their draft distribution.

All these checks look at values, and so only where nothing is traced. They use NumPy: inside `jit`,
JAX traces `jnp` operations even on constants.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from gls_jax.checks import log_probabilities
from gls_jax.checks.arrays import known_values

__all__ = ["alive_rows", "alive_tokens", "possible_tokens", "siblings_share_distribution", "tokens"]


def tokens(
    value: jax.Array,
    num_tokens: int,
    name: str,
) -> None:
    """Tokens within the vocabulary."""
    if _any_traced(value) or not value.size:
        return
    known = np.asarray(value)
    if known.min() < 0 or known.max() >= num_tokens:
        raise ValueError(
            f"{name}: expected tokens within 0..{num_tokens - 1}, "
            f"got {known.min()} to {known.max()}"
        )


def possible_tokens(
    value: jax.Array,
    log_p: jax.Array,
    active: jax.Array,
    lightest: float,
    name: str,
) -> None:
    """Active tokens that their draft distribution can have produced."""
    if _any_traced(value, log_p, active):
        return
    # All drafts from one distribution `[N]`, or each from its own row.
    known_tokens = np.asarray(value)
    known_log_p = np.asarray(log_p)
    if known_log_p.ndim == 1:
        log_probs = known_log_p[known_tokens]
    else:
        log_probs = known_log_p[np.arange(known_tokens.shape[0]), known_tokens]
    is_impossible = np.asarray(active) & ~(log_probs >= lightest)
    if is_impossible.any():
        token = known_tokens[is_impossible.argmax()]
        raise ValueError(
            f"{name}: expected tokens of positive probability under log_p (at least "
            f"e^{lightest:g}), got {token}, which has less"
        )


def alive_tokens(
    value: jax.Array,
    alive: jax.Array,
    num_tokens: int,
    name: str,
) -> None:
    """:func:`tokens` of the nodes that are alive."""
    if not _any_traced(value, alive):
        tokens(np.asarray(value)[np.asarray(alive)], num_tokens, name)


def siblings_share_distribution(
    log_p: jax.Array,
    parents: jax.Array,
    alive: jax.Array,
    owner: str,
) -> None:
    """Siblings that are drawn from the same distribution."""
    if _any_traced(log_p, parents, alive):
        return
    # Probabilities, because log-probabilities of light tokens may differ much by rounding.
    probs = np.exp(np.asarray(log_p))
    parent_of = np.asarray(parents).tolist()
    first_child: dict[int, int] = {}
    for node in np.flatnonzero(np.asarray(alive)).tolist():
        # Each node is compared with the first alive child of its parent.
        sibling = first_child.setdefault(parent_of[node], node)
        if not np.allclose(probs[node], probs[sibling], rtol=0, atol=1e-4):
            raise ValueError(
                f"log_p: {owner} draws all siblings from one distribution, "
                f"got different ones for nodes {sibling} and {node}"
            )


def alive_rows(
    log_probs: Any,
    alive: jax.Array,
    name: str,
    *,
    root: bool = False,
) -> None:
    """:func:`values` of the nodes that are alive.

    With `root`, row 0 belongs to the root and is checked as well.
    """
    known = known_values(log_probs)
    known_alive = known_values(alive)
    if known is None or known_alive is None:
        return
    if root:
        known_alive = np.append(True, known_alive)
    log_probabilities.values(known[known_alive], name)


def _any_traced(*arrays: jax.Array) -> bool:
    return any(isinstance(array, jax.core.Tracer) for array in arrays)

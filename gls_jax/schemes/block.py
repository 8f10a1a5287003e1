"""Block verification of one chain: its drafts are accepted jointly.

Source: Sun et al. 2024, arXiv 2403.10444.

With `p_i`, `q_i` the distributions after the first `i` of `L` drafts,

    w_0 = 1,   w_i = min(1, w_{i-1} q_{i-1}(x_i) / p_{i-1}(x_i)),
    Z_i = sum_x (w_i q_i(x) - p_i(x))+,
    h_i = Z_i / (Z_i + 1 - w_i) for i < L,   h_L = w_L.

A prefix of length `i` passes its test with probability `h_i`, and the longest prefix that
passes is accepted. The next token is a sample of `q_L`, or of ``(w_i q_i - p_i)+`` after a shorter
prefix. Then a prefix of length `i` is accepted with probability ``E[w_i]``, never less than token
by token. The cost is one pass over the `L` distributions, which the drafter must supply.

The accepted length tells something about the later drafts, so their noise must not be used
again: the next round drafts under another key, :meth:`gls_jax.schemes.Scheme.draft_key`.

**Survival** for the planner. A prefix was drafted with probability ``prod p`` and is accepted with
probability ``w_i``; in the text it has probability ``prod q``. So given the text it is accepted
with probability ``w_i prod p / q``, which equals
``min(prod_{j <= i} p_j / q_j, w_{i-1} prod_{j < i} p_j / q_j)``: the smallest product over the
prefixes so far, or 1.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from gls_jax import races
from gls_jax.exact.counting import LEAST_EMITTED
from gls_jax.loops import varying_like
from gls_jax.rejection import residual_token
from gls_jax.schemes.array_types import NodeLogProbs, RowLogProbs
from gls_jax.schemes.division import quotient
from gls_jax.schemes.draft_tree import Path, Tree, node_of_row
from gls_jax.schemes.function_types import PathVerification
from gls_jax.schemes.gls import propose  # one race
from gls_jax.schemes.scheme import Scheme
from gls_jax.schemes.tree_walk import path_to
from gls_jax.typing import Index, LogProbs

__all__ = ["SCHEME", "propose", "verify_tree"]


def verify_tree(
    key: PRNGKeyArray,
    position: Index,
    tree: Tree,
    log_p: NodeLogProbs,
    log_q: RowLogProbs,
) -> Path:
    private_key = races.private_key(races.position_key(key, position))
    test_key, residual_key = races.split_key(private_key)
    length = jnp.sum(tree.alive)
    num_nodes = tree.tokens.shape[0]
    nodes = jnp.arange(num_nodes)
    rows = jnp.arange(num_nodes + 1)  # row i is the prefix of length i
    p = races.weights(log_p)
    q = races.weights(log_q)

    # The weights w_i, from the probabilities of each drafted token.
    p_draft = p[nodes, tree.tokens]
    q_draft = q[nodes, tree.tokens]

    def next_weight(weight, probs):
        p_x, q_x = probs
        product = weight * q_x
        is_below = product < p_x
        weight = jnp.where(is_below, quotient(product, p_x), 1)
        return weight, weight

    first_weight = varying_like(jnp.ones((), q.dtype), p_draft, q_draft)
    _, next_weights = jax.lax.scan(next_weight, first_weight, (p_draft, q_draft))
    weights = jnp.concatenate([jnp.ones(1, q.dtype), next_weights])

    # The residuals and their masses Z_i. Behind the last draft nothing was drafted: p counts as 0.
    has_draft = jnp.append(nodes < length, False)[:, None]
    p_next = jnp.where(has_draft, jnp.append(p, p[-1:], axis=0), 0)
    residuals = jnp.maximum(weights[:, None] * q - p_next, 0)
    mass = jnp.sum(residuals, axis=1)

    # The longest prefix that passes its test; the empty one always does.
    h = quotient(mass, mass + 1 - weights)
    probability = jnp.where(rows < length, h, weights)
    probability = probability.at[0].set(1)
    passes = (races.uniforms(test_key, num_nodes + 1) < probability) & (rows <= length)
    last_row = num_nodes - jnp.argmax(passes[::-1])
    token = residual_token(residual_key, residuals[last_row], log_q[last_row])
    return path_to(tree, node_of_row(last_row), token)


def likelihood_ratio(log_p: LogProbs, log_q: LogProbs) -> np.ndarray:
    """``p_y / q_y`` of the token y in column 0, `f64[P]`.

    A text can contain a token that its recomputed distribution makes impossible, because of
    rounding at the edge of top-k. Such a token counts as barely possible.
    """
    log_q_emitted = np.maximum(np.asarray(log_q)[:, 0], LEAST_EMITTED)
    return np.exp(np.asarray(log_p, np.float64)[:, 0] - log_q_emitted)


def survival_from_ratios(ratios: np.ndarray, length: int) -> np.ndarray:
    """Survival of a text with likelihood ratios `[P]`, see `function_types.Survival`."""
    # Past the end of the text the last position is repeated; no round is counted there.
    positions = np.arange(len(ratios))[:, None] + np.arange(length)
    positions = np.minimum(positions, len(ratios) - 1)
    products = np.cumprod(ratios[positions], axis=1)
    return np.minimum(np.minimum.accumulate(products, axis=1), 1)


def survival(log_p: LogProbs, log_q: LogProbs, length: int) -> np.ndarray:
    return survival_from_ratios(likelihood_ratio(log_p, log_q), length)


SCHEME = Scheme(
    name="block",
    invariance="none",
    max_drafts=1,
    needs_draft_probs=True,
    diverse=False,
    ranked=False,
    propose_fn=propose,
    verification=PathVerification(verify_tree, survival=survival),
)

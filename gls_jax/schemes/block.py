"""Block verification of one path (Sun et al. 2024, arXiv 2403.10444): the drafts of a block are
accepted jointly.

With `p_i`, `q_i` the laws after the first `i` of `L` drafts,

    w_0 = 1,   w_i = min(1, w_{i-1} q_{i-1}(x_i) / p_{i-1}(x_i)),   Z_i = sum_x (w_i q_i(x) - p_i(x))+,
    h_i = Z_i / (Z_i + 1 - w_i) for i < L,   h_L = w_L,

the longest prefix is accepted that passes its own test with probability `h_i`; the next token comes
from `q_L`, or from ``(w_i q_i - p_i)+`` after a shorter one. Then a prefix of length `i` is
accepted with probability ``E[w_i]``, never less than token by token. One pass over the `L` laws,
which the drafter must supply.

How much is accepted tells about the drafts behind it, so their clocks must not serve again: the
next round drafts under another key, :meth:`gls_jax.schemes.Scheme.draft_key`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from gls_jax import races
from gls_jax.exact.counting import LEAST_EMITTED
from gls_jax.loops import varying_like
from gls_jax.rejection import residual_token
from gls_jax.schemes.draft_tree import Path, Tree, path_to
from gls_jax.schemes.gls import propose  # one race
from gls_jax.schemes.scheme import PathVerification, Scheme
from gls_jax.typing import Index, LogProbs

__all__ = ["SCHEME", "propose", "verify_tree"]


def verify_tree(
    key: PRNGKeyArray,
    position: Index,
    tree: Tree,
    log_p: Float[Array, "n N"],
    log_q: Float[Array, "c N"],
) -> Path:
    test_key, residual_key = races.split_key(races.private_key(races.position_key(key, position)))
    length = jnp.sum(tree.alive)
    size = tree.tokens.shape[0]
    place = jnp.arange(size)
    p, q = races.weights(log_p), races.weights(log_q)
    p_draft, q_draft = p[place, tree.tokens], q[place, tree.tokens]

    def follow(weight, laws):
        p_x, q_x = laws
        product = weight * q_x
        weight = jnp.where(product < p_x, product / jnp.where(p_x > 0, p_x, 1), 1)
        return weight, weight

    _, weights = jax.lax.scan(
        follow, varying_like(jnp.ones((), q.dtype), p_draft, q_draft), (p_draft, q_draft)
    )
    weights = jnp.concatenate([jnp.ones(1, q.dtype), weights])  # [contexts]
    drafted = jnp.append(place < length, False)[:, None]  # nothing was drafted after the last node
    rest = jnp.maximum(
        weights[:, None] * q - jnp.where(drafted, jnp.append(p, p[-1:], axis=0), 0), 0
    )
    left = jnp.sum(rest, axis=1)
    total = left + 1 - weights
    passing = jnp.where(
        jnp.arange(size + 1) < length, left / jnp.where(total > 0, total, 1), weights
    )
    passing = passing.at[0].set(1)
    passed = (races.uniforms(test_key, size + 1) < passing) & (jnp.arange(size + 1) <= length)
    last = size - jnp.argmax(passed[::-1])
    return path_to(tree, last - 1, residual_token(residual_key, rest[last], log_q[last]))


def likelihood_ratio(log_p: LogProbs, log_q: LogProbs) -> np.ndarray:
    """``p_y / q_y`` of the token y in column 0, `f64[P]`.

    A token can stand in the text and be impossible under the distribution read again: rounding at
    the edge of top-k. It counts as barely possible.
    """
    log_q_emitted = np.maximum(np.asarray(log_q)[:, 0], LEAST_EMITTED)
    return np.exp(np.asarray(log_p, np.float64)[:, 0] - log_q_emitted)


def survival_from_ratios(ratios: np.ndarray, length: int) -> np.ndarray:
    """How far a round accepts its chain, `[P, L]`, from the likelihood ratios along the text `[P]`.

    The weights are ``w_i = min(1, w_{i-1} q / p)``, and a prefix is accepted with probability
    ``w_i`` where it was drafted. Given the text that is ``w_i prod p / q``, which equals
    ``min(prod_{j <= i} p_j / q_j, w_{i-1} prod_{j < i} p_j / q_j)``: the smallest product over the
    prefixes so far, or 1.
    """
    # Behind the end of the text the last position is repeated; no round is counted there.
    positions = np.arange(len(ratios))[:, None] + np.arange(length)
    products = np.cumprod(ratios[np.minimum(positions, len(ratios) - 1)], axis=1)
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

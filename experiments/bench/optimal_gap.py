"""Accuracy of `optimal` in float32: how far its acceptance is from the optimum. Nothing is timed.

In exact arithmetic the distance is 0. In float32 the priorities select a draft with a distribution
that is not exactly the `r` of the scheme. Here that distribution is integrated over the places of
all tokens (:mod:`gls_jax.schemes.priorities`), at the middles of many equal parts of each token's
interval. The error of this integration is part of the figures.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from experiments import shared
from experiments.bench.timing import Line
from gls_jax.exact.ratio_order import ratio_order
from gls_jax.schemes import priorities

_RANDOM_KINDS = ("Dirichlet(0.1)", "Dirichlet(1)", "near", "far")
_SIZES = (6, 20, 50, 300)
_PROBLEMS_OF_KIND = 100
# Parts of all intervals together.
_NUM_PARTS = 120_000


def distance_to_optimum(repeats: int) -> Line:
    """Over 500 problems of five kinds, at K = 2, 4, 8."""
    del repeats  # nothing is timed
    gaps, biases = np.array([_gap_and_bias(p, q, k) for p, q in _problems() for k in (2, 4, 8)]).T
    return {
        "benchmark": "optimal below the optimum, 500 problems, K = 2, 4, 8",
        "median": float(np.median(gaps)),
        "percentile_99": float(np.percentile(gaps, 99)),
        "largest": float(np.max(gaps)),
        "median_bias": float(np.median(biases)),
        "largest_bias": float(np.max(biases)),
    }


def random_pair(kind: str, num_categories: int, seed: int) -> np.ndarray:
    """Two distributions, `f64[2, N]`.

    Args:
        kind: `Dirichlet(a)`, or logits of a normal distribution: `near` each other, `far` from each
            other, or `equal`.
        num_categories: `N`.
        seed: of the numbers.
    """
    rng = np.random.default_rng([seed, num_categories])
    if kind.startswith("Dirichlet"):
        return rng.dirichlet(np.full(num_categories, float(kind[10:-1])), 2)
    draft_logits, other_logits = 2 * rng.normal(size=(2, num_categories))
    target_logits = {
        "near": draft_logits + 0.2 * other_logits,
        "far": other_logits,
        "equal": draft_logits,
    }[kind]
    weights = np.exp(np.stack([draft_logits, target_logits]))
    return weights / weights.sum(axis=1, keepdims=True)


def selected_distributions(
    p: np.ndarray, q: np.ndarray, num_drafts: int, num_parts: int
) -> tuple[np.ndarray, np.ndarray]:
    """`r` as the scheme knows it, and as its priorities select, `f64[N]` each, in ratio order.

    P(largest of K priorities <= v) = P(priority <= v)^K. Its differences over the places, in the
    order of their priorities, are the probabilities that each is selected.

    Args:
        p, q: distributions.
        num_drafts: `K`.
        num_parts: of each token's interval.
    """
    arrays = _exchanges(*_log_pair(p, q), num_parts, jnp.array(num_drafts))
    drawn, p, selected_p = jax.tree.map(lambda array: np.asarray(array, np.float64), arrays)
    # A difference of densities below 1e-6 is rounding, and so is the effect of such an exchange.
    zero = np.zeros_like(drawn.needed)
    exchanged = np.divide(drawn.needed, drawn.possible, out=zero, where=drawn.possible > 1e-6)
    exchanged = np.clip(exchanged, 0, 1)

    probs = np.stack([1 - exchanged, exchanged]) * p / num_parts
    order = np.argsort(np.stack([drawn.place, drawn.partner]), axis=None, kind="stable")
    total = np.append(0, np.cumsum(probs.ravel()[order]))
    tokens = np.broadcast_to(np.arange(len(p)), probs.shape).ravel()[order]
    by_priorities = np.bincount(tokens, np.diff(total**num_drafts), len(p))
    return selected_p, by_priorities


@partial(jax.jit, static_argnums=2)
def _exchanges(log_p, log_q, num_parts, num_drafts):
    """At the middles of equal parts of every token's interval, `[num_parts, N]` in ratio order.

    With `p` and `r` in ratio order.
    """
    num_drafts = num_drafts.astype(log_q.dtype)
    ranked = ratio_order(log_p, log_q)
    ratios = priorities.clip_ratios(ranked, num_drafts)
    layout = priorities.lay_out(ranked, ratios, num_drafts)
    every_index = jnp.arange(log_q.shape[0])

    def at_part(middle):
        return priorities.exchanges(layout, every_index, jnp.full_like(log_q, middle))

    middles = (jnp.arange(num_parts) + 0.5) / num_parts
    selected_p = jnp.clip(ranked.q, ratios.sigma * ranked.p, ratios.tau * ranked.p)
    return jax.lax.map(at_part, middles), ranked.p, selected_p


def _problems() -> Iterator[np.ndarray]:
    """Pairs `[2, N]`: random ones, and next-token distributions of SmolLM2 after a top-k of 50."""
    for kind in _RANDOM_KINDS:
        for seed in range(_PROBLEMS_OF_KIND):
            yield random_pair(kind, _SIZES[seed % len(_SIZES)], seed)
    pairs = shared.next_token_pairs(
        (12, 17), num_prompts=4, num_positions=_PROBLEMS_OF_KIND // 4, top_k=50
    )
    for log_pair in zip(*map(np.asarray, pairs), strict=True):
        yield np.exp(np.stack(log_pair, dtype=np.float64))


def _gap_and_bias(p: np.ndarray, q: np.ndarray, num_drafts: int) -> tuple[float, float]:
    """The optimum less the acceptance, absolute, and the total variation between the two `r`."""
    num_parts = max(1, _NUM_PARTS // len(p))
    selected_p, by_priorities = selected_distributions(p, q, num_drafts, num_parts)
    order = ratio_order(*_log_pair(p, q)).order
    sorted_p, sorted_q = p[order], q[order]
    # The selected draft is accepted with probability min(1, q / r), for the r of the scheme.
    ratio = np.divide(sorted_q, selected_p, out=np.zeros(len(p)), where=selected_p > 0)
    attained = np.sum(by_priorities * np.minimum(ratio, 1))
    # The optimum in float64: the worst set is a prefix.
    inside = np.minimum(np.cumsum(sorted_p), 1) ** num_drafts
    optimum = 1 - max(0, np.max(inside - np.cumsum(sorted_q)))
    return abs(optimum - attained), np.abs(by_priorities - selected_p).sum() / 2


def _log_pair(p: np.ndarray, q: np.ndarray) -> jax.Array:
    return jnp.log(jnp.asarray([p, q], jnp.float32))

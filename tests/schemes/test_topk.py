"""Drafts without noise: the list, its acceptance, and what it may exceed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gls_jax import bounds, schemes
from tests.problems import NUM_DRAFTS, PROBLEMS, logs, many
from tests.schemes.scheme_trials import random_pairs

pytestmark = pytest.mark.usefixtures("quick_compilation")

TOPK = schemes.get("topk")


def likeliest(p, num_drafts):
    """The slow way: sort by probability, ties by index; repeat the first."""
    order = [token for token in sorted(range(len(p)), key=lambda i: (-p[i], i)) if p[token] > 0]
    return (order + order[:1] * num_drafts)[:num_drafts]


def test_the_list_has_the_likeliest_tokens_whatever_the_key():
    propose = jax.jit(lambda key, log_p: TOPK.propose(key, log_p, NUM_DRAFTS))
    for p, _ in PROBLEMS.values():
        for seed in range(2):
            drafts = propose(jax.random.key(seed), logs(p)).tolist()
            assert drafts == likeliest(p, NUM_DRAFTS)


def test_acceptance_is_the_target_mass_of_the_list():
    list_lengths = tuple(range(1, NUM_DRAFTS + 1))
    curve = jax.jit(lambda p, q: TOPK.acceptance_curve(p, q, list_lengths))
    for p, q in zip(*many(40), strict=True):
        expected = [q[sorted(set(likeliest(p, k)))].sum() for k in list_lengths]
        np.testing.assert_allclose(curve(logs(p), logs(q)), expected, atol=1e-6)


def test_it_is_in_no_order_with_the_optima():
    """It exceeds both where the target is a sharper draft; elsewhere it is below every sampled list."""
    pairs = random_pairs(100, 10)
    sharper = pairs[:, 0] ** 4
    pairs[:50, 1] = (sharper / sharper.sum(1, keepdims=True))[:50]

    @jax.jit
    @jax.vmap
    def values(pair):
        log_p, log_q = pair
        best = [bound(log_p, log_q, 2) for bound in (bounds.optimum_iid, bounds.optimum_distinct)]
        return TOPK.acceptance(log_p, log_q, 2), *best, bounds.list_matching(log_p, log_q, 2)

    topk, iid, distinct, least = values(jnp.asarray(logs(pairs)))
    assert (topk[:50] > iid[:50] + 0.01).any() and (topk[:50] > distinct[:50] + 0.01).any()
    assert (topk[50:] < least[50:] - 0.01).any()

"""Rejection without replacement: the exact acceptance, and its estimate from random chains."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gls_jax import schemes
from gls_jax.schemes import specinfer_wor
from tests import oracles
from tests.problems import PROBLEMS, logs
from tests.schemes.scheme_trials import ALPHA, random_pairs

pytestmark = pytest.mark.usefixtures("quick_compilation")

WOR = schemes.get("specinfer_wor")


@pytest.mark.parametrize("problem", PROBLEMS)
def test_acceptance_is_its_definition(problem):
    p, q = PROBLEMS[problem]
    curve = WOR.acceptance_curve(logs(p), logs(q), (1, 2, 3, 4))
    for k in (1, 2, 3, 4):
        accepted, emitted = oracles.rejection([p] * k, q, without_replacement=True)
        assert float(curve[k - 1]) == pytest.approx(accepted, abs=1e-6)
        np.testing.assert_allclose(emitted, q, atol=1e-9)


def test_a_list_longer_than_the_vocabulary_is_the_whole_vocabulary():
    """Chains that run out of tokens, at any length, and K beyond N."""
    for p, q in random_pairs(20, 4, seed=3):
        p[0] = 0
        p /= p.sum()
        accepted, _ = oracles.rejection([p] * 4, q, without_replacement=True)
        for k in (3, 4, 5, 9):
            exact = float(WOR.acceptance(logs(p), logs(q), k))
            assert exact == pytest.approx(accepted, abs=1e-6)


@pytest.mark.parametrize("light", [-79.5, -60.0, -20.0])
def test_the_lightest_tokens_are_drafted(light):
    """After the heavy token is rejected, the pool is renormalised from next to nothing."""
    log_p = jnp.array([0.0, light, light - 0.4])
    log_q = jnp.log(jnp.array([0.3, 0.3, 0.4]))
    num_trials = 20_000
    keys = jax.random.split(jax.random.key(0), num_trials)
    for k in (2, 3):
        accepted = jax.vmap(lambda key, k=k: WOR.accepted(key, log_p, log_q, k)[-1])(keys)
        exact = float(WOR.acceptance(log_p, log_q, k))
        assert oracles.binomial(int(accepted.sum()), num_trials, exact) > ALPHA


def test_estimate_from_chains_is_unbiased():
    """Against the exact value, within 6 standard errors (false-failure rate 2e-9 a check)."""
    for seed, (p, q) in enumerate(random_pairs(3, 8, seed=4)):
        for k in (2, 5):
            key = jax.random.key(seed)
            estimate = specinfer_wor.acceptance_estimate(key, logs(p), logs(q), k, 4096)
            exact = float(WOR.acceptance(logs(p), logs(q), k))
            error = float(estimate.standard_error)
            assert abs(float(estimate.mean) - exact) <= 6 * error + 2e-6
            assert error < 0.3 / math.sqrt(4096)
    log_p, log_q = logs(random_pairs(1, 3000, seed=5)[0])
    estimate = specinfer_wor.acceptance_estimate(jax.random.key(0), log_p, log_q, 2, 512)
    exact = float(WOR.acceptance(log_p, log_q, 2))
    assert abs(float(estimate.mean) - exact) <= 6 * float(estimate.standard_error) + 1e-5

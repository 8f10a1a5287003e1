"""Exact acceptance of GLS against its definition, brute force and its bounds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gls_jax import bounds, schemes
from gls_jax.schemes import gls
from tests import oracles
from tests.problems import PROBLEMS, logs
from tests.schemes.scheme_trials import SMALL_PROBLEMS, random_pairs

pytestmark = pytest.mark.usefixtures("quick_compilation")

GLS = schemes.get("gls")


@pytest.mark.parametrize("problem", SMALL_PROBLEMS)
def test_acceptance_is_its_definition(problem):
    p, q = PROBLEMS[problem]
    for k in (1, 2, 5):
        exact = float(GLS.acceptance(logs(p), logs(q), k))
        assert exact == pytest.approx(oracles.gls_acceptance([p] * k, q), abs=1e-6)


def test_acceptance_of_diverse_drafts_is_its_definition():
    q = PROBLEMS["flat"][1]
    for names in (("plain", "peaked"), ("zeros in p", "plain", "point mass p")):
        p = np.stack([PROBLEMS[name][0] for name in names])
        exact = float(GLS.acceptance(logs(p), logs(q), len(p)))
        assert exact == pytest.approx(oracles.gls_acceptance(p, q), abs=1e-6)


def test_float64_has_eight_digits_more():
    p, q = PROBLEMS["plain"]
    with jax.enable_x64(True):
        log_p, log_q = jnp.log(jnp.asarray(p)), jnp.log(jnp.asarray(q))
        for k in (1, 3):
            exact = float(GLS.acceptance(log_p, log_q, k))
            assert exact == pytest.approx(oracles.gls_acceptance([p] * k, q), abs=1e-9)
        exact = GLS.acceptance(log_p, log_q, 1)
        assert exact.dtype == jnp.float64
        assert float(exact) == pytest.approx((q / oracles.rates(p, q)).sum(), abs=1e-12)


@pytest.mark.parametrize("diverse", [False, True])
def test_acceptance_agrees_with_a_million_brute_force_trials(diverse):
    """Within 4 standard errors: a correct value fails with probability 6e-5 for another generator."""
    rng = np.random.default_rng(11)
    p, q = rng.dirichlet(np.ones(10), 4), rng.dirichlet(np.ones(10))
    rows = p if diverse else np.stack([p[0]] * 4)
    exact = float(GLS.acceptance(logs(p if diverse else p[0]), logs(q), 4))
    num_accepted = oracles.gls_trials(rows, q, 1_000_000, rng)
    assert abs(num_accepted / 1e6 - exact) < 4 * np.sqrt(exact * (1 - exact) / 1e6)


@pytest.mark.parametrize("k", [1, 2, 8])
def test_acceptance_equals_the_bound_where_the_lemma_is_tight(k):
    """K = 1, p = q, and p a point mass: to 1e-6."""
    for num_categories in (1, 2, 10, 1000):
        for p, q in random_pairs(10, num_categories, seed=num_categories):
            point_mass = np.eye(num_categories)[np.argmax(q)]
            for draft_p in ([p] if k == 1 else []) + [q, point_mass]:
                exact = float(GLS.acceptance(logs(draft_p), logs(q), k))
                bound = float(bounds.list_matching(logs(draft_p), logs(q), k))
                assert exact == pytest.approx(bound, abs=1e-6)
    assert float(GLS.acceptance(logs(q), logs(q), k)) == pytest.approx(1, abs=1e-6)


def test_curve_is_its_points():
    log_p, log_q = (logs(probs) for probs in PROBLEMS["plain"])
    curve = GLS.acceptance_curve(log_p, log_q, (7, 1, 3))
    points = [GLS.acceptance(log_p, log_q, k) for k in (7, 1, 3)]
    np.testing.assert_allclose(curve, points, atol=5e-7)


def test_acceptance_with_some_drafts_active():
    """J of K drafts active: brute force (5 standard errors, 6e-7), and the strong bound below it."""
    rng = np.random.default_rng(2)
    p, q = PROBLEMS["plain"]
    num_trials = 400_000
    noise = rng.standard_exponential((num_trials, 4, len(p)))
    drafts = (noise / p).argmin(-1)
    target = (noise.min(1) / q).argmin(-1)
    for num_active in (1, 2, 4):
        exact = float(gls.acceptance_active(logs(p), logs(q), num_active, 4))
        simulated = (drafts[:, :num_active] == target[:, None]).any(1).mean()
        assert abs(simulated - exact) < 5 * np.sqrt(exact * (1 - exact) / num_trials)
        bound = float(bounds.list_matching_strong(logs(p), logs(q), num_active, 4))
        assert exact >= bound - 2e-6


def test_large_list_and_large_vocabulary():
    """K = 1000 is a probability; N = 20,000 agrees with the float64 run of the formula to 1e-6."""
    log_p, log_q = (logs(probs) for probs in PROBLEMS["plain"])
    assert 0.99 < float(GLS.acceptance(log_p, log_q, 1000)) <= 1
    logits = np.random.default_rng(0).normal(size=(2, 20_000)) * 2
    single = jax.nn.log_softmax(jnp.asarray(logits, jnp.float32))
    from_single = np.asarray(GLS.acceptance_curve(*single, (1, 8)))
    with jax.enable_x64(True):
        double = jnp.asarray(np.asarray(single, np.float64))
        double = double - jax.nn.logsumexp(double, axis=-1, keepdims=True)
        from_double = np.asarray(GLS.acceptance_curve(double[0], double[1], (1, 8)))
    np.testing.assert_allclose(from_single, from_double, atol=1e-6)


def test_memory_is_linear_in_the_vocabulary():
    """Compiled temporaries at N = 151,936 stay below 100 MB at any K, and below 1 GB of a gradient."""
    log_probs = jax.ShapeDtypeStruct((151_936,), jnp.float32)

    def temporary_bytes(function):
        compiled = jax.jit(function).lower(log_probs, log_probs).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    for k in (2, 32):
        assert temporary_bytes(lambda p, q, k=k: GLS.acceptance(p, q, k)) < 1e8
    gradient = jax.grad(lambda p, q: GLS.acceptance(p, q, 8), argnums=(0, 1))
    assert temporary_bytes(gradient) < 1e9


def test_small_acceptances_keep_their_digits():
    """K = 1 at N = 150,000 is the bound: to 1e-6, and to 1e-3 of it where the acceptance is 1e-4."""
    rng = np.random.default_rng(5)
    alike = rng.normal(size=(2, 150_000)) * 5
    far_apart = rng.normal(size=(2, 150_000)) * [[2.0], [0.0]]
    for logits in (alike, far_apart):
        log_p, log_q = jax.nn.log_softmax(jnp.asarray(logits, jnp.float32))
        exact = float(GLS.acceptance(log_p, log_q, 1))
        bound = float(bounds.list_matching(log_p, log_q, 1))
        assert exact == pytest.approx(bound, abs=1e-6)
        assert exact == pytest.approx(bound, rel=1e-3)

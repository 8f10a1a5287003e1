"""Distributions of counts, against SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from gls_jax.exact import counting


def test_binomial_rows_are_those_of_scipy():
    rows = counting.binomial_counts(4, jnp.asarray([0.0, 0.3, 1.0]))
    for num_trials in range(5):
        for column, probability in enumerate((0.0, 0.3, 1.0)):
            expected = scipy.stats.binom.pmf(range(5), num_trials, probability)
            np.testing.assert_allclose(rows[num_trials, :, column], expected, atol=1e-6)


def test_added_bernoullis_are_poisson_binomial():
    probabilities = np.random.default_rng(0).uniform(size=6)
    counts = jnp.zeros(4).at[0].set(1)  # counts of 4 and above are cut off
    expected = np.ones(1)
    for probability in probabilities:
        counts = counting.add_bernoulli(counts, jnp.float32(probability))
        expected = np.convolve(expected, [1 - probability, probability])
    np.testing.assert_allclose(counts, expected[:4], atol=1e-6)


def test_poisson_probabilities_are_those_of_scipy():
    mean = jnp.asarray([[0.0, 1e-35], [0.7, 30.0]])
    expected = scipy.stats.poisson.pmf(np.arange(8)[:, None, None], np.asarray(mean))
    np.testing.assert_allclose(counting.poisson_counts(mean, 7), expected, atol=1e-6)
    np.testing.assert_allclose(counting.poisson_cdf(mean, 7), expected.cumsum(0), atol=1e-6)


def test_gradients_at_a_mean_of_zero_are_finite():
    slopes = jax.grad(lambda mean: counting.poisson_counts(mean, 3)[0].sum())(jnp.asarray([0.0, 1]))
    assert bool(jnp.isfinite(slopes).all())
    np.testing.assert_allclose(slopes[1], -np.exp(-1), rtol=1e-6)

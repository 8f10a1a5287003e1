"""The p-values are bounds at every number of trials, and the stated biases are seen."""

import numpy as np
import pytest
import scipy.stats

from gls_jax.conformance import goodness_of_fit, known_mistakes


@pytest.mark.parametrize("probability", [0.5, 0.1, 0.003])
@pytest.mark.parametrize("num_trials", [20, 500])
def test_the_p_value_of_a_count_is_a_bound(num_trials, probability):
    """By enumeration: P(p-value <= a) <= a at every a that occurs."""
    counts = np.arange(num_trials + 1)
    weights = scipy.stats.binom.pmf(counts, num_trials, probability)
    probs = np.array([probability, 1 - probability])
    p_values = np.array(
        [goodness_of_fit.p_value(np.array([n, num_trials - n]), probs) for n in counts]
    )
    for level in p_values[p_values < 1]:
        assert weights[p_values <= level].sum() <= level


def test_the_p_value_of_several_categories_is_a_bound():
    probs = np.array([0.6, 0.3, 0.09, 0.01])
    samples = np.random.default_rng(0).multinomial(50, probs, 200_000)
    p_values = np.array([goodness_of_fit.p_value(counts, probs) for counts in samples[:20_000]])
    for level in (0.5, 0.1, 0.01, 0.001):
        assert (p_values <= level).mean() <= level


def test_what_is_impossible_has_p_value_0():
    assert goodness_of_fit.p_value(np.array([1, 10**6]), np.array([0.0, 1.0])) == 0
    assert goodness_of_fit.p_value(np.array([0, 10**6]), np.array([0.0, 1.0])) == 1


@pytest.mark.parametrize("num_cells", [2, 6, 27])
def test_the_smallest_bias_is_seen_and_half_of_it_is_not(num_cells):
    """The least visible direction: from one half of the distribution to the other."""
    alpha, num_trials = 1e-8, 20_000
    bias = goodness_of_fit.smallest_bias(num_trials, num_cells, alpha)
    probs = np.full(num_cells, 1 / num_cells)
    half = np.arange(num_cells) < num_cells / 2
    rng = np.random.default_rng(1)
    for factor, is_seen in ((1, True), (0.5, False)):
        moved = np.where(half, bias / half.sum(), -bias / (~half).sum()) * factor
        samples = rng.multinomial(num_trials, probs + moved, 300)
        seen = np.mean([goodness_of_fit.p_value(counts, probs) < alpha for counts in samples])
        assert seen > 0.95 if is_seen else seen < 0.1


def test_a_suspect_fits_its_own_counts_and_a_sound_verifier_fits_none():
    p, q = np.array([0.5, 0.3, 0.15, 0.05]), np.array([0.1, 0.2, 0.3, 0.4])
    rng = np.random.default_rng(2)
    for name, emits in known_mistakes.KNOWN_MISTAKES.items():
        counts = rng.multinomial(20_000, emits(p, q))
        assert name in known_mistakes.that_fit([(p, q, counts)]), name
    assert known_mistakes.that_fit([(p, q, rng.multinomial(20_000, q))]) == []

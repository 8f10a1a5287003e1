"""Distributions of the noise, the candidates and the bins that all parties share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from gls_jax import races
from tests import oracles

KEY = jax.random.key(11)


def smallest_p_value(streams):
    """The smallest p-value of several tests that `streams`, `[K, n]`, are independent Exp(1).

    Each stream is tested by Kolmogorov-Smirnov, all together by chi-square on their quartiles, and
    each pair by rank correlation.
    """
    p_values = [scipy.stats.kstest(stream, "expon").pvalue for stream in streams]
    quartiles = np.minimum(-np.expm1(-streams.astype(float)) * 4, 3).astype(int)
    cells = np.ravel_multi_index(tuple(quartiles), (4,) * len(streams))
    num_cells = 4 ** len(streams)
    counts = np.bincount(cells, minlength=num_cells)
    p_values.append(oracles.chi_square(counts, np.ones(num_cells)))
    pairs = [(i, j) for j in range(len(streams)) for i in range(j)]
    p_values += [scipy.stats.spearmanr(streams[i], streams[j]).pvalue for i, j in pairs]
    return min(p_values)


@pytest.mark.parametrize("num_streams", [2, 3])
def test_streams_of_a_list_are_independent_exponentials(num_streams):
    """2^16 candidates; at most 8 p-values, each below 1e-8 with probability 1e-8. Three planted defects are caught."""
    indices = jnp.arange(2**16)
    draw = jax.vmap(lambda stream: races.stream_exponentials(KEY, indices, num_streams, stream))
    streams = np.asarray(jax.jit(draw)(jnp.arange(num_streams)))
    first = np.asarray(races.smallest_exponentials(KEY, indices))
    assert smallest_p_value(streams) > 1e-8
    np.testing.assert_allclose(num_streams * streams.min(0), first, rtol=1e-6)
    owners = np.bincount(streams.argmin(0), minlength=num_streams)
    assert oracles.chi_square(owners, np.ones(num_streams)) > 1e-8
    always_the_same_owner = np.sort(streams, axis=0)
    owner_without_the_first = np.where(streams > streams.min(0), streams - streams.min(0), streams)
    one_stream_for_all = np.broadcast_to(first, streams.shape)
    for wrong in (always_the_same_owner, owner_without_the_first, one_stream_for_all):
        assert smallest_p_value(wrong) < 1e-8


def test_candidates_are_normal():
    """Both dimensions by Kolmogorov-Smirnov, their tails beyond 3 deviations, and jointly; each fails once in 1e8."""
    size = 2**20
    values = np.asarray(jax.jit(lambda: races.candidates(KEY, jnp.arange(size), 2))(), float)
    for column in values.T:
        assert scipy.stats.kstest(column, "norm").pvalue > 1e-8
        for sign in (1, -1):
            tail = scipy.stats.norm.sf(sign * column) / scipy.stats.norm.sf(3.0)
            assert oracles.binomial(int((tail < 1).sum()), size, scipy.stats.norm.sf(3.0)) > 1e-8
            assert scipy.stats.kstest(tail[tail < 1], "uniform").pvalue > 1e-8
    octants = np.minimum(scipy.stats.norm.cdf(values) * 8, 7).astype(int)
    assert oracles.chi_square(np.bincount(octants @ [8, 1], minlength=64), np.ones(64)) > 1e-8
    neighbours = octants[:-1, 0] * 8 + octants[1:, 0]
    assert oracles.chi_square(np.bincount(neighbours, minlength=64), np.ones(64)) > 1e-8


@pytest.mark.parametrize("num_bins", [2, 7, 64, 3000])
def test_bins_are_uniform_and_tell_nothing_of_their_candidates(num_bins):
    """By chi-square: alone, in cells with the candidate's first dimension, which comes from the same word, and in cells with
    the first arrival; each fails once in 1e8.
    """
    indices = jnp.arange(2**20)
    bins = np.asarray(jax.jit(lambda: races.bins(KEY, indices, num_bins))())
    assert bins.min() == 0 and bins.max() == num_bins - 1
    assert oracles.chi_square(np.bincount(bins, minlength=num_bins), np.ones(num_bins)) > 1e-8
    normals = np.asarray(jax.jit(lambda: races.candidates(KEY, indices, 1)[:, 0])(), float)
    first = np.asarray(jax.jit(lambda: races.smallest_exponentials(KEY, indices))(), float)
    for quantile in (scipy.stats.norm.cdf(normals), -np.expm1(-first)):
        cells = bins * 16 + np.minimum(quantile * 16, 15).astype(int)
        assert (
            oracles.chi_square(np.bincount(cells, minlength=16 * num_bins), np.ones(16 * num_bins))
            > 1e-8
        )

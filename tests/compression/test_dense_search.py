"""Dense search against the definition on float64 arrays, and the laws of the noise that all parties share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from gls_jax import compression, races
from gls_jax.compression import ListCode, Normal
from tests import oracles

KEY = jax.random.key(11)
COUNT = 200
TIE = 1e-4  # of log-scores

CODES = [
    ListCode(1, 1000, 7, search="dense"),
    ListCode(2, 33, 33, search="dense"),
    ListCode(3, 1000, 10, 3, search="dense"),
    ListCode(2, 5000, 1, scheme="baseline", search="dense"),
    ListCode(4, 9001, 100, search="dense"),
]


def log_weights(candidates, row):
    """Of every symbol `n` and candidate, from float32 rows and candidates `[n, N, D]`."""
    mean, variance = (np.asarray(part, float)[:, None] for part in row)
    return ((candidates**2 - (candidates - mean) ** 2 / variance) / 2).sum(-1)


def rows(rng, dimension, variance):
    mean = rng.normal(size=(COUNT, dimension)) * np.sqrt(1 - variance)
    return Normal(mean.astype(np.float32), np.full((COUNT, dimension), variance, np.float32))


@pytest.mark.parametrize(
    "code", CODES, ids=lambda code: f"{code.scheme}-{code.num_candidates}-{code.num_bins}"
)
def test_dense_search_is_the_definition(code):
    """Every index and message, of a quarter of the symbols with a message that nobody sent.

    Only where the first two are within rounding of each other may float32 take the other one: once in 10^4 races.
    """
    rng = np.random.default_rng(3)
    keys = compression.symbol_keys(KEY, COUNT)
    source, sides = (
        rows(rng, code.dimension, 0.05),
        [rows(rng, code.dimension, 0.4) for _ in range(code.num_decoders)],
    )
    items, streams = jnp.arange(code.num_candidates), jnp.arange(code.num_streams)

    @jax.jit
    @jax.vmap
    def noise(key):
        clocks = jax.vmap(lambda stream: races.list_clocks(key, items, code.num_streams, stream))(
            streams
        )
        return (
            clocks,
            races.candidates(key, items, code.dimension),
            races.bins(key, items, code.num_bins),
        )

    clocks, candidates, bins = map(np.asarray, noise(keys))
    candidates = candidates.astype(float)
    of_source, of_sides = (
        log_weights(candidates, source),
        [log_weights(candidates, side) for side in sides],
    )
    strange = [None] * (3 * COUNT // 4) + rng.integers(0, code.num_bins, COUNT // 4).tolist()
    arrays = zip(clocks, of_source, np.stack(of_sides, 1), bins, strange, strict=True)
    winners, margins = map(np.array, zip(*(oracles.list_code(*one) for one in arrays), strict=True))

    sent = compression.encode(code, keys, compression.gaussian_density, (), source)
    np.testing.assert_array_equal(sent.message, bins[np.arange(COUNT), sent.index])
    found = [sent.index]
    messages = bins[np.arange(COUNT), winners[:, 0]]
    messages[3 * COUNT // 4 :] = strange[3 * COUNT // 4 :]
    for decoder, side in enumerate(sides):
        got = compression.decode(
            code, keys, messages, decoder, compression.gaussian_density, (), side
        )
        there = got.index >= 0
        # Not bit for bit: the last bit of a candidate depends on the program that computes it.
        np.testing.assert_allclose(
            got.candidate[there], candidates[there, got.index[there]], rtol=1e-6
        )
        found.append(got.index)
    assert (margins[np.stack(found, 1) != winners] < TIE).all()


# The noise


def same_law(streams):
    """Smallest p-value that `streams` [K, n] are independent Exp(1): each by Kolmogorov-Smirnov, all by chi-square in
    their quartiles, pairs by correlation of ranks.
    """
    values = [scipy.stats.kstest(stream, "expon").pvalue for stream in streams]
    quartiles = np.minimum(-np.expm1(-streams.astype(float)) * 4, 3).astype(int)
    cells = np.ravel_multi_index(tuple(quartiles), (4,) * len(streams))
    values.append(
        oracles.chi_square(
            np.bincount(cells, minlength=4 ** len(streams)), np.ones(4 ** len(streams))
        )
    )
    pairs = [(i, j) for j in range(len(streams)) for i in range(j)]
    values += [scipy.stats.spearmanr(streams[i], streams[j]).pvalue for i, j in pairs]
    return min(values)


@pytest.mark.parametrize("num_streams", [2, 3])
def test_clocks_of_a_list_are_independent_exponentials(num_streams):
    """2^16 items; at most 8 p-values, each below 1e-8 by chance with probability 1e-8. Three defects are caught."""
    items = jnp.arange(2**16)
    draw = jax.vmap(lambda stream: races.list_clocks(KEY, items, num_streams, stream))
    streams, first = (
        np.asarray(jax.jit(draw)(jnp.arange(num_streams))),
        np.asarray(races.first_clocks(KEY, items)),
    )
    assert same_law(streams) > 1e-8
    np.testing.assert_allclose(num_streams * streams.min(0), first, rtol=1e-6)
    owners = np.bincount(streams.argmin(0), minlength=num_streams)
    assert oracles.chi_square(owners, np.ones(num_streams)) > 1e-8
    always_the_same_owner = np.sort(streams, axis=0)
    own_clock_without_the_first = np.where(
        streams > streams.min(0), streams - streams.min(0), streams
    )
    one_stream_for_all = np.broadcast_to(first, streams.shape)
    for wrong in (always_the_same_owner, own_clock_without_the_first, one_stream_for_all):
        assert same_law(wrong) < 1e-8


def test_candidates_are_normal():
    """Both dimensions by Kolmogorov-Smirnov, their tails of 3 deviations apart, and jointly; each fails once in 1e8."""
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
    """By chi-square, alone and in cells with sign and quantile of the candidate's first dimension, whose word they
    share, and with the first clock; each fails once in 1e8.
    """
    items = jnp.arange(2**20)
    bins = np.asarray(jax.jit(lambda: races.bins(KEY, items, num_bins))())
    assert bins.min() == 0 and bins.max() == num_bins - 1
    assert oracles.chi_square(np.bincount(bins, minlength=num_bins), np.ones(num_bins)) > 1e-8
    normals, clocks = jax.jit(
        lambda: (races.candidates(KEY, items, 1)[:, 0], races.first_clocks(KEY, items))
    )()
    for quantile in (
        scipy.stats.norm.cdf(np.asarray(normals, float)),
        -np.expm1(-np.asarray(clocks, float)),
    ):
        cells = bins * 16 + np.minimum(quantile * 16, 15).astype(int)
        assert (
            oracles.chi_square(np.bincount(cells, minlength=16 * num_bins), np.ones(16 * num_bins))
            > 1e-8
        )

"""The posterior mean of the source, against Bayes' rule by brute force.

The oracle runs the encoder in float64 on arrays for a fine grid of sources, and puts the prior on those that send the
message. Given all shared noise and the side information, the mean squared error of any other estimate is larger by exactly
``(estimate - best)^2``: its excess, which is free of the noise of the source.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gls_jax import compression, races
from gls_jax.compression import GaussianCodec, GaussianSource
from gls_jax.compression.gaussian import posterior_mean
from gls_jax.compression.gaussian.estimators import Observation

JOINT = GaussianSource(target_variance=0.1, side_variance=0.5)
COUNT, SIZE, BINS = 200, 256, 16
GRID = np.linspace(-5, 5, 1001)  # of sources: a thirtieth of the target's standard deviation apart
CODEC = GaussianCodec(2, SIZE, BINS, JOINT.target_variance, JOINT.side_variance, search="dense")


@pytest.fixture(scope="module")
def problem():
    """Keys, sources, side information, messages and the best estimates."""
    rng, indices = np.random.default_rng(0), jnp.arange(SIZE)
    keys = compression.symbol_keys(jax.random.key(0), COUNT)
    source = rng.normal(size=COUNT)
    side = source + rng.normal(size=COUNT) * JOINT.side_variance**0.5

    @jax.jit
    @jax.vmap
    def shared(key):
        candidates = races.candidates(key, indices, 1)[:, 0]
        return candidates, races.smallest_exponentials(key, indices), races.bins(key, indices, BINS)

    candidates, noise, bins = (np.asarray(array, np.float64) for array in shared(keys))

    def sent(symbol, sources):
        """Messages for the given sources, `[G]`."""
        u = candidates[symbol]
        distance = (JOINT.scale * u - np.asarray(sources)[:, None]) ** 2
        scores = np.log(noise[symbol]) + distance / (2 * JOINT.target_variance) - u**2 / 2
        return bins[symbol][np.argmin(scores, axis=1)]

    message, best = [], []
    for symbol in range(COUNT):
        message.append(sent(symbol, [source[symbol]])[0])
        prior = np.exp(-((GRID - side[symbol] / 1.5) ** 2) * 1.5 / 0.5 / 2)
        posterior = prior * (sent(symbol, GRID) == message[-1])
        best.append(posterior @ GRID / posterior.sum())
    return keys, source, side, np.array(message, np.int32), np.array(best)


def estimate(joint, keys, message, side, progress=None):
    observed = Observation(CODEC.code, joint, keys, message, side, np.full(COUNT, np.nan), progress)
    return posterior_mean.posterior_mean(observed)


def excess(problem, estimate):
    return np.mean((estimate - problem[-1]) ** 2)


def test_messages_are_those_of_the_brute_force(problem):
    keys, source, _, message, _ = problem
    # One symbol may differ, by a tie of rounding.
    assert (CODEC.send(keys, source).message != message).sum() <= 1


def test_posterior_mean_is_the_best_estimate(problem):
    """Far nearer to the best estimate than the plug-in and the zero-rate estimates are; the decoders agree."""
    keys, _, side, message, _ = problem
    result = CODEC.receive(keys, message, side, 0, estimator="posterior_mean")
    plug_in = CODEC.receive(keys, message, side, 0).estimate
    rivals = min(excess(problem, plug_in), excess(problem, JOINT.zero_rate(side)))
    assert excess(problem, result.estimate) < 0.03 * rivals
    # It does not depend on the decoder's stream.
    other = CODEC.receive(keys, message, side, 1, estimator="posterior_mean")
    np.testing.assert_array_equal(result.estimate, other.estimate)


def test_finer_grids_are_nearer(problem, monkeypatch):
    keys, _, side, message, _ = problem
    coarse = estimate(JOINT, keys, message, side)
    monkeypatch.setattr(posterior_mean, "_POINTS_PER_DEVIATION", 32.0)
    monkeypatch.setattr(posterior_mean, "_ENCODINGS_AT_ONCE", 10_000)
    reports = []
    fine = estimate(JOINT, keys, message, side, progress=lambda *done: reports.append(done))
    assert excess(problem, fine) < 0.3 * excess(problem, coarse)
    assert reports[-1] == (COUNT, COUNT) and len(reports) > 1


def test_planted_defects_are_caught(problem):
    """Side information treated as noise; messages of other symbols."""
    keys, _, side, message, _ = problem
    rival = 0.03 * excess(problem, JOINT.zero_rate(side))
    careless = GaussianSource(JOINT.target_variance, side_variance=1e6)
    assert excess(problem, estimate(careless, keys, message, side)) > rival
    assert excess(problem, estimate(JOINT, keys, np.roll(message, 1), side)) > rival


def test_impossible_messages_give_the_zero_rate_estimate(problem):
    """With four candidates, no source on the grid sends bin 0 for some of the symbols."""
    codec = GaussianCodec(1, 4, 4, 0.001, 0.5)
    keys, _, side, _, _ = problem
    message = np.zeros(COUNT, np.int32)
    result = codec.receive(keys, message, side, 0, estimator="posterior_mean").estimate
    is_zero_rate = result == JOINT.zero_rate(np.float32(side)).astype(np.float32)
    assert 0 < is_zero_rate.sum() < COUNT and np.isfinite(result).all()

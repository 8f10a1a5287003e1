"""The estimate that trusts no winner, against Bayes' rule by brute force.

The oracle runs the encoder in float64 on arrays for a fine grid of sources and puts the prior on those that send the
message. Given all shared noise and the side information, any other estimate's mean squared error is larger by exactly
``(estimate - best)^2``: its excess, free of the noise of the source.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gls_jax import compression, races
from gls_jax.compression import GaussianCodec, GaussianSource, gaussian_posterior

LAW = GaussianSource(target_variance=0.1, side_variance=0.5)
COUNT, SIZE, BINS = 200, 256, 16
GRID = np.linspace(-5, 5, 1001)  # of sources: a thirtieth of the target's standard deviation apart
CODEC = GaussianCodec(2, SIZE, BINS, LAW.target_variance, LAW.side_variance, search="dense")


@pytest.fixture(scope="module")
def ask():
    """Keys, sources, side information, messages and the best estimates."""
    rng, keys, items = (
        np.random.default_rng(0),
        compression.symbol_keys(jax.random.key(0), COUNT),
        jnp.arange(SIZE),
    )
    source = rng.normal(size=COUNT)
    side = source + rng.normal(size=COUNT) * LAW.side_variance**0.5

    @jax.jit
    @jax.vmap
    def shared(key):
        return (
            races.candidates(key, items, 1)[:, 0],
            races.first_clocks(key, items),
            races.bins(key, items, BINS),
        )

    message, best = [], []
    for a, t, u, clock, bins in zip(
        source, side, *(np.asarray(x, np.float64) for x in shared(keys)), strict=True
    ):

        def sent(sources, u=u, clock=clock, bins=bins):
            distance = (LAW.scale * u - np.asarray(sources)[:, None]) ** 2
            return bins[
                np.argmin(np.log(clock) + distance / (2 * LAW.target_variance) - u**2 / 2, axis=1)
            ]

        message.append(sent([a])[0])
        posterior = np.exp(-((GRID - t / 1.5) ** 2) * 1.5 / 0.5 / 2) * (sent(GRID) == message[-1])
        best.append(posterior @ GRID / posterior.sum())
    return keys, source, side, np.array(message, np.int32), np.array(best)


def excess(ask, estimate):
    return np.mean((estimate - ask[-1]) ** 2)


def test_messages_are_those_of_the_brute_force(ask):
    keys, source, _, message, _ = ask
    assert (CODEC.send(keys, source).message != message).sum() <= 1  # a tie of rounding


def test_posterior_mean_is_the_best_estimate(ask):
    """Far nearer to it than trust and silence are; the decoders agree."""
    keys, _, side, message, _ = ask
    found = CODEC.receive(keys, message, side, 0, estimator="posterior_mean")
    trusting = CODEC.receive(keys, message, side, 0).estimate
    rivals = min(excess(ask, trusting), excess(ask, LAW.zero_rate(side)))
    assert excess(ask, found.estimate) < 0.03 * rivals
    other = CODEC.receive(keys, message, side, 1, estimator="posterior_mean")
    np.testing.assert_array_equal(found.estimate, other.estimate)  # no stream of its own


def test_finer_grids_are_nearer(ask, monkeypatch):
    keys, _, side, message, _ = ask
    coarse = gaussian_posterior.mean(CODEC.code, LAW, keys, message, side)
    monkeypatch.setattr(gaussian_posterior, "_PER_TARGET", 32.0)
    monkeypatch.setattr(gaussian_posterior, "_AT_ONCE", 10_000)
    reports = []
    fine = gaussian_posterior.mean(
        CODEC.code, LAW, keys, message, side, progress=lambda *at: reports.append(at)
    )
    assert excess(ask, fine) < 0.3 * excess(ask, coarse)
    assert reports[-1] == (COUNT, COUNT) and len(reports) > 1


def test_forgotten_parts_are_caught(ask):
    """Planted: side information taken for noise; messages of other symbols."""
    keys, _, side, message, _ = ask
    rival = 0.03 * excess(ask, LAW.zero_rate(side))
    careless = GaussianSource(LAW.target_variance, side_variance=1e6)
    assert excess(ask, gaussian_posterior.mean(CODEC.code, careless, keys, message, side)) > rival
    assert (
        excess(ask, gaussian_posterior.mean(CODEC.code, LAW, keys, np.roll(message, 1), side))
        > rival
    )


def test_impossible_messages_are_silence(ask):
    """One bin of four members, far away: where no source sends the message, the estimate hears nothing."""
    codec = GaussianCodec(1, 4, 4, 0.001, 0.5)
    keys, _, side, _, _ = ask
    message = np.zeros(COUNT, np.int32)
    found = codec.receive(keys, message, side, 0, estimator="posterior_mean").estimate
    silent = found == LAW.zero_rate(np.float32(side)).astype(np.float32)
    assert 0 < silent.sum() < COUNT and np.isfinite(found).all()

"""The estimate that trusts no winner, against Bayes' rule by brute force on problems of a few hundred candidates.

Whoever holds the shared noise can run the encoder for any source `a`: ``P(a | t, message, noise)`` is ``p(a | t)``
where that run sends the message, and 0 elsewhere. Its mean `best` is the best estimate there is, and given all but the
source any other estimate's mean squared error is larger by exactly ``(estimate - best)^2``: its excess, free of the
noise of the source.

`posterior_mean` looks at the clocks of the bin alone. With the other candidates' noise averaged out instead of known,
the chance that the bin wins against `n` others at score `s` is ``E[exp(-s w)]^n``: that posterior it should meet.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gls_jax import compression, races
from gls_jax.compression import GaussianCodec, GaussianSource, ListCode, dense, gaussian_posterior

LAW = GaussianSource(target_variance=0.1, side_variance=0.5)
COUNT = 400
GRID = np.linspace(-5, 5, 401)  # of sources: a twelfth of the target's standard deviation apart


class Problem(NamedTuple):
    code: ListCode
    keys: jax.Array
    source: np.ndarray
    side: np.ndarray
    message: np.ndarray
    best: np.ndarray  # posterior mean given all noise
    modest: np.ndarray  # given the noise of the bin alone


def problem(num_candidates, num_bins, seed=0):
    """Random symbols of a code, the encoder's messages and both posterior means."""
    code = ListCode(2, num_candidates, num_bins, search="dense")
    rng = np.random.default_rng(seed)
    source = rng.normal(size=COUNT)
    side = source + rng.normal(size=COUNT) * LAW.side_variance**0.5
    keys = compression.symbol_keys(jax.random.key(seed), COUNT)
    items = jnp.arange(num_candidates)
    draw = jax.jit(
        jax.vmap(
            lambda k: (
                races.candidates(k, items, 1)[:, 0],
                races.first_clocks(k, items),
                races.bins(k, items, num_bins),
            )
        )
    )
    normals, clocks, bins = map(np.asarray, draw(keys))
    message, best, modest = [], [], []
    for a, t, u, e, bin_ in zip(source, side, normals.astype(float), clocks.astype(float), bins, strict=True):
        message.append(bin_[np.argmin(log_scores(u, e, np.array([a])))])
        scores, inside = log_scores(u, e, GRID), bin_ == message[-1]
        prior = -((GRID - t / (1 + LAW.side_variance)) ** 2) * (1 + LAW.side_variance) / LAW.side_variance / 2
        best.append(mean(np.where(inside[scores.argmin(1)], prior, -np.inf)))
        modest.append(mean(prior + (~inside).sum() * log_survival(scores[:, inside].min(1))))
    return Problem(code, keys, source, side, np.array(message, np.int32), np.array(best), np.array(modest))


def log_scores(normals, clocks, sources):
    """``log(E_i / w_i(a))``, `[sources, N]`, with weights of mean 1."""
    weights = np.log(LAW.scale / LAW.target_variance**0.5) + normals**2 / 2
    return np.log(clocks) - weights + (LAW.scale * normals - sources[:, None]) ** 2 / (2 * LAW.target_variance)


def log_survival(log_score):
    """``log E[exp(-s w(a))]`` for every source and its score `s`: one other candidate is later."""
    later = np.exp(-np.exp(np.minimum(log_score, 50))[:, None] * WEIGHTS)
    return np.log(later @ NORMAL + 1e-300)


def mean(log_posterior):
    posterior = np.exp(log_posterior - log_posterior.max())
    return posterior @ GRID / posterior.sum()


NODES = np.linspace(-7, 7, 281)  # of candidates: six to a standard deviation of the target
NORMAL = np.exp(-(NODES**2) / 2) / np.exp(-(NODES**2) / 2).sum()
WEIGHTS = np.exp(-log_scores(NODES, 1.0, GRID))


def estimates(ask, law=LAW):
    return gaussian_posterior.mean(ask.code, law, ask.keys, ask.message, ask.side)


def distances(ask, estimate):
    """Mean squares: from the posterior mean given the bin's noise, and the excess over the best estimate."""
    return float(np.mean((estimate - ask.modest) ** 2)), float(np.mean((estimate - ask.best) ** 2))


PROBLEMS = {(256, 16): 0.01, (100, 5): 0.015}


@pytest.fixture(scope="module", params=PROBLEMS, ids=str)
def ask(request):
    return problem(*request.param)


one = pytest.mark.parametrize("ask", [(256, 16)], indirect=True)


def faults(ask, estimate):
    """What is wrong with an estimate of the posterior mean.

    Over eight seeds the first distance was .0015 with standard deviation .0008 at (256, 16), .0063 and .0006 at
    (100, 5); the excess .23 and .42 of the lesser rival's with deviations .07 and .05. The bars are 5.5 deviations
    off or more: another seed fails with probability below 1e-6.
    """
    near, excess = distances(ask, estimate)
    found = compression.decode(
        ask.code, ask.keys, ask.message, 0, compression.gaussian_density, (), LAW.target_given_side(ask.side)
    )
    trusting = LAW.estimate(found.candidate[:, 0] * LAW.scale, ask.side)
    wrong = ["not the bin's posterior mean"] * (near > PROBLEMS[ask.code.num_candidates, ask.code.num_bins])
    wrong += ["no better than trust"] * (excess > 0.7 * distances(ask, trusting)[1])
    return wrong + ["no better than silence"] * (excess > 0.7 * distances(ask, LAW.zero_rate(ask.side))[1])


def test_messages_are_those_of_the_brute_force(ask):
    """Ties of rounding aside."""
    rows = LAW.target_given_source(ask.source)
    sent = compression.encode(ask.code, ask.keys, compression.gaussian_density, (), rows)
    assert (sent.message != ask.message).sum() <= 1


def test_posterior_mean_is_that_of_its_bin_and_beats_trust_and_silence(ask):
    assert faults(ask, estimates(ask)) == []


@one
def test_clocks_that_are_twice_as_long_are_caught(ask, monkeypatch, recompiled):
    clocks = races.first_clocks
    monkeypatch.setattr(gaussian_posterior.races, "first_clocks", lambda key, items: 2 * clocks(key, items))
    assert "not the bin's posterior mean" in faults(ask, recompiled(ask))


@one
def test_a_forgotten_prior_is_caught(ask):
    """Side information taken for noise."""
    careless = GaussianSource(LAW.target_variance, side_variance=1e6)
    assert len(faults(ask, estimates(ask, careless))) == 3


@one
def test_page_size_does_not_matter(ask, monkeypatch, recompiled):
    """Up to the order of a float32 sum."""
    assert dense._page(ask.code) == 32
    expected = estimates(ask)
    monkeypatch.setattr(dense, "_page", lambda code: 7)
    np.testing.assert_allclose(recompiled(ask), expected, atol=1e-5)


def test_ordered_search_is_refused():
    """Its clocks are others."""
    codec = GaussianCodec(2, 100, 5, 0.1, 0.5)
    with pytest.raises(ValueError, match="posterior_mean needs the clocks of search 'dense', got 'ordered'") as caught:
        codec.decode(codec.pack(0, np.zeros(3, np.int32)), np.zeros(3), 0, estimator="posterior_mean")
    assert "\n" not in str(caught.value)


@pytest.fixture
def recompiled():
    """`estimates` with what is patched now; nothing of it stays."""
    gaussian_posterior._means.clear_cache()
    yield estimates
    gaussian_posterior._means.clear_cache()

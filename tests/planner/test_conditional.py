"""Kernels: the distribution of the drafts given the emitted token is that of `propose` and `verify`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gls_jax import schemes
from gls_jax.planner import conditional
from gls_jax.schemes import block, gls
from tests import oracles
from tests.problems import NUM_DRAFTS, NUM_ITEMS, PROBLEMS, logs, many

pytestmark = pytest.mark.usefixtures("quick_compilation")

# A family of 18 tests: a correct kernel fails one of them with probability below 1e-7.
TRIALS, ALPHA = 50_000, 1e-9


def each_token_first(probabilities):
    """`[N, N]`: row y has token y in column 0."""
    tokens = np.arange(NUM_ITEMS)
    others = np.array([[token for token in tokens if token != y] for y in tokens])
    return probabilities[np.concatenate([tokens[:, None], others], axis=1)]


def drafts_of(name):
    return min(NUM_DRAFTS, schemes.get(name).max_drafts or NUM_DRAFTS)


def kernels(name, p, q):
    """`[pairs, token, J, J']`."""
    log_p = logs(np.concatenate([each_token_first(row) for row in p]))
    log_q = logs(np.concatenate([each_token_first(row) for row in q]))
    stacked = conditional.kernels(log_p, log_q, scheme=name, num_drafts=drafts_of(name))
    return stacked.reshape(len(p), NUM_ITEMS, *stacked.shape[1:])


def without_ties(name, p):
    """A scheme that drafts the likeliest tokens breaks ties by index, which its kernel cannot see."""
    if schemes.get(name).samples_drafts:
        return p
    p = p * (1 - 1e-4 * np.arange(NUM_ITEMS))
    return p / p.sum(-1, keepdims=True)


@pytest.mark.parametrize("name", conditional.NAMES)
def test_average_over_tokens_is_the_exact_acceptance(name):
    counts = tuple(range(1, drafts_of(name) + 1))
    random_p, random_q = many(20)
    p = np.concatenate([np.array([p for p, _ in PROBLEMS.values()]), random_p])
    q = np.concatenate([np.array([q for _, q in PROBLEMS.values()]), random_q])
    p = without_ties(name, p)

    @jax.jit
    @jax.vmap
    def exact(log_p, log_q):
        if name == "gls_strong":
            return jnp.stack([gls.acceptance_active(log_p, log_q, j, counts[-1]) for j in counts])
        return schemes.get(name).acceptance_curve(log_p, log_q, counts)

    kernel = kernels(name, p, q)
    np.testing.assert_allclose(kernel.sum(-1)[q > 0], 1, atol=2e-6)
    accepted = 1 - kernel[:, :, 1:, 0]
    average = np.where(q[..., None] > 0, q[..., None] * accepted, 0).sum(axis=1)
    np.testing.assert_allclose(average, exact(logs(p), logs(q)), atol=5e-6)


@pytest.mark.parametrize("name", conditional.NAMES)
def test_number_of_drafts_that_equal_the_token(name):
    """The joint distribution of the token and of the number of drafts that equal it, against trials."""
    scheme, count = schemes.get(name), drafts_of(name)

    @jax.jit
    def trials(key, log_p, log_q):
        def trial(key):
            drafts = scheme.propose(key, log_p, count)
            token = scheme.verification.verify(key, drafts, log_p, log_q, jnp.ones(count, bool))
            return token * (count + 1) + jnp.sum(drafts == token)

        outcomes = jax.lax.map(trial, jax.random.split(key, TRIALS), batch_size=1000)
        return jnp.bincount(outcomes, length=NUM_ITEMS * (count + 1))

    for kind in ("plain", "zeros in p"):
        p, q = PROBLEMS[kind]
        p = without_ties(name, p)
        kernel = kernels(name, p[None], q[None])[0, :, count]
        expected = np.where(q[:, None] > 0, q[:, None] * kernel, 0).ravel()
        counts = np.asarray(trials(jax.random.key(5), logs(p), logs(q)))
        assert oracles.chi_square(counts, expected) > ALPHA
        if kind == "plain" and count > 1:  # the easy mistake: the winner's distribution for all
            wrong = np.roll(expected.reshape(NUM_ITEMS, -1), 1, axis=0).ravel()
            assert oracles.chi_square(counts, wrong) < ALPHA


@pytest.mark.parametrize("name", conditional.NAMES)
def test_impossible_token_is_the_limit_of_an_unlikely_one(name):
    """At the edge of top-k the distribution read again may differ in the last bit from the sampled one."""
    p = np.array([[0.3, 0.7, 0.0], [0.0, 0.7, 0.3], [1.0, 0.0, 0.0]])

    def kernel(probability):
        q = np.array([[probability, 0.6 - probability, 0.4]] * 3)
        return conditional.kernels(logs(p), logs(q), scheme=name, num_drafts=drafts_of(name))

    impossible, unlikely = kernel(0), kernel(1e-7)
    np.testing.assert_allclose(impossible, unlikely, atol=1e-5)
    # A token that is never drafted is never accepted.
    np.testing.assert_allclose(impossible[1, :, 0], 1, atol=1e-6)


def test_likelihood_ratio_of_impossible_tokens():
    ratio = block.likelihood_ratio(
        logs(np.array([[0.0, 1.0], [0.5, 0.5]])), logs(np.array([[0.0, 1.0]] * 2))
    )
    assert ratio[0] == 0 and 1e6 < ratio[1] < np.inf


def test_unknown_scheme_is_refused():
    with pytest.raises(ValueError, match=r"scheme: expected one of gls, .*, got 'traversal'"):
        conditional.kernels(np.zeros((1, 1)), np.zeros((1, 1)), scheme="traversal", num_drafts=1)
